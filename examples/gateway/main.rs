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

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::time::Duration;

use axum::Router;
use clap::Parser;
use tokio::net::TcpListener;
use tower_admission::store::RedisStore;
use tracing::{error, info, warn};

use crate::flags::Flags;
use crate::listener::GuardedListener;
use crate::routes::Limits;

/// What a response in progress gets to end after ctrl-c or SIGTERM. A health watch would never end.
const GRACE: Duration = Duration::from_secs(10);

#[tokio::main]
async fn main() -> ExitCode {
    let flags = Flags::parse();
    tracing_subscriber::fmt()
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr)
        .init();
    let served = match &flags.config {
        Some(file) => configured::serve(&flags, file).await,
        None => serve(&flags)
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

async fn serve(flags: &Flags) -> io::Result<()> {
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
    run(listener, app, store.as_ref()).await;
    Ok(())
}

/// Serves until ctrl-c or SIGTERM.
async fn run(listener: TcpListener, app: Router, store: Option<&RedisStore>) {
    let listener = GuardedListener::new(listener);
    tokio::select! {
        () = server::serve(listener, app, interrupted()) => {}
        () = out_of_patience() => {}
    }
    if let Some(store) = store
        && let Err(error) = store.flush().await
    {
        warn!(%error, "slots of the last requests stay taken for a while");
    }
}

async fn interrupted() {
    tokio::select! {
        Ok(()) = tokio::signal::ctrl_c() => {}
        () = terminated() => {}
    }
}

/// Ends when a service manager or a container ends the process.
#[cfg(unix)]
async fn terminated() {
    use tokio::signal::unix::{SignalKind, signal};

    match signal(SignalKind::terminate()) {
        Ok(mut signals) => drop(signals.recv().await),
        // It cannot be heard here, so it never comes.
        Err(_) => std::future::pending().await,
    }
}

#[cfg(not(unix))]
async fn terminated() {
    std::future::pending().await
}

async fn out_of_patience() {
    interrupted().await;
    info!("shutting down");
    tokio::time::sleep(GRACE).await;
}
