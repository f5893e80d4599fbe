//! Jobs that one process starts and another finishes. The limits apply to all processes together.
//!
//! ```sh
//! redis-server &
//! jobs() { cargo run --quiet --example jobs -- redis://127.0.0.1 "$@"; }
//! jobs start acme execution-42    # press enter: the job is dispatched and keeps its lease
//! jobs usage acme                 # 1 of 5
//! jobs finish acme execution-42   # in any process
//! ```
//!
//! End `start` before you press enter, and the lease is released: at once after ctrl-d or an error, and after its time to
//! live (`JOBS_TTL` seconds) if the process was killed.

use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader, stdin};
use tower_admission::store::FailureMode;
use tower_admission::{Key, Lease, Leases, Secret};
use tower_admission_redis::RedisStore;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let [url, command, organisation, execution @ ..] = &*arguments else {
        return Err("usage: jobs URL start|finish|usage ORGANISATION [EXECUTION]".into());
    };
    let store = RedisStore::connect(url)?
        .prefix("jobs-example")
        // The limit is for fairness, so jobs may run uncounted while Redis is away.
        .on_failure(FailureMode::Open)
        .deadline(Duration::from_secs(1))
        .secret(Secret::new(*b"from your config"));
    let ttl = std::env::var("JOBS_TTL")
        .ok()
        .and_then(|ttl| ttl.parse().ok());
    let jobs = Leases::new()
        .name("jobs")
        .per_tenant(5)
        .total(50)
        // The longest time that a job may take.
        .ttl(Duration::from_secs(ttl.unwrap_or(6 * 3600)))
        .store(store);
    let organisation = Key::id("organisation", organisation);

    match (*command, execution) {
        ("start", [execution]) => {
            let lease = jobs.acquire(&organisation, execution).await?;
            println!("acquired");
            // If this fails, dropping the lease releases it.
            let dispatched = dispatch(lease).await;
            jobs.flush().await;
            dispatched?;
            println!("dispatched");
        }
        ("finish", [execution]) => {
            println!("{:?}", jobs.release(&organisation, execution).await);
        }
        ("usage", []) => match jobs.usage(&organisation).await {
            Some(usage) => println!("{} of 5", usage.key.unwrap_or(0)),
            None => println!("Redis cannot be reached"),
        },
        _ => return Err("start and finish take an execution, usage takes none".into()),
    }
    Ok(())
}

/// Waits for you to press enter, then leaves the lease to the job.
async fn dispatch(lease: Lease) -> std::io::Result<()> {
    let mut line = String::new();
    if BufReader::new(stdin()).read_line(&mut line).await? == 0 {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    lease.detach();
    Ok(())
}
