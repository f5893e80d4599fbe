//! The scripts for leases, compared with a naive model on random histories.
//!
//! The scripts answer with the server's time, and the model uses that time: it knows exactly which leases have expired,
//! and never waits for a clock.

use std::collections::HashMap;
use std::time::Duration;

use proptest::prelude::*;
use redis::aio::MultiplexedConnection;

use crate::server::Server;

const ACQUIRE: &str = concat!(
    include_str!("../../src/scripts/lease_clock.lua"),
    include_str!("../../src/scripts/acquire.lua")
);
const HEARTBEAT: &str = concat!(
    include_str!("../../src/scripts/lease_clock.lua"),
    include_str!("../../src/scripts/heartbeat.lua")
);
const RELEASE: &str = include_str!("../../src/scripts/release.lua");

const TOTAL: usize = 4;
const OF_TENANT: usize = 2;
const OF_ADDRESS: usize = 3;
const TTL: u64 = 25;

/// What holders do. A lease is known by its number, and each number has a tenant and an address.
#[derive(Clone, Debug)]
enum Step {
    Acquire(u8),
    /// The same command again, because its reply was lost.
    AcquireAgain(u8),
    /// One whose asker has given up before it is run.
    AcquireTooLate(u8),
    Heartbeat(u8),
    /// One that arrives after its sender has given it up, when its lease may be released.
    HeartbeatTooLate(u8),
    Release(u8),
    /// Time passes, some leases perhaps with it.
    Pass(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let lease = 0..9_u8;
    let step = prop_oneof![
        6 => lease.clone().prop_map(Step::Acquire),
        1 => lease.clone().prop_map(Step::AcquireAgain),
        1 => lease.clone().prop_map(Step::AcquireTooLate),
        2 => lease.clone().prop_map(Step::Heartbeat),
        1 => lease.clone().prop_map(Step::HeartbeatTooLate),
        3 => lease.prop_map(Step::Release),
        2 => (1..20_u8).prop_map(Step::Pass),
    ];
    proptest::collection::vec(step, 1..60)
}

/// When each lease expires.
#[derive(Default)]
struct Model(HashMap<u8, u64>);

fn tenant(lease: u8) -> u8 {
    lease % 3
}

fn address(lease: u8) -> u8 {
    lease % 2
}

/// No room for the tenant, or for the address.
const TENANT_FULL: (i64, usize) = (-1, 0);
const ADDRESS_FULL: (i64, usize) = (-1, 1);
const FULL: (i64, usize) = (0, 0);
const GRANTED: (i64, usize) = (1, 0);
const LATE: (i64, usize) = (-2, 0);

impl Model {
    fn live(&self, now: u64) -> impl Iterator<Item = u8> {
        let live = self.0.iter().filter(move |(_, expires)| **expires > now);
        live.map(|(lease, _)| *lease)
    }

    fn acquire(&mut self, lease: u8, now: u64) -> (i64, usize) {
        if self.live(now).all(|live| live != lease) {
            let of_tenant = self.live(now).filter(|live| tenant(*live) == tenant(lease));
            if of_tenant.count() >= OF_TENANT {
                return TENANT_FULL;
            }
            let of_address = self
                .live(now)
                .filter(|live| address(*live) == address(lease));
            if of_address.count() >= OF_ADDRESS {
                return ADDRESS_FULL;
            }
            if self.live(now).count() >= TOTAL {
                return FULL;
            }
        }
        self.0.insert(lease, now + TTL);
        GRANTED
    }
}

struct Scripts {
    connection: MultiplexedConnection,
    namespace: u64,
}

impl Scripts {
    fn key(&self, name: &str) -> String {
        format!("{{{}}}:{name}", self.namespace)
    }

    /// Where a lease is: in all, and by each of its keys.
    fn keys(&self, lease: u8) -> [String; 3] {
        let of_tenant = format!("of:{}", tenant(lease));
        let of_address = format!("of2:{}", address(lease));
        ["total", &of_tenant, &of_address].map(|name| self.key(name))
    }

    async fn acquire(&mut self, lease: u8, not_after: u64) -> ((i64, usize), u64) {
        let mut command = redis::cmd("EVAL");
        command.arg(ACQUIRE).arg(3).arg(&self.keys(lease));
        command.arg("epoch").arg(TTL).arg(not_after);
        command.arg(lease).arg(TOTAL).arg(2);
        command.arg(OF_TENANT).arg(OF_ADDRESS);
        let (now, _, outcome, place): (u64, String, i64, usize) =
            command.query_async(&mut self.connection).await.unwrap();
        ((outcome, place), now)
    }

