//! Parses URLs: the servers, the login and the settings of connections.

use std::borrow::Cow;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use percent_encoding::percent_decode_str;
use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisConnectionInfo};

use super::call_error::{CallError, OrFailure};
use super::sentinel::Sentinels;
#[cfg(feature = "tls")]
use super::tls::{RedisTls, Tls};
use tower_admission::store::FailureKind;

/// The servers and the login of a store.
#[derive(Clone)]
pub(super) struct Target {
    pub(super) servers: Servers,
    pub(super) login: Login,
    /// The TLS settings of a `rediss` URL, or why they cannot be used.
    #[cfg(feature = "tls")]
    pub(super) tls: Option<Result<Tls, CallError>>,
}

/// The initial servers.
#[derive(Clone)]
pub(super) enum Servers {
    Single(Address),
    /// The Sentinels, which know the current master.
    Sentinel(Sentinels),
    /// Some nodes of a cluster, which know the others.
    Cluster(Vec<Address>),
}

/// The address of one server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Address {
    Tcp(Arc<str>, u16),
    Unix(PathBuf),
}

/// The login of a connection.
#[derive(Clone)]
pub(super) struct Login {
    /// User, password, database and protocol.
    pub(super) settings: RedisConnectionInfo,
    /// The name in `CLIENT LIST`.
    pub(super) client_name: Arc<str>,
    /// Whether a replica is an error.
    pub(super) needs_master: bool,
}

const DEFAULT_CLIENT_NAME: &str = "tower-admission";

const NO_PASSWORD: &str = "a user without a password: write user:password, or :password where there is \
                           no user (for a user with nopass any password will do)";

const NO_TLS: &str =
    "TLS needs the feature `tls` of tower-admission-redis (`redis-tls` of tower-admission-config)";

const INSECURE: &str = "an insecure TLS connection is not supported: anyone between client and server can read it; trust \
                        the CA of the server instead";

#[cfg(feature = "tls")]
const CERTIFICATES_NOT_TAKEN_OVER: &str = "the certificates of a client cannot be taken over: set them again with \
                                           `RedisStore::tls`";

/// The default port of Sentinels.
const SENTINEL_PORT: u16 = 26379;

/// The parts of a URL.
#[derive(Default)]
struct Parts<'a> {
    /// `user:password@`, or empty.
    credentials: &'a str,
    hosts: &'a str,
    /// The path after the hosts, with its slash.
    path: &'a str,
    /// The query for the client library: with the question mark, and without the parameters of this crate.
    query: String,
    client_name: Option<Arc<str>>,
    sentinel_user: Option<Cow<'a, str>>,
    sentinel_password: Option<Cow<'a, str>>,
}

