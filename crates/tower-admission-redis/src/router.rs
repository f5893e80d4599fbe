//! Finds the master of a slot: keeps a map of a cluster that calls read without a lock.

use std::cmp::Reverse;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use redis::Cmd;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::attempt::{ask_once, attempt};
use super::call_error::CallError;
use super::context::Context;
use super::health::Condition;
use super::node::Node;
use super::slots::{Range, SLOTS, ranges};
use super::sync::lock;
use super::url::Address;
use tower_admission::store::FailureKind;

/// The maximum number of masters in a map: the recommended maximum of nodes in a cluster.
const MAX_NODES: usize = 1_000;

/// The time limit for a server to send the map, so that a server that hangs does not delay the others.
const MAP_TIMEOUT: Duration = Duration::from_millis(100);

/// The interval between two requests for the map: while a master is unavailable, and otherwise.
const MAP_INTERVAL_DEGRADED: Duration = Duration::from_millis(200);
const MAP_INTERVAL: Duration = Duration::from_secs(15);

pub(super) struct Router {
    seeds: Vec<Address>,
    context: Arc<Context>,
    map: ArcSwapOption<Map>,
    /// Locked while the map is replaced, so that no change is lost.
    changing: Mutex<()>,
    first: watch::Sender<FirstMap>,
}

/// The state of the first map.
#[derive(Clone)]
enum FirstMap {
    /// The first attempt to read it is in progress: calls wait.
    New,
    Known,
    /// Calls fail with this cause.
    Unknown(CallError),
}

impl FirstMap {
    fn condition(&self) -> Condition {
        match self {
            Self::New => Condition::Unknown,
            Self::Known => Condition::Up,
            Self::Unknown(_) => Condition::Down,
        }
    }
}

struct Map {
    /// For each slot the index of its master among the nodes, or [`NO_MASTER`].
    slots: Box<[u16]>,
    nodes: Vec<Member>,
}

const NO_MASTER: u16 = u16::MAX;

#[derive(Clone)]
struct Member {
    node: Arc<Node>,
    /// Whether a call was sent to the node since the last map. It may have no slot yet.
    asked: Arc<AtomicBool>,
}

impl Map {
    fn node(&self, slot: u16) -> Option<&Arc<Node>> {
        let at = *self.slots.get(usize::from(slot))?;
        self.nodes.get(usize::from(at)).map(|member| &member.node)
    }

    fn at(&self, address: &Address) -> Option<usize> {
        self.nodes
            .iter()
            .position(|member| member.node.address() == Some(address))
    }
}

impl Router {
    pub(super) fn new(seeds: Vec<Address>, context: Arc<Context>) -> Self {
        let first = FirstMap::New;
        context.health.count(Condition::Closed, first.condition());
        Self {
            seeds,
            context,
            map: ArcSwapOption::empty(),
            changing: Mutex::new(()),
            first: watch::Sender::new(first),
        }
    }

    pub(super) fn is_known(&self) -> bool {
        self.map.load().is_some()
    }

    /// Waits for the first map. Starts a supervisor if there is none, also when the current one ends.
    pub(super) async fn wait_for_map(
        &self,
        deadline: Instant,
        supervise: impl Fn(),
    ) -> Result<(), CallError> {
        let mut first = self.first.subscribe();
        loop {
            supervise();
            match &*first.borrow_and_update() {
                FirstMap::Known => return Ok(()),
                FirstMap::Unknown(cause) => return Err(CallError::breaker_open(cause)),
                FirstMap::New => {}
            }
            // The router owns the sender, so it exists.
            if timeout_at(deadline, first.changed()).await.is_err() {
                return Err(CallError::new(FailureKind::Timeout));
            }
        }
    }

    /// The master of a slot, if it has one.
    pub(super) fn node(&self, slot: u16) -> Option<Arc<Node>> {
        self.map.load().as_ref()?.node(slot).cloned()
    }

