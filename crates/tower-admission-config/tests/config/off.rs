//! Limits that are off are logged at start.

use tower_admission_config::Admission;

use crate::config;
use crate::logged::logged;
#[cfg(feature = "metrics")]
use crate::loss::gauges_named;

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

/// A switch may be left from an incident.
#[test]
fn suspended_limits_are_logged_at_start_and_in_each_reload() {
    let text = "[groups.api]\npath = '/'\nrates = { a = '1/s' }\n[leases.jobs]\ntotal = 1\n";
    let off = format!("enabled = false\n{text}");
    let of_switches = |log: Vec<String>| -> Vec<_> {
        let lines = log.into_iter();
        lines.filter(|line| line.contains("enabled")).collect()
    };
    let all = ["WARN `enabled = false`: all limits of the configuration are off; bans are not"];
    let mut admission = None;
    let start = logged(|| admission = Some(Admission::new(&config(&off)).unwrap()));
    assert!(
        !start.join("\n").contains("these limits are off"),
        "{start:?}"
    );
    assert_eq!(of_switches(start), all);
    let admission = admission.unwrap();
    assert_eq!(
        of_switches(logged(|| admission.reload(&config(&off)).unwrap())),
        all
    );
    let tables = text
        .replace("path", "enabled = false\npath")
        .replace("total", "enabled = false\ntotal");
    admission.reload(&config(text)).unwrap();
    let lines = logged(|| admission.reload(&config(&tables)).unwrap());
    let lines: Vec<_> = lines
        .into_iter()
        .filter(|line| line.starts_with("WARN"))
        .collect();
    let warned = |table: &str, name: &str| {
        format!(
            "WARN `enabled = false`: the limits of this table are off table=\"{table}\" name=\"{name}\""
        )
    };
    assert_eq!(lines, [warned("groups", "api"), warned("leases", "jobs")]);
}

#[cfg(feature = "metrics")]
#[test]
fn a_metric_shows_that_limits_are_switched_off() {
    use tower_admission::observe::MetricsObserver;

    let text = "[groups.api]\npath = '/'\nrate = '1/s'\n";
    let (on, off) = (config(text), config(&format!("enabled = false\n{text}")));
    let enabled = |job: &dyn Fn()| gauges_named(["admission_limits_enabled"], job);
    assert_eq!(enabled(&|| drop(Admission::new(&off).unwrap())), [0.0]);
    let admission = Admission::new(&on).unwrap();
    let publish = || admission.publish(&MetricsObserver::new());
    assert_eq!(enabled(&publish), [1.0]);
    assert_eq!(enabled(&|| admission.reload(&off).unwrap()), [0.0]);
    assert_eq!(enabled(&publish), [0.0]);
    assert_eq!(enabled(&|| admission.reload(&on).unwrap()), [1.0]);
}
