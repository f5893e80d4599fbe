//! Decisions against a naive model of the bucket, and permits against a naive count.
#![cfg(feature = "test-util")]

use std::time::Duration;

use proptest::prelude::*;
use tower_admission::store::{Charge, MemoryStore, RateStore, Reply};
use tower_admission::test_util::TestClock;
use tower_admission::{
    Capacity, ConcurrencyLimiter, Decision, Key, Permit, Policy, Quota, RateLimiter,
};

/// A naive bucket: its level, in fractions of a request.
#[derive(Clone)]
struct Bucket {
    /// Nanoseconds between two requests, rounded up as documented.
    interval: u128,
    /// In nanoseconds' worth of requests.
    level: u128,
    full: u128,
}

impl Bucket {
    fn new(count: u32, period: Duration, burst: u32) -> Self {
        let interval = period.as_nanos().div_ceil(u128::from(count));
        let full = u128::from(burst) * interval;
        Self {
            interval,
            level: full,
            full,
        }
    }

    fn worth(&self, cost: u32) -> u128 {
        u128::from(cost) * self.interval
    }

    fn pass(&mut self, time: Duration) {
        self.level = (self.level + time.as_nanos()).min(self.full);
    }

    fn fits(&self, cost: u32) -> bool {
        self.level >= self.worth(cost)
    }

    fn take(&mut self, cost: u32) {
        self.level -= self.worth(cost);
    }

    fn give_back(&mut self, cost: u32) {
        self.level = (self.level + self.worth(cost)).min(self.full);
    }

    fn wait(&self, cost: u32) -> Option<Duration> {
        let missing = self.worth(cost) - self.level;
        let missing = Duration::from_nanos(u64::try_from(missing).unwrap());
        (self.worth(cost) <= self.full).then_some(missing)
    }
}

#[derive(Clone, Debug)]
enum Step {
    Pass(Duration),
    Take { key: usize, cost: u32 },
    Refund { key: usize, cost: u32 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        2 => (0..2_000_000_000u64).prop_map(|nanos| Step::Pass(Duration::from_nanos(nanos))),
        6 => (0..3usize, 0..6u32).prop_map(|(key, cost)| Step::Take { key, cost }),
        1 => (0..3usize, 0..4u32).prop_map(|(key, cost)| Step::Refund { key, cost }),
    ];
    proptest::collection::vec(step, 1..200)
}

fn quota() -> impl Strategy<Value = (u32, Duration, u32)> {
    let period = prop_oneof![
        Just(Duration::from_millis(10)),
        Just(Duration::from_secs(1)),
        Just(Duration::from_secs(7)),
    ];
    (1..50u32, period, 1..20u32)
}

fn ready(reply: Reply<Decision>) -> Decision {
    match reply {
        Reply::Ready(decision) => decision,
        Reply::Pending(_) => panic!("a store in memory answers at once"),
    }
}

