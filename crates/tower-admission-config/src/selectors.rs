//! What a group selects requests by besides paths: methods, hosts and gRPC methods.

use http::header::HOST;
use http::{HeaderValue, Method};
use tower_admission::extract::RequestHead;

use super::text::{FromText, shown};

impl FromText for Method {
    fn read(text: &str) -> Result<Self, String> {
        let upper = text.to_ascii_uppercase();
        Self::from_bytes(upper.as_bytes())
            .map_err(|_| format!("{} is not a method, such as \"POST\"", shown(text)))
    }
}

/// The host of a request, or with `*.` in front all hosts below it. In lowercase.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum HostPattern {
    Exact(Box<str>),
    Below(Box<str>),
}

impl FromText for HostPattern {
    fn read(text: &str) -> Result<Self, String> {
        let lower = text.to_ascii_lowercase();
        let (host, is_below) = match lower.strip_prefix("*.") {
            Some(host) => (host, true),
            None => (&*lower, false),
        };
        let is_address = host.parse::<std::net::Ipv6Addr>().is_ok();
        let in_brackets = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'));
        let is_name = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        let is_host = match in_brackets {
            Some(address) => !is_below && address.parse::<std::net::Ipv6Addr>().is_ok(),
            None => host.bytes().all(is_name) && host.split('.').all(|label| !label.is_empty()),
        };
        if is_address {
            return Err(format!("{} needs brackets: \"[{host}]\"", shown(text)));
        }
        if !is_host || host.len() > MAX_HOST {
            return Err(format!(
                "{} is not a host, such as \"api.example.com\" or \"*.example.com\", without a port",
                shown(text)
            ));
        }
        Ok(match is_below {
            true => Self::Below(host.into()),
            false => Self::Exact(host.into()),
        })
    }
}

impl HostPattern {
    /// Whether this is the host of a request, or one below it.
    pub(super) fn fits(&self, host: &[u8]) -> bool {
        match self {
            Self::Exact(name) => host.eq_ignore_ascii_case(name.as_bytes()),
            Self::Below(name) => {
                let Some(before) = host.len().checked_sub(name.len()) else {
                    return false;
                };
                let (below, end) = host.split_at(before);
                below.ends_with(b".") && end.eq_ignore_ascii_case(name.as_bytes())
            }
        }
    }
}

/// How long the name of a host can be (RFC 1035 §2.3.4).
pub(super) const MAX_HOST: usize = 253;

/// The hosts that a request names, without ports: that of its URI, which is `:authority` in HTTP/2, and those of
/// its `Host` fields. A request should name one; a client may send several, and servers differ in which they take.
pub(super) fn hosts(head: RequestHead<'_>) -> impl Iterator<Item = &[u8]> {
    let authority = head.uri.authority();
    let authority = authority.map(|authority| authority.as_str().as_bytes());
    let fields = head.headers.get_all(HOST).into_iter();
    let fields = fields.map(HeaderValue::as_bytes);
    let named = authority.into_iter().chain(fields);
    named
        .flat_map(|hosts| hosts.split(|b| *b == b','))
        .map(name)
}

/// The name in what was sent: without user, port, and the dot of the root.
fn name(host: &[u8]) -> &[u8] {
    let host = host.trim_ascii();
    let host = host.rsplit(|b| *b == b'@').next().unwrap_or(host);
    let host = match host.iter().position(|b| *b == b']') {
        Some(end) if host.starts_with(b"[") => &host[..=end],
        _ => host.split(|b| *b == b':').next().unwrap_or(host),
    };
    host.strip_suffix(b".").unwrap_or(host)
}

/// gRPC methods, by the path that a client of gRPC sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum GrpcPattern {
    /// `package.Service/Method`
    Method(Box<str>, Box<str>),
    /// `package.Service/*`
    Service(Box<str>),
    /// `package.*`: also of the packages below it.
    Package(Box<str>),
}

impl FromText for GrpcPattern {
    fn read(text: &str) -> Result<Self, String> {
        let is_identifier = |word: &str| {
            word.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
                && word.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        };
        let is_full_name = |name: &str| name.split('.').all(is_identifier);
        let pattern = match text.split_once('/') {
            Some((service, "*")) if is_full_name(service) => Some(Self::Service(service.into())),
            Some((service, method)) if is_full_name(service) && is_identifier(method) => {
                Some(Self::Method(service.into(), method.into()))
            }
            Some(_) => None,
            None => text
                .strip_suffix(".*")
                .filter(|package| is_full_name(package))
                .map(|package| Self::Package(package.into())),
        };
        pattern.ok_or_else(|| {
            format!(
                "{} is not one of \"package.Service/Method\", \"package.Service/*\", \"package.*\"",
                shown(text)
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    #[test]
    fn hosts_are_compared_without_what_surrounds_them() {
        for (sent, expected) in [
            ("api.example.com", "api.example.com"),
            ("api.example.com:8443", "api.example.com"),
            ("api.example.com.", "api.example.com"),
            ("api.example.com.:1", "api.example.com"),
            ("user:word@api.example.com:1", "api.example.com"),
            ("[::1]:80", "[::1]"),
            ("[::1]", "[::1]"),
            (" api.example.com ", "api.example.com"),
            ("", ""),
            (":", ""),
        ] {
            assert_eq!(name(sent.as_bytes()), expected.as_bytes(), "{sent}");
        }
    }

    #[test]
    fn all_hosts_of_a_request_are_found() {
        let request = Request::get("http://a.example:1/x")
            .header("host", "b.example, c.example")
            .header("host", "d.example");
        let request = request.body(()).unwrap();
        let found: Vec<_> = hosts((&request).into()).collect();
        assert_eq!(
            found,
            [b"a.example", b"b.example", b"c.example", b"d.example"]
        );
        let request = Request::get("/x").body(()).unwrap();
        assert_eq!(hosts((&request).into()).count(), 0);
    }

    #[test]
    fn selectors_are_read_or_rejected() {
        assert_eq!(Method::read("post"), Ok(Method::POST));
        assert!(Method::read("").is_err());
        assert!(Method::read("GET POST").is_err());
        let below = HostPattern::Below("example.com".into());
        assert_eq!(HostPattern::read("*.Example.com"), Ok(below));
        let address = HostPattern::Exact("[::1]".into());
        assert_eq!(HostPattern::read("[::1]"), Ok(address));
        for text in [
            "",
            "*",
            "*.",
            "a..b",
            "a.example:80",
            "http://a",
            "::1",
            "a/b",
            ".a",
            "a*.b",
        ] {
            assert!(HostPattern::read(text).is_err(), "{text}");
        }
        let method = GrpcPattern::Method("pkg.v1.Chat".into(), "Send".into());
        assert_eq!(GrpcPattern::read("pkg.v1.Chat/Send"), Ok(method));
        let service = GrpcPattern::Service("Chat".into());
        assert_eq!(GrpcPattern::read("Chat/*"), Ok(service));
        let package = GrpcPattern::Package("pkg.v1".into());
        assert_eq!(GrpcPattern::read("pkg.v1.*"), Ok(package));
        for text in [
            "",
            "*",
            "*/*",
            "pkg",
            "/pkg.A/B",
            "pkg.A/B/C",
            "pkg.A/",
            "pkg.A/*x",
            "pkg..*",
        ] {
            assert!(GrpcPattern::read(text).is_err(), "{text}");
        }
    }
}
