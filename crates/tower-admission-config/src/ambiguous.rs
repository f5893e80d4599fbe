//! Requests that servers read in different ways: the paths and the hosts that they may be for.

use std::borrow::Cow;
use std::collections::BTreeSet;

use http::Method;
use percent_encoding::percent_decode_str;

use super::model::Group;
use super::path::{Prefix, Segment};
use super::selectors::{GrpcPattern, HostPattern};

/// The names of hosts of one request that are looked at. With more it may be for any host.
pub(super) const MAX_HOSTS: usize = 4;

/// The segments of an ambiguous path that are looked at. With more it may be for any path.
const MAX_SEGMENTS: usize = 128;

/// What separates segments for some server, once a path is decoded.
const SEPARATORS: [char; 2] = ['/', '\\'];

/// Whether servers read a path in different ways: it has a `.` or `..` segment, plain or percent-encoded, or an
/// empty one before its end.
pub(super) fn is_ambiguous(path: &str) -> bool {
    // Most paths have neither, and need no decoding. Without branches the compiler looks at many bytes at once.
    let Some((_, bytes)) = path.as_bytes().split_first() else {
        return false;
    };
    let before = &path.as_bytes()[..bytes.len()];
    let mut found = 0;
    for at in 0..bytes.len() {
        let begins = (before[at] == b'/') | (before[at] == b'\\');
        let is_odd = ((bytes[at] == b'.') | (bytes[at] == b'/')) & begins;
        found |= u8::from(is_odd) | (u8::from(bytes[at] == b'%') << 1);
    }
    match found {
        0 => false,
        2 => has_dots(path) && has_dot_segments(path),
        _ => path.contains("//") || has_dot_segments(path),
    }
}

/// Whether there is a dot in a path that has escapes.
fn has_dots(path: &str) -> bool {
    let is_dot = |escape: &str| escape.starts_with("2e") || escape.starts_with("2E");
    path.contains('.') || path.split('%').skip(1).any(is_dot)
}

/// Whether a path has a `.` or `..` segment, plain or percent-encoded.
pub(super) fn has_dot_segments(path: &str) -> bool {
    decoded(path).split(SEPARATORS).any(is_dot_segment)
}

fn is_dot_segment(segment: &str) -> bool {
    // Some servers take what follows a `;` for a parameter: `/api/..;/admin`.
    matches!(segment.split(';').next(), Some("." | ".."))
}

fn decoded(text: &str) -> Cow<'_, str> {
    percent_decode_str(text).decode_utf8_lossy()
}

/// The two paths that an ambiguous one is the likeliest for: decoded and resolved, if it has dot segments, and as
/// written; else as written, and without empty segments.
pub(super) fn readings(path: &str) -> [String; 2] {
    if has_dot_segments(path) {
        return [resolved(&decoded(path)), path.to_owned()];
    }
    let mut merged = String::with_capacity(path.len());
    for char in path.chars() {
        if char != '/' || !merged.ends_with('/') {
            merged.push(char);
        }
    }
    [path.to_owned(), merged]
}

/// Removes dot segments (RFC 3986 §5.2.4).
fn resolved(path: &str) -> String {
    let mut segments = Vec::new();
    for segment in path.split(SEPARATORS).skip(1) {
        if !is_dot_segment(segment) {
            segments.push(segment);
        } else if segment.starts_with("..") {
            segments.pop();
        }
    }
    format!("/{}", segments.join("/"))
}

/// The segments of a path, decoded. Whatever a server makes of the path, it has no other ones.
pub(super) struct Segments(Option<BTreeSet<String>>);

impl Segments {
    pub(super) fn of(path: &str) -> Self {
        let path = decoded(path);
        if path.split(SEPARATORS).nth(MAX_SEGMENTS).is_some() {
            return Self(None);
        }
        let mut found = BTreeSet::new();
        for segment in path.split(SEPARATORS) {
            found.insert(segment.to_owned());
            if let Some((segment, _)) = segment.split_once(';') {
                found.insert(segment.to_owned());
            }
        }
        Self(Some(found))
    }

