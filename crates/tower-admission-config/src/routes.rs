//! Finds the group of a request: a tree of paths for each host, the most specific group first.

use std::collections::HashMap;
use std::fmt;

use http::Method;

use super::model::Group;
use super::path::{Segment, split_first};
use super::selectors::{GrpcPattern, HostPattern, MAX_HOST};

/// What groups select. A lookup visits the segments of a path and allocates nothing, however many groups there are.
pub(super) struct Routes<T> {
    hosts: HashMap<Box<str>, Tree<T>>,
    /// By what follows `*.`.
    below: HashMap<Box<str>, Tree<T>>,
    any_host: Tree<T>,
}

struct Tree<T> {
    root: Node<T>,
    /// Of groups that name no path.
    any_path: ByMethod<T>,
}

struct Node<T> {
    texts: HashMap<Box<str>, Self>,
    packages: Packages<T>,
    any: Option<Box<Self>>,
    rest: ByMethod<T>,
    /// Of paths that end here.
    here: ByMethod<T>,
    /// Of paths that end here or below.
    prefix: ByMethod<T>,
}

/// gRPC services by their packages, word by word.
struct Packages<T> {
    words: HashMap<Box<str>, Self>,
    services: Option<Box<Node<T>>>,
}

struct ByMethod<T> {
    named: Vec<(Method, T)>,
    any: Option<T>,
}

/// Another group selects the same requests already.
pub(super) struct Conflict<T> {
    pub(super) other: T,
    /// The field that is the same.
    pub(super) field: &'static str,
    pub(super) method: Option<Method>,
}

impl<T: fmt::Display> fmt::Display for Conflict<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            other,
            field,
            method,
        } = self;
        write!(f, "group `{other}` already has ")?;
        match (*field, method) {
            ("methods", Some(method)) => write!(f, "{method} of all paths"),
            ("path" | "grpc", None) => write!(f, "this {field}"),
            ("path" | "grpc", Some(method)) => write!(f, "{method} of this {field}"),
            _ => write!(f, "this host"),
        }
    }
}

impl<T: Clone> Routes<T> {
    /// Adds what a group selects. One that selects nothing is found by its name only.
    pub(super) fn insert(&mut self, group: &Group, value: &T) -> Result<(), Conflict<T>> {
        if !group.has_selectors() {
            return Ok(());
        }
        if group.hosts.is_empty() {
            return self.any_host.insert(group, value);
        }
        for host in &group.hosts {
            let (trees, host) = match host {
                HostPattern::Exact(host) => (&mut self.hosts, host),
                HostPattern::Below(host) => (&mut self.below, host),
            };
            trees
                .entry(host.clone())
                .or_default()
                .insert(group, value)?;
        }
        Ok(())
    }
}

impl<T> Routes<T> {
    /// Whether any group selects by host.
    pub(super) fn have_hosts(&self) -> bool {
        !self.hosts.is_empty() || !self.below.is_empty()
    }

    /// The group of a request: by its host, then by its path, then by its method.
    pub(super) fn find(&self, host: Option<&[u8]>, path: &str, method: &Method) -> Option<&T> {
        let of_host = host.and_then(|host| self.find_by_host(host, path, method));
        of_host.or_else(|| self.any_host.find(path, method))
    }

    fn find_by_host(&self, host: &[u8], path: &str, method: &Method) -> Option<&T> {
        let mut lower = [0; MAX_HOST];
        let lower = lower.get_mut(..host.len())?;
        lower.copy_from_slice(host);
        lower.make_ascii_lowercase();
        let host = std::str::from_utf8(lower).ok()?;
        let exact = self.hosts.get(host);
        let dots = host.match_indices('.');
        let below = dots.filter_map(|(dot, _)| self.below.get(&host[dot + 1..]));
        let mut trees = exact.into_iter().chain(below);
        trees.find_map(|tree| tree.find(path, method))
    }
}

impl<T> Tree<T> {
    fn insert(&mut self, group: &Group, value: &T) -> Result<(), Conflict<T>>
    where
        T: Clone,
    {
        for path in &group.path {
            let node = self.root.path(path.segments());
            let entries = match path.segments().last() {
                Some(Segment::Rest) => &mut node.rest,
                _ => &mut node.prefix,
            };
            entries.insert(group, "path", value)?;
        }
        for pattern in &group.grpc {
            let node = self.root.grpc(pattern);
            node.here.insert(group, "grpc", value)?;
        }
        if group.path.is_empty() && group.grpc.is_empty() {
            let field = if group.hosts.is_empty() {
                "methods"
            } else {
                "hosts"
            };
            self.any_path.insert(group, field, value)?;
        }
        Ok(())
    }

