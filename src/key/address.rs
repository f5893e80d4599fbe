//! Extracts the IPv4 address embedded in an IPv6 address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The address to charge for a client: the embedded IPv4 address, if there is one.
///
/// | address | counts as |
/// |---|---|
/// | `::ffff:0:0/96`, IPv4-mapped (RFC 4291 §2.5.5.2) | the IPv4 address |
/// | `64:ff9b::/96`, NAT64 (RFC 6052 §2.1) | the IPv4 address: one /64 holds all of IPv4 |
/// | `2002::/16`, 6to4 (RFC 3056 §2) | the IPv4 address: one host has 65,536 networks of /64 |
/// | `2001::/32`, Teredo (RFC 4380 §4) | the client's IPv4 address: the client chooses the bits before it |
/// | `64:ff9b:1::/48`, local NAT64 (RFC 8215) | itself: the position of the IPv4 address depends on the network |
/// | ISATAP (RFC 5214 §6.1) | itself: a host chooses these bits within its own /64 |
pub(super) fn charged(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => embedded_v4(v6).map_or(IpAddr::V6(v6), IpAddr::V4),
        v4 => v4,
    }
}

fn embedded_v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let bits = address.to_bits();
    // `as u32` keeps the low 32 bits.
    match address.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, ..] => Some(Ipv4Addr::from_bits(bits as u32)),
        [0x2002, ..] => Some(Ipv4Addr::from_bits((bits >> 80) as u32)),
        // Teredo inverts the address so that no NAT on the path rewrites it.
        [0x2001, 0, ..] => Some(Ipv4Addr::from_bits(!bits as u32)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_embedded_ipv4_address_is_charged() {
        for (address, expected) in [
            ("::ffff:192.0.2.33", "192.0.2.33"),
            ("64:ff9b::192.0.2.33", "192.0.2.33"),
            ("64:ff9b::c000:221", "192.0.2.33"),
            ("2002:c000:0221::", "192.0.2.33"),
            ("2002:c000:0221:ffff:1:2:3:4", "192.0.2.33"),
            ("2001:0:4136:e378:8000:63bf:3fff:fdde", "192.0.2.33"),
            // Outside these networks.
            ("64:ff9b::1:192.0.2.33", "64:ff9b::1:192.0.2.33"),
            ("64:ff9b:1::192.0.2.33", "64:ff9b:1::192.0.2.33"),
            ("2001:db8::5efe:192.0.2.33", "2001:db8::5efe:192.0.2.33"),
            ("2001:1::1", "2001:1::1"),
            ("2003:c000:221::", "2003:c000:221::"),
            ("::192.0.2.33", "::192.0.2.33"),
            ("192.0.2.33", "192.0.2.33"),
        ] {
            let expected: IpAddr = expected.parse().unwrap();
            assert_eq!(charged(address.parse().unwrap()), expected, "{address}");
        }
    }
}
