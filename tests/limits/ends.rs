//! Overrides with an end.

use std::time::Duration;

use tower_admission::{ConcurrencyLimitLayer, Key, Limits, Override, Policy, Quota};

use crate::{Bench, SECOND, acme, name, now};

impl Bench {
    /// Sets an override that ends after `lasts`.
    fn set_for(&self, key: &str, limit: &str, lasts: Duration) {
        let end = self.clock.wall_clock() + lasts;
        let entry = Override::new(limit.parse().unwrap()).with_end(end);
        now(self.limits.edit(&name(key)).set(entry)).unwrap();
    }
}

#[test]
fn a_key_has_its_default_after_the_end_of_its_override() {
    for kind in ["", " sliding"] {
        let bench = Bench::new(Policy::new(
            "calls",
            format!("10/h{kind}").parse::<Quota>().unwrap(),
        ));
        bench.set_for("org:acme", "25/h", 60 * SECOND);
        assert_eq!(bench.burst(&acme()), 25);
        bench.clock.advance(59 * SECOND);
        assert!(bench.limits.get(&name("org:acme")).is_some());
        bench.clock.advance(SECOND);
        // All 25 requests stay used.
        assert_eq!(bench.burst(&acme()), 0);
        let peeked = now(async { bench.limiter.peek(&acme()).await });
        assert_eq!(peeked.limit(), Some(10));
        assert_eq!(bench.limits.get(&name("org:acme")), None);
        assert!(bench.limits.is_empty());
    }
}

#[test]
fn a_decision_applies_the_end_without_a_background_task() {
    let bench = Bench::new(Quota::per_hour(10));
    bench.set_for("org:acme", "deny all", 60 * SECOND);
    assert_eq!(bench.burst(&acme()), 0);
    bench.clock.advance(60 * SECOND);
    assert_eq!(bench.burst(&acme()), 10);
}

#[test]
fn a_later_override_has_its_own_end() {
    let bench = Bench::new(Quota::per_hour(10));
    bench.set_for("org:acme", "20/h", 60 * SECOND);
    bench.set_for("org:acme", "30/h", 90 * SECOND);
    bench.clock.advance(60 * SECOND);
    assert_eq!(bench.burst(&acme()), 30);
    bench.set_for("org:acme", "40/h", 60 * SECOND);
    bench.set("org:acme", "50/h");
    bench.clock.advance(1_000_000 * SECOND);
    assert_eq!(bench.limits.len(), 1);
}

#[test]
fn an_override_with_an_end_in_the_past_never_applies() {
    let bench = Bench::new(Quota::per_hour(10));
    let past = bench.clock.wall_clock() - SECOND;
    let ended = Override::new("deny all".parse().unwrap()).with_end(past);
    now(bench.limits.edit(&name("org:acme")).set(ended)).unwrap();
    assert_eq!(bench.burst(&acme()), 10);
    assert!(bench.limits.is_empty());
}

#[test]
fn a_concurrency_override_can_end() {
    let bench = Bench::new(Quota::per_hour(10));
    let limiter = ConcurrencyLimitLayer::new(0)
        .per_key(|_: tower_admission::RequestHead<'_>| Some(acme()), 2)
        .limits(&bench.limits)
        .limiter();
    let admitted = || {
        let held: Vec<_> = std::iter::from_fn(|| limiter.try_acquire_for(&acme()).ok())
            .take(9)
            .collect();
        held.len()
    };
    assert_eq!(admitted(), 2);
    bench.set_for("org:acme", "5 concurrent", 60 * SECOND);
    assert_eq!(admitted(), 5);
    bench.clock.advance(60 * SECOND);
    assert_eq!(admitted(), 2);
}

/// Threads that decide while overrides end do not block each other and never apply an ended
/// override.
#[test]
fn all_threads_see_the_end_of_an_override() {
    let bench = Bench::new(Quota::per_hour(1_000_000));
    let keys: Vec<_> = (0..100).map(|n| Key::id("org", &n.to_string())).collect();
    for n in 0..100 {
        bench.set_for(&format!("org:{n}"), "deny all", 60 * SECOND);
    }
    bench.clock.advance(60 * SECOND);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for key in &keys {
                    // While another thread removes them, an override may still be counted, but no
                    // longer than that.
                    while !bench.limiter.check_now(key).unwrap().is_admitted() {
                        std::thread::yield_now();
                    }
                }
            });
        }
    });
    assert!(bench.limits.is_empty());
}

#[tokio::test]
async fn an_end_is_in_the_audit_trail() {
    let bench = Bench::new(Quota::per_hour(10));
    bench.set_for("org:acme", "5/h", 60 * SECOND);
    bench.clock.advance(61 * SECOND);
    let changes = bench.limits.changes(9).await.unwrap();
    let [ended, set] = &changes[..] else {
        panic!("{changes:?}")
    };
    assert!(ended.has_ended && ended.after.is_none() && !set.has_ended);
    assert_eq!(ended.before, set.after);
    assert_eq!(Limits::new().changes(9).await.unwrap(), []);
}

