//! Leases in the memory store against a naive model, with random operations.

use std::time::Duration;

use proptest::prelude::*;
use tower_admission::store::{
    AcquireOutcome, LeaseLimits, LeaseName, LeaseSlots, LeaseStatus, LeaseStore, LeaseUsage,
    NamedAcquireOutcome, NamedLease, NamedLimits, Reply,
};
use tower_admission::test_util::TestClock;
use tower_admission::{Key, MemoryStore};

/// A lease in the naive model.
#[derive(Clone, Copy, Debug)]
struct Entry {
    tenant: u8,
    id: u8,
    holder: u64,
    until: u64,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Acquire(u8, u8, u64, u64),
    Heartbeat(u8, u8, Option<u64>, u64),
    Release(u8, u8, Option<u64>),
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let (tenant, id, holder, ttl) = (0..3u8, 0..4u8, 0..3u64, 1..50u64);
    prop_oneof![
        6 => (tenant.clone(), id.clone(), holder.clone(), ttl.clone())
            .prop_map(|(tenant, id, holder, ttl)| Step::Acquire(tenant, id, holder, ttl)),
        3 => (tenant.clone(), id.clone(), proptest::option::of(holder.clone()), ttl)
            .prop_map(|(tenant, id, holder, ttl)| Step::Heartbeat(tenant, id, holder, ttl)),
        3 => (tenant, id, proptest::option::of(holder))
            .prop_map(|(tenant, id, holder)| Step::Release(tenant, id, holder)),
        3 => (1..40u64).prop_map(Step::Pass),
    ]
}

fn key(kind: &'static str, n: u8) -> Key {
    Key::id(kind, &n.to_string())
}

fn name(tenant: u8, id: u8) -> LeaseName {
    LeaseName::new(key("tenant", tenant), key("lease", id))
}

fn ready<T>(reply: Reply<T>) -> T {
    match reply {
        Reply::Ready(answer) => answer,
        Reply::Pending(_) => panic!("the memory store answers immediately"),
    }
}

fn millis(time: u64) -> Duration {
    Duration::from_millis(time)
}

