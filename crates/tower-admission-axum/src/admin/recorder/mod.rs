//! Counts the decisions of the last two minutes, for the page.

mod per_second;
mod registry;
mod rejected_keys;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::time::Instant;
use tower_admission::observe::Subject;
use tower_admission::{Observer, Rejection};

use self::per_second::PerSecondCounts;
pub(super) use self::per_second::SECONDS;
use self::registry::Registry;
pub(super) use self::rejected_keys::RejectedKey;
use self::rejected_keys::RejectedKeys;
use self::rejected_keys::RejectingLimit;
use super::replica::Replica;

/// Counts decisions for the [page](super::router) and for `GET /now`. Clones share the counts: give one to each layer as an
/// observer, and one to the router.
///
/// ```
/// use tower_admission::ConcurrencyLimitLayer;
/// use tower_admission_axum::admin::Recorder;
///
/// let recorder = Recorder::new();
/// let layer = ConcurrencyLimitLayer::new(64).name("chat").observe(recorder.clone());
/// ```
///
/// The recorder distinguishes limiters by name and type, and records the first 64. For each limiter it counts the admitted
/// and rejected requests of the last 120 seconds and the permits in flight in this process. It also counts the 64 keys
/// with the most rejections in the last one to two minutes.
///
/// # What it costs
///
/// A decision reads the clock once and increments one counter of its limiter. A rejection also searches 64 keys. Nothing
/// blocks. A limiter takes 3 KiB, so the recorder takes at most 210 KiB.
#[derive(Clone)]
pub struct Recorder(Arc<Inner>);

struct Inner {
    start: Instant,
    limiters: Registry<LimiterSeries>,
    in_flight: Registry<LimiterPermits>,
    rejected: RejectedKeys,
    sources: Registry<RejectingLimit>,
    replica: Replica,
}

/// The decisions of a limiter.
struct LimiterSeries {
    limiter: Box<str>,
    limit_type: &'static str,
    admitted: PerSecondCounts,
    rejected: PerSecondCounts,
    would_reject: PerSecondCounts,
}

/// The permits of a limiter.
struct LimiterPermits {
    limiter: Box<str>,
    used: AtomicU64,
    limit: AtomicU64,
}

/// Represents the absence of a limit.
const NO_LIMIT: u64 = u64::MAX;

/// The decisions of a limiter in a range of seconds.
pub(super) struct LimiterCounts {
    pub(super) limiter: Box<str>,
    pub(super) limit_type: &'static str,
    pub(super) admitted: Vec<u32>,
    pub(super) rejected: Vec<u32>,
    pub(super) would_reject: Vec<u32>,
}

/// The permits in flight of a limiter, and their maximum.
pub(super) struct PermitUsage {
    pub(super) limiter: Box<str>,
    pub(super) used: u64,
    pub(super) limit: Option<u64>,
}

#[derive(Clone, Copy, PartialEq)]
enum Outcome {
    Admitted,
    Rejected,
    WouldReject,
}

impl Recorder {
    /// An empty recorder.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(Inner {
            start: Instant::now(),
            limiters: Registry::default(),
            in_flight: Registry::default(),
            rejected: RejectedKeys::default(),
            sources: Registry::default(),
            replica: Replica::current(),
        }))
    }

    /// The current second since the recorder was created.
    pub(super) fn second(&self) -> u32 {
        // Overflows after 136 years.
        self.0.start.elapsed().as_secs() as u32
    }

    /// The decisions in a range of seconds.
    pub(super) fn counted(&self, seconds: std::ops::Range<u32>) -> Vec<LimiterCounts> {
        let limiters = self.0.limiters.all();
        let counted = limiters.iter().map(|series| {
            let each = |of: &PerSecondCounts| seconds.clone().map(|second| of.of(second)).collect();
            LimiterCounts {
                limiter: series.limiter.clone(),
                limit_type: series.limit_type,
                admitted: each(&series.admitted),
                rejected: each(&series.rejected),
                would_reject: each(&series.would_reject),
            }
        });
        counted.collect()
    }

    /// The permits in flight.
    pub(super) fn in_flight(&self) -> Vec<PermitUsage> {
        let limiters = self.0.in_flight.all();
        let held = limiters.iter().map(|in_flight| {
            let limit = in_flight.limit.load(Ordering::Relaxed);
            PermitUsage {
                limiter: in_flight.limiter.clone(),
                used: in_flight.used.load(Ordering::Relaxed),
                limit: (limit != NO_LIMIT).then_some(limit),
            }
        });
        held.collect()
    }

    /// The process that records.
    pub(super) fn replica(&self) -> &Replica {
        &self.0.replica
    }

    /// The keys with the most rejections, with lower bounds of their counts.
    pub(super) fn most_rejected_keys(&self, most: usize) -> Vec<RejectedKey> {
        self.0.rejected.most(self.second(), most)
    }

    fn decided(&self, subject: &Subject<'_>, outcome: Outcome) {
        let second = self.second();
        self.0.limiters.with(
            |series| series.limit_type == subject.limit_type && *series.limiter == *subject.limiter,
            || LimiterSeries {
                limiter: subject.limiter.into(),
                limit_type: subject.limit_type,
                admitted: PerSecondCounts::default(),
                rejected: PerSecondCounts::default(),
                would_reject: PerSecondCounts::default(),
            },
            |series| {
                let seconds = match outcome {
                    Outcome::Admitted => &series.admitted,
                    Outcome::Rejected => &series.rejected,
                    Outcome::WouldReject => &series.would_reject,
                };
                seconds.count(second);
            },
        );
        if let (Outcome::Rejected, Some(key)) = (outcome, subject.key) {
            self.0.sources.with(
                |source| source.is_of(subject),
                || RejectingLimit::of(subject),
                |source| self.0.rejected.count(key, source, second),
            );
        }
    }

    fn permits(&self, limiter: &str, with: impl Fn(&LimiterPermits)) {
        self.0.in_flight.with(
            |in_flight| *in_flight.limiter == *limiter,
            || LimiterPermits {
                limiter: limiter.into(),
                used: AtomicU64::new(0),
                limit: AtomicU64::new(NO_LIMIT),
            },
            |in_flight| with(in_flight),
        );
    }
}

impl Observer for Recorder {
    fn admitted(&self, subject: &Subject<'_>) {
        self.decided(subject, Outcome::Admitted);
    }

    fn rejected(&self, subject: &Subject<'_>, _: &Rejection) {
        self.decided(subject, Outcome::Rejected);
    }

    fn would_reject(&self, subject: &Subject<'_>, _: &Rejection) {
        self.decided(subject, Outcome::WouldReject);
    }

    fn acquired(&self, limiter: &str, _: u64) {
        self.permits(limiter, |in_flight| {
            in_flight.used.fetch_add(1, Ordering::Relaxed);
        });
    }

    fn limit(&self, limiter: &str, limit: Option<u64>) {
        self.permits(limiter, |in_flight| {
            let limit = limit.unwrap_or(NO_LIMIT);
            in_flight.limit.store(limit, Ordering::Relaxed);
        });
    }

    fn released(&self, limiter: &str) {
        let one_less = |used: u64| used.checked_sub(1);
        self.permits(limiter, |in_flight| {
            // The permit may have been acquired before the recorder observed the limiter.
            let _ = (in_flight.used).fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less);
        });
    }
}

impl Default for Recorder {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder").finish_non_exhaustive()
    }
}