impl Target {
    /// Reads a URL as [`RedisStore::connect`](super::RedisStore::connect) describes them.
    pub(super) fn parse(url: &str) -> Result<Self, CallError> {
        // A file or a variable may end with a newline.
        let (scheme, rest) = url
            .trim()
            .split_once(':')
            .ok_or_else(|| invalid("a URL begins with its scheme, such as redis://"))?;
        // Valkey's schemes mean the same.
        let scheme = scheme
            .replacen("valkey", "redis", 1)
            .replacen("redis+unix", "unix", 1);
        let (scheme, tls) = match scheme.strip_prefix("rediss") {
            Some(kind) => (format!("redis{kind}"), true),
            None => (scheme, false),
        };
        if tls && !cfg!(feature = "tls") {
            return Err(invalid(NO_TLS));
        }
        let parts = Parts::read(&scheme, rest)?;
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
            "redis+sentinel" => {
                let (sentinels, info) = parts.sentinels()?;
                (Servers::Sentinel(sentinels), info)
            }
            _ => {
                // The message leaves out the scheme, which may be a password.
                return Err(invalid(
                    "the scheme is none of redis, rediss, unix, redis+cluster, rediss+cluster, \
                     redis+sentinel and rediss+sentinel",
                ));
            }
        };
        let needs_master = matches!(servers, Servers::Sentinel(_));
        Ok(Self {
            servers,
            login: parts.login(info.redis_settings().clone(), needs_master),
            #[cfg(feature = "tls")]
            tls: tls.then(|| Tls::new(&RedisTls::new())),
        })
    }

    /// Takes over the address, the login, the database and the protocol of the client library's configuration.
    pub(super) fn from_info(info: &ConnectionInfo) -> Result<Self, CallError> {
        let (address, tls) = match info.addr() {
            ConnectionAddr::TcpTls { insecure: true, .. } => return Err(invalid(INSECURE)),
            ConnectionAddr::TcpTls {
                host,
                port,
                tls_params,
                ..
            } => {
                let address = Address::Tcp(host.as_str().into(), *port);
                (address, Some(tls_params.is_some()))
            }
            _ => (address(info)?, None),
        };
        if tls.is_some() && !cfg!(feature = "tls") {
            return Err(invalid(NO_TLS));
        }
        let settings = info.redis_settings();
        if settings.username().is_some() && settings.password().is_none() {
            return Err(invalid(NO_PASSWORD));
        }
        Ok(Self {
            servers: Servers::Single(address),
            login: Parts::default().login(settings.clone(), false),
            #[cfg(feature = "tls")]
            tls: tls.map(taken_over),
        })
    }

    pub(super) fn has_tls(&self) -> bool {
        #[cfg(feature = "tls")]
        let has_tls = self.tls.is_some();
        #[cfg(not(feature = "tls"))]
        let has_tls = false;
        has_tls
    }

    /// Sets the certificates.
    #[cfg(feature = "tls")]
    pub(super) fn set_tls(&mut self, certificates: &RedisTls) -> Result<(), CallError> {
        match &mut self.tls {
            Some(tls) => *tls = Ok(Tls::new(certificates)?),
            None => {
                return Err(invalid(
                    "certificates need a URL with TLS: rediss:// in place of redis://",
                ));
            }
        }
        Ok(())
    }

    /// Sets the name of all connections.
    pub(super) fn set_client_name(&mut self, name: &str) {
        let name = client_name(name);
        if let Servers::Sentinel(sentinels) = &mut self.servers {
            sentinels.login.client_name = name.clone();
        }
        self.login.client_name = name;
    }
}

impl<'a> Parts<'a> {
    /// Parses the text after the scheme and its colon.
    fn read(scheme: &str, rest: &'a str) -> Result<Self, CallError> {
        let rest = rest.strip_prefix("//").unwrap_or(rest);
        if rest.contains('#') {
            return Err(invalid(
                "a fragment (#insecure) is not supported: a connection whose certificate is not \
                 checked can be read by anyone in between; trust the CA of the server instead \
                 (a # in a password is written %23)",
            ));
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        // Otherwise a part of the password would be parsed as a path or a parameter, and be shown.
        if scheme != "unix" && (path.contains('@') || query.contains('@')) {
            return Err(invalid(
                "an @ after the host: in passwords and parameters, write %2F for /, %3F for ? \
                 and %40 for @",
            ));
        }
        let (credentials, hosts) = authority.split_at(authority.rfind('@').map_or(0, |at| at + 1));
        if scheme.contains('+') && credentials.matches('@').count() > 1 {
            return Err(invalid(
                "more than one @: a login is written once, before the first host, and is that of \
                 all of them (an @ in a password is written %40)",
            ));
        }
        let mut parts = Self {
            credentials,
            hosts,
            path,
            ..Self::default()
        };
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            let value = decoded(value);
            match (name, scheme) {
                ("client_name", _) => parts.client_name = Some(client_name(&value)),
                ("sentinel_user", "redis+sentinel") => parts.sentinel_user = Some(value),
                ("sentinel_password", "redis+sentinel") => parts.sentinel_password = Some(value),
                ("protocol", _) | ("db" | "user" | "pass", "unix") => {
                    let separator = if parts.query.is_empty() { '?' } else { '&' };
                    parts.query.push(separator);
                    // A plus is literal, as it is before the host.
                    parts.query.push_str(&parameter.replace('+', "%2B"));
                }
                _ => {
                    // The name may be the rest of a password.
                    let shown = match query.contains("pass=") || query.contains("password=") {
                        true => String::new(),
                        false => format!("{name} "),
                    };
                    return Err(invalid(format!(
                        "the parameter {shown}is not known here: there are protocol and \
                         client_name, with unix sockets db, user and pass, and with Sentinel \
                         sentinel_user and sentinel_password (an & in a password is written %26)"
                    )));
                }
            }
        }
        if parts.sentinel_user.is_some() && parts.sentinel_password.is_none() {
            return Err(invalid(NO_PASSWORD));
        }
        Ok(parts)
    }

