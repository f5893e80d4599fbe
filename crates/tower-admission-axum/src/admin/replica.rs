//! Which process answers.

use serde::Serialize;

/// A process as the page names it. Behind a load balancer each answer may be another replica's.
#[derive(Serialize)]
pub(super) struct Replica {
    /// Random: a pid comes again after a restart.
    pub(super) id: String,
    host: String,
    pid: u32,
}

impl Replica {
    /// This process.
    pub(super) fn this() -> Self {
        let random = getrandom::u64().expect("the operating system gives random bytes");
        Self {
            id: format!("{random:016x}"),
            host: gethostname::gethostname().to_string_lossy().into_owned(),
            pid: std::process::id(),
        }
    }
}
