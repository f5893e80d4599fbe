//! An HTTP and gRPC gateway on one port, with one set of limits.
//!
//! `cargo run --release --all-features --example gateway`, then do what it prints. With
//! `-- --config examples/gateway/gateway.toml` its limits come from that file.

mod configured;
mod flags;
mod greeting;
mod handlers;
mod listener;
mod routes;
mod server;
mod shutdown;

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::time::Duration;

use axum::Router;
use clap::Parser;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tower_admission_redis::RedisStore;
use tracing::{error, warn};

use crate::flags::Flags;
use crate::listener::GuardedListener;
use crate::routes::Limits;
use crate::shutdown::Signals;

#[tokio::main]
async fn main() -> ExitCode {
    let flags = Flags::parse();
    tracing_subscriber::fmt()
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr)
        .init();
    let signals = match Signals::new() {
        Ok(signals) => signals,
        Err(error) => {
            eprintln!("error: cannot hear signals: {error}");
            return ExitCode::FAILURE;
        }
    };
    let served = match &flags.config {
        Some(file) => configured::serve(signals, &flags, file).await,
        None => serve(signals, &flags)
            .await
            .map_err(|error| format!("cannot serve on {}: {error}", flags.listen)),
    };
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(signals: Signals, flags: &Flags) -> io::Result<()> {
    // Flags are checked first: a wrong one ends the program before it opens a port.
    let (quota, store) = (flags.quota(), flags.store());
    let listener = TcpListener::bind(flags.listen).await?;
    let address = listener.local_addr()?;
    let app = Limits::new(store.clone()).app(flags.max_concurrency, quota);

    // It starts all the same: the failure mode decides until Redis does.
    if let Some(store) = &store
        && let Err(error) = store.ping().await
    {
        error!(%error, "Redis cannot decide");
    }
    greeting::print(address, flags.max_concurrency, quota);
    run(signals, listener, app, store.as_ref(), flags.grace()).await;
    Ok(())
}

/// Serves until SIGTERM or SIGINT, and then what is in progress, within the time of grace.
async fn run(
    signals: Signals,
    listener: TcpListener,
    app: Router,
    store: Option<&RedisStore>,
    grace: Duration,
) {
    let listener = GuardedListener::new(listener);
    let serve = async |stopped: oneshot::Receiver<()>| {
        let stopped = async {
            let _ = stopped.await;
        };
        // The limits in it are flushed below, so they have to be there until then.
        server::serve(listener, app.clone(), stopped, grace).await;
        if let Some(store) = store
            && let Err(error) = store.flush().await
        {
            warn!(%error, "slots of the last requests stay taken for a while");
        }
    };
    signals.run(serve).await;
}
