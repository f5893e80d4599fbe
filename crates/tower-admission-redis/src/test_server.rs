//! A redis-server process for tests of this module.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::url::Target;

/// Ends when dropped, with its folder.
pub(crate) struct TestServer {
    pub(crate) port: u16,
    pub(super) folder: PathBuf,
    process: Child,
}

impl TestServer {
    /// Starts a server with options of its own, also on the unix socket `socket` in its folder.
    pub(crate) async fn start(options: &[&str]) -> Self {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let n = STARTED.fetch_add(1, Ordering::Relaxed);
        let name = format!("tower-admission-lib-{}-{n}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let process = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--appendonly", "no", "--daemonize", "no"])
            .args(["--dir", folder.to_str().unwrap()])
            .args(["--unixsocket", folder.join("socket").to_str().unwrap()])
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("these tests need redis-server");
        let server = Self {
            port,
            folder,
            process,
        };
        let answers = async {
            while tokio::net::TcpStream::connect(("127.0.0.1", port))
                .await
                .is_err()
            {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let answers = tokio::time::timeout(Duration::from_secs(30), answers).await;
        answers.expect("redis-server answers within 30 seconds");
        server
    }

    /// What `redis://{credentials}127.0.0.1:{port}{rest}` says.
    pub(super) fn target(&self, rest: &str) -> Target {
        let url = format!("redis://127.0.0.1:{}{rest}", self.port);
        Target::parse(&url).unwrap()
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