/// As after the resume of a virtual machine, until its clock is corrected.
#[tokio::test]
async fn an_override_applies_again_after_a_clock_stepped_forward_and_back() {
    let bench = Bench::new(Quota::per_hour(10));
    let end = bench.clock.wall_clock() + 60 * SECOND;
    let of_file = Override::new("deny all".parse().unwrap()).with_end(end);
    let base = [(name("org:file"), of_file)];
    bench.limits.set_base(base.clone()).unwrap();
    bench.set_for("org:acme", "deny all", 60 * SECOND);
    bench.set_for("org:other", "deny all", 60 * SECOND);
    let (other, file) = (Key::id("org", "other"), Key::id("org", "file"));
    let admits = |key: &Key| bench.limiter.check_now(key).unwrap().is_admitted();
    for _ in 0..2 {
        bench.clock.advance(3 * 3600 * SECOND);
        // A decision finds one of them; nothing finds the other.
        assert!(admits(&acme()) && admits(&file));
        assert_eq!((bench.limits.len(), bench.limits.list().len()), (0, 0));
        // A file that is read meanwhile contains the same override.
        bench.limits.set_base(base.clone()).unwrap();
        bench.clock.step_back(3 * 3600 * SECOND);
        for key in [acme(), other, file] {
            assert!(!admits(&key));
        }
        assert_eq!((bench.limits.len(), bench.limits.list().len()), (2, 3));
        bench.clock.advance(2 * SECOND);
    }
    let changes = bench.limits.changes(9).await.unwrap();
    let origin = changes[0].origin.as_deref().unwrap();
    assert!(
        changes[0].after.is_some() && origin.contains("set back"),
        "{changes:?}"
    );
}

#[test]
fn an_ended_override_is_removed_after_an_hour() {
    let bench = Bench::new(Quota::per_hour(10));
    bench.set_for("org:acme", "deny all", 60 * SECOND);
    bench.clock.advance(60 * SECOND);
    assert_eq!(bench.burst(&acme()), 10);
    assert!(bench.limits.is_empty());
    bench.clock.advance(3600 * SECOND);
    assert!(bench.limits.is_empty());
    bench.clock.step_back(3600 * SECOND + 30 * SECOND);
    assert!(bench.limits.is_empty());
    assert_eq!(bench.limits.get(&name("org:acme")), None);
}

#[test]
fn an_override_of_the_configuration_applies_after_a_run_time_override_ended() {
    let bench = Bench::new(Quota::per_hour(10));
    let lasting = |limit: &str| Override::new(limit.parse().unwrap());
    let end = bench.clock.wall_clock() + 90 * SECOND;
    let base = lasting("20/h").with_end(end);
    bench.limits.set_base([(name("org:acme"), base)]).unwrap();
    bench.set_for("org:acme", "30/h", 60 * SECOND);
    let limit = || {
        bench
            .limits
            .get(&name("org:acme"))
            .map(|own| own.to_string())
    };
    for (expected, listed) in [("30/h", 1), ("20/h", 1), ("none", 0)] {
        assert_eq!(limit().unwrap_or("none".to_owned()), expected);
        assert_eq!(bench.limits.list().len(), listed);
        bench.clock.advance(60 * SECOND);
    }
}

/// A decision that finds one ended override does not remove all.
#[cfg(feature = "metrics")]
#[test]
fn one_decision_removes_only_a_few_ended_overrides() {
    use metrics_util::debugging::{DebugValue, DebuggingRecorder};

    const KEYS: u64 = 200;
    let bench = Bench::new(Quota::per_hour(10));
    for n in 0..KEYS {
        bench.set_for(&format!("org:{n}"), "20/h", 60 * SECOND);
    }
    bench.clock.advance(60 * SECOND);
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    // A snapshot resets the counts.
    let ended = || {
        let metrics = snapshotter.snapshot().into_vec().into_iter();
        let counts = metrics.map(|(_, _, _, value)| match value {
            DebugValue::Counter(count) => count,
            other => panic!("{other:?}"),
        });
        counts.sum::<u64>()
    };
    metrics::with_local_recorder(&recorder, || {
        assert_eq!(bench.burst(&Key::id("org", "123")), 10);
        let by_decision = ended();
        assert!((1..=10).contains(&by_decision), "{by_decision}");
        // None has an effect, even if no decision has found it.
        assert_eq!(bench.burst(&Key::id("org", "99")), 10);
        assert_eq!((bench.limits.len(), bench.limits.list().len()), (0, 0));
        assert!(by_decision + ended() == KEYS);
    });
}
