//! Overrides of the configuration, beneath overrides that are set at run time.

use tower_admission::{Limits, LimitsError, Override, Quota};

use crate::{Bench, SECOND, acme, name};

fn base(limits: &Limits, entries: &[(&str, &str)]) -> Result<(), LimitsError> {
    let entries = entries.iter();
    limits.set_base(entries.map(|(key, limit)| (name(key), Override::new(limit.parse().unwrap()))))
}

#[test]
fn an_override_set_at_run_time_takes_precedence() {
    let bench = Bench::new(Quota::per_hour(10));
    base(&bench.limits, &[("org:acme", "20/h"), ("org:b", "7/h")]).unwrap();
    assert_eq!(bench.burst(&acme()), 20);
    bench.set("org:acme", "25/h");
    assert_eq!(bench.burst(&acme()), 5);
    bench.delete("org:acme");
    let shown = |key| bench.limits.get(&name(key)).map(|limit| limit.to_string());
    assert_eq!(shown("org:acme").as_deref(), Some("20/h"));
    // No override was set at run time, and both are listed.
    assert!(bench.limits.is_empty());
    assert_eq!(bench.limits.list().len(), 2);
    // An override of the configuration cannot be deleted.
    assert_eq!(bench.delete("org:b"), None);
    assert_eq!(shown("org:b").as_deref(), Some("7/h"));
}

#[test]
fn a_new_configuration_replaces_the_whole_base() {
    let bench = Bench::new(Quota::per_hour(10));
    base(&bench.limits, &[("org:acme", "20/h"), ("org:b", "7/h")]).unwrap();
    assert_eq!(bench.burst(&acme()), 20);
    base(&bench.limits, &[("org:acme", "22/h"), ("org:c", "1/h")]).unwrap();
    assert_eq!(bench.burst(&acme()), 2);
    let keys: Vec<_> = bench
        .limits
        .list()
        .into_iter()
        .map(|(key, _)| key)
        .collect();
    assert_eq!(keys, [name("org:acme"), name("org:c")]);
    base(&bench.limits, &[]).unwrap();
    assert_eq!(bench.burst(&acme()), 0);
    bench.clock.advance(3600 * SECOND);
    assert_eq!(bench.burst(&acme()), 10);
}

#[test]
fn a_key_with_two_names_is_listed_once() {
    let bench = Bench::new(Quota::per_hour(10));
    let fingerprint = bench.limits.name_of(&acme());
    base(&bench.limits, &[("org:acme", "20/h")]).unwrap();
    bench.set(fingerprint.as_str(), "30/h");
    assert_eq!(bench.limits.list().len(), 1);
    assert_eq!(bench.burst(&acme()), 30);
}

#[test]
fn an_invalid_base_changes_nothing() {
    let limits = Limits::new().tier("pro", "100/h");
    base(&limits, &[("org:acme", "20/h")]).unwrap();
    let wrong = base(&limits, &[("org:b", "tier=gold")]);
    assert!(matches!(wrong, Err(LimitsError::UnknownTier { .. })));
    let many = (0..=Limits::MAX_RATES).map(|n| {
        let limit = format!("{}/day", n + 1).parse().unwrap();
        (name(&format!("org:{n}")), Override::new(limit))
    });
    let wrong = limits.set_base(many);
    assert!(matches!(wrong, Err(LimitsError::TooManyRates)), "{wrong:?}");
    assert_eq!(limits.list().len(), 1);
    // The maximum number, twice: the second list replaces the first.
    for shift in [1, 2] {
        let most = (0..Limits::MAX_RATES).map(|n| {
            let limit = format!("{}/day", n + shift).parse().unwrap();
            (name(&format!("org:{n}")), Override::new(limit))
        });
        limits.set_base(most).unwrap();
    }
}

#[test]
fn an_override_of_the_configuration_can_end() {
    let bench = Bench::new(Quota::per_hour(10));
    let end = bench.clock.wall_clock() + 60 * SECOND;
    let entry = || Override::new("deny all".parse().unwrap()).with_end(end);
    bench
        .limits
        .set_base([(name("org:acme"), entry())])
        .unwrap();
    assert_eq!(bench.burst(&acme()), 0);
    // It ends while another override covers it.
    bench.set("org:acme", "5/h");
    bench.clock.advance(60 * SECOND);
    assert_eq!(bench.burst(&acme()), 5);
    bench.delete("org:acme");
    assert_eq!(bench.burst(&acme()), 5);
    // The same file is read again.
    bench
        .limits
        .set_base([(name("org:acme"), entry())])
        .unwrap();
    assert_eq!(bench.limits.list(), []);
}