fn key(n: usize) -> Key {
    Key::id("user", &n.to_string())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Two quotas, three keys, any cost: every decision and number matches the model. It makes no
    /// difference whether a key is charged to one policy with both quotas or to two policies.
    #[test]
    fn decisions_match_the_model(
        (a, b) in (quota(), quota()),
        two_policies: bool,
        steps in steps(),
    ) {
        let clock = TestClock::default();
        let store = MemoryStore::new().clock(clock.clone());
        let quotas = [a, b].map(|(count, period, burst)| Quota::new(count, period).burst(burst));
        let buckets = if two_policies {
            store.open(&quotas.map(|quota| Policy::new("same", quota)))
        } else {
            store.open(&[Policy::new("a", quotas[0]).and("b", quotas[1])])
        };
        let sets = 1 + usize::from(two_policies);
        let charges = |n| (0..sets).map(|set| Charge::new(key(n), set)).collect::<Vec<_>>();
        let bucket = [Bucket::new(a.0, a.1, a.2), Bucket::new(b.0, b.1, b.2)];
        let mut model = vec![bucket; 3];
        for step in steps {
            match step {
                Step::Pass(time) => {
                    clock.advance(time);
                    model.iter_mut().flatten().for_each(|bucket| bucket.pass(time));
                }
                Step::Take { key: n, cost } => {
                    let Reply::Ready(decision) = buckets.take(&charges(n), cost) else {
                        panic!("memory answers at once");
                    };
                    let fits = cost == 0 || model[n].iter().all(|bucket| bucket.fits(cost));
                    prop_assert_eq!(decision.is_admitted(), fits);
                    if fits {
                        model[n].iter_mut().for_each(|bucket| bucket.take(cost));
                    }
                    for (bucket, usage) in model[n].iter().zip(decision.usages()) {
                        let remaining = bucket.level / bucket.interval;
                        prop_assert_eq!(u128::from(usage.remaining()), remaining);
                        prop_assert_eq!(usage.reset().as_nanos(), bucket.full - bucket.level);
                        if !fits && !bucket.fits(cost) {
                            prop_assert_eq!(usage.retry_after(), bucket.wait(cost));
                        }
                    }
                }
                Step::Refund { key: n, cost } => {
                    let _ = buckets.refund(&charges(n), cost);
                    model[n].iter_mut().for_each(|bucket| bucket.give_back(cost));
                }
            }
        }
    }

    /// The fast path of a layer that reports no numbers admits the same requests as the full path,
    /// also when the clock steps back.
    #[test]
    fn take_one_matches_a_full_decision(
        (count, period, burst) in quota(),
        steps in steps(),
        step_back in (0..200usize, 0..20_000u64),
    ) {
        let clock = TestClock::default();
        clock.advance(Duration::from_secs(60));
        let policies = [Policy::from(Quota::new(count, period).burst(burst))];
        let buckets = || MemoryStore::new().clock(clock.clone()).open(&policies);
        let (short, long) = (buckets(), buckets());
        for (at, step) in steps.into_iter().enumerate() {
            if at == step_back.0 {
                clock.step_back(Duration::from_millis(step_back.1));
            }
            match step {
                Step::Pass(time) => clock.advance(time),
                Step::Take { key: n, cost } => {
                    let charges = [Charge::new(key(n), 0)];
                    let took = cost == 1 && short.take_one(&charges[0]);
                    let expected = ready(long.take(&charges, cost));
                    if cost == 1 && at < step_back.0 {
                        prop_assert_eq!(took, expected.is_admitted());
                    }
                    if took {
                        prop_assert!(expected.is_admitted());
                        prop_assert_eq!(ready(short.peek(&charges, 0)), ready(long.peek(&charges, 0)));
                    } else {
                        prop_assert_eq!(ready(short.take(&charges, cost)), expected);
                    }
                }
                Step::Refund { key: n, cost } => {
                    let charges = [Charge::new(key(n), 0)];
                    let _ = (short.refund(&charges, cost), long.refund(&charges, cost));
                }
            }
        }
    }

    /// A client that is alone on its key and waits for `Retry-After` is admitted; a nanosecond
    /// earlier it is not.
    #[test]
    fn a_request_fits_after_its_retry_after(
        (a, b) in (quota(), quota()),
        costs in proptest::collection::vec(1..20u32, 1..100),
    ) {
        let clock = TestClock::default();
        let store = MemoryStore::new().clock(clock.clone());
        let policy = Policy::new("a", Quota::new(a.0, a.1).burst(a.2))
            .and("b", Quota::new(b.0, b.1).burst(b.2));
        let limiter = RateLimiter::with_store(policy, &store);
        let key = key(0);
        for cost in costs {
            let decision = limiter.check_n(&key, cost).now().unwrap();
            if decision.is_admitted() {
                continue;
            }
            match decision.retry_after() {
                None => prop_assert!(cost > a.2.min(b.2)),
                Some(wait) => {
                    prop_assert!(wait > Duration::ZERO);
                    clock.advance(wait - Duration::from_nanos(1));
                    prop_assert!(!limiter.check_n(&key, cost).now().unwrap().is_admitted());
                    clock.advance(Duration::from_nanos(1));
                    prop_assert!(limiter.check_n(&key, cost).now().unwrap().is_admitted());
                }
            }
        }
    }

    /// Any interval W admits at most burst + W x rate.
    #[test]
    fn an_interval_admits_at_most_its_burst_and_rate(
        (count, period, burst) in quota(),
        gaps in proptest::collection::vec(0..300_000_000u64, 1..300),
    ) {
        let clock = TestClock::default();
        let store = MemoryStore::new().clock(clock.clone());
        let limiter = RateLimiter::with_store(Quota::new(count, period).burst(burst), &store);
        let mut now = 0u128;
        let mut admitted = Vec::new();
        for gap in gaps {
            clock.advance(Duration::from_nanos(gap));
            now += u128::from(gap);
            while limiter.check_now(&key(0)).unwrap().is_admitted() {
                admitted.push(now);
            }
        }
        for (first, from) in admitted.iter().enumerate() {
            for (last, to) in admitted.iter().enumerate().skip(first) {
                let share = (to - from) * u128::from(count) / period.as_nanos();
                prop_assert!((last - first + 1) as u128 <= u128::from(burst) + share);
            }
        }
    }

    /// A clock that steps back locks no client out for longer than an empty bucket takes to fill,
    /// plus a second (smaller steps cannot be told from a delayed thread). Reported waits are exact
    /// then.
    #[test]
    fn a_clock_step_back_is_forgiven_within_one_refill(
        (count, period, burst) in quota(),
        step in prop_oneof![0..10_000_000_000u64, 0..10_000_000_000_000u64],
    ) {
        let clock = TestClock::default();
        let store = MemoryStore::new().clock(clock.clone());
        let limiter = RateLimiter::with_store(Quota::new(count, period).burst(burst), &store);
        clock.advance(Duration::from_secs(20_000));
        while limiter.check_now(&key(0)).unwrap().is_admitted() {}
        clock.step_back(Duration::from_nanos(step));
        let wait = limiter.check_now(&key(0)).unwrap().retry_after().unwrap();
        let interval = period.as_nanos().div_ceil(u128::from(count));
        let refill = Duration::from_nanos((interval * u128::from(burst)) as u64);
        prop_assert!(wait <= refill + Duration::from_secs(1));
        clock.advance(wait);
        prop_assert!(limiter.check_now(&key(0)).unwrap().is_admitted());
    }

    /// No sequence of acquiring, releasing and changing the limit leaks a permit or releases it
    /// twice.
    #[test]
    fn permits_match_a_naive_count(
        steps in proptest::collection::vec((0..4u8, 0..8usize), 1..300),
    ) {
        let limiter = ConcurrencyLimiter::new(4);
        let mut limit = Capacity::AtMost(4);
        let mut held: Vec<Permit> = Vec::new();
        for (step, n) in steps {
            match step {
                0 | 1 => {
                    let permit = limiter.try_acquire();
                    let is_free = match limit {
                        Capacity::Unlimited => true,
                        Capacity::AtMost(limit) => held.len() < limit,
                    };
                    prop_assert_eq!(permit.is_ok(), is_free);
                    held.extend(permit);
                }
                2 if !held.is_empty() => drop(held.swap_remove(n % held.len())),
                2 => {}
                _ => {
                    limit = if n == 7 { Capacity::Unlimited } else { n.into() };
                    limiter.set_limit(limit);
                    prop_assert_eq!(limiter.limit(), limit);
                }
            }
            prop_assert_eq!(limiter.in_flight(), held.len());
        }
        held.clear();
        prop_assert_eq!(limiter.in_flight(), 0);
    }
}

