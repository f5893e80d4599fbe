//! The addresses in `X-Forwarded-For` and `Forwarded` headers, from the right.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The entries of one line, the nearest proxy's first; `None` where one is not an address.
pub(super) type Hops<'a> = Box<dyn Iterator<Item = Option<IpAddr>> + 'a>;

/// The address that is all of a header's value.
pub(super) fn single_address(value: &[u8]) -> Option<IpAddr> {
    address(str::from_utf8(value.trim_ascii()).ok()?)
}

/// `client, proxy1, proxy2`
pub(super) fn x_forwarded_for(line: &[u8]) -> Hops<'_> {
    Box::new(line.rsplit(|b| *b == b',').map(single_address))
}

/// `for=192.0.2.43;proto=http, for="[2001:db8:cafe::17]:4711"` (RFC 7239 §4)
pub(super) fn forwarded(line: &[u8]) -> Hops<'_> {
    // A quoted string may hold a comma or a semicolon. If the quotes do not pair up it is not
    // clear where any entry begins, and none is believed.
    let Some(elements) = split_unquoted(line, b',') else {
        return Box::new(std::iter::once(None));
    };
    Box::new(elements.into_iter().rev().map(forwarded_for))
}

/// The address in the `for` parameter of one element, which must be there exactly once.
fn forwarded_for(element: &[u8]) -> Option<IpAddr> {
    let mut found = None;
    for pair in split_unquoted(element, b';')? {
        let pair = str::from_utf8(pair).ok()?.trim();
        let (name, value) = pair.split_once('=')?;
        if name.eq_ignore_ascii_case("for") && found.replace(value).is_some() {
            return None;
        }
    }
    let value = found?;
    match value.strip_prefix('"') {
        // No address has a character in it that would need escaping.
        Some(quoted) => address(quoted.strip_suffix('"')?),
        None => address(value),
    }
}

/// An address as proxies write it: with a port or without, IPv6 in brackets or without.
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

/// Splits outside of quoted strings; `None` when a quoted string does not end.
fn split_unquoted(text: &[u8], separator: u8) -> Option<Vec<&[u8]>> {
    let mut parts = Vec::new();
    let (mut start, mut quoted, mut escaped) = (0, false, false);
    for (at, byte) in text.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ if *byte == separator && !quoted => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    (!quoted).then_some(parts)
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
    fn what_is_not_an_address_is_none() {
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
        ] {
            assert_eq!(forwarded(junk).collect::<Vec<_>>(), [None], "{junk:?}");
        }
        assert_eq!(x_forwarded_for(b"\xff\xfe").collect::<Vec<_>>(), [None]);
    }

    #[test]
    fn obfuscated_ports_are_ports() {
        assert_eq!(address("192.0.2.1:_http"), ip("192.0.2.1"));
        assert_eq!(address("[::1]:_x-y"), ip("::1"));
    }
}
