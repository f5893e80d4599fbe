//! Sessions that remote workers start, keep alive and end; three per workspace.
//!
//! `cargo run --example sessions`, then run the printed commands.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use tokio::net::TcpListener;
use tower_admission::{Key, Leases, RequestHead};
use tower_admission_axum::sessions;

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let ttl = std::env::var("SESSION_TTL")
        .ok()
        .and_then(|ttl| ttl.parse().ok());
    let listen = std::env::var("LISTEN").unwrap_or_else(|_| "127.0.0.1:3000".to_owned());

    let streams = Leases::new()
        .name("streams")
        .per_tenant(3)
        .total(100)
        .ttl(Duration::from_secs(ttl.unwrap_or(60)));
    // With replicas: .store(RedisStore::connect("redis://..")?.secret(..))
    let app = Router::new().merge(sessions::router(streams, workspace));

    let listener = TcpListener::bind(listen).await?;
    println!("{}", greeting(listener.local_addr()?));
    axum::serve(listener, app).await
}

/// The workspace of a worker, by a table of tokens. A service uses its own authentication.
fn workspace(head: RequestHead<'_>) -> Option<Key> {
    let value = head.headers.get("authorization")?.to_str().ok()?;
    let workspace = match value.strip_prefix("Bearer ")? {
        "token-of-acme" => "acme",
        "token-of-umbrella" => "umbrella",
        _ => return None,
    };
    Some(Key::id("workspace", workspace))
}

fn greeting(address: SocketAddr) -> String {
    format!(
        "Listening on http://{address}

  post() {{ curl -s -w ' %{{http_code}}\\n' -H 'authorization: Bearer token-of-acme' \\
      --json \"$2\" http://{address}/session/$1; }}
  post start '{{}}'                              # 201, three times; then 429
  post heartbeat '{{\"session_id\": \"...\"}}'       # 200, for as long as it is alive
  post end '{{\"session_id\": \"...\"}}'             # 204, and a second time 404
"
    )
}
