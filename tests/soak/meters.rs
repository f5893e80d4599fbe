//! Measures in the inner service what the limits admit, without their code.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;
use tower_admission::store::FailureMode;
use tower_admission_redis::StoreObserver;

use crate::findings::Findings;
use crate::{JOBS, Numbers, WINDOW};

/// Tenants that are measured one by one. The others send one request each.
pub(crate) const TENANTS: usize = 4;

/// Replicas of a run. While the store is away, each keeps to the whole limit.
const REPLICAS: usize = 2;

/// The time from a decision until the inner service sees the request: a deadline of the store, and a busy machine.
const LATE: Duration = Duration::from_millis(1500);

/// For how long requests that the store did not decide about may be at work, and be charged to it.
const ALONE: Duration = Duration::from_secs(3);

pub(crate) struct Meters {
    numbers: Numbers,
    findings: Findings,
    total: Gauge,
    per_tenant: [Gauge; TENANTS],
    rates: [Mutex<Rate>; TENANTS],
    jobs: Gauge,
    /// Whether the store is away, or was a moment ago.
    disturbed: AtomicBool,
    /// When the failure mode last decided, in milliseconds from the start.
    decided_without_store: AtomicU64,
    without_store: AtomicU64,
    started: Instant,
    pub(crate) admitted: AtomicU64,
    /// Rejected with 429: above a rate, or above the requests in flight of a tenant.
    pub(crate) too_many: AtomicU64,
    /// Rejected with 503: at capacity, or without the store.
    pub(crate) unavailable: AtomicU64,
}

#[derive(Default)]
struct Gauge {
    now: AtomicUsize,
    peak: AtomicUsize,
}

impl Gauge {
    fn enter(&self) -> usize {
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.peak.fetch_max(now, Ordering::SeqCst);
        now
    }

