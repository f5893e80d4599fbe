//! Opens a connection to one server, ready for calls.

use std::collections::HashMap;
use std::io;
use std::pin::{Pin, pin};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::io::tcp::socket2::{SockRef, TcpKeepalive};
use redis::{AsyncConnectionConfig, Value};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};
use tokio::task::JoinSet;

use super::call_error::{CallError, ClientError, OrFailure};
use super::detail::bounded;
use super::url::{Address, Login, Servers, Target};
use tower_admission::store::FailureKind;

/// Reads and writes a connection while it is polled. Ends with the connection, also when the server closes an idle one.
pub(super) type Driver = Pin<Box<dyn Future<Output = ()> + Send>>;

impl Target {
    /// Opens a connection and logs in. The caller limits the time, polls the driver, and drops both to end the
    /// connection.
    pub(super) async fn open(
        &self,
        address: &Address,
    ) -> Result<(MultiplexedConnection, Driver), CallError> {
        self.open_with(&self.login, address).await
    }

    /// The same, with another login.
    pub(super) async fn open_with(
        &self,
        login: &Login,
        address: &Address,
    ) -> Result<(MultiplexedConnection, Driver), CallError> {
        match address {
            Address::Tcp(host, port) => {
                #[cfg(feature = "tls")]
                if let Some(tls) = &self.tls {
                    // A wrong certificate or key is an error before a connection is opened.
                    let tls = tls.clone()?;
                    let stream = tls.connect(host, tcp(host, *port).await?).await?;
                    return log_in(login, stream).await;
                }
                log_in(login, tcp(host, *port).await?).await
            }
            #[cfg(unix)]
            Address::Unix(path) => {
                let stream = tokio::net::UnixStream::connect(path).await;
                log_in(login, stream.or_failure()?).await
            }
            #[cfg(not(unix))]
            Address::Unix(_) => Err(super::url::invalid("this system has no unix sockets")),
        }
    }

    /// The address to connect to: with Sentinel, the address of the current master.
    pub(super) async fn master(&self) -> Result<Address, CallError> {
        match &self.servers {
            Servers::Single(address) => Ok(address.clone()),
            Servers::Sentinel(sentinels) => sentinels.master(self).await,
            // The nodes of a cluster are found by slot.
            Servers::Cluster(nodes) => Ok(nodes[0].clone()),
        }
    }
}

/// Connects to the first address of a name that answers.
async fn tcp(host: &str, port: u16) -> Result<TcpStream, CallError> {
    let mut tries = JoinSet::new();
    for address in lookup_host((host, port)).await.or_failure()? {
        tries.spawn(TcpStream::connect(address));
    }
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    while let Some(tried) = tries.join_next().await {
        match tried.map_err(io::Error::other).and_then(|tried| tried) {
            Ok(stream) => {
                set_options(&stream).or_failure()?;
                return Ok(stream);
            }
            Err(error) => failed = error,
        }
    }
    Err(failed.into_failure())
}

/// Disables Nagle's delay, which costs throughput. Enables keepalive, to notice a lost peer on an idle connection.
fn set_options(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(10))
        .with_interval(Duration::from_secs(5));
    socket.set_tcp_keepalive(&keepalive)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(Duration::from_secs(5)))?;
    Ok(())
}

/// Authenticates, selects the database, names the connection and checks the server.
async fn log_in<S>(login: &Login, stream: S) -> Result<(MultiplexedConnection, Driver), CallError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    // Callers have their own deadlines.
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(None)
        .set_response_timeout(None);
    let opened = MultiplexedConnection::new_with_config(&login.settings, stream, config);
    let (connection, driver) = opened.await.or_failure()?;
    let mut driver: Driver = Box::pin(driver);
    beside(&mut driver, check(login, connection.clone())).await?;
    Ok((connection, driver))
}