/// An unlimited bound takes no memory for unused entries.
#[test]
fn a_memory_store_accepts_any_bound() {
    for bound in [0, 1, usize::MAX] {
        let store = MemoryStore::new().max_keys(bound);
        let limiter = RateLimiter::with_store(Quota::per_hour(1), &store);
        assert!(limiter.check_now(&key(0)).unwrap().is_admitted());
        assert!(!limiter.check_now(&key(0)).unwrap().is_admitted());
    }
}

proptest! {
    /// The text of any quota reads back as the same quota.
    #[test]
    fn quotas_read_back_from_text(count in 1..u32::MAX, nanos in 1..u64::MAX, burst in 1..u32::MAX) {
        let quota = Quota::try_new(count, Duration::from_nanos(nanos));
        if let Ok(quota) = quota.and_then(|quota| quota.try_burst(burst)) {
            prop_assert_eq!(quota.to_string().parse(), Ok(quota));
        }
    }
}

/// governor multiplies the cost by the interval before it compares, which overflowed.
#[test]
fn a_cost_above_any_bucket_is_rejected() {
    for quota in [
        "2/2h",
        "1/day",
        "1 per 3000000000s",
        "1000000000/s",
        "4294967295/min",
    ] {
        let limiter = RateLimiter::new(quota.parse::<Quota>().unwrap());
        let decision = limiter.check_n(&key(0), u32::MAX).now().unwrap();
        assert_eq!(
            decision.can_never_fit(),
            quota != "4294967295/min",
            "{quota}"
        );
        assert!(limiter.check_now(&key(1)).unwrap().is_admitted());
    }
}

