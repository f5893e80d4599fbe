//! Limits that are off are logged at start.

use std::cell::RefCell;
use std::io::{self, Write};
use std::sync::Once;

use tower_admission::config::Admission;

use crate::config;

thread_local! {
    static CAPTURED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

struct Capture;

impl Write for Capture {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        CAPTURED.with_borrow_mut(|captured| captured.extend_from_slice(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The lines that this thread logs meanwhile.
pub(crate) fn logged(job: impl FnOnce()) -> Vec<String> {
    static ONCE: Once = Once::new();
    // One for all threads: what a thread without one logs first would else be off in all.
    ONCE.call_once(|| {
        tracing_subscriber::fmt()
            .with_writer(|| Capture)
            .with_ansi(false)
            .without_time()
            .with_target(false)
            .init();
    });
    CAPTURED.take();
    job();
    let log = String::from_utf8(CAPTURED.take()).unwrap();
    log.lines().map(|line| line.trim().to_owned()).collect()
}

#[test]
fn each_group_logs_which_of_its_limits_are_off() {
    let config = config(
        "[groups.api]
        concurrency = 0
        rate = '0'
        rate_per_ip = '5/s'

        [groups.all]
        concurrency = 1
        concurrency_per_key = 1
        concurrency_per_ip = 1
        rate = '1/s'
        rate_per_ip = '1/s'
        bad_credentials_per_ip = '1/s'

        [groups.several]
        concurrency = 1
        concurrency_per_key = 1
        concurrency_per_ip = 1
        rates = { burst = '1/s', daily = '0' }
        rate_per_ip = '0'
        bad_credentials_per_ip = '0'

        [groups.tiers]
        concurrency = 1
        concurrency_per_key = 1
        concurrency_per_ip = 1
        rate = '1/s'
        tiers.pro.rate = '2/s'
        tiers.staff.rate = 'off'
        tiers.some.rates = { burst = '1/s', daily = '0' }
        rate_per_ip = '1/s'
        bad_credentials_per_ip = '1/s'",
    );
    let admission = Admission::builder(&config).tier_by(|_| None);
    let lines = logged(|| drop(admission.build().unwrap()));
    assert_eq!(
        lines,
        [
            "INFO these limits are off group=\"api\" off=\"concurrency, concurrency_per_key, \
             concurrency_per_ip, rate, bad_credentials_per_ip\"",
            "INFO these limits are off group=\"several\" off=\"rates.daily, rate_per_ip, \
             bad_credentials_per_ip\"",
            "INFO these limits are off group=\"tiers\" off=\"tiers.some.rates.daily, tiers.staff.rate\"",
        ]
    );
}