/// Waits for a future that needs the connection, and polls the connection meanwhile.
pub(super) async fn beside<T>(driver: &mut Driver, answer: impl Future<Output = T>) -> T {
    let mut answer = pin!(answer);
    tokio::select! {
        answer = &mut answer => answer,
        // Every call that waited for the connection has its answer or an error.
        () = &mut *driver => {
            // Callers poll the driver again, which a finished future does not allow.
            *driver = Box::pin(async {});
            answer.await
        }
    }
}

async fn check(login: &Login, mut connection: MultiplexedConnection) -> Result<(), CallError> {
    // HELLO works with both protocols and for every user; `INFO` needs a permission.
    let mut naming = connection.clone();
    let hello = redis::cmd("HELLO");
    let mut set_name = redis::cmd("CLIENT");
    set_name.arg("SETNAME").arg(&*login.client_name);
    let (about, _) = tokio::join!(
        hello.query_async::<Value>(&mut connection),
        // A user without the permission gets no name.
        set_name.query_async::<Value>(&mut naming),
    );
    match about {
        Ok(about) => {
            let about: HashMap<String, Value> = redis::from_redis_value(about).unwrap_or_default();
            // A server without these fields counts as a new one, and as a master.
            let says = |name| match about.get(name) {
                Some(Value::BulkString(said)) => String::from_utf8_lossy(said),
                _ => "".into(),
            };
            check_version(&says("version"))?;
            if login.needs_master && !matches!(&*says("role"), "" | "master") {
                return Err(CallError::because(
                    FailureKind::ReadOnly,
                    "the server that Sentinel names is no master yet or any more",
                ));
            }
            Ok(())
        }
        // Redis 5 and older do not know the command.
        Err(error)
            if error
                .detail()
                .is_some_and(|words| words.contains("unknown command")) =>
        {
            Err(too_old("it is Redis 5 or older"))
        }
        Err(error) => Err(error.into_failure()),
    }
}

/// The oldest version with every command that the scripts use.
const OLDEST: (u32, u32) = (6, 2);

fn check_version(version: &str) -> Result<(), CallError> {
    let mut numbers = version
        .split('.')
        .map_while(|number| number.trim().parse().ok());
    let (major, minor): (u32, u32) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if !version.is_empty() && (major, minor) < OLDEST {
        return Err(too_old(&format!("it is version {version}")));
    }
    Ok(())
}

fn too_old(found: &str) -> CallError {
    let found = bounded(found);
    let (major, minor) = OLDEST;
    let words = format!("{found}: use Redis {major}.{minor} or later, or Valkey");
    CallError::because(FailureKind::TooOld, words)
}

#[cfg(test)]
mod tests {
    use super::*;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::timeout;

    use super::super::test_server::TestServer;

    async fn opened(target: &Target) -> (MultiplexedConnection, Driver) {
        let address = target.master().await.unwrap();
        target.open(&address).await.unwrap()
    }

    /// Runs a command next to the driver.
    async fn ask(
        (connection, driver): &mut (MultiplexedConnection, Driver),
        words: &[&str],
    ) -> redis::RedisResult<String> {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        tokio::select! {
            answer = command.query_async(connection) => answer,
            () = driver => panic!("the connection ended"),
        }
    }

    const PROTOCOLS: [&str; 2] = ["/?protocol=resp2", "/?protocol=resp3"];

    #[tokio::test]
    async fn a_driver_ends_when_the_server_closes_an_idle_connection() {
        let server = TestServer::start(&["--timeout", "1"]).await;
        for protocol in PROTOCOLS {
            let (connection, driver) = opened(&server.target(protocol)).await;
            let ended = timeout(Duration::from_secs(30), driver).await;
            assert!(ended.is_ok(), "{protocol}");
            drop(connection);
        }
    }

