//! A master and its replicas behind Sentinel.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tower_admission::Quota;
use tower_admission::store::FailureKind;
use tower_admission::store::{FailureMode, RateBuckets, RateStore};

use super::server::{Server, free_port, store, until};
use super::user;

/// Three Sentinels of a service. They end when dropped.
pub(crate) struct Sentinels {
    pub(crate) ports: [u16; 3],
    processes: Vec<Child>,
    folder: PathBuf,
}

impl Sentinels {
    /// Looks after `gateway`, and takes its master for dead after half a second.
    pub(crate) fn start(master: u16, password: &str) -> Self {
        Self::start_with(master, password, |port| format!("port {port}"))
    }

    /// With these lines about their own port.
    fn start_with(master: u16, password: &str, listen: impl Fn(u16) -> String) -> Self {
        let ports = [free_port(), free_port(), free_port()];
        let folder = std::env::temp_dir().join(format!("tower-admission-sentinel-{}", ports[0]));
        std::fs::create_dir_all(&folder).unwrap();
        let processes = ports.map(|port| {
            // They write what they find out into it.
            let file = folder.join(format!("{port}.conf"));
            let settings = format!(
                "{}\nbind 127.0.0.1\ndir {}\nrequirepass {password}\n\
                 sentinel sentinel-pass {password}\n\
                 sentinel monitor gateway 127.0.0.1 {master} 2\n\
                 sentinel down-after-milliseconds gateway 500\n\
                 sentinel failover-timeout gateway 2000\n",
                listen(port),
                folder.display()
            );
            std::fs::write(&file, settings).unwrap();
            let process = Command::new("redis-server")
                .arg(file)
                .arg("--sentinel")
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn();
            process.unwrap()
        });
        Self {
            ports,
            processes: processes.into(),
            folder,
        }
    }

    /// The URL of a service of theirs.
    fn url(&self, service: &str, password: &str) -> String {
        let hosts = self.ports.map(|port| format!("127.0.0.1:{port}")).join(",");
        format!("redis+sentinel://{hosts}/{service}?sentinel_password={password}")
    }

    pub(crate) async fn ask(
        &self,
        password: &str,
        words: &[&str],
    ) -> redis::RedisResult<redis::Value> {
        let url = format!("redis://:{password}@127.0.0.1:{}", self.ports[0]);
        let client = redis::Client::open(url)?;
        let mut connection = client.get_multiplexed_async_connection().await?;
        let mut command = redis::cmd("SENTINEL");
        command.arg(words).query_async(&mut connection).await
    }
}

impl Drop for Sentinels {
    fn drop(&mut self) {
        for process in &mut self.processes {
            let _ = process.kill();
            let _ = process.wait();
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Takes what is left of a user's quota, as soon as the store answers.
async fn take_all(buckets: &dyn RateBuckets, name: &str) -> u32 {
    let user = user(name);
    let mut admitted = 0;
    for _ in 0..1000 {
        let taken = buckets.take(&user, 1).await;
        if taken.is_unavailable() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        } else if taken.is_admitted() {
            admitted += 1;
        } else {
            return admitted;
        }
    }
    panic!("{name}: {admitted} admitted, and the store does not answer");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_limits_hold_again_after_a_failover() {
    let soon = ["--repl-diskless-sync-delay", "0"];
    let mut first = Server::start_with(&soon).await;
    let master = first.port.to_string();
    let replica = ["--replicaof", "127.0.0.1", &master];
    let mut second = Server::start_with(&[&soon[..], &replica].concat()).await;
    let sentinels = Sentinels::start(first.port, "watch");
    // Without it they could not agree on a failover.
    until(
        "the Sentinels know the replica and each other",
        async || {
            let known = sentinels.ask("watch", &["CKQUORUM", "gateway"]).await;
            let replicas = sentinels.ask("watch", &["REPLICAS", "gateway"]).await;
            known.is_ok() && format!("{replicas:?}").contains("slave-priority")
        },
    )
    .await;
    let store = store(&sentinels.url("gateway", "watch")).on_failure(FailureMode::Closed);
    let buckets = store.open(&[Quota::per_hour(5).into()]);
    store.ping().await.unwrap();
    assert_eq!(take_all(&*buckets, "alice").await, 5);

    until("the replica has it", async || {
        second.keys().await.len() == 1
    })
    .await;

    // The old master goes on as a replica, on connections that stay.
    until("the Sentinels change the master", async || {
        sentinels
            .ask("watch", &["FAILOVER", "gateway"])
            .await
            .is_ok()
    })
    .await;
    until("the second server is the master", async || {
        is_master(&second).await
    })
    .await;
    until("the first server is a replica", async || {
        !is_master(&first).await
    })
    .await;
    assert_eq!(take_all(&*buckets, "bob").await, 5);
    assert_eq!(second.keys().await.len(), 2);
    until("the replica has it", async || first.keys().await.len() == 2).await;

    second.kill();
    assert_eq!(take_all(&*buckets, "carol").await, 5);
    assert!(is_master(&first).await);
    // Nothing that was replicated is forgotten.
    assert_eq!(take_all(&*buckets, "bob").await, 0);
    first.kill();
}

async fn is_master(server: &Server) -> bool {
    let role = server.command(&["ROLE"]).await;
    format!("{role:?}").contains("master")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_explains_why_sentinels_name_no_master() {
    let master = Server::start().await;
    let sentinels = Sentinels::start(master.port, "watch");
    until("a Sentinel answers", async || {
        sentinels.ask("watch", &["MASTERS"]).await.is_ok()
    })
    .await;
    for (url, kind, reason) in [
        (
            sentinels.url("other", "watch"),
            FailureKind::Configuration,
            "other",
        ),
        (
            sentinels.url("gateway", "wrong"),
            FailureKind::Denied,
            "auth",
        ),
        (
            format!("redis+sentinel://127.0.0.1:{}/gateway", master.port),
            FailureKind::Configuration,
            "it is no Sentinel",
        ),
    ] {
        let error = store(&url).ping().await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(reason), "{error}");
        assert!(error.to_string().contains("127.0.0.1:"), "{error}");
    }
}

#[cfg(feature = "tls")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sentinels_and_servers_are_reached_over_tls() {
    let authority = super::certificates::Authority::new();
    let identity = authority.issue("server", |_| {});
    let (_master, port) = authority.serve(&identity, "no").await;
    let sentinels = Sentinels::start_with(port, "watch", |port| {
        format!(
            "port 0\ntls-port {port}\ntls-replication yes\ntls-auth-clients no\n\
             tls-cert-file {}\ntls-key-file {}\ntls-ca-cert-file {}",
            identity.certificate.display(),
            identity.key.display(),
            authority.ca().display()
        )
    });
    let url = sentinels.url("gateway", "watch");
    let store = store(&url.replace("redis+", "rediss+")).on_failure(FailureMode::Closed);
    let store = store.tls(authority.trusted()).unwrap();
    let buckets = store.open(&[Quota::per_hour(5).into()]);
    assert_eq!(take_all(&*buckets, "alice").await, 5);
}