/// The observable state.
fn check(slots: &dyn LeaseSlots, model: &[Entry]) -> Result<(), TestCaseError> {
    for tenant in 0..3 {
        let usage = ready(slots.usage(Some(&key("tenant", tenant)))).unwrap();
        let of_tenant = model.iter().filter(|entry| entry.tenant == tenant).count();
        prop_assert_eq!(usage.total, model.len() as u64);
        prop_assert_eq!(usage.key, Some(of_tenant as u64));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    /// No limit is exceeded, no slot outlives its time, and no slot is lost.
    #[test]
    fn leases_are_what_the_model_says(
        steps in proptest::collection::vec(step(), 1..150),
        total in 1..6u64,
        of_tenant in 1..4u64,
    ) {
        let clock = TestClock::default();
        let slots = MemoryStore::new().clock(clock.clone()).open_leases("");
        let mut model: Vec<Entry> = Vec::new();
        let mut now = 0;
        for step in steps {
            match step {
                Step::Pass(time) => {
                    now += time;
                    clock.advance(millis(time));
                    model.retain(|entry| entry.until > now);
                }
                Step::Acquire(tenant, id, holder, ttl) => {
                    let limits =
                        NamedLimits::new(Some(total), Some(of_tenant));
                    let lease = NamedLease::new(name(tenant, id), holder, millis(ttl));
                    let theirs = model.iter().filter(|entry| entry.tenant == tenant).count() as u64;
                    let all = model.len() as u64;
                    let until = now + ttl;
                    let live = (model.iter_mut())
                        .find(|entry| (entry.tenant, entry.id) == (tenant, id));
                    let expected = if let Some(entry) = live {
                        (entry.holder, entry.until) = (holder, until);
                        NamedAcquireOutcome::Granted
                    } else if theirs >= of_tenant {
                        NamedAcquireOutcome::KeyFull(theirs)
                    } else if all >= total {
                        NamedAcquireOutcome::Full(all)
                    } else {
                        model.push(Entry { tenant, id, holder, until });
                        NamedAcquireOutcome::Granted
                    };
                    prop_assert_eq!(ready(slots.acquire_named(&lease, limits)), expected);
                }
                Step::Heartbeat(tenant, id, holder, ttl) => {
                    let live = (model.iter_mut())
                        .find(|entry| (entry.tenant, entry.id) == (tenant, id))
                        .filter(|entry| holder.is_none_or(|holder| entry.holder == holder));
                    let expected = match live {
                        Some(entry) => {
                            entry.until = now + ttl;
                            LeaseStatus::Live
                        }
                        None => LeaseStatus::Gone,
                    };
                    let standing = slots.heartbeat(&name(tenant, id), holder, millis(ttl));
                    prop_assert_eq!(ready(standing), expected);
                }
                Step::Release(tenant, id, holder) => {
                    let before = model.len();
                    model.retain(|entry| {
                        (entry.tenant, entry.id) != (tenant, id)
                            || holder.is_some_and(|holder| holder != entry.holder)
                    });
                    let expected = if model.len() < before {
                        LeaseStatus::Live
                    } else {
                        LeaseStatus::Gone
                    };
                    let standing = slots.release(&name(tenant, id), holder);
                    prop_assert_eq!(ready(standing), expected);
                }
            }
            check(&*slots, &model)?;
        }
    }

    /// Each slot is taken from both keys and the total, or from none. The keys may be equal.
    #[test]
    fn slots_of_several_keys_are_what_the_model_says(
        steps in proptest::collection::vec((proptest::bool::weighted(0.7), 0..4u8, 0..4u8), 1..150),
        total in 1..8usize,
        limits in (1..4usize, 1..5usize),
    ) {
        let slots = MemoryStore::new().open_leases("");
        let mut model = Vec::new();
        for (takes, first, second) in steps {
            if !takes {
                let place = usize::from(first) * 4 + usize::from(second);
                if !model.is_empty() {
                    model.swap_remove(place % model.len());
                }
            } else {
                let of_first = model.iter().filter(|(keys, _)| *keys / 4 == first).count();
                let of_second = model.iter().filter(|(keys, _)| *keys % 4 == second).count();
                let of_keys = [(key("key", first), limits.0 as u64), (key("key", second), limits.1 as u64)];
                match ready(slots.acquire(LeaseLimits::new(Some(total as u64), of_keys))) {
                    AcquireOutcome::Granted(held) => {
                        prop_assert!(of_first < limits.0 && of_second < limits.1);
                        prop_assert!(model.len() < total);
                        model.push((first * 4 + second, held));
                    }
                    AcquireOutcome::KeyFull { place: 0 } => prop_assert!(of_first >= limits.0),
                    AcquireOutcome::KeyFull { place } => {
                        prop_assert_eq!(place, 1);
                        prop_assert!(of_first < limits.0 && of_second >= limits.1);
                    }
                    AcquireOutcome::Full => {
                        prop_assert!(of_first < limits.0 && of_second < limits.1);
                        prop_assert_eq!(model.len(), total);
                    }
                    unavailable => prop_assert!(false, "{:?}", unavailable),
                }
            }
            for n in 0..4 {
                let of = [
                    model.iter().filter(|(keys, _)| *keys / 4 == n).count(),
                    model.iter().filter(|(keys, _)| *keys % 4 == n).count(),
                ];
                for (place, of_key) in of.into_iter().enumerate() {
                    let usage = ready(slots.usage_at(Some(&key("key", n)), place));
                    let expected = LeaseUsage::new(model.len() as u64, Some(of_key as u64));
                    prop_assert_eq!(usage, Some(expected));
                }
            }
        }
    }
}