    #[tokio::test]
    async fn a_driver_ends_when_its_connection_is_killed() {
        let server = TestServer::start(&[]).await;
        for protocol in PROTOCOLS {
            let mut killed = opened(&server.target(protocol)).await;
            let id: i64 = {
                let mut connection = killed.0.clone();
                let mut id = redis::cmd("CLIENT");
                id.arg("ID");
                tokio::select! {
                    id = id.query_async(&mut connection) => id.unwrap(),
                    () = &mut killed.1 => panic!("the connection ended"),
                }
            };
            let mut other = opened(&server.target("")).await;
            let mut kill = redis::cmd("CLIENT");
            kill.arg("KILL").arg("ID").arg(id);
            let kill = async {
                let _: i64 = kill.query_async(&mut other.0).await.unwrap();
            };
            tokio::select! { () = kill => {}, () = other.1 => panic!("the other ended") }
            let ended = timeout(Duration::from_secs(30), killed.1).await;
            assert!(ended.is_ok(), "{protocol}");
        }
    }

    #[tokio::test]
    async fn a_connection_has_its_name_and_its_database() {
        let server = TestServer::start(&[]).await;
        for protocol in PROTOCOLS {
            let url = format!("{protocol}&client_name=gateway").replace("/?", "/3?");
            let mut opened = opened(&server.target(&url)).await;
            let info = ask(&mut opened, &["CLIENT", "INFO"]).await.unwrap();
            assert!(info.contains(" name=gateway "), "{info}");
            assert!(info.contains(" db=3 "), "{info}");
        }
        let mut opened = opened(&server.target("")).await;
        let info = ask(&mut opened, &["CLIENT", "INFO"]).await.unwrap();
        assert!(info.contains(" name=tower-admission "), "{info}");
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn a_unix_socket_has_a_database() {
        let server = TestServer::start(&[]).await;
        let path = server.folder.join("socket");
        let url = format!("unix:{}?db=4&protocol=resp3", path.display());
        let mut opened = opened(&Target::parse(&url).unwrap()).await;
        let info = ask(&mut opened, &["CLIENT", "INFO"]).await.unwrap();
        assert!(info.contains(" db=4 "), "{info}");
        assert!(info.contains("socket:0"), "{info}");
    }

    #[tokio::test]
    async fn a_connection_that_cannot_be_used_is_an_error() {
        let server = TestServer::start(&["--requirepass", "secret"]).await;
        for (rest, kind) in [
            ("", FailureKind::Denied),
            ("/?protocol=resp3", FailureKind::Denied),
        ] {
            let target = server.target(rest);
            let address = target.master().await.unwrap();
            let error = target.open(&address).await.err().expect(rest);
            assert_eq!(error.kind(), kind, "{error:?}");
        }
        let closed_port = Address::Tcp("127.0.0.1".into(), 1);
        let error = server.target("").open(&closed_port).await.err().unwrap();
        assert_eq!(error.kind(), FailureKind::Disconnected, "{error:?}");
    }

    /// When all answers and the end come at once, either is noticed first.
    #[tokio::test]
    async fn a_connection_that_ends_as_it_begins_has_an_end() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("redis://{}", listener.local_addr().unwrap());
        let server = async {
            loop {
                let (mut connection, _) = listener.accept().await.unwrap();
                let _ = connection.read(&mut [0; 1024]).await;
                let answers = b"*2\r\n$7\r\nversion\r\n$5\r\n7.0.0\r\n+OK\r\n";
                let _ = connection.write_all(answers).await;
            }
        };
        let client = async {
            for _ in 0..100 {
                let (_connection, driver) = opened(&Target::parse(&url).unwrap()).await;
                driver.await;
            }
        };
        tokio::select! { () = client => {}, () = server => {} }
    }

    #[test]
    fn versions() {
        for (version, ok) in [
            ("6.2.0", true),
            ("7.0.15", true),
            ("10.0", true),
            ("6.0.20", false),
            ("5.0.14", false),
            ("", true),
        ] {
            assert_eq!(check_version(version).is_ok(), ok, "{version:?}");
        }
        let old = check_version("6.0.20").unwrap_err();
        assert_eq!(
            old.to_string(),
            "the store failed: too_old: it is version 6.0.20: use Redis 6.2 or later, or Valkey"
        );
    }
}
