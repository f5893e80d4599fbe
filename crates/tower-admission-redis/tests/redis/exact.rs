//! Decisions of shared calls, compared with decisions of single calls on other keys.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use tokio_test::task;
use tower_admission::store::{
    AcquireOutcome, Charge, LeaseLimits, LeaseSlots, LeaseStore, RateStore,
};
use tower_admission::{Decision, Key, Policy, Quota, Rule};

use crate::leases::until_used;
use crate::server::Server;

/// A request: its cost, and for each key which one it is and by which rules it is charged.
#[derive(Clone, Debug)]
struct Request {
    cost: u32,
    own: (u8, u8),
    shared: Option<u8>,
}

#[derive(Clone, Debug)]
enum Step {
    /// At once.
    Ask(Vec<Request>),
    SetQuotas(u8),
}

fn quota(at: u8) -> Quota {
    let quotas = [
        "9/h",
        "20/h",
        "9/day",
        "30/h sliding",
        "off",
        "0/s",
        "1000/day",
        "1/99day burst 2",
    ];
    let text = quotas[usize::from(at) % quotas.len()];
    text.parse().unwrap()
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let cost = prop_oneof![6 => 1..4_u32, 1 => Just(0), 1 => Just(7), 1 => Just(u32::MAX)];
    let rules = prop_oneof![4 => Just(0_u8), 1 => 1..9_u8];
    let request = (
        cost,
        (prop_oneof![8 => 0..3_u8, 1 => any::<u8>()], rules.clone()),
        proptest::option::weighted(0.8, rules),
    );
    let request = request.prop_map(|(cost, own, shared)| Request { cost, own, shared });
    let requests = prop_oneof![
        4 => proptest::collection::vec(request.clone(), 1..40),
        // More than one call decides.
        1 => proptest::collection::vec(request.clone(), 130..500),
        // A run of the same.
        4 => (request, 1..20_usize).prop_map(|(request, times)| vec![request; times]),
    ];
    let step =
        prop_oneof![8 => requests.prop_map(Step::Ask), 1 => (0..8_u8).prop_map(Step::SetQuotas)];
    proptest::collection::vec(step, 1..6)
}

fn charges(request: &Request, is_several: bool) -> Vec<Charge> {
    let with = |charge: Charge, rules: u8| match rules {
        0 => charge,
        rules => charge.with_rules(&[Some(Rule::new(quota(rules - 1)))]),
    };
    let (own, rules) = request.own;
    let own = with(Charge::new(Key::id("user", &own.to_string()), 0), rules);
    let shared = request.shared.unwrap_or(0);
    let shared = with(Charge::new(Key::id("all", "all"), 1), shared);
    if is_several {
        vec![own, shared]
    } else {
        vec![own]
    }
}

/// What does not depend on the time of the answer, within minutes.
fn told(decision: &Decision) -> impl PartialEq + std::fmt::Debug + use<> {
    let usages = decision.usages().iter().map(|usage| {
        let (at, limit, left) = (usage.index(), usage.limit(), usage.remaining());
        let waits = usage.retry_after().map(|wait| wait > Duration::ZERO);
        (at, limit, left, usage.fits(), waits)
    });
    (decision.is_admitted(), usages.collect::<Vec<_>>())
}

async fn run(
    server: &Server,
    n: u64,
    steps: &[Step],
    is_several: bool,
) -> Result<(), TestCaseError> {
    let policies = [
        Policy::new("own", Quota::per_hour(9)),
        Policy::new("shared", Quota::per_hour(20)),
    ];
    let ways = ["one", "shared"].map(|way| {
        let store = server.store().prefix(&format!("{way}{n}"));
        store.open(&policies)
    });
    // Connected.
    for way in &ways {
        way.peek(&[Charge::new(Key::id("user", "none"), 0)], 0)
            .await;
    }
    for step in steps {
        match step {
            Step::SetQuotas(at) => {
                for way in &ways {
                    way.set_quotas(0, &[quota(*at)]);
                }
            }
            Step::Ask(requests) => {
                let mut one = Vec::new();
                for request in requests {
                    let charges = charges(request, is_several);
                    // Not from the cache.
                    ways[0].settle(&charges);
                    one.push(ways[0].take(&charges, request.cost).await);
                }
                ways[1].settle(&charges(&requests[0], is_several));
                let taken = requests
                    .iter()
                    .map(|request| ways[1].take(&charges(request, is_several), request.cost));
                let taken = taken.map(IntoFuture::into_future);
                let mut taken: Vec<_> = taken.map(task::spawn).collect();
                let mut begun = Vec::new();
                for taken in &mut taken {
                    begun.push(taken.poll());
                }
                for (at, (taken, begun)) in taken.into_iter().zip(begun).enumerate() {
                    let decision = match begun {
                        std::task::Poll::Ready(decision) => decision,
                        std::task::Poll::Pending => taken.into_inner().await,
                    };
                    prop_assert_eq!(
                        told(&decision),
                        told(&one[at]),
                        "request {} of {:?}",
                        at,
                        requests
                    );
                }
            }
        }
    }
    Ok(())
}