    /// The Sentinels, and the login for the servers that they name.
    fn sentinels(&self) -> Result<(Sentinels, ConnectionInfo), CallError> {
        let path = self.path.trim_matches('/');
        let (service, database) = path.split_once('/').unwrap_or((path, ""));
        if service.is_empty() {
            return Err(invalid(
                "the name of the service is missing: redis+sentinel://host,host/service",
            ));
        }
        let mut addresses = Vec::new();
        let mut server = None;
        for host in self.hosts.split(',') {
            // The port follows the last colon outside of [an IPv6 address].
            let host = host.strip_suffix(':').unwrap_or(host);
            let has_port = host.rfind(':') > host.rfind(']');
            let port = if has_port {
                String::new()
            } else {
                format!(":{SENTINEL_PORT}")
            };
            let info = self.info("redis", &format!("{host}{port}"), &format!("/{database}"))?;
            addresses.push(address(&info)?);
            server = Some(info);
        }
        // A split yields at least one part.
        let server = server.ok_or_else(|| invalid("no host"))?;
        let mut settings =
            RedisConnectionInfo::default().set_protocol(server.redis_settings().protocol());
        if let Some(user) = &self.sentinel_user {
            settings = settings.set_username(user);
        }
        if let Some(password) = &self.sentinel_password {
            settings = settings.set_password(password);
        }
        let sentinels = Sentinels {
            addresses,
            service: decoded(service).into(),
            login: self.login(settings, false),
        };
        Ok((sentinels, server))
    }

    fn login(&self, settings: RedisConnectionInfo, needs_master: bool) -> Login {
        let client_name = self.client_name.clone();
        Login {
            // The client name shows the library, and needs one permission less.
            settings: settings.set_skip_set_lib_name(),
            client_name: client_name.unwrap_or_else(|| DEFAULT_CLIENT_NAME.into()),
            needs_master,
        }
    }

    fn each_host(&self, path: &str) -> Result<Vec<ConnectionInfo>, CallError> {
        let hosts = self.hosts.split(',');
        hosts.map(|host| self.info("redis", host, path)).collect()
    }

    fn info(&self, scheme: &str, host: &str, path: &str) -> Result<ConnectionInfo, CallError> {
        let Self {
            credentials, query, ..
        } = self;
        let url = format!("{scheme}://{credentials}{host}{path}{query}");
        let url = redis::parse_redis_url(&url).ok_or_else(|| {
            invalid(
                "a host or a port cannot be read: write host:port, and an IPv6 address as [::1]:port",
            )
        })?;
        let info = url.into_connection_info().or_failure()?;
        let settings = info.redis_settings();
        // The client library would skip the login, and use the default user.
        if settings.username().is_some() && settings.password().is_none() {
            return Err(invalid(NO_PASSWORD));
        }
        Ok(info)
    }
}

/// The TLS settings of a client. Its certificates cannot be read: without the error, the store would trust the CAs of the
/// system and show no client certificate.
#[cfg(feature = "tls")]
fn taken_over(has_certificates: bool) -> Result<Tls, CallError> {
    if has_certificates {
        return Err(invalid(CERTIFICATES_NOT_TAKEN_OVER));
    }
    Tls::new(&RedisTls::new())
}

fn decoded(text: &str) -> Cow<'_, str> {
    percent_decode_str(text).decode_utf8_lossy()
}

fn address(info: &ConnectionInfo) -> Result<Address, CallError> {
    match info.addr() {
        ConnectionAddr::Tcp(host, port) => Ok(Address::Tcp(host.as_str().into(), *port)),
        ConnectionAddr::Unix(path) => Ok(Address::Unix(path.clone())),
        _ => Err(invalid("this kind of address is not supported")),
    }
}