/// A naive window: the time and cost of every admitted request.
#[derive(Default)]
struct Log(Vec<(u128, u32)>);

impl Log {
    /// The cost admitted since a time.
    fn since(&self, time: i128) -> u32 {
        let costs = self.0.iter().filter(|(at, _)| *at as i128 >= time);
        costs.map(|(_, cost)| cost).sum()
    }

    /// The maximum cost in any window of this length.
    fn most_in(&self, length: u128) -> u32 {
        let starts = self.0.iter().map(|(start, _)| *start);
        let costs = |start| {
            let within = move |(at, _): &&(u128, u32)| (start..=start + length).contains(at);
            self.0.iter().filter(within).map(|(_, cost)| cost).sum()
        };
        starts.map(costs).max().unwrap_or(0)
    }

    /// Refunds a cost from the newest requests.
    fn give_back(&mut self, mut cost: u32) {
        for (_, taken) in self.0.iter_mut().rev() {
            let given = cost.min(*taken);
            *taken -= given;
            cost -= given;
        }
    }
}

/// A sliding quota, its limit, its period, and its sub-window in nanoseconds.
fn sliding() -> impl Strategy<Value = (Quota, u32, Duration)> {
    let period = prop_oneof![
        Just(Duration::from_millis(15)),
        Just(Duration::from_secs(1)),
        Just(Duration::from_secs(7)),
    ];
    (1..20u32, 0..10u32, period).prop_map(|(count, burst, period)| {
        let quota = Quota::new(count, period).sliding();
        let quota = if burst > 0 { quota.burst(burst) } else { quota };
        (quota, count + burst, period)
    })
}

/// A fifteenth of the period, rounded up to microseconds, as documented.
fn sub_window(period: Duration) -> u128 {
    period.as_nanos().div_ceil(15_000) * 1_000
}

