//! Parses the addresses in `X-Forwarded-For` and `Forwarded`, from right to left.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The entries of one line, from right to left. `None` for an entry that is not an address.
pub(super) type Hops<'a> = Box<dyn Iterator<Item = Option<IpAddr>> + 'a>;

/// Parses a header value that must be a single address.
pub(super) fn single_address(value: &[u8]) -> Option<IpAddr> {
    address(str::from_utf8(value.trim_ascii()).ok()?)
}

/// `client, proxy1, proxy2`
pub(super) fn x_forwarded_for(line: &[u8]) -> Hops<'_> {
    Box::new(line.rsplit(|b| *b == b',').map(single_address))
}

/// `for=192.0.2.43;proto=http, for="[2001:db8:cafe::17]:4711"` (RFC 7239 §4)
pub(super) fn forwarded(line: &[u8]) -> Hops<'_> {
    Box::new(rsplit_unquoted(line, b',').map(forwarded_for))
}

/// The address in the `for` parameter of one element. The parameter must occur exactly once.
fn forwarded_for(element: &[u8]) -> Option<IpAddr> {
    let mut found = None;
    for pair in rsplit_unquoted(element, b';') {
        let pair = str::from_utf8(pair).ok()?.trim();
        let (name, value) = pair.split_once('=')?;
        let value = unquoted(value)?;
        if name.eq_ignore_ascii_case("for") && found.replace(value).is_some() {
            return None;
        }
    }
    address(found?)
}

/// The text of a token or a quoted string (RFC 9110 §5.6.4). Escapes stay, because no address needs
/// one. `None` when a quote is anywhere but at both ends.
fn unquoted(value: &str) -> Option<&str> {
    let Some(quoted) = value.strip_prefix('"') else {
        return (!value.contains(['"', '\\'])).then_some(value);
    };
    let text = quoted.strip_suffix('"')?;
    let mut escaped = false;
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return None,
            _ => {}
        }
    }
    (!escaped).then_some(text)
}

/// Parses an address as proxies write it: with or without a port, IPv6 with or without brackets.
fn address(text: &str) -> Option<IpAddr> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(address);
    }
    if let Some(v6) = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
    {
        return v6.parse::<Ipv6Addr>().ok().map(IpAddr::V6);
    }
    if let Ok(socket) = text.parse::<SocketAddr>() {
        return Some(socket.ip());
    }
    // A port may be obfuscated (RFC 7239 §6.3): `192.0.2.1:_http`.
    let (host, port) = text.rsplit_once(':')?;
    let obfuscated = port.strip_prefix('_').is_some_and(|rest| {
        !rest.is_empty()
            && rest
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
    });
    if !obfuscated {
        return None;
    }
    match host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
    {
        Some(v6) => v6.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        None => host.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
    }
}

/// Splits outside of quoted strings, from right to left.
///
/// Quotes must pair up from the right end, where the nearest proxy writes. Paired from the left, a
/// quote that a client leaves open would pair with a quote of a proxy, and an entry of the proxy
/// would look like a part of the client's entry.
fn rsplit_unquoted(text: &[u8], separator: u8) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest.take()?;
        let mut quoted = false;
        for at in (0..text.len()).rev() {
            match text[at] {
                b'"' => quoted = !quoted || is_escaped(&text[..at]),
                byte if byte == separator && !quoted => {
                    rest = Some(&text[..at]);
                    return Some(&text[at + 1..]);
                }
                _ => {}
            }
        }
        Some(text)
    })
}

/// Whether the next byte is escaped. An even number of backslashes escape each other.
fn is_escaped(before: &[u8]) -> bool {
    let backslashes = before.iter().rev().take_while(|b| **b == b'\\');
    backslashes.count() % 2 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn x_forwarded_for_reads_from_the_right() {
        let hops: Vec<_> =
            x_forwarded_for(b"1.2.3.4, [2001:db8::1]:80 ,192.0.2.7:8080, ::1").collect();
        assert_eq!(
            hops,
            [ip("::1"), ip("192.0.2.7"), ip("2001:db8::1"), ip("1.2.3.4")]
        );
    }

    #[test]
    fn forwarded_reads_what_rfc_7239_writes() {
        let line = br#"for=_gazonk, For="[2001:db8:cafe::17]:4711";proto=http;by=203.0.113.43, for=192.0.2.60;by="a,b;c""#;
        let hops: Vec<_> = forwarded(line).collect();
        assert_eq!(hops, [ip("192.0.2.60"), ip("2001:db8:cafe::17"), None]);
    }

    #[test]
    fn a_client_cannot_change_the_entry_of_a_proxy() {
        let by_proxy = br#", for=192.0.2.1;host="a\"b", for="[2001:db8::1]:80";host="\\""#;
        for clients in [
            &br#"for=198.51.100.9"#[..],
            br#"for=198.51.100.9;x=""#,
            br#"for=198.51.100.9;x="\"#,
            br#"for=198.51.100.9;x="\""#,
            br#"for=198.51.100.9, ""#,
            br#"""#,
            br#"""#,
            br#"\"#,
            b"",
        ] {
            let line = [clients, &by_proxy[..]].concat();
            let hops: Vec<_> = forwarded(&line).take(2).collect();
            let shown = String::from_utf8_lossy(&line);
            assert_eq!(hops, [ip("2001:db8::1"), ip("192.0.2.1")], "{shown}");
        }
    }

    #[test]
    fn an_entry_without_an_address_is_none() {
        for junk in [
            "unknown",
            "_hidden",
            "",
            "1.2.3",
            "1.2.3.4.5",
            "[::1",
            "::1]",
            "[1.2.3.4]",
            "1.2.3.4:",
            "1.2.3.4:x",
            "1.2.3.4:99999",
            "\u{202e}",
            "1.2.3.4:_",
            "for=1.2.3.4",
        ] {
            assert_eq!(
                x_forwarded_for(junk.as_bytes()).collect::<Vec<_>>(),
                [None],
                "{junk:?}"
            );
        }
        for junk in [
            &b"for"[..],
            b"for=",
            b"for=\"",
            b"for=\"1.2.3.4",
            b"for=1.2.3.4;for=5.6.7.8",
            b"proto=http",
            b"for=unknown",
            b"for=\xff",
            b"for=\"1.2.3.4\\\"",
            b"for=1.2.3.4;host=a\"b\"",
            b"for=1.2.3.4;host=\"a\"b\"",
            b"for=1.2.3.4;host=\"a\" \"b\"",
            b"for=1.2.3.4;host=a\\",
        ] {
            assert_eq!(forwarded(junk).collect::<Vec<_>>(), [None], "{junk:?}");
        }
        assert_eq!(x_forwarded_for(b"\xff\xfe").collect::<Vec<_>>(), [None]);
    }

    #[test]
    fn an_obfuscated_port_is_ignored() {
        assert_eq!(address("192.0.2.1:_http"), ip("192.0.2.1"));
        assert_eq!(address("[::1]:_x-y"), ip("::1"));
    }
}
