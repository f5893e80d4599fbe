//! Limits that are off are logged at start.

use tower_admission::config::Admission;

use crate::config;
use crate::logged::logged;

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