/// A step in fractions of a period; costs may be above the limit.
fn sliding_steps() -> impl Strategy<Value = Vec<(u8, f64, u32)>> {
    proptest::collection::vec((0..10u8, 0.0..0.3f64, 0..12u32), 1..200)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// No window has more than count + burst. A request is only rejected if it does not fit with
    /// the oldest sub-window counted in full. A reported wait is long enough and not too long.
    /// After a reset nothing counts. Refunds are for the last request, at once.
    #[test]
    fn sliding_windows_match_the_log((quota, limit, period) in sliding(), steps in sliding_steps()) {
        let clock = TestClock::default();
        let store = MemoryStore::new().clock(clock.clone());
        let limiter = RateLimiter::with_store(quota, &store);
        let part = sub_window(period);
        let (mut now, mut log) = (0u128, Log::default());
        for (step, fraction, cost) in steps {
            if step < 3 {
                // Sometimes a moment on the edge of a sub-window.
                let mut next = now + (fraction * period.as_nanos() as f64) as u128;
                if step == 0 {
                    next = next.div_ceil(part) * part;
                }
                clock.advance(Duration::from_nanos((next - now) as u64));
                now = next;
                continue;
            }
            let start = now as i128 - 15 * part as i128;
            let used = log.since(start.div_euclid(part as i128) * part as i128);
            let peeked = limiter.peek_all(&[key(0)], cost);
            let decision = limiter.check_n(&key(0), cost).now().unwrap();
            prop_assert_eq!(decision.is_admitted(), cost == 0 || used + cost <= limit);
            prop_assert_eq!(decision.limit(), Some(limit));
            prop_assert_eq!(decision.can_never_fit(), cost > limit);
            let tower_admission::store::Reply::Ready(peeked) = peeked else {
                panic!("the memory store answers at once");
            };
            prop_assert_eq!(peeked.is_admitted(), decision.is_admitted());
            prop_assert_eq!(peeked.retry_after(), decision.retry_after());
            if decision.is_admitted() {
                prop_assert_eq!(decision.remaining(), Some(limit - used - cost));
                log.0.push((now, cost));
                if step == 9 {
                    limiter.refund(&key(0), cost).now().unwrap();
                    log.give_back(cost);
                }
            } else {
                prop_assert_eq!(decision.remaining(), Some(limit - used));
            }
            if let Some(wait) = decision.retry_after().filter(|_| step == 8) {
                prop_assert!(Some(wait) <= decision.reset());
                clock.advance(wait - Duration::from_nanos(1));
                prop_assert!(!limiter.check_n(&key(0), cost).now().unwrap().is_admitted());
                clock.advance(Duration::from_nanos(1));
                prop_assert!(limiter.check_n(&key(0), cost).now().unwrap().is_admitted());
                now += wait.as_nanos();
                log.0.push((now, cost));
            }
        }
        prop_assert!(log.most_in(period.as_nanos()) <= limit);
        let reset = limiter.peek(&key(0)).now().unwrap().reset().unwrap();
        let used = limit - limiter.check_n(&key(0), 0).now().unwrap().remaining().unwrap();
        prop_assert_eq!(reset.is_zero(), used == 0);
        if used > 0 {
            clock.advance(reset - Duration::from_nanos(1));
            prop_assert!(limiter.check_n(&key(0), 0).now().unwrap().remaining() < Some(limit));
            clock.advance(Duration::from_nanos(1));
        }
        prop_assert_eq!(limiter.check_n(&key(0), 0).now().unwrap().remaining(), Some(limit));
    }

    /// Also with a clock that steps back: no window of real time has more than the limit, and no
    /// wait exceeds a period and two sub-windows.
    #[test]
    fn a_clock_step_back_admits_nothing_extra_in_a_window(
        (quota, limit, period) in sliding(),
        steps in sliding_steps(),
    ) {
        let clock = TestClock::default();
        clock.advance(Duration::from_secs(1_000));
        let store = MemoryStore::new().clock(clock.clone());
        let limiter = RateLimiter::with_store(quota, &store);
        let longest = Duration::from_nanos((17 * sub_window(period)) as u64);
        let (mut passed, mut log) = (0u128, Log::default());
        for (step, fraction, cost) in steps {
            let time = period.mul_f64(fraction);
            match step {
                0..=3 => {
                    clock.advance(time);
                    passed += time.as_nanos();
                }
                4 => clock.step_back(time * (cost + 1)),
                _ => {
                    let decision = limiter.check_n(&key(0), cost).now().unwrap();
                    if decision.is_admitted() {
                        log.0.push((passed, cost));
                    }
                    prop_assert!(decision.reset().unwrap() <= longest);
                    prop_assert!(decision.retry_after().is_none_or(|wait| wait <= longest));
                }
            }
        }
        prop_assert!(log.most_in(period.as_nanos()) <= limit);
    }

    /// The text of any sliding quota reads back as the same quota.
    #[test]
    fn sliding_quotas_read_back_from_text((quota, limit, _) in sliding()) {
        let read: Quota = quota.to_string().parse().unwrap();
        prop_assert_eq!(read, quota);
        prop_assert_eq!((read.burst_size(), read.is_sliding()), (Some(limit), true));
    }
}
