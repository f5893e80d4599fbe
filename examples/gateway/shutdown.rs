//! SIGTERM and SIGINT: the first one ends the gateway in order, the second one at once.

use std::future::Future;
use std::io;
use std::process;

use tokio::sync::oneshot;
use tracing::{info, warn};

/// SIGTERM and SIGINT (ctrl-c), heard from when this is made on.
pub(crate) struct Signals {
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    /// Runs `serve` with a future that ends at the first signal. The second signal ends the process, with
    /// exit code 1 and without waiting for anything.
    pub(crate) async fn run<F>(mut self, serve: impl FnOnce(oneshot::Receiver<()>) -> F)
    where
        F: Future<Output = ()>,
    {
        let (stop, stopped) = oneshot::channel();
        let heard = async {
            self.next().await;
            info!("shutting down: requests in progress may finish, and a second signal ends them");
            let _ = stop.send(());
            self.next().await;
        };
        tokio::select! {
            () = serve(stopped) => {}
            () = heard => {
                warn!("ended by a second signal: slots in a store stay taken until their leases expire");
                process::exit(1);
            }
        }
    }

    #[cfg(unix)]
    pub(crate) fn new() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};

        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    #[cfg(unix)]
    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    #[cfg(not(unix))]
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {})
    }

    #[cfg(not(unix))]
    async fn next(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            // It cannot be heard here, so it never comes.
            std::future::pending::<()>().await;
        }
    }
}
