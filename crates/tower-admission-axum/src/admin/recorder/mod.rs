//! Counts the decisions of the last two minutes, for the page.

mod named;
mod refused;
mod seconds;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::time::Instant;
use tower_admission::observe::Subject;
use tower_admission::{Observer, Rejection};

use self::named::Named;
use self::refused::Refused;
pub(super) use self::refused::RefusedMost;
use self::refused::Source;
pub(super) use self::seconds::SECONDS;
use self::seconds::Seconds;
use super::replica::Replica;

/// Counts what limiters decide, for the [page](super::router) and `GET /now`. Clones share what is
/// counted: give one to each layer that is to be seen, and one to the router.
///
/// ```
/// use tower_admission::ConcurrencyLimitLayer;
/// use tower_admission_axum::admin::Recorder;
///
/// let recorder = Recorder::new();
/// let layer = ConcurrencyLimitLayer::new(64).name("chat").observe(recorder.clone());
/// ```
///
/// Limiters are told apart by name and sort of limit, the first 64 of them. Counted are, for each, what was
/// admitted and refused in each of the last 120 seconds, the permits that are in flight in this process, and
/// the 64 keys that were refused most in the last one or two minutes.
///
/// # What it costs
///
/// A decision costs one look at the clock and one addition to a counter of its limiter, a refusal a look
/// through 64 keys more; nothing waits for anything. A limiter takes 3 KiB, so all of it at most 210 KiB.
#[derive(Clone)]
pub struct Recorder(Arc<Inner>);

struct Inner {
    start: Instant,
    limiters: Named<Series>,
    in_flight: Named<InFlight>,
    refused: Refused,
    sources: Named<Source>,
    replica: Replica,
}

/// The decisions of a limiter.
struct Series {
    limiter: Box<str>,
    limit_type: &'static str,
    admitted: Seconds,
    refused: Seconds,
    would_refuse: Seconds,
}

/// The permits of a limiter.
struct InFlight {
    limiter: Box<str>,
    used: AtomicU64,
    limit: AtomicU64,
}

/// Where there is no limit.
const NO_LIMIT: u64 = u64::MAX;

/// How many a limiter admitted and refused in some seconds.
pub(super) struct Counted {
    pub(super) limiter: Box<str>,
    pub(super) limit_type: &'static str,
    pub(super) admitted: Vec<u32>,
    pub(super) refused: Vec<u32>,
    pub(super) would_refuse: Vec<u32>,
}

/// How many permits a limiter has given out, and may.
pub(super) struct Held {
    pub(super) limiter: Box<str>,
    pub(super) used: u64,
    pub(super) limit: Option<u64>,
}

#[derive(Clone, Copy, PartialEq)]
enum Outcome {
    Admitted,
    Refused,
    WouldRefuse,
}

impl Recorder {
    /// Nothing has happened yet.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(Inner {
            start: Instant::now(),
            limiters: Named::default(),
            in_flight: Named::default(),
            refused: Refused::default(),
            sources: Named::default(),
            replica: Replica::this(),
        }))
    }

    /// The second that runs, from the recorder's first.
    pub(super) fn second(&self) -> u32 {
        // For 136 years.
        self.0.start.elapsed().as_secs() as u32
    }

    /// What was decided in some seconds.
    pub(super) fn counted(&self, seconds: std::ops::Range<u32>) -> Vec<Counted> {
        let limiters = self.0.limiters.all();
        let counted = limiters.iter().map(|series| {
            let each = |of: &Seconds| seconds.clone().map(|second| of.of(second)).collect();
            Counted {
                limiter: series.limiter.clone(),
                limit_type: series.limit_type,
                admitted: each(&series.admitted),
                refused: each(&series.refused),
                would_refuse: each(&series.would_refuse),
            }
        });
        counted.collect()
    }

    /// What is in flight.
    pub(super) fn in_flight(&self) -> Vec<Held> {
        let limiters = self.0.in_flight.all();
        let held = limiters.iter().map(|in_flight| {
            let limit = in_flight.limit.load(Ordering::Relaxed);
            Held {
                limiter: in_flight.limiter.clone(),
                used: in_flight.used.load(Ordering::Relaxed),
                limit: (limit != NO_LIMIT).then_some(limit),
            }
        });
        held.collect()
    }

    /// The process that this records.
    pub(super) fn replica(&self) -> &Replica {
        &self.0.replica
    }

    /// The keys that were refused most, by which limit, and how often at least.
    pub(super) fn refused_most(&self, most: usize) -> Vec<RefusedMost> {
        self.0.refused.most(self.second(), most)
    }

    fn decided(&self, subject: &Subject<'_>, outcome: Outcome) {
        let second = self.second();
        self.0.limiters.with(
            |series| series.limit_type == subject.limit_type && *series.limiter == *subject.limiter,
            || Series {
                limiter: subject.limiter.into(),
                limit_type: subject.limit_type,
                admitted: Seconds::default(),
                refused: Seconds::default(),
                would_refuse: Seconds::default(),
            },
            |series| {
                let seconds = match outcome {
                    Outcome::Admitted => &series.admitted,
                    Outcome::Refused => &series.refused,
                    Outcome::WouldRefuse => &series.would_refuse,
                };
                seconds.count(second);
            },
        );
        if let (Outcome::Refused, Some(key)) = (outcome, subject.key) {
            self.0.sources.with(
                |source| source.is_of(subject),
                || Source::of(subject),
                |source| self.0.refused.count(key, source, second),
            );
        }
    }

    fn permits(&self, limiter: &str, with: impl Fn(&InFlight)) {
        self.0.in_flight.with(
            |in_flight| *in_flight.limiter == *limiter,
            || InFlight {
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
        self.decided(subject, Outcome::Refused);
    }

    fn would_reject(&self, subject: &Subject<'_>, _: &Rejection) {
        self.decided(subject, Outcome::WouldRefuse);
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
            // Nothing to take off when this one is of more than 64 and its first was not counted.
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