    fn find(&self, path: &str, method: &Method) -> Option<&T> {
        let found = self.root.find(path, method);
        found.or_else(|| self.any_path.find(method))
    }
}

impl<T> Node<T> {
    fn path(&mut self, segments: &[Segment]) -> &mut Self {
        segments.iter().fold(self, |node, segment| match segment {
            Segment::Text(text) => node.texts.entry(text.clone()).or_default(),
            Segment::Any => node.any.get_or_insert_default(),
            Segment::Rest => node,
        })
    }

    fn grpc(&mut self, pattern: &GrpcPattern) -> &mut Self {
        let service = match pattern {
            GrpcPattern::Method(service, _) | GrpcPattern::Service(service) => {
                self.texts.entry(service.clone()).or_default()
            }
            GrpcPattern::Package(package) => self.packages.services(package),
        };
        match pattern {
            GrpcPattern::Method(_, method) => service.texts.entry(method.clone()).or_default(),
            GrpcPattern::Service(_) | GrpcPattern::Package(_) => {
                service.any.get_or_insert_default()
            }
        }
    }

    /// Segment by segment, the most specific first.
    fn find(&self, path: &str, method: &Method) -> Option<&T> {
        if let Some((first, rest)) = split_first(path) {
            let text = self.texts.get(first);
            let any = self.any.as_ref().filter(|_| !first.is_empty());
            let found = text
                .and_then(|text| text.find(rest, method))
                .or_else(|| self.packages.find(first, rest, method))
                .or_else(|| any?.find(rest, method))
                .or_else(|| self.rest.find(method).filter(|_| path.len() > 1));
            if found.is_some() {
                return found;
            }
        } else if !path.is_empty() {
            // The `*` of OPTIONS.
            return None;
        } else if let Some(found) = self.here.find(method) {
            return Some(found);
        }
        self.prefix.find(method)
    }
}

impl<T> Packages<T> {
    fn services(&mut self, package: &str) -> &mut Node<T> {
        let words = package.split('.');
        let package = words.fold(self, |package, word| {
            package.words.entry(word.into()).or_default()
        });
        package.services.get_or_insert_default()
    }

    /// A service in these packages, the longest name of a package first.
    fn find(&self, service: &str, rest: &str, method: &Method) -> Option<&T> {
        let (word, service) = service.split_once('.')?;
        let package = self.words.get(word)?;
        let longer = package.find(service, rest, method);
        longer.or_else(|| package.services.as_ref()?.find(rest, method))
    }
}

