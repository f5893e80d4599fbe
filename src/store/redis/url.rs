//! Where Redis is and how to log in: what a URL says.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use percent_encoding::percent_decode_str;
use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisConnectionInfo};

use super::failure::{FailureKind, StoreError};
#[cfg(feature = "redis-tls")]
use super::tls::{RedisTls, Tls};

/// What a URL says.
#[derive(Clone)]
pub(super) struct Target {
    pub(super) servers: Servers,
    pub(super) login: Login,
    /// Of a `rediss` URL, or why it cannot be used.
    #[cfg(feature = "redis-tls")]
    pub(super) tls: Option<Result<Tls, StoreError>>,
}

/// The servers to begin with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Servers {
    Single(Address),
    /// Some nodes of a cluster, which know the others.
    Cluster(Vec<Address>),
}

/// The address of one server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Address {
    Tcp(Arc<str>, u16),
    Unix(PathBuf),
}

/// What a connection begins with.
#[derive(Clone)]
pub(super) struct Login {
    /// User, password, database and protocol.
    pub(super) settings: RedisConnectionInfo,
    /// The name in `CLIENT LIST`.
    pub(super) client_name: Arc<str>,
}

pub(super) const DEFAULT_CLIENT_NAME: &str = "tower-admission";

/// The parts of a URL.
struct Parts<'a> {
    /// `user:password@`, or nothing.
    credentials: &'a str,
    hosts: &'a str,
    /// After the hosts, with its slash.
    path: &'a str,
    /// For the client library: with the question mark, and without what is ours.
    query: String,
    client_name: Arc<str>,
}

impl Target {
    /// Reads `redis://`, `rediss://`, `unix:` and `redis+cluster://h1,h2` URLs.
    pub(super) fn parse(url: &str) -> Result<Self, StoreError> {
        let (scheme, rest) = url
            .split_once(':')
            .ok_or_else(|| invalid("a URL begins with its scheme, such as redis://"))?;
        // The names of the fork mean the same.
        let scheme = scheme
            .replacen("valkey", "redis", 1)
            .replacen("redis+unix", "unix", 1);
        let (scheme, tls) = match scheme.strip_prefix("rediss") {
            Some(kind) => (format!("redis{kind}"), true),
            None => (scheme, false),
        };
        if tls && !cfg!(feature = "redis-tls") {
            let reason = "TLS needs a build with the feature redis-tls";
            return Err(invalid(reason));
        }
        let parts = Parts::read(rest)?;
        let (servers, info) = match scheme.as_str() {
            "redis" | "unix" => {
                let info = parts.info(&scheme, parts.hosts, parts.path)?;
                (Servers::Single(address(&info)?), info)
            }
            "redis+cluster" => {
                if !matches!(parts.path, "" | "/") {
                    return Err(invalid("a cluster has one database and no path"));
                }
                let nodes = parts.each_host("")?;
                let addresses: Result<_, _> = nodes.iter().map(address).collect();
                (Servers::Cluster(addresses?), nodes[0].clone())
            }
            _ => {
                return Err(invalid(format!(
                    "the scheme {scheme:?} is none of redis, rediss, unix, redis+cluster and \
                     rediss+cluster"
                )));
            }
        };
        Ok(Self {
            servers,
            login: Login {
                settings: info.redis_settings().clone(),
                client_name: parts.client_name,
            },
            #[cfg(feature = "redis-tls")]
            tls: tls.then(|| Tls::new(&RedisTls::new())),
        })
    }

    /// Takes other certificates than the system's CAs.
    #[cfg(feature = "redis-tls")]
    pub(super) fn set_tls(&mut self, certificates: &RedisTls) -> Result<(), StoreError> {
        let tls = Tls::new(certificates)?;
        match &mut self.tls {
            Some(before) => *before = Ok(tls),
            None => {
                return Err(invalid(
                    "certificates need a URL with TLS: rediss:// in place of redis://",
                ));
            }
        }
        Ok(())
    }
}