    /// The cause while the breaker of the slot's master is open.
    pub(super) fn rejects(&self, slot: u16) -> Option<CallError> {
        if let Some(map) = &*self.map.load() {
            return map.node(slot)?.rejects();
        }
        match &*self.first.borrow() {
            FirstMap::Unknown(cause) => Some(CallError::breaker_open(cause)),
            FirstMap::New | FirstMap::Known => None,
        }
    }

    pub(super) fn nodes(&self) -> Vec<Arc<Node>> {
        let map = self.map.load();
        let members = map.iter().flat_map(|map| &map.nodes);
        members.map(|member| member.node.clone()).collect()
    }

    /// Records that a server named another master for a slot.
    pub(super) fn has_moved(&self, slot: u16, to: &Address) {
        self.change(|map, context| {
            let at = map.at(to);
            if at.is_some_and(|at| map.slots.get(usize::from(slot)) == Some(&(at as u16))) {
                return None;
            }
            let mut nodes = map.nodes.clone();
            let at = at.or_else(|| join(&mut nodes, to, context))?;
            let mut slots = map.slots.clone();
            *slots.get_mut(usize::from(slot))? = at as u16;
            Some(Map { slots, nodes })
        });
        self.context.request_map();
    }

    /// The server at an address, for a call for a slot that migrates there.
    pub(super) fn node_at(&self, address: &Address) -> Option<Arc<Node>> {
        self.known_node_at(address).or_else(|| {
            self.change(|map, context| {
                let mut nodes = map.nodes.clone();
                // Unless another call has added it.
                if map.at(address).is_none() {
                    join(&mut nodes, address, context)?;
                }
                let slots = map.slots.clone();
                Some(Map { slots, nodes })
            });
            self.known_node_at(address)
        })
    }

    fn known_node_at(&self, address: &Address) -> Option<Arc<Node>> {
        let map = self.map.load();
        let map = map.as_ref()?;
        let member = &map.nodes[map.at(address)?];
        member.asked.store(true, Ordering::Relaxed);
        Some(member.node.clone())
    }

    /// Changes the current map.
    fn change(&self, to: impl FnOnce(&Map, &Arc<Context>) -> Option<Map>) {
        let changed = {
            let _changing = lock(&self.changing);
            let map = self.map.load_full();
            let changed = map.and_then(|map| to(&map, &self.context));
            let is_changed = changed.is_some();
            if let Some(map) = changed {
                // Before calls find a new server, because the supervisor needs time to connect to it.
                self.context.attended();
                self.map.store(Some(Arc::new(map)));
            }
            is_changed
        };
        if changed {
            self.context.wake_supervisor();
        }
    }

    /// Requests the map.
    pub(super) async fn refresh(&self) {
        match self.ask_masters().await {
            Some(found) => self.replace(found),
            None => match self.ask_seeds().await {
                Ok(found) => self.replace(found),
                Err(error) => {
                    self.context.failed(&error);
                    self.set_first(FirstMap::Unknown(error));
                }
            },
        }
    }

    /// The pause before the next request for the map.
    pub(super) fn pause(&self) -> Duration {
        match self.context.health.all_are_up() {
            true => MAP_INTERVAL.mul_f64(0.8 + fastrand::f64() / 5.0),
            false => MAP_INTERVAL_DEGRADED,
        }
    }

    /// Requests the map from one master after another. The master that answered a call last comes first.
    async fn ask_masters(&self) -> Option<Vec<Range>> {
        let mut nodes = self.nodes();
        // Reads each time once: calls go on meanwhile, and an order that changes makes sorting panic.
        nodes.sort_by_cached_key(|node| Reverse(node.answered_at()));
        for node in nodes {
            let Some(asked) = node.address() else {
                continue;
            };
            let Some(answer) = node.ask(&question(), Instant::now() + MAP_TIMEOUT).await else {
                continue;
            };
            let found = ranges(&answer, asked);
            // A server that left its cluster knows no slots.
            if !found.is_empty() {
                return Some(found);
            }
        }
        None
    }

