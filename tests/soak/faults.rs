//! What happens to the servers while the clients go on.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use crate::LEASE_TTL;
use crate::meters::Meters;
use crate::server::{Server, free_port, until};

/// Where the store counts.
pub(crate) enum Place {
    Single(Server),
    /// A master and its replica, looked after by a Sentinel.
    Watched([Server; 2], Sentinel),
}

pub(crate) struct Sentinel {
    port: u16,
    process: Child,
    folder: PathBuf,
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    /// Its process is killed, and starts again without any data.
    Kill,
    /// It stops to answer, and goes on.
    Pause,
    /// Its data is lost.
    Flush,
    /// All its connections end.
    Disconnect,
    /// It forgets the scripts.
    ForgetScripts,
}

const ALL: [Fault; 5] = [
    Fault::Kill,
    Fault::Pause,
    Fault::Disconnect,
    Fault::Flush,
    Fault::ForgetScripts,
];

pub(crate) struct Faults {
    name: String,
    place: Place,
    meters: Arc<Meters>,
    count: usize,
}

impl Place {
    pub(crate) fn single(server: Server) -> Self {
        Self::Single(server)
    }

    pub(crate) async fn watched() -> Self {
        let soon = ["--repl-diskless-sync-delay", "0"];
        let first = Server::start_with(&soon).await;
        let master = first.port.to_string();
        let replica = ["--replicaof", "127.0.0.1", &master];
        let second = Server::start_with(&[&soon[..], &replica].concat()).await;
        let sentinel = Sentinel::start(first.port);
        let place = Self::Watched([first, second], sentinel);
        until("the Sentinel knows the replica", async || {
            place.master().await.is_some()
        })
        .await;
        place
    }

    pub(crate) fn url(&self) -> String {
        match self {
            Self::Single(server) => server.url(),
            Self::Watched(_, sentinel) => {
                format!("redis+sentinel://127.0.0.1:{}/soak", sentinel.port)
            }
        }
    }

    /// The server that decides, when it may fail: a master only while it has a replica that can follow it.
    async fn master(&self) -> Option<usize> {
        let Self::Watched(servers, sentinel) = self else {
            return Some(0);
        };
        let port = sentinel.master().await?;
        let master = servers.iter().position(|server| server.port == port)?;
        let replication = servers[master].word_of(&["INFO", "replication"]).await?;
        let has_replica = replication.contains("state=online");
        let known = sentinel.ask(&["REPLICAS", "soak"]).await?;
        (has_replica && !known.contains("s_down")).then_some(master)
    }

    fn server(&mut self, n: usize) -> &mut Server {
        match self {
            Self::Single(server) => server,
            Self::Watched(servers, _) => &mut servers[n],
        }
    }
}

impl Server {
    async fn word_of(&self, words: &[&str]) -> Option<String> {
        let value = self.command(words).await.ok()?;
        redis::from_redis_value(value).ok()
    }
}

impl Sentinel {
    fn start(master: u16) -> Self {
        let port = free_port();
        let folder = std::env::temp_dir().join(format!("tower-admission-soak-{port}"));
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join("sentinel.conf");
        let settings = format!(
            "port {port}\nbind 127.0.0.1\ndir {}\n\
             sentinel monitor soak 127.0.0.1 {master} 1\n\
             sentinel down-after-milliseconds soak 500\n\
             sentinel failover-timeout soak 2000\n",
            folder.display()
        );
        std::fs::write(&file, settings).unwrap();
        let process = Command::new("redis-server")
            .arg(file)
            .arg("--sentinel")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self {
            port,
            process,
            folder,
        }
    }

    async fn query<T: redis::FromRedisValue>(&self, words: &[&str]) -> Option<T> {
        let client = redis::Client::open(format!("redis://127.0.0.1:{}", self.port)).ok()?;
        let mut connection = client.get_multiplexed_async_connection().await.ok()?;
        let mut command = redis::cmd("SENTINEL");
        command.arg(words).query_async(&mut connection).await.ok()
    }

    async fn ask(&self, words: &[&str]) -> Option<String> {
        let value: redis::Value = self.query(words).await?;
        Some(format!("{value:?}"))
    }

    async fn master(&self) -> Option<u16> {
        let address: (String, u16) = self.query(&["GET-MASTER-ADDR-BY-NAME", "soak"]).await?;
        Some(address.1)
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Faults {
    pub(crate) fn new(name: &str, place: Place, meters: Arc<Meters>) -> Self {
        Self {
            name: name.to_owned(),
            place,
            meters,
            count: 0,
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// One fault after the other, with a calm time after each.
    pub(crate) async fn until(&mut self, end: Instant) {
        sleep(Duration::from_secs(1)).await;
        while Instant::now() < end {
            let fault = ALL[self.count % ALL.len()];
            self.meters.disturb();
            if let Some(server) = self.place.master().await {
                println!("{}: {fault:?}", self.name);
                self.have(fault, server).await;
                self.count += 1;
            }
            // Until what was held before the fault is counted again or has expired.
            sleep_until((Instant::now() + LEASE_TTL + Duration::from_secs(3)).min(end)).await;
            if Instant::now() < end && self.place.master().await.is_some() {
                self.meters.calm();
                sleep_until((Instant::now() + Duration::from_secs(8)).min(end)).await;
            }
        }
        until("the servers are there again", async || {
            self.place.master().await.is_some()
        })
        .await;
    }

    async fn have(&mut self, fault: Fault, server: usize) {
        let server = self.place.server(server);
        let moment = Duration::from_millis(fastrand::u64(500..3000));
        match fault {
            Fault::Kill => {
                server.kill();
                sleep(moment).await;
                server.restart().await;
            }
            Fault::Pause => {
                server.signal("STOP");
                sleep(moment).await;
                server.signal("CONT");
            }
            Fault::Flush => server.clear().await,
            Fault::Disconnect => {
                let _ = server.command(&["CLIENT", "KILL", "TYPE", "normal"]).await;
            }
            Fault::ForgetScripts => {
                let _ = server.command(&["SCRIPT", "FLUSH"]).await;
            }
        }
    }
}
