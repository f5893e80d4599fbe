//! What a run found wrong, and what it looks at.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, Once};

use tower_admission::Secret;

/// That of the Redis tests, which their servers' stores have.
const SECRET: [u8; 16] = [7; 16];

/// Marks the panics that the work has on purpose.
pub(crate) const DELIBERATE: &str = "soak: deliberate";

/// Collects what is wrong: of each kind the first, and how many there were. Clones share them.
#[derive(Clone)]
pub(crate) struct Findings {
    run: &'static str,
    /// By kind.
    found: Arc<Mutex<BTreeMap<&'static str, (String, u64)>>>,
}

impl Findings {
    pub(crate) fn new(run: &'static str) -> Self {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| {
            // Before the first key is made.
            Secret::new(SECRET).install().unwrap();
            let print = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                if panic.payload().downcast_ref() != Some(&DELIBERATE) {
                    print(panic);
                }
            }));
        });
        Self {
            run,
            found: Arc::default(),
        }
    }

    pub(crate) fn add(&self, kind: &'static str, finding: String) {
        let mut findings = self.found.lock().unwrap();
        let (_, count) = findings.entry(kind).or_insert_with(|| {
            println!("{}: found: {kind}: {finding}", self.run);
            (finding, 0)
        });
        *count += 1;
    }

    /// Prints what limits the value of a run. It does not fail the run.
    pub(crate) fn warn(&self, warning: &str) {
        println!("{}: warning: {warning}", self.run);
    }

    pub(crate) fn has(&self, kind: &str) -> bool {
        self.found.lock().unwrap().contains_key(kind)
    }

    pub(crate) fn check(&self) {
        let findings = self.found.lock().unwrap();
        assert!(findings.is_empty(), "{findings:#?}");
    }
}

/// The resident memory of this process in MiB; 0 where the system does not say.
pub(crate) fn memory_in_use() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) / 1024
}