    /// Requests the map from all seeds at once, so that a seed that hangs delays nothing.
    pub(super) async fn ask_seeds(&self) -> Result<Vec<Range>, CallError> {
        let mut asked = JoinSet::new();
        for seed in self.seeds.clone() {
            let context = self.context.clone();
            let address = seed.clone();
            let asking = attempt(context.target.has_tls(), async move {
                let answer = ask_once(&context.target, &seed, &question()).await?;
                Ok(ranges(&answer, &seed))
            });
            asked.spawn(async move { asking.await.map_err(|error| error.at(&address)) });
        }
        let mut failed: Option<CallError> = None;
        while let Some(answer) = asked.join_next().await {
            match answer {
                Ok(Ok(found)) if !found.is_empty() => return Ok(found),
                // An error of a server explains more than an unreachable one.
                Ok(Err(error))
                    if failed
                        .as_ref()
                        .is_none_or(|failed| failed.kind() == FailureKind::Disconnected) =>
                {
                    failed = Some(error);
                }
                Ok(_) | Err(_) => {}
            }
        }
        let words = "no server that was asked knows the slots of the cluster";
        Err(failed.unwrap_or_else(|| CallError::because(FailureKind::Busy, words)))
    }

    /// Installs a map. Servers in it keep their connections.
    fn replace(&self, found: Vec<Range>) {
        let left = {
            let _changing = lock(&self.changing);
            let before = self.map.load_full();
            let before = before.as_ref().map_or(&[][..], |map| &map.nodes);
            let mut slots = vec![NO_MASTER; SLOTS].into_boxed_slice();
            let mut nodes: Vec<Member> = Vec::new();
            for range in found {
                let is_it = |member: &&Member| member.node.address() == Some(&range.master);
                let at = match nodes.iter().position(|member| is_it(&member)) {
                    Some(at) => Some(at),
                    None => match before.iter().find(is_it) {
                        Some(member) if nodes.len() < MAX_NODES => {
                            nodes.push(member.clone());
                            Some(nodes.len() - 1)
                        }
                        Some(_) => None,
                        None => join(&mut nodes, &range.master, &self.context),
                    },
                };
                if let Some(at) = at {
                    slots[usize::from(range.first)..=usize::from(range.last)].fill(at as u16);
                }
            }
            let mut left = Vec::new();
            for member in before {
                let is_in = nodes.iter().any(|now| Arc::ptr_eq(&now.node, &member.node));
                // A server that only receives migrating slots is in no map.
                let is_asked = member.asked.swap(false, Ordering::Relaxed);
                match is_in {
                    true => {}
                    false if is_asked && nodes.len() < MAX_NODES => nodes.push(member.clone()),
                    false => left.push(member.node.clone()),
                }
            }
            self.context.attended();
            self.map.store(Some(Arc::new(Map { slots, nodes })));
            left
        };
        for node in left {
            node.close();
        }
        self.set_first(FirstMap::Known);
        self.context.wake_supervisor();
    }

    fn set_first(&self, now: FirstMap) {
        let changed = self.first.send_if_modified(|first| {
            // The current map stays when no newer one is available.
            if matches!(first, FirstMap::Known) {
                return false;
            }
            let health = &self.context.health;
            health.count(first.condition(), now.condition());
            *first = now;
            true
        });
        if changed {
            self.context.report_health();
        }
    }

    /// Called after the supervisor ended: the next call starts another.
    pub(super) fn begin_anew(&self) {
        self.set_first(FirstMap::New);
        for node in self.nodes() {
            node.begin_anew();
        }
    }

    /// Wakes calls that wait for the map or a connection.
    pub(super) fn wake(&self) {
        self.first.send_modify(|_| {});
        for node in self.nodes() {
            node.wake();
        }
    }
}

/// Adds a server, if there is room for one, and returns its index.
fn join(nodes: &mut Vec<Member>, address: &Address, context: &Arc<Context>) -> Option<usize> {
    if nodes.len() >= MAX_NODES {
        return None;
    }
    nodes.push(Member {
        node: Node::new(Some(address.clone()), context.clone()),
        asked: Arc::default(),
    });
    Some(nodes.len() - 1)
}

