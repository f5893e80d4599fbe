//! Identifies this process in responses.

use serde::Serialize;

/// A process, as shown on the page. Behind a load balancer each response may come from another replica.
#[derive(Serialize)]
pub(super) struct Replica {
    /// Random, because a process id may be used again after a restart.
    pub(super) id: String,
    host: String,
    pid: u32,
}

impl Replica {
    /// Describes this process.
    pub(super) fn current() -> Self {
        let random = getrandom::u64().expect("the operating system provides random bytes");
        Self {
            id: format!("{random:016x}"),
            host: gethostname::gethostname().to_string_lossy().into_owned(),
            pid: std::process::id(),
        }
    }
}