impl<'a> Parts<'a> {
    /// Reads what follows the scheme and its colon.
    fn read(rest: &'a str) -> Result<Self, StoreError> {
        let rest = rest.strip_prefix("//").unwrap_or(rest);
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        if rest.contains('#') || query.contains('#') {
            return Err(invalid(
                "a fragment (#insecure) is not supported: a connection whose certificate is not \
                 checked can be read by anybody in between; trust the CA of the server instead",
            ));
        }
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (credentials, hosts) = authority.split_at(authority.rfind('@').map_or(0, |at| at + 1));
        let mut parts = Self {
            credentials,
            hosts,
            path,
            query: String::new(),
            client_name: DEFAULT_CLIENT_NAME.into(),
        };
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            match name {
                "client_name" => {
                    parts.client_name = client_name(&percent_decode_str(value).decode_utf8_lossy());
                }
                "protocol" | "db" | "user" | "pass" => {
                    parts
                        .query
                        .push(if parts.query.is_empty() { '?' } else { '&' });
                    parts.query.push_str(parameter);
                }
                _ => {
                    return Err(invalid(format!(
                        "the parameter {name:?} is none of protocol and client_name, and for unix \
                         sockets db, user and pass"
                    )));
                }
            }
        }
        Ok(parts)
    }

    fn each_host(&self, path: &str) -> Result<Vec<ConnectionInfo>, StoreError> {
        let hosts = self.hosts.split(',');
        hosts.map(|host| self.info("redis", host, path)).collect()
    }

    fn info(&self, scheme: &str, host: &str, path: &str) -> Result<ConnectionInfo, StoreError> {
        let Self {
            credentials, query, ..
        } = self;
        let url = format!("{scheme}://{credentials}{host}{path}{query}");
        Ok(url.into_connection_info()?)
    }
}

fn address(info: &ConnectionInfo) -> Result<Address, StoreError> {
    match info.addr() {
        ConnectionAddr::Tcp(host, port) => Ok(Address::Tcp(host.as_str().into(), *port)),
        ConnectionAddr::Unix(path) => Ok(Address::Unix(path.clone())),
        _ => Err(invalid("this kind of address is not supported")),
    }
}

/// What the server accepts as a name: printable characters without spaces.
pub(super) fn client_name(name: &str) -> Arc<str> {
    let allowed = |c: char| if c.is_ascii_graphic() { c } else { '_' };
    name.chars().map(allowed).collect::<String>().into()
}

pub(super) fn invalid(reason: impl Into<Arc<str>>) -> StoreError {
    StoreError::because(FailureKind::Configuration, reason)
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp(host, port) => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(url: &str) -> Target {
        Target::parse(url).unwrap()
    }

    fn tcp(host: &str, port: u16) -> Address {
        Address::Tcp(host.into(), port)
    }

    #[test]
    fn a_url_names_one_server() {
        for (url, address, db) in [
            ("redis://example.org", tcp("example.org", 6379), 0),
            ("valkey://u:p%40x@example.org:1/2", tcp("example.org", 1), 2),
            ("redis://[::1]:7/", tcp("::1", 7), 0),
            (
                "unix:/run/redis.sock?db=3",
                Address::Unix("/run/redis.sock".into()),
                3,
            ),
            (
                "redis+unix:///run/r.sock",
                Address::Unix("/run/r.sock".into()),
                0,
            ),
        ] {
            let target = target(url);
            assert_eq!(target.servers, Servers::Single(address), "{url}");
            assert_eq!(target.login.settings.db(), db, "{url}");
            #[cfg(feature = "redis-tls")]
            assert!(target.tls.is_none(), "{url}");
        }
    }

    #[cfg(feature = "redis-tls")]
    #[test]
    fn a_url_asks_for_tls() {
        for url in ["rediss://h", "valkeys://h", "rediss+cluster://a,b"] {
            assert!(target(url).tls.is_some(), "{url}");
        }
    }

    #[test]
    fn a_url_names_some_nodes_of_a_cluster() {
        let target =
            target("redis+cluster://user:secret@a:1,[::2]:2,c/?protocol=resp3&client_name=x%20y");
        let nodes = vec![tcp("a", 1), tcp("::2", 2), tcp("c", 6379)];
        assert_eq!(target.servers, Servers::Cluster(nodes));
        assert_eq!(target.login.settings.username(), Some("user"));
        assert_eq!(target.login.settings.password(), Some("secret"));
        assert_eq!(
            target.login.settings.protocol(),
            redis::ProtocolVersion::RESP3
        );
        assert_eq!(&*target.login.client_name, "x_y");
    }

    #[test]
    fn an_address_is_shown_as_it_is_written() {
        for (address, shown) in [
            (tcp("h", 1), "h:1"),
            (tcp("::1", 1), "[::1]:1"),
            (Address::Unix("/a/b".into()), "/a/b"),
        ] {
            assert_eq!(address.to_string(), shown);
        }
    }
}
