//! redis-server processes on free ports.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tower_admission::Secret;
use tower_admission_redis::RedisStore;

/// A server with its data in a folder of its own. Ends when dropped.
pub(crate) struct Server {
    pub(crate) port: u16,
    folder: PathBuf,
    options: Vec<String>,
    process: Option<Child>,
}

pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    pub(crate) async fn start_with(options: &[&str]) -> Self {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let n = STARTED.fetch_add(1, Ordering::Relaxed);
        let name = format!("tower-admission-{}-{n}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        let mut server = Self {
            port: free_port(),
            folder,
            options: options.iter().map(|option| option.to_string()).collect(),
            process: None,
        };
        server.restart().await;
        server
    }

    /// Starts the process again, on the same port and without any data.
    pub(crate) async fn restart(&mut self) {
        self.kill();
        let process = Command::new("redis-server")
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--appendonly", "no", "--daemonize", "no"])
            .args(["--dir", self.folder.to_str().unwrap()])
            .args(&self.options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        self.process = Some(process.expect(
            "these tests need redis-server: `apt-get install redis-server`, or \
             `brew install redis`",
        ));
        until("redis-server answers", async || {
            let answer = self.command(&["PING"]).await;
            // Also when it asks for a password.
            answer.is_ok() || answer.is_err_and(|error| error.code() == Some("NOAUTH"))
        })
        .await;
    }

    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// Sends a signal: `STOP`, `CONT`.
    pub(crate) fn signal(&self, signal: &str) {
        let process = self.process.as_ref().expect("a server that runs");
        let sent = Command::new("kill")
            .args([&format!("-{signal}"), &process.id().to_string()])
            .status();
        assert!(sent.unwrap().success());
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub(crate) async fn connection(&self) -> redis::RedisResult<redis::aio::MultiplexedConnection> {
        redis::Client::open(self.url())?
            .get_multiplexed_async_connection()
            .await
    }

    /// Runs a command of words without spaces in them.
    pub(crate) async fn command(&self, words: &[&str]) -> redis::RedisResult<redis::Value> {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        command.query_async(&mut self.connection().await?).await
    }

    /// The answer to a command, as text.
    pub(crate) async fn word(&self, words: &[&str]) -> String {
        match self.command(words).await.unwrap() {
            redis::Value::Int(number) => number.to_string(),
            value => redis::from_redis_value(value).unwrap(),
        }
    }

    pub(crate) async fn keys(&self) -> Vec<String> {
        let mut connection = self.connection().await.unwrap();
        let mut command = redis::cmd("KEYS");
        command.arg("*").query_async(&mut connection).await.unwrap()
    }

    /// Without any data.
    pub(crate) async fn clear(&self) {
        let mut connection = self.connection().await.unwrap();
        let command = redis::cmd("FLUSHALL");
        command.query_async::<()>(&mut connection).await.unwrap();
    }

    pub(crate) fn store(&self) -> RedisStore {
        store(&self.url())
    }
}

/// A store with the secret of these tests and a deadline that a busy machine keeps.
pub(crate) fn store(url: &str) -> RedisStore {
    RedisStore::connect(url)
        .unwrap()
        .secret(Secret::new([7; 16]))
        .deadline(Duration::from_secs(2))
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.process.is_some() {
            // A stopped process would not end.
            self.signal("CONT");
        }
        self.kill();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Waits until something is the case.
pub(crate) async fn until(what: &str, is_so: impl AsyncFn() -> bool) {
    let waiting = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(30), waiting).await;
    waited.unwrap_or_else(|_| panic!("waited 30 seconds until {what}"));
}
