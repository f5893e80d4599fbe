//! What a run found wrong, and what it looks at.

use std::sync::{Arc, Mutex, Once};

/// Marks the panics that the work has on purpose.
pub(crate) const DELIBERATE: &str = "soak: deliberate";

const MOST: usize = 20;

/// Collects faults of the limits. Clones share them.
#[derive(Clone)]
pub(crate) struct Findings(Arc<Mutex<Vec<String>>>);

impl Findings {
    pub(crate) fn new() -> Self {
        static QUIET: Once = Once::new();
        QUIET.call_once(|| {
            let print = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                if panic.payload_as_str() != Some(DELIBERATE) {
                    print(panic);
                }
            }));
        });
        Self(Arc::default())
    }

    pub(crate) fn add(&self, finding: String) {
        let mut findings = self.0.lock().unwrap();
        if findings.len() < MOST {
            println!("found: {finding}");
            findings.push(finding);
        }
    }

    pub(crate) fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }

    pub(crate) fn check(&self) {
        let findings = self.take();
        assert!(findings.is_empty(), "{}", findings.join("\n"));
    }
}

/// The resident memory of this process in MiB; 0 where the system does not say.
pub(crate) fn memory_in_use() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) / 1024
}
