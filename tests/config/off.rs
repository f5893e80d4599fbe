//! Limits that are off are logged at start.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use tower_admission::config::Admission;

use crate::config;

#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn logged(job: impl FnOnce()) -> Vec<String> {
    let captured = Captured::default();
    let writer = captured.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_writer(move || writer.clone())
        .with_ansi(false)
        .without_time()
        .with_target(false)
        .finish();
    tracing::subscriber::with_default(subscriber, job);
    let log = String::from_utf8(captured.0.lock().unwrap().clone()).unwrap();
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