fn question() -> Cmd {
    let mut question = redis::cmd("CLUSTER");
    question.arg("SLOTS");
    question
}

#[cfg(test)]
mod tests {
    use super::super::client::Options;
    use super::super::events::Events;
    use super::super::url::Target;
    use super::*;

    fn router() -> Router {
        let options = Options {
            deadline: Duration::from_secs(1),
            max_in_flight: 1,
            events: Events::default(),
        };
        let target = Target::parse("redis+cluster://seed:1").unwrap();
        Router::new(vec![tcp(1)], Context::new(target, options))
    }

    fn tcp(port: u16) -> Address {
        Address::Tcp("node".into(), port)
    }

    fn range(first: u16, last: u16, port: u16) -> Range {
        let master = tcp(port);
        Range {
            first,
            last,
            master,
        }
    }

    fn address(router: &Router, slot: u16) -> Option<Address> {
        router.node(slot)?.address().cloned()
    }

    #[test]
    fn a_new_map_keeps_the_servers_in_it_and_closes_the_others() {
        let router = router();
        assert!(!router.is_known() && router.node(0).is_none());
        router.replace(vec![range(0, 9, 1), range(10, 19, 2), range(20, 29, 1)]);
        assert!(router.is_known());
        assert_eq!(router.nodes().len(), 2);
        for (slot, port) in [
            (0, Some(1)),
            (9, Some(1)),
            (10, Some(2)),
            (29, Some(1)),
            (30, None),
        ] {
            assert_eq!(address(&router, slot), port.map(tcp), "{slot}");
        }
        let [one, two] = [0, 10].map(|slot| router.node(slot).unwrap());
        router.replace(vec![range(0, 29, 1)]);
        assert!(Arc::ptr_eq(&one, &router.node(10).unwrap()));
        assert!(two.is_closed() && !one.is_closed());
    }

    #[test]
    fn a_redirection_moves_one_slot() {
        let router = router();
        router.has_moved(5, &tcp(2));
        assert!(router.node(5).is_none(), "there is no map to change");
        router.replace(vec![range(0, 9, 1)]);
        router.has_moved(5, &tcp(2));
        router.has_moved(5, &tcp(2));
        router.has_moved(u16::MAX, &tcp(3));
        let ports = [4, 5, 6].map(|slot| address(&router, slot));
        assert_eq!(ports, [tcp(1), tcp(2), tcp(1)].map(Some));
        assert_eq!(router.nodes().len(), 2);
        let added = router.node(5).unwrap();
        router.replace(vec![range(0, 4, 1), range(5, 9, 2)]);
        assert!(Arc::ptr_eq(&added, &router.node(5).unwrap()));
    }

    #[test]
    fn a_server_without_slots_stays_while_calls_use_it() {
        let router = router();
        router.replace(vec![range(0, 9, 1)]);
        let importing = router.node_at(&tcp(2)).unwrap();
        assert!(Arc::ptr_eq(&importing, &router.node_at(&tcp(2)).unwrap()));
        router.replace(vec![range(0, 9, 1)]);
        assert!(!importing.is_closed());
        router.replace(vec![range(0, 9, 1)]);
        assert!(importing.is_closed());
        assert_eq!(router.nodes().len(), 1);
    }

    #[test]
    fn a_map_has_a_maximum_size() {
        let router = router();
        let ranges = (0..MAX_NODES as u16 + 5).map(|n| range(n, n, n + 1));
        router.replace(ranges.collect());
        assert_eq!(router.nodes().len(), MAX_NODES);
        assert!(address(&router, MAX_NODES as u16).is_none());
        router.has_moved(0, &tcp(20_000));
        assert_eq!(address(&router, 0), Some(tcp(1)));
        assert!(router.node_at(&tcp(20_000)).is_none());
    }
}
