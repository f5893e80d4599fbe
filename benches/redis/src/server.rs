//! Starts a redis-server, and reads its counters.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::{Client, IntoConnectionInfo};

/// A running redis-server. Dropping it ends the process.
pub struct Server {
    process: Child,
    port: u16,
}

/// The counters of the server since they were reset.
#[derive(Clone, Copy)]
pub struct Usage {
    /// The processor time of the process so far, in seconds. It is never reset.
    pub processor: f64,
    /// Commands that clients sent to decide and to release.
    pub calls: f64,
    /// Their duration, in microseconds.
    pub micros: f64,
}

/// The commands of clients. The server also counts the commands that scripts call, under their own
/// names; their time is part of the script's.
const COMMANDS: [&str; 4] = ["evalsha", "eval", "incr", "expire"];

impl Server {
    pub fn start() -> Self {
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .expect("a free port")
            .port();
        let process = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--appendonly", "no"])
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is installed");
        Self { process, port }
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Connects as soon as the server is up.
    pub async fn connect(&self) -> MultiplexedConnection {
        let info = self.url().into_connection_info().expect("a URL");
        let info = info.set_tcp_settings(TcpSettings::default().set_nodelay(true));
        let client = Client::open(info).expect("a client");
        for _ in 0..500 {
            if let Ok(connection) = client.get_multiplexed_async_connection().await {
                return connection;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("redis-server does not answer at {}", self.url());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Loads a script and returns its hash.
pub async fn load(connection: &mut MultiplexedConnection, source: &str) -> String {
    let mut load = redis::cmd("SCRIPT");
    let load = load.arg("LOAD").arg(source);
    let hash = load.query_async(connection).await;
    hash.expect("a script that loads")
}

pub async fn reset(connection: &mut MultiplexedConnection) {
    let mut reset = redis::cmd("CONFIG");
    let reset = reset.arg("RESETSTAT").query_async::<()>(connection).await;
    reset.expect("an answer");
}

pub async fn usage(connection: &mut MultiplexedConnection) -> Usage {
    let cpu = info(connection, "cpu").await;
    let commands = info(connection, "commandstats").await;
    let processor = |name: &str| -> f64 {
        let seconds = value(&cpu, name).and_then(|seconds| seconds.parse().ok());
        seconds.expect("INFO cpu has the processor time")
    };
    // cmdstat_get:calls=1,usec=2,usec_per_call=2.00,...
    let total = |field: &str| -> f64 {
        let of_command = |command: &&str| -> Option<f64> {
            let fields = value(&commands, &format!("cmdstat_{command}:"))?;
            let number = fields.split(',').find_map(|it| it.strip_prefix(field))?;
            number.parse().ok()
        };
        COMMANDS.iter().filter_map(of_command).sum()
    };
    Usage {
        processor: processor("used_cpu_sys:") + processor("used_cpu_user:"),
        calls: total("calls="),
        micros: total("usec="),
    }
}

async fn info(connection: &mut MultiplexedConnection, section: &str) -> String {
    let mut info = redis::cmd("INFO");
    let info = info.arg(section).query_async(connection).await;
    info.expect("an answer")
}

fn value<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name))
}