    fn have(&self, text: &str) -> bool {
        let has = |found: &BTreeSet<String>| {
            let text = decoded(text);
            text.split(SEPARATORS).all(|part| found.contains(part))
        };
        self.0.as_ref().is_none_or(has)
    }

    fn have_one_in(&self, package: &str) -> bool {
        let is_in = |segment: &String| {
            let rest = segment.strip_prefix(package);
            rest.is_some_and(|rest| rest.starts_with('.'))
        };
        self.0.as_ref().is_none_or(|found| found.iter().any(is_in))
    }
}

/// The hosts that a request may be for; `None`: any.
pub(super) type Hosts<'a> = Option<&'a [&'a [u8]]>;

/// What a group selects requests by.
#[derive(Clone, Default)]
pub(super) struct Selectors {
    path: Vec<Prefix>,
    grpc: Vec<GrpcPattern>,
    hosts: Vec<HostPattern>,
    methods: Vec<Method>,
}

impl Selectors {
    pub(super) fn of(group: &Group) -> Self {
        Self {
            path: group.path.clone(),
            grpc: group.grpc.clone(),
            hosts: group.hosts.clone(),
            methods: group.methods.clone(),
        }
    }

    /// Whether any server may read a request of these segments as one of this group: all segments of a path of the
    /// group are there, in whatever order. It may answer true where none does.
    pub(super) fn may_select(
        &self,
        hosts: Hosts<'_>,
        segments: &Segments,
        method: &Method,
    ) -> bool {
        let has_no_path = self.path.is_empty() && self.grpc.is_empty();
        if has_no_path && self.hosts.is_empty() && self.methods.is_empty() {
            return false;
        }
        let is_method = |named: &Method| {
            // Handlers of GET answer HEAD as well.
            named == method || (named == Method::GET && method == Method::HEAD)
        };
        let is_host = |pattern: &HostPattern| {
            hosts.is_none_or(|hosts| hosts.iter().any(|host| pattern.fits(host)))
        };
        let is_path = |prefix: &Prefix| {
            prefix.segments().iter().all(|segment| match segment {
                Segment::Text(text) => segments.have(text),
                Segment::Any | Segment::Rest => true,
            })
        };
        let is_grpc = |pattern: &GrpcPattern| match pattern {
            GrpcPattern::Method(service, method) => segments.have(service) && segments.have(method),
            GrpcPattern::Service(service) => segments.have(service),
            GrpcPattern::Package(package) => segments.have_one_in(package),
        };
        (self.methods.is_empty() || self.methods.iter().any(is_method))
            && (self.hosts.is_empty() || self.hosts.iter().any(is_host))
            && (has_no_path || self.path.iter().any(is_path) || self.grpc.iter().any(is_grpc))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Config;

    #[test]
    fn a_dot_segment_is_seen_however_it_is_encoded() {
        for path in [
            "/..",
            "/a/../b",
            "/a/./b",
            "/a/%2e%2e/b",
            "/a/%2E%2e/b",
            "/a/.%2E/b",
            "/a/%2e/b",
            "/a/..%2fb",
            "/a%2F../b",
            "/a%2f%2e%2e%2fb",
            "/a/..%5cb",
            "/a\\..\\b",
            "/a/..;x=1/b",
            "/a/b/..",
        ] {
            assert!(has_dot_segments(path) && is_ambiguous(path), "{path}");
        }
        for path in [
            "/",
            "*",
            "",
            "/a/b",
            "/a/b/",
            "/a.b/c",
            "/a/...",
            "/a/..b",
            "/a/b..",
            "/a/%2e%2e%2e",
            "/%2f",
            "/a%2fb",
            "/a/.b",
            "/a/%252e%252e/b",
            "/a%2",
        ] {
            assert!(!has_dot_segments(path) && !is_ambiguous(path), "{path}");
        }
        for path in ["//", "//a", "/a//b", "/a/b//"] {
            assert!(!has_dot_segments(path) && is_ambiguous(path), "{path}");
        }
    }

    #[test]
    fn the_fast_check_of_a_path_misses_no_ambiguous_path() {
        fastrand::seed(14);
        let parts = ["/", ".", "%2e", "%2F", "a", "\\", ";", "%5c", "%", "//"];
        let mut ambiguous = 0;
        for _ in 0..5_000 {
            let parts = (0..fastrand::usize(0..9)).map(|_| parts[fastrand::usize(..parts.len())]);
            let path = format!("/{}", parts.collect::<String>());
            let expected = path.contains("//") || has_dot_segments(&path);
            assert_eq!(is_ambiguous(&path), expected, "{path}");
            ambiguous += usize::from(expected);
        }
        assert!((500..4_500).contains(&ambiguous), "{ambiguous}");
    }

    #[test]
    fn dot_segments_are_resolved_as_rfc_3986_has_it() {
        for (path, expected) in [
            ("/a/b/c/./../../g", "/a/g"),
            ("/a/../../b", "/b"),
            ("/a/%2e%2E/b", "/b"),
            ("/x/..%2fapi/chat", "/api/chat"),
            ("/x/..%5capi", "/api"),
            ("/x/../%61pi", "/api"),
            ("/x/..;y/api", "/api"),
            ("/a/..", "/"),
        ] {
            assert_eq!(readings(path)[0], expected, "{path}");
        }
        assert_eq!(readings("//a///b/")[1], "/a/b/");
    }

    fn may_select(group: &str, path: &str, hosts: Hosts<'_>, method: &Method) -> bool {
        let config = Config::from_toml(&format!("[groups.api]\n{group}")).unwrap();
        let selectors = Selectors::of(&config.groups["api"]);
        selectors.may_select(hosts, &Segments::of(path), method)
    }

    #[test]
    fn a_group_may_select_a_path_that_has_all_its_segments() {
        for (group, path, expected) in [
            ("path = '/x/login'", "/x/..;a/../login", true),
            ("path = '/x/login'", "/login/../x", true),
            ("path = '/x/login'", "/x/a%2fb/../%6cogin", true),
            ("path = '/x/login'", "/x;y/./login;z", true),
            ("path = '/x/login'", "/y/../login", false),
            ("path = '/x/lo%67in'", "/x/../login", true),
            ("path = '/{x}/login'", "/../login", true),
            ("path = '/'", "/..", true),
            ("path = '/login'", &"/a".repeat(200), true),
            ("path = 'off'", "/..", false),
            ("methods = 'POST'", "/..", false),
            ("methods = ['GET', 'PUT']", "/..", true),
            ("grpc = 'p.q.S/M'", "/x/../p.q.S/M", true),
            ("grpc = 'p.q.S/M'", "/x/../p.q.S/N", false),
            ("grpc = 'p.*'", "/x/../p.q.S/N", true),
            ("grpc = 'p.*'", "/x/../pq.S/N", false),
            ("grpc = 'p.q.S/*'", "/x/../p.q.S/N", true),
        ] {
            let found = may_select(group, path, Some(&[]), &Method::HEAD);
            assert_eq!(found, expected, "{group} {path}");
        }
        let hosts: [&[u8]; 2] = [b"A.example", b"x.b.example"];
        for (group, expected) in [
            ("hosts = 'a.example'", true),
            ("hosts = '*.b.example'", true),
            ("hosts = 'b.example'", false),
            ("hosts = '*.x.b.example'", false),
        ] {
            assert_eq!(
                may_select(group, "/..", Some(&hosts), &Method::GET),
                expected,
                "{group}"
            );
            assert!(may_select(group, "/..", None, &Method::GET), "{group}");
        }
    }
}
