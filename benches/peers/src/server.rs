//! Serves apps with axum, all of them on one thread.

use std::net::{Ipv4Addr, SocketAddr};
use std::thread;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, oneshot};

use crate::apps::{APPS, App};
use crate::cores::{Core, pin};
use crate::measure::cpu_time;

/// A runtime on the calling thread.
pub fn runtime() -> Runtime {
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime")
}

/// Serves an app while its runtime runs.
pub async fn serve(app: &App) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
    let listener = listener.expect("a free port");
    let address = listener.local_addr().expect("an address");
    // The documentation of both crates requires it, also when requests have tokens.
    let service = (app.router)().into_make_service_with_connect_info::<SocketAddr>();
    let server = axum::serve(listener, service);
    tokio::spawn(server.into_future());
    address
}

/// All apps on a separate thread, which ends when this is dropped.
pub struct Server {
    /// In the order of the apps.
    pub addresses: Vec<SocketAddr>,
    clock: mpsc::UnboundedSender<oneshot::Sender<Duration>>,
}

impl Server {
    pub fn start(core: Option<Core>) -> Self {
        let (clock, mut asked) = mpsc::unbounded_channel::<oneshot::Sender<Duration>>();
        let (started, addresses) = oneshot::channel();
        thread::spawn(move || {
            pin(core);
            runtime().block_on(async {
                let mut addresses = Vec::new();
                for app in &APPS {
                    addresses.push(serve(app).await);
                }
                started.send(addresses).expect("a thread that waits");
                while let Some(answer) = asked.recv().await {
                    answer.send(cpu_time()).expect("a thread that waits");
                }
            });
        });
        Self {
            addresses: addresses.blocking_recv().expect("a server"),
            clock,
        }
    }

    /// The processor time of the server's thread.
    pub fn cpu_time(&self) -> Duration {
        let (answer, time) = oneshot::channel();
        self.clock.send(answer).expect("a server");
        time.blocking_recv().expect("a server")
    }
}