/// A name that the server accepts: printable characters without spaces.
fn client_name(name: &str) -> Arc<str> {
    let allowed = |c: char| if c.is_ascii_graphic() { c } else { '_' };
    name.chars().map(allowed).collect::<String>().into()
}

pub(super) fn invalid(reason: impl Into<Arc<str>>) -> CallError {
    CallError::because(FailureKind::Configuration, reason)
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
    fn a_client_is_taken_over_with_its_login() {
        let client = redis::Client::open("redis://gateway:pass@redis.internal:7000/3").unwrap();
        let target = Target::from_info(client.get_connection_info()).unwrap();
        let Servers::Single(address) = target.servers else {
            panic!("a client has one server");
        };
        assert_eq!(address, tcp("redis.internal", 7000));
        let settings = target.login.settings;
        assert_eq!(settings.username(), Some("gateway"));
        assert_eq!(settings.password(), Some("pass"));
        assert_eq!(settings.db(), 3);
        assert_eq!(&*target.login.client_name, DEFAULT_CLIENT_NAME);
    }

    #[test]
    fn an_insecure_client_is_rejected() {
        let address = ConnectionAddr::TcpTls {
            host: "redis.internal".to_owned(),
            port: 6380,
            insecure: true,
            tls_params: None,
        };
        let info = address.into_connection_info().unwrap();
        let Err(error) = Target::from_info(&info) else {
            panic!("an insecure client was accepted");
        };
        assert_eq!(error.kind(), FailureKind::Configuration);
        assert!(error.to_string().contains("insecure"), "{error}");
    }

    #[cfg(feature = "tls")]
    #[test]
    fn a_client_with_certificates_needs_them_again() {
        let mut target = target("rediss://redis.internal");
        assert!(taken_over(false).is_ok());
        target.tls = Some(taken_over(true));
        let Some(Err(error)) = &target.tls else {
            panic!("the certificates of the system are used in place of the client's");
        };
        assert_eq!(error.kind(), FailureKind::Configuration);
        assert!(error.to_string().contains("RedisStore::tls"), "{error}");
        target.set_tls(&RedisTls::new()).unwrap();
        assert!(matches!(target.tls, Some(Ok(_))));
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
            let Servers::Single(is) = target.servers else {
                panic!("{url}");
            };
            assert_eq!(is, address, "{url}");
            assert_eq!(target.login.settings.db(), db, "{url}");
            #[cfg(feature = "tls")]
            assert!(target.tls.is_none(), "{url}");
        }
    }

    #[cfg(feature = "tls")]
    #[test]
    fn a_rediss_url_has_tls() {
        for url in ["rediss://h", "valkeys://h", "rediss+cluster://a,b"] {
            assert!(target(url).tls.is_some(), "{url}");
        }
    }

    #[test]
    fn a_cluster_url_names_nodes() {
        let target =
            target("redis+cluster://user:secret@a:1,[::2]:2,c/?protocol=resp3&client_name=x%20y");
        let nodes = vec![tcp("a", 1), tcp("::2", 2), tcp("c", 6379)];
        let Servers::Cluster(are) = target.servers else {
            panic!("no cluster");
        };
        assert_eq!(are, nodes);
        assert_eq!(target.login.settings.username(), Some("user"));
        assert_eq!(target.login.settings.password(), Some("secret"));
        assert_eq!(
            target.login.settings.protocol(),
            redis::ProtocolVersion::RESP3
        );
        assert_eq!(&*target.login.client_name, "x_y");
    }

    #[test]
    fn a_sentinel_url_names_sentinels_and_their_service() {
        let url = "redis+sentinel://user:secret@a:,[::2],c:7/my%20service/3\
                   ?sentinel_password=p%26w&client_name=gateway";
        let target = target(url);
        let Servers::Sentinel(sentinels) = target.servers else {
            panic!("no Sentinel");
        };
        let addresses = [tcp("a", 26379), tcp("::2", 26379), tcp("c", 7)];
        assert_eq!(sentinels.addresses, addresses);
        assert_eq!(&*sentinels.service, "my service");
        let settings = &sentinels.login.settings;
        assert_eq!(settings.username(), None);
        assert_eq!(settings.password(), Some("p&w"));
        assert_eq!(settings.db(), 0);
        assert_eq!(&*sentinels.login.client_name, "gateway");
        let settings = &target.login.settings;
        assert_eq!(settings.username(), Some("user"));
        assert_eq!(settings.password(), Some("secret"));
        assert_eq!(settings.db(), 3);
    }

    #[test]
    fn an_unusable_url_is_an_error_with_the_reason() {
        for (url, reason) in [
            ("127.0.0.1", "scheme"),
            ("http://h", "scheme"),
            ("redis://:a/b@h", "%2F"),
            ("redis://:a?b@h", "%3F"),
            ("redis://h/?db=3", "db"),
            ("redis://h/?protcol=resp3", "protcol"),
            ("redis://h/?protocol=4", "protocol"),
            ("redis://h/x", "database"),
            ("redis://h#insecure", "#insecure"),
            ("redis+cluster://a,b/3", "one database"),
            ("redis+sentinel://a,b", "service"),
            ("redis+sentinel://a,b/", "service"),
            ("redis://user@h", "without a password"),
            ("unix:/run/r?user=a", "without a password"),
            ("redis+sentinel://a/s?sentinel_user=a", "without a password"),
            ("redis+cluster://u:p@a,u:p@b", "more than one @"),
            ("redis://::1:6379", "[::1]"),
            ("redis://h:65536", "port"),
        ] {
            let error = Target::parse(url).err().expect(url);
            assert_eq!(error.kind(), FailureKind::Configuration, "{url}");
            let detail = error.detail().expect(url);
            assert!(detail.contains(reason), "{url}: {detail}");
        }
    }

    #[test]
    fn a_part_of_a_password_is_not_shown() {
        for url in [
            "unix:/run/r?pass=hun&ter2",
            "redis+sentinel://h/s?sentinel_password=hun&ter2=x",
            "redis://:hun/ter2@h",
            "redis://:hun?ter2@h",
            "redis://:hun#ter2@h",
            "redis+cluster://:hun@ter2@h",
            "ter2:hun@h",
        ] {
            let error = Target::parse(url).err().expect(url);
            assert!(!error.to_string().contains("ter2"), "{error}");
        }
    }

    #[test]
    fn a_plus_in_a_password_is_literal() {
        for url in [
            "redis://u:a+b%2Bc@h",
            "unix:/run/r?user=u&pass=a+b%2Bc",
            "redis+sentinel://u:a+b%2Bc@h/s?sentinel_password=a+b%2Bc\n",
        ] {
            let target = target(url);
            assert_eq!(target.login.settings.password(), Some("a+b+c"), "{url}");
            if let Servers::Sentinel(sentinels) = target.servers {
                let settings = &sentinels.login.settings;
                assert_eq!(settings.password(), Some("a+b+c"), "{url}");
            }
        }
    }

    #[test]
    fn an_error_about_a_url_shows_no_part_of_a_password() {
        for url in [
            "hunter2",
            "hunter2:hunter2@h",
            "redis://:hunter2@h:port",
            "redis://:hunter2@",
            "redis://:%FFhunter2@h",
            "redis://:a/hunter2@h",
            "redis://:a?hunter2@h",
            "redis://:a?b=hunter2&hunter2@h",
            "redis://:a#hunter2@h",
            "redis://:hunter2@h/db",
            "redis://:hunter2@h?db=1",
            "redis://:hunter2@h?protocol=9",
            "redis+cluster://:hunter2@a,b/1",
            "redis+cluster://:hunter2@a,,b",
            "redis+sentinel://:hunter2@a",
            "redis+sentinel://:hunter2@a/s/db",
            "redis+sentinel://a/s?sentinel_password=x&hunter2",
            "redis+sentinel://a/s?sentinel_password=x&hunter2=y",
            "unix:/s?pass=x&hunter2",
            "unix:/s?hunter2&pass=x",
            "unix:/s?pass=hunter2&db=x",
        ] {
            let error = Target::parse(url).err().expect(url);
            let shown = format!("{error} {error:?}");
            assert!(!shown.contains("hunter2"), "{url}: {shown}");
        }
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