impl<T> ByMethod<T> {
    fn insert(&mut self, group: &Group, field: &'static str, value: &T) -> Result<(), Conflict<T>>
    where
        T: Clone,
    {
        let conflict = |other: &T, method: Option<&Method>| Conflict {
            other: other.clone(),
            field,
            method: method.cloned(),
        };
        if group.methods.is_empty() {
            if let Some(other) = &self.any {
                return Err(conflict(other, None));
            }
            self.any = Some(value.clone());
        }
        for method in &group.methods {
            if let Some(other) = self.named(method) {
                return Err(conflict(other, Some(method)));
            }
            self.named.push((method.clone(), value.clone()));
        }
        Ok(())
    }

    fn named(&self, method: &Method) -> Option<&T> {
        let found = self.named.iter().find(|(named, _)| named == method);
        found.map(|(_, value)| value)
    }

    fn find(&self, method: &Method) -> Option<&T> {
        // Handlers of GET answer HEAD as well.
        let head = || self.named(&Method::GET).filter(|_| *method == Method::HEAD);
        let named = self.named(method).or_else(head);
        named.or(self.any.as_ref())
    }
}

// Not derived: that would ask it of `T`.
impl<T> Default for Routes<T> {
    fn default() -> Self {
        Self {
            hosts: HashMap::new(),
            below: HashMap::new(),
            any_host: Tree::default(),
        }
    }
}

impl<T> Default for Tree<T> {
    fn default() -> Self {
        Self {
            root: Node::default(),
            any_path: ByMethod::default(),
        }
    }
}

impl<T> Default for Node<T> {
    fn default() -> Self {
        Self {
            texts: HashMap::new(),
            packages: Packages::default(),
            any: None,
            rest: ByMethod::default(),
            here: ByMethod::default(),
            prefix: ByMethod::default(),
        }
    }
}

impl<T> Default for Packages<T> {
    fn default() -> Self {
        Self {
            words: HashMap::new(),
            services: None,
        }
    }
}

impl<T> Default for ByMethod<T> {
    fn default() -> Self {
        Self {
            named: Vec::new(),
            any: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Config;
    use crate::path::Prefix;

    /// How specific a path is: the smallest goes first.
    fn rank(path: &Prefix) -> Vec<u8> {
        let ranks = path.segments().iter().map(|segment| match segment {
            Segment::Text(_) => 0,
            Segment::Any => 1,
            Segment::Rest => 2,
        });
        ranks.chain([3]).collect()
    }

    fn method_rank(group: &Group, method: &Method) -> Option<u8> {
        let has = |method: &Method| group.methods.contains(method);
        match method {
            _ if has(method) => Some(0),
            &Method::HEAD if has(&Method::GET) => Some(1),
            _ => group.methods.is_empty().then_some(2),
        }
    }

    fn host_rank(group: &Group, host: &str) -> Option<usize> {
        let ranks = group.hosts.iter().filter_map(|pattern| match pattern {
            HostPattern::Exact(name) => (**name == *host).then_some(0),
            HostPattern::Below(name) => host
                .strip_suffix(&**name)
                .is_some_and(|rest| rest.ends_with('.'))
                .then(|| 1000 - name.len()),
        });
        let any = group.hosts.is_empty().then_some(1000);
        ranks.min().or(any)
    }

    fn one_of<'a>(of: &[&'a str]) -> &'a str {
        of[fastrand::usize(..of.len())]
    }

    fn path(segments: &[&str]) -> String {
        let segments = (0..fastrand::usize(0..4)).map(|_| format!("/{}", one_of(segments)));
        segments.collect()
    }

    #[test]
    fn the_most_specific_of_all_groups_is_found() {
        fastrand::seed(14);
        let mut found_some = 0;
        for _ in 0..300 {
            let groups = (0..12).map(|number| {
                let rest = one_of(&["", "", "/{*rest}"]);
                let prefix = path(&["a", "b", "a", "{x}"]) + rest;
                let prefix = if prefix.is_empty() { "/" } else { &prefix };
                let methods = one_of(&["", "methods = 'GET'", "methods = ['POST', 'HEAD']"]);
                let hosts = one_of(&["", "hosts = 'a.b.c'", "hosts = '*.c'", "hosts = '*.b.c'"]);
                format!("[groups.g{number}]\npath = '{prefix}'\n{methods}\n{hosts}\n")
            });
            let mut text = String::new();
            for group in groups {
                // Without those that would be the same as another one.
                if Config::from_toml(&(text.clone() + &group)).is_ok() {
                    text += &group;
                }
            }
            let config = Config::from_toml(&text).unwrap();
            let mut routes = Routes::default();
            for (name, group) in &config.groups {
                assert!(routes.insert(group, name).is_ok());
            }
            for _ in 0..60 {
                let path = path(&["a", "b", "c", ""]);
                let host = one_of(&["a.b.c", "x.b.c", "b.c", "x.c", "c"]);
                let method = [Method::GET, Method::HEAD, Method::POST, Method::PUT];
                let method = &method[fastrand::usize(..method.len())];
                let fitting = config.groups.iter().filter_map(|(name, group)| {
                    let prefix = &group.path[0];
                    let host = host_rank(group, host)?;
                    let method = method_rank(group, method)?;
                    let fits = prefix.covers(&path);
                    fits.then(|| ((host, rank(prefix), method), name))
                });
                let expected = fitting.min().map(|(_, name)| name);
                let found = routes.find(Some(host.as_bytes()), &path, method);
                assert_eq!(found, expected, "{method} {host} {path}\n{text}");
                found_some += usize::from(found.is_some());
            }
        }
        assert!(found_some > 5_000, "{found_some}");
    }
}