    fn leave(&self) {
        self.now.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A leaky bucket of what was admitted, and the times of a window.
struct Rate {
    /// Tokens that were taken and have not leaked yet.
    level: f64,
    at: Instant,
    /// Tokens that outages and lost data gave back.
    forgiven: f64,
    window: VecDeque<Instant>,
}

/// A request or a job that is at work.
pub(crate) struct AtWork {
    meters: Arc<Meters>,
    place: Place,
}

enum Place {
    Tenant(usize),
    Other,
    Job,
}

impl Meters {
    pub(crate) fn new(numbers: Numbers, findings: Findings) -> Arc<Self> {
        let rate = || {
            Mutex::new(Rate {
                level: 0.0,
                at: Instant::now(),
                forgiven: 0.0,
                window: VecDeque::new(),
            })
        };
        Arc::new(Self {
            numbers,
            findings,
            total: Gauge::default(),
            per_tenant: Default::default(),
            rates: std::array::from_fn(|_| rate()),
            jobs: Gauge::default(),
            disturbed: AtomicBool::new(false),
            decided_without_store: AtomicU64::new(0),
            without_store: AtomicU64::new(0),
            started: Instant::now(),
            admitted: AtomicU64::new(0),
            too_many: AtomicU64::new(0),
            unavailable: AtomicU64::new(0),
        })
    }

    /// An admitted request begins.
    pub(crate) fn request(self: &Arc<Self>, tenant: &str) -> AtWork {
        self.admitted.fetch_add(1, Ordering::Relaxed);
        let tenant: Option<usize> = tenant.parse().ok().filter(|tenant| *tenant < TENANTS);
        self.check("requests", self.total.enter(), self.numbers.in_flight);
        if let Some(tenant) = tenant {
            let now = self.per_tenant[tenant].enter();
            self.check(
                "requests of a tenant",
                now,
                self.numbers.in_flight_per_tenant,
            );
            self.charge(tenant);
        }
        AtWork {
            meters: self.clone(),
            place: tenant.map_or(Place::Other, Place::Tenant),
        }
    }

    /// A lease was acquired.
    pub(crate) fn job(self: &Arc<Self>) -> AtWork {
        let now = self.jobs.enter();
        // Data that is lost takes all leases by id with it, and their holders go on until they notice.
        if !self.is_disturbed() && now > JOBS as usize {
            let finding = format!("{now} at a time, the limit is {JOBS}");
            self.findings.add("jobs", finding);
        }
        AtWork {
            meters: self.clone(),
            place: Place::Job,
        }
    }

    fn millis(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap()
    }

    /// Whether replicas may go by their own counts: during a fault, and when a busy machine misses deadlines.
    fn is_disturbed(&self) -> bool {
        let last = self.decided_without_store.load(Ordering::SeqCst);
        let is_recent = last > 0 && self.millis() < last + ALONE.as_millis() as u64;
        is_recent || self.disturbed.load(Ordering::SeqCst)
    }

    fn check(&self, what: &'static str, now: usize, limit: usize) {
        let factor = if self.is_disturbed() { REPLICAS } else { 1 };
        if now > limit * factor {
            let finding = format!("{now} in flight, the limit is {limit} times {factor}");
            self.findings.add(what, finding);
        }
    }

    fn charge(&self, tenant: usize) {
        let mut rate = self.rates[tenant].lock().unwrap();
        let (per_second, burst) = (
            f64::from(self.numbers.per_second),
            f64::from(self.numbers.burst),
        );
        let now = Instant::now();
        let leaked = per_second * (now - rate.at).as_secs_f64();
        rate.at = now;
        rate.level = (rate.level - leaked).max(0.0) + 1.0;
        let above = rate.level - burst - rate.forgiven;
        if above > per_second * LATE.as_secs_f64() {
            let finding = format!("tenant {tenant}: {above:.0} tokens above the burst");
            self.findings.add("rate", finding);
        }
        rate.window.push_back(now);
        while (rate.window.front()).is_some_and(|first| now - *first > WINDOW - LATE) {
            rate.window.pop_front();
        }
        let counted = rate.window.len();
        let limit = self.numbers.in_window as usize;
        if counted > limit && !self.is_disturbed() {
            let finding = format!("tenant {tenant}: {counted} requests in a window for {limit}");
            self.findings.add("window", finding);
        }
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.total.now.load(Ordering::SeqCst)
    }

    /// The store is about to fail: its data may be lost, and each replica may be on its own.
    pub(crate) fn disturb(&self) {
        self.disturbed.store(true, Ordering::SeqCst);
        for rate in &self.rates {
            rate.lock().unwrap().forgiven += 4.0 * f64::from(self.numbers.burst);
        }
    }

    /// The store answers again, for so long that all replicas know.
    pub(crate) fn calm(&self) {
        for rate in &self.rates {
            let mut rate = rate.lock().unwrap();
            rate.level = rate.level.min(f64::from(self.numbers.burst));
            rate.forgiven = 0.0;
            rate.window.clear();
        }
        self.disturbed.store(false, Ordering::SeqCst);
    }

    /// Forgives what an outage gives back that nobody caused: a busy machine misses deadlines.
    pub(crate) fn outages(self: &Arc<Self>) -> impl StoreObserver {
        struct Outages(Arc<Meters>);
        impl StoreObserver for Outages {
            fn decided_without(&self, _: FailureMode) {
                self.0.without_store.fetch_add(1, Ordering::Relaxed);
                let now = self.0.millis().max(1);
                self.0.decided_without_store.store(now, Ordering::SeqCst);
            }

            fn reachable(&self, reachable: bool) {
                if !reachable {
                    for rate in &self.0.rates {
                        rate.lock().unwrap().forgiven += f64::from(self.0.numbers.burst);
                    }
                }
            }
        }
        Outages(self.clone())
    }

    /// Warns of a limit that the load never reached: then the run shows little. A busy machine can be the cause, so
    /// this does not fail the run.
    pub(crate) fn warn_if_not_reached(&self) {
        // In Redis a slot counts until its release arrives, so fewer than all may be at work. A request that the
        // store did not decide about may be admitted, or answered 503.
        let without_store = self.without_store.load(Ordering::Relaxed);
        let is_reached = self.total.peak.load(Ordering::SeqCst) >= self.numbers.in_flight
            || self.unavailable.load(Ordering::Relaxed) > without_store;
        if !is_reached {
            self.findings.warn(&format!("never at capacity: {self}"));
        }
        if self.too_many.load(Ordering::Relaxed) == 0 {
            self.findings
                .warn(&format!("no tenant was above its limits: {self}"));
        }
    }
}

impl fmt::Display for Meters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        write!(
            f,
            "{} admitted, {} answered 429, {} answered 503, {} decided without the store; at most {} in flight, {} jobs",
            of(&self.admitted),
            of(&self.too_many),
            of(&self.unavailable),
            of(&self.without_store),
            self.total.peak.load(Ordering::SeqCst),
            self.jobs.peak.load(Ordering::SeqCst),
        )
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        match self.place {
            Place::Tenant(tenant) => {
                self.meters.per_tenant[tenant].leave();
                self.meters.total.leave();
            }
            Place::Other => self.meters.total.leave(),
            Place::Job => self.meters.jobs.leave(),
        }
    }
}