#[test]
fn requests_that_share_calls_are_decided_like_single_calls() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let server = runtime.block_on(Server::start());
    let mut runner = crate::random_histories(20);
    let n = std::cell::Cell::new(0);
    let ran = runner.run(&(steps(), any::<bool>()), |(steps, is_several)| {
        n.set(n.get() + 1);
        runtime.block_on(run(&server, n.get(), &steps, is_several))
    });
    ran.unwrap();
}

/// A bucket as another program may have written it, with numbers that are no times.
#[tokio::test]
async fn data_that_looks_like_a_bucket_does_not_affect_other_keys_of_the_call() {
    let server = Server::start().await;
    let per_hour = |name: &str| {
        let quotas = [9, 30].map(Quota::per_hour);
        Policy::new(name, quotas[0]).and("other", quotas[1])
    };
    let policies = [per_hour("own"), per_hour("shared")];
    let buckets = server.store().open(&policies);
    let off = [None, Some(Rule::new(Quota::off()))];
    let own = |name: &str| Charge::new(Key::id("user", name), 0).with_rules(&off);
    let both = |name: &str| [own(name), Charge::new(Key::id("all", "all"), 1)];
    buckets.take(&[own("junk")], 1).await;
    let key = server.keys().await.pop().unwrap();
    let interval = Rule::new(Quota::per_hour(9)).length().as_micros();
    let [long, longer, endless] = [24, 60, 400].map(|digits| "9".repeat(digits));
    let mut connection = server.connection().await.unwrap();
    for junk in [
        format!("b {interval} {long} {long};-"),
        format!("b {interval} {longer} {long};-"),
        format!("b 7 {longer} {long};-"),
        format!("b {long} {longer} {long};-"),
        format!("b {interval} {endless} {endless};-"),
        format!("b 0 {endless} {endless};-"),
        format!("b {endless} {endless} 0;-"),
        format!("b {endless} {endless} {endless};-"),
        format!("-;b 1 {long} 1"),
        format!("-;b 1 {endless} 1"),
        format!("-;s {long} 1"),
        format!("-;s {endless} {endless}"),
    ] {
        let set = redis::cmd("SET").arg(&key).arg(&junk).to_owned();
        let () = set.query_async(&mut connection).await.unwrap();
        let names = ["first", "one", "junk", "two"];
        let taken = names.map(|name| buckets.take(&both(name), 1).into_future());
        let mut taken = taken.map(task::spawn);
        for taken in &mut taken {
            assert!(taken.poll().is_pending());
        }
        for (name, taken) in names.iter().zip(taken) {
            let decision = taken.into_inner().await;
            // The failure mode decides about the other.
            assert_eq!(
                decision.remaining().is_some(),
                *name != "junk",
                "{name}: {junk:.60}"
            );
        }
        let get = redis::cmd("GET").arg(&key).to_owned();
        let stored: String = get.query_async(&mut connection).await.unwrap();
        assert_eq!(stored, junk);
        server.clear().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_acquire_releases_its_permit() {
    let server = Server::start().await;
    let store = server.store();
    let leases: Arc<dyn LeaseSlots> = store.open_leases("limiter");
    let held = Arc::new(std::sync::Mutex::new([0_u64; 5]));
    let tasks: Vec<_> = (0..600_u64)
        .map(|n| {
            let (leases, held) = (leases.clone(), held.clone());
            tokio::spawn(async move {
                for round in 0..20 {
                    let key = ((n + round) % 4) as usize;
                    let limits = LeaseLimits::new(Some(150), [(Key::id("user", &key.to_string()), 50)]);
                    let acquired = leases.acquire(limits);
                    let polls = (n * 7 + round * 13) % 23;
                    let leased = if polls < 12 {
                        let yields = async {
                            for _ in 0..polls {
                                tokio::task::yield_now().await;
                            }
                        };
                        tokio::select! { biased; leased = acquired => leased, () = yields => continue }
                    } else {
                        acquired.await
                    };
                    match leased {
                        AcquireOutcome::Granted(guard) => {
                            {
                                let mut held = held.lock().unwrap();
                                held[key] += 1;
                                held[4] += 1;
                                assert!(held[key] <= 50 && held[4] <= 150, "{held:?}");
                            }
                            tokio::task::yield_now().await;
                            let mut held = held.lock().unwrap();
                            held[key] -= 1;
                            held[4] -= 1;
                            drop(held);
                            drop(guard);
                        }
                        AcquireOutcome::Unavailable(_) => panic!("decided by Redis"),
                        _ => {}
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    store.flush().await.unwrap();
    until_used(&*leases, 0).await;
    for key in server.keys().await {
        if key.contains(":of") {
            assert_eq!(server.word(&["ZCARD", &key]).await, "0", "{key}");
        }
    }
}
