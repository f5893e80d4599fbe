//! Counts the evicted keys of each group over all its limiters.

use std::collections::BTreeMap;

use tower_admission::RateLimiter;
use tower_admission::observe::MetricsObserver;
use tower_admission::provider::RateLimiterInternals;
use tower_admission::store::RateStats;

/// The evictions of each group, by name. A reload may replace the limiter of a group, but a counter must not go back.
#[derive(Default)]
pub(super) struct Evictions(BTreeMap<String, u64>);

impl Evictions {
    /// Adds the evictions of these limiters since the last call.
    pub(super) fn collect<'a>(
        &mut self,
        groups: impl IntoIterator<Item = (&'a str, &'a RateLimiter)>,
    ) {
        for (name, limiter) in groups {
            self.add(name, limiter);
        }
    }

    /// Sets the metrics of these groups and of removed groups.
    pub(super) fn publish<'a>(
        &mut self,
        groups: impl IntoIterator<Item = (&'a str, &'a RateLimiter)>,
        metrics: &MetricsObserver,
    ) {
        let mut tracked = BTreeMap::new();
        for (name, limiter) in groups {
            self.add(name, limiter);
            if let Some(stats) = limiter.stats() {
                tracked.insert(name, stats.tracked_keys);
            }
        }
        for (name, evictions) in &self.0 {
            let tracked_keys = tracked.get(&**name).copied().unwrap_or(0);
            metrics.publish(name, RateStats::new(tracked_keys, *evictions));
        }
    }

    fn add(&mut self, name: &str, limiter: &RateLimiter) {
        if let Some(new) = limiter.new_evictions() {
            match self.0.get_mut(name) {
                Some(evictions) => *evictions += new,
                None => drop(self.0.insert(name.to_owned(), new)),
            }
        }
    }
}

#[cfg(all(test, not(admission_loom)))]
mod tests {
    use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};

    use super::*;
    use tower_admission::Key;
    use tower_admission::Quota;
    use tower_admission::store::MemoryStore;

    fn limiter() -> RateLimiter {
        RateLimiter::with_store(Quota::per_hour(9), &MemoryStore::new().max_keys(4))
    }

    fn evict(limiter: &RateLimiter, count: u64) {
        let before = limiter.stats().unwrap().evictions;
        let mut keys = 0_u32..;
        while limiter.stats().unwrap().evictions < before + count {
            let key = Key::id("user", &keys.next().unwrap().to_string());
            let _ = limiter.check_now(&key);
        }
    }

    /// The tracked keys and the evictions of a group.
    fn published(snapshotter: &Snapshotter, group: &str) -> (f64, u64) {
        let (mut tracked, mut evictions) = (f64::NAN, 0);
        for (key, _, _, value) in snapshotter.snapshot().into_vec() {
            let is_of_group = key.key().labels().any(|label| label.value() == group);
            match (key.key().name(), value) {
                ("admission_tracked_keys", DebugValue::Gauge(value)) if is_of_group => {
                    tracked = value.into_inner();
                }
                ("admission_evictions_total", DebugValue::Counter(count)) if is_of_group => {
                    evictions = count;
                }
                _ => {}
            }
        }
        (tracked, evictions)
    }

    #[test]
    fn the_counter_of_a_group_goes_on_with_a_new_limiter() {
        let recorder = DebuggingRecorder::new();
        let snapshotter = recorder.snapshotter();
        let _recording = metrics::set_default_local_recorder(&recorder);
        let metrics = MetricsObserver::new();
        let mut all = Evictions::default();
        let (first, second) = (limiter(), limiter());

        evict(&first, 7);
        all.publish([("api", &first)], &metrics);
        assert_eq!(published(&snapshotter, "api"), (4.0, 7));
        evict(&first, 2);
        // A reload.
        all.collect([("api", &first)]);
        evict(&second, 3);
        all.publish([("api", &second)], &metrics);
        assert_eq!(published(&snapshotter, "api"), (4.0, 12));
        // Another reload goes back to the first limiter.
        evict(&first, 1);
        all.publish([("api", &first)], &metrics);
        assert_eq!(published(&snapshotter, "api"), (4.0, 13));
        // The group is gone, and so are its keys.
        all.publish([], &metrics);
        assert_eq!(published(&snapshotter, "api"), (0.0, 13));
    }
}
