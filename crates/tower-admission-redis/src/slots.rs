//! Hash slots of a cluster: the slot of a key, and the server of a slot.

use std::sync::Arc;

use redis::Value;

use super::url::Address;

/// The number of slots in every cluster.
pub(super) const SLOTS: usize = 16_384;

/// The slot of a key: the hash of the part in braces, if there is one.
pub(super) fn slot(key: &[u8]) -> u16 {
    crc16(hash_tag(key)) % SLOTS as u16
}

fn hash_tag(key: &[u8]) -> &[u8] {
    let Some(open) = key.iter().position(|byte| *byte == b'{') else {
        return key;
    };
    let rest = &key[open + 1..];
    match rest.iter().position(|byte| *byte == b'}') {
        // Empty braces are no tag.
        None | Some(0) => key,
        Some(close) => &rest[..close],
    }
}

/// CRC-16/XMODEM: polynomial 0x1021, initial value 0, nothing reflected.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc: u16, byte| {
        (crc << 8) ^ TABLE[usize::from((crc >> 8) as u8 ^ byte)]
    })
}

const TABLE: [u16; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = (byte as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            let carry = crc & 0x8000 != 0;
            crc <<= 1;
            if carry {
                crc ^= 0x1021;
            }
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

/// A range of slots of one master, inclusive.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) first: u16,
    pub(super) last: u16,
    pub(super) master: Address,
}

/// Parses an answer to `CLUSTER SLOTS` from the node at `asked`. Leaves out unreadable ranges, and masters whose host
/// is unknown to their cluster.
pub(super) fn ranges(answer: &Value, asked: &Address) -> Vec<Range> {
    let Value::Array(found) = answer else {
        return Vec::new();
    };
    // No cluster has more ranges than slots.
    let found = found.iter().take(SLOTS);
    found.filter_map(|range| read(range, asked)).collect()
}

fn read(range: &Value, asked: &Address) -> Option<Range> {
    let Value::Array(parts) = range else {
        return None;
    };
    // The master comes first, then its replicas.
    let [first, last, Value::Array(master), ..] = parts.as_slice() else {
        return None;
    };
    let [host, port, ..] = master.as_slice() else {
        return None;
    };
    let host = match host {
        Value::Nil => "",
        Value::BulkString(host) => str::from_utf8(host).ok()?,
        Value::SimpleString(host) => host,
        _ => return None,
    };
    let (first, last) = (slot_number(first)?, slot_number(last)?);
    let Value::Int(port) = port else {
        return None;
    };
    let master = reached_from(asked, host, u16::try_from(*port).ok()?)?;
    (first <= last).then_some(Range {
        first,
        last,
        master,
    })
}

fn slot_number(value: &Value) -> Option<u16> {
    let Value::Int(number) = value else {
        return None;
    };
    let number = u16::try_from(*number).ok()?;
    (usize::from(number) < SLOTS).then_some(number)
}

/// The address in a redirection, such as `127.0.0.1:7000`, `::1:7000` and `:7000`.
pub(super) fn redirection(to: &str, asked: &Address) -> Option<Address> {
    // The port follows the last colon: an IPv6 address has no brackets here.
    let (host, port) = to.rsplit_once(':')?;
    reached_from(asked, host, port.parse().ok()?)
}

fn reached_from(asked: &Address, host: &str, port: u16) -> Option<Address> {
    let host = match (host, asked) {
        (_, _) if port == 0 => return None,
        // The node does not know its announced name.
        ("?", _) => return None,
        // The host of the node that answered.
        ("", Address::Tcp(host, _)) => host.clone(),
        ("", Address::Unix(_)) => return None,
        (host, _) => Arc::from(host),
    };
    Some(Address::Tcp(host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(host: &str, port: u16) -> Address {
        Address::Tcp(host.into(), port)
    }

    /// Values of the cluster specification and of `CLUSTER KEYSLOT`.
    #[test]
    fn a_key_has_the_slot_that_redis_computes() {
        assert_eq!(crc16(b"123456789"), 0x31C3);
        for (key, expected) in [
            ("", 0),
            ("foo", 12182),
            ("bar", 5061),
            ("hello", 866),
            ("somekey", 11058),
            ("foo{hash_tag}", 2515),
        ] {
            assert_eq!(slot(key.as_bytes()), expected, "{key:?}");
        }
    }

    #[test]
    fn only_the_first_non_empty_braces_are_a_tag() {
        for (key, tag) in [
            ("{user1000}.following", "user1000"),
            ("foo{}{bar}", "foo{}{bar}"),
            ("foo{{bar}}zap", "{bar"),
            ("foo{bar}{zap}", "bar"),
            ("foo{bar", "foo{bar"),
            ("foo}bar{zap}", "zap"),
            ("{}", "{}"),
        ] {
            assert_eq!(hash_tag(key.as_bytes()), tag.as_bytes(), "{key}");
        }
    }

    fn node(host: Value, port: i64) -> Value {
        let id = Value::BulkString(b"09dbe9720cda62f7865eabc5fd8857c5d2678366".to_vec());
        Value::Array(vec![host, Value::Int(port), id])
    }

    fn text(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    fn of(first: i64, last: i64, nodes: Vec<Value>) -> Value {
        let mut parts = vec![Value::Int(first), Value::Int(last)];
        parts.extend(nodes);
        Value::Array(parts)
    }

    #[test]
    fn an_answer_names_the_master_of_each_range() {
        let answer = Value::Array(vec![
            of(
                0,
                5460,
                vec![node(text("10.0.0.1"), 7000), node(text("10.0.0.9"), 7009)],
            ),
            of(5461, 5461, vec![node(text("2001:db8::1"), 7001)]),
            of(5462, 5463, vec![node(text(""), 7002)]),
            of(5464, 5465, vec![node(Value::Nil, 7003)]),
            of(5466, 5467, vec![node(text("?"), 7004)]),
        ]);
        let found = ranges(&answer, &tcp("seed", 1));
        let masters: Vec<_> = found
            .iter()
            .map(|range| (range.first, range.last, range.master.clone()))
            .collect();
        assert_eq!(
            masters,
            [
                (0, 5460, tcp("10.0.0.1", 7000)),
                (5461, 5461, tcp("2001:db8::1", 7001)),
                (5462, 5463, tcp("seed", 7002)),
                (5464, 5465, tcp("seed", 7003)),
            ]
        );
    }

    #[test]
    fn an_invalid_range_is_left_out() {
        let one = || node(text("a"), 7000);
        for answer in [
            Value::Nil,
            text("0-16383"),
            Value::Array(vec![Value::Nil]),
            Value::Array(vec![of(0, 16384, vec![one()])]),
            Value::Array(vec![of(-1, 5, vec![one()])]),
            Value::Array(vec![of(7, 5, vec![one()])]),
            Value::Array(vec![of(0, 5, vec![])]),
            Value::Array(vec![of(0, 5, vec![Value::Array(vec![])])]),
            Value::Array(vec![of(0, 5, vec![node(text("a"), 0)])]),
            Value::Array(vec![of(0, 5, vec![node(text("a"), 65_536)])]),
            Value::Array(vec![of(0, 5, vec![node(Value::Int(1), 7000)])]),
            Value::Array(vec![of(0, 5, vec![node(Value::BulkString(vec![0xff]), 1)])]),
        ] {
            assert_eq!(ranges(&answer, &tcp("seed", 1)), [], "{answer:?}");
        }
    }

    #[test]
    fn a_redirection_names_an_address() {
        let asked = tcp("10.0.0.1", 1);
        for (to, expected) in [
            ("127.0.0.1:6381", Some(tcp("127.0.0.1", 6381))),
            ("::1:6381", Some(tcp("::1", 6381))),
            ("node.example:6381", Some(tcp("node.example", 6381))),
            (":6381", Some(tcp("10.0.0.1", 6381))),
            ("?:6381", None),
            ("127.0.0.1", None),
            ("127.0.0.1:", None),
            ("127.0.0.1:0", None),
            ("127.0.0.1:65536", None),
        ] {
            assert_eq!(redirection(to, &asked), expected, "{to}");
        }
        assert_eq!(redirection(":1", &Address::Unix("/run/redis".into())), None);
    }
}