    async fn heartbeat(&mut self, lease: u8, not_after: u64) -> (i64, u64) {
        let mut command = redis::cmd("EVAL");
        command.arg(HEARTBEAT).arg(3).arg(&self.keys(lease));
        command.arg("epoch").arg(TTL).arg(not_after);
        command.arg(lease).arg(lease);
        let (outcome, now, _, wrong): (i64, u64, String, u64) =
            command.query_async(&mut self.connection).await.unwrap();
        assert_eq!(wrong, 0);
        (outcome, now)
    }

    async fn release(&mut self, lease: u8) {
        let mut command = redis::cmd("EVAL");
        command.arg(RELEASE).arg(3).arg(&self.keys(lease));
        command.arg(lease).arg(lease);
        let wrong: u64 = command.query_async(&mut self.connection).await.unwrap();
        assert_eq!(wrong, 0);
    }

    /// Every lease that the server holds, with when it expires: in all, of the tenants and of the
    /// addresses.
    async fn held(&mut self) -> [HashMap<u8, u64>; 3] {
        let mut held = [(); 3].map(|()| HashMap::new());
        let of_tenants = [(1, "of:0"), (1, "of:1"), (1, "of:2")];
        let of_addresses = [(2, "of2:0"), (2, "of2:1")];
        let all = [(0, "total")]
            .into_iter()
            .chain(of_tenants)
            .chain(of_addresses);
        for (at, name) in all {
            // All but the epoch, which does not expire.
            let mut command = redis::cmd("ZRANGEBYSCORE");
            command.arg(self.key(name)).arg("-inf").arg("(+inf");
            command.arg("WITHSCORES");
            let found: Vec<(u8, u64)> = command.query_async(&mut self.connection).await.unwrap();
            held[at].extend(found);
        }
        held
    }
}

async fn run(server: &Server, namespace: u64, steps: &[Step]) -> Result<(), TestCaseError> {
    let mut model = Model::default();
    let mut scripts = Scripts {
        connection: server.connection().await.unwrap(),
        namespace,
    };
    let mut now = 0;
    for step in steps {
        match *step {
            Step::Acquire(lease) => {
                let (outcome, at) = scripts.acquire(lease, 0).await;
                now = at;
                prop_assert_eq!(outcome, model.acquire(lease, now), "{:?}", step);
            }
            Step::AcquireAgain(lease) => {
                // Both are run; the asker saw one reply.
                let (first, at) = scripts.acquire(lease, 0).await;
                prop_assert_eq!(first, model.acquire(lease, at), "{:?}", step);
                let (second, at) = scripts.acquire(lease, 0).await;
                now = at;
                prop_assert_eq!(second, model.acquire(lease, now), "{:?}", step);
            }
            Step::AcquireTooLate(lease) => {
                let (outcome, at) = scripts.acquire(lease, 1).await;
                now = at;
                prop_assert_eq!(outcome, LATE);
            }
            Step::Heartbeat(lease) => {
                // Only holders send heartbeats.
                if let Some(expires) = model.0.get_mut(&lease) {
                    let (outcome, at) = scripts.heartbeat(lease, 0).await;
                    now = at;
                    prop_assert_eq!(outcome, 1);
                    *expires = now + TTL;
                }
            }
            Step::HeartbeatTooLate(lease) => {
                let (outcome, at) = scripts.heartbeat(lease, 1).await;
                now = at;
                prop_assert_eq!(outcome, -2);
            }
            Step::Release(lease) => {
                scripts.release(lease).await;
                model.0.remove(&lease);
            }
            Step::Pass(millis) => {
                tokio::time::sleep(Duration::from_millis(millis.into())).await;
            }
        }
        let live = |all: &HashMap<u8, u64>| -> HashMap<u8, u64> {
            let live = all.iter().filter(|(_, expires)| **expires > now);
            live.map(|(lease, expires)| (*lease, *expires)).collect()
        };
        let all_held = scripts.held().await;
        // The server may have dropped a whole set by now whose last lease expired since.
        for (lease, expires) in live(&model.0) {
            for held in &all_held {
                let found = held.get(&lease);
                prop_assert!(found == Some(&expires) || found.is_none(), "{:?}", step);
            }
        }
        for held in &all_held {
            for lease in live(held).keys() {
                prop_assert!(model.0.contains_key(lease), "{:?} left {}", step, lease);
            }
        }
    }
    Ok(())
}

#[test]
fn leases_match_a_naive_model() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let server = runtime.block_on(Server::start());
    let mut runner = crate::random_histories(40);
    let namespace = std::cell::Cell::new(0);
    let ran = runner.run(&steps(), |steps| {
        namespace.set(namespace.get() + 1);
        runtime.block_on(run(&server, namespace.get(), &steps))
    });
    ran.unwrap();
}
