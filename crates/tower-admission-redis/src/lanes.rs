//! Requests on one key share calls: requests that arrive during a call wait for the next call.
//!
//! So a burst on a key costs one or two calls, and a busy key costs one call per round trip, for any number of
//! requests. The answers are the same as for one call per request in the order of arrival.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::hash::{BuildHasherDefault, Hasher};
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::patience::answered_by;
use super::sync::lock;

/// Makes calls that decide several requests at once.
pub(super) trait Calls: Send + Sync + Sized + 'static {
    type Request: Send + Sync + 'static;
    /// The requests of one call.
    type Batch: Send;
    type Answer: Send + 'static;

    fn lanes(&self) -> &Lanes<Self>;

    /// The maximum time that a request waits for its answer.
    fn patience(&self) -> Duration;

    /// Takes requests from the front, as many as one call can decide and at least one. Also returns their number.
    fn batch<'a>(
        self: &Arc<Self>,
        requests: impl Iterator<Item = &'a Self::Request>,
    ) -> (Self::Batch, usize);

    /// Returns one answer for each request, in their order, before the deadline.
    fn call(
        self: &Arc<Self>,
        batch: Self::Batch,
        deadline: Instant,
    ) -> impl Future<Output = Vec<Self::Answer>> + Send;
}

/// The maximum number of concurrent calls of one lane: calls overlap when they take long, or when one call cannot
/// decide all waiting requests. The bound leaves room for other lanes, because the server runs one script at a time.
const SIDE_BY_SIDE: usize = 8;

/// How long requests are gathered for the next call after a call ended: a fraction of the shortest deadlines, and
/// enough for a thousand tasks to run.
const GATHERED: Duration = Duration::from_millis(1);

/// Identifies the requests that share calls. Clients cannot choose these bits.
pub(super) type LaneKey = [u64; 2];

/// The lanes with a call in progress. There are never more lanes than requests.
pub(super) struct Lanes<C: Calls> {
    shards: Box<[Shard<C>]>,
}

type Shard<C> = Mutex<HashMap<LaneKey, Lane<C>, BuildHasherDefault<AsItIs>>>;

/// Lane keys are hash bits already.
#[derive(Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn write(&mut self, bytes: &[u8]) {
        for word in bytes.chunks(8) {
            let mut whole = [0; 8];
            whole[..word.len()].copy_from_slice(word);
            self.0 = self.0.rotate_left(23) ^ u64::from_le_bytes(whole);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// Small, and enough for the threads of a large machine.
const SHARDS: usize = 64;

struct Lane<C: Calls> {
    under_way: usize,
    /// In the order of arrival.
    waiting: Queue<C>,
    /// How often waiting requests were taken into a call.
    turns: u64,
}

type Queue<C> = VecDeque<Waiting<C>>;

struct Waiting<C: Calls> {
    request: Option<C::Request>,
    answer: Option<oneshot::Sender<Answered<C>>>,
    /// The runtime of the first waiting request. It runs; others may not.
    runtime: Option<Handle>,
}

/// What a waiting request receives.
enum Answered<C: Calls> {
    By(C::Answer),
    /// The runtime that was to send the answer has ended.
    Not(C::Request),
}

impl<C: Calls> Waiting<C> {
    fn is_given_up(&self) -> bool {
        self.answer.as_ref().is_none_or(oneshot::Sender::is_closed)
    }

    fn answer(mut self, with: C::Answer) {
        if let Some(answer) = self.answer.take() {
            // Without a receiver the answer is dropped, which releases a permit in it.
            let _ = answer.send(Answered::By(with));
        }
    }
}

impl<C: Calls> Drop for Waiting<C> {
    fn drop(&mut self) {
        // A request is not repeated after its call panicked.
        if let (Some(answer), Some(request)) = (self.answer.take(), self.request.take())
            && !std::thread::panicking()
        {
            let _ = answer.send(Answered::Not(request));
        }
    }
}

/// How a request begins.
enum Turn<C: Calls> {
    /// No call is in progress: this request makes the next one.
    Now(C::Request),
    Later(oneshot::Receiver<Answered<C>>, u64),
}

/// Makes a request that arrived at `asked`. Returns `None` when its time is over, or its call panicked.
pub(super) async fn ask<C: Calls>(
    calls: &Arc<C>,
    key: LaneKey,
    request: C::Request,
    asked: Instant,
) -> Option<C::Answer> {
    match ask_once(calls, key, request, asked).await? {
        Answered::By(answer) => Some(answer),
        // The runtime of another request ended, and this one continues.
        Answered::Not(request) => match Box::pin(ask_once(calls, key, request, asked)).await? {
            Answered::By(answer) => Some(answer),
            Answered::Not(_) => None,
        },
    }
}

async fn ask_once<C: Calls>(
    calls: &Arc<C>,
    key: LaneKey,
    request: C::Request,
    asked: Instant,
) -> Option<Answered<C>> {
    let patience = calls.patience();
    let (mut answer, turn) = match calls.lanes().join(key, request) {
        Turn::Now(request) => {
            let _under_way = UnderWay::new(calls, key);
            let (batch, _) = calls.batch(std::iter::once(&request));
            // Boxed to keep the futures of waiting requests small.
            let mut answers = Box::pin(calls.call(batch, asked + patience)).await;
            return answers.pop().map(Answered::By);
        }
        Turn::Later(answer, turn) => (answer, turn),
    };
    // A slow call is not awaited: with another call after it, the time would be over. The next call runs next to it.
    // Their order stays the same, because they use one connection.
    let hurries = asked + patience / SIDE_BY_SIDE as u32;
    if let Ok(answer) = timeout_at(hurries, &mut answer).await {
        return answer.ok();
    }
    if let Some(waiting) = calls.lanes().hurry(key, turn) {
        spawn(calls, key, waiting);
    }
    answered_by(asked + patience, answer).await?.ok()
}

impl<C: Calls> Lanes<C> {
    pub(super) fn new() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
        }
    }

    fn shard(&self, [low, _]: LaneKey) -> &Shard<C> {
        &self.shards[low as usize % SHARDS]
    }

    fn join(&self, key: LaneKey, request: C::Request) -> Turn<C> {
        let mut lanes = lock(self.shard(key));
        match lanes.entry(key) {
            Entry::Vacant(vacant) => {
                vacant.insert(Lane {
                    under_way: 1,
                    waiting: Queue::new(),
                    turns: 0,
                });
                Turn::Now(request)
            }
            Entry::Occupied(mut lane) => {
                let lane = lane.get_mut();
                let (sender, answer) = oneshot::channel();
                let is_first = lane.waiting.is_empty();
                let runtime = is_first.then(Handle::try_current);
                lane.waiting.push_back(Waiting {
                    request: Some(request),
                    answer: Some(sender),
                    runtime: runtime.and_then(Result::ok),
                });
                Turn::Later(answer, lane.turns)
            }
        }
    }

    /// Ends a call. Returns the requests that wait for the next one, if there are any.
    fn next(&self, key: LaneKey) -> Option<Queue<C>> {
        let mut lanes = lock(self.shard(key));
        let lane = lanes.get_mut(&key)?;
        if !lane.waiting.is_empty() {
            return Some(lane.take());
        }
        lane.under_way -= 1;
        if lane.under_way == 0 {
            lanes.remove(&key);
        }
        None
    }

    /// The waiting requests, for another concurrent call, if there is room for it.
    fn next_to_others(&self, key: LaneKey) -> Option<Queue<C>> {
        let mut lanes = lock(self.shard(key));
        let lane = lanes.get_mut(&key)?;
        if lane.under_way >= SIDE_BY_SIDE || lane.waiting.is_empty() {
            return None;
        }
        lane.under_way += 1;
        Some(lane.take())
    }

    fn take(&self, key: LaneKey) -> Queue<C> {
        let mut lanes = lock(self.shard(key));
        let lane = lanes.get_mut(&key);
        lane.map(Lane::take).unwrap_or_default()
    }

    /// Returns taken requests to the front of the queue.
    fn put_back(&self, key: LaneKey, mut rest: Queue<C>) {
        if rest.is_empty() {
            return;
        }
        let mut lanes = lock(self.shard(key));
        // The lane exists as long as one of its calls is in progress.
        if let Some(lane) = lanes.get_mut(&key) {
            rest.append(&mut lane.waiting);
            lane.waiting = rest;
        }
    }

    fn waiting(&self, key: LaneKey) -> usize {
        let lanes = lock(self.shard(key));
        lanes.get(&key).map_or(0, |lane| lane.waiting.len())
    }

    /// The waiting requests, for another concurrent call, if the request that joined at this turn is among them.
    fn hurry(&self, key: LaneKey, turn: u64) -> Option<Queue<C>> {
        let mut lanes = lock(self.shard(key));
        let lane = lanes.get_mut(&key)?;
        if lane.turns != turn || lane.waiting.is_empty() {
            return None;
        }
        lane.under_way += 1;
        Some(lane.take())
    }
}

impl<C: Calls> Lane<C> {
    fn take(&mut self) -> Queue<C> {
        self.turns += 1;
        // The queue may grow to the same size again.
        let room = Queue::with_capacity(self.waiting.len());
        std::mem::replace(&mut self.waiting, room)
    }
}

/// A call in progress. Every outcome of it answers its requests.
struct UnderWay<C: Calls> {
    calls: Arc<C>,
    key: LaneKey,
}

impl<C: Calls> UnderWay<C> {
    fn new(calls: &Arc<C>, key: LaneKey) -> Self {
        Self {
            calls: calls.clone(),
            key,
        }
    }

    /// Lets other tasks run while they add requests to the next call: a request that was answered may be followed by
    /// another at once.
    async fn gather(&self) {
        let until = Instant::now() + GATHERED;
        let mut before = 0;
        loop {
            tokio::task::yield_now().await;
            let waiting = self.calls.lanes().waiting(self.key);
            if waiting <= before || Instant::now() >= until {
                return;
            }
            before = waiting;
        }
    }
}

impl<C: Calls> Drop for UnderWay<C> {
    fn drop(&mut self) {
        if let Some(waiting) = self.calls.lanes().next(self.key) {
            spawn(&self.calls, self.key, waiting);
        }
    }
}

/// Answers the waiting requests and later ones, in a separate task. Without a runtime they are not answered, and call
/// again.
fn spawn<C: Calls>(calls: &Arc<C>, key: LaneKey, mut waiting: Queue<C>) {
    let under_way = UnderWay::new(calls, key);
    let theirs = waiting.iter_mut().find_map(|first| first.runtime.take());
    if let Some(runtime) = theirs.or_else(|| Handle::try_current().ok()) {
        runtime.spawn(answer(under_way, waiting));
    }
}

async fn answer<C: Calls>(under_way: UnderWay<C>, mut waiting: Queue<C>) {
    let (calls, key) = (&under_way.calls, under_way.key);
    loop {
        // A request that stopped waiting takes nothing.
        waiting.retain(|waiting| !waiting.is_given_up());
        if waiting.is_empty() {
            break;
        }
        let requests = waiting
            .iter()
            .filter_map(|waiting| waiting.request.as_ref());
        let (batch, size) = calls.batch(requests);
        let asked: Vec<_> = waiting.drain(..size.clamp(1, waiting.len())).collect();
        let is_all = waiting.is_empty();
        calls.lanes().put_back(key, std::mem::take(&mut waiting));
        let mut call = pin!(calls.call(batch, Instant::now() + calls.patience()));
        // The rest need not wait for this call once it is sent.
        let begun = poll_fn(|context| Poll::Ready(call.as_mut().poll(context))).await;
        if !is_all && let Some(rest) = calls.lanes().next_to_others(key) {
            spawn(calls, key, rest);
        }
        let answers = match begun {
            Poll::Ready(answers) => answers,
            Poll::Pending => call.await,
        };
        for (answer, asked) in answers.into_iter().zip(asked) {
            asked.answer(answer);
        }
        if is_all {
            break;
        }
        waiting = calls.lanes().take(key);
    }
    under_way.gather().await;
}

#[cfg(test)]
mod tests {
    use tokio::sync::Semaphore;
    use tokio::task::JoinHandle;

    use super::*;

    /// Answers a request with the number of the call that decided it, when the test allows the call to end.
    struct Fake {
        lanes: Lanes<Self>,
        made: Mutex<Vec<Vec<u32>>>,
        deadlines: Mutex<Vec<Instant>>,
        /// How long each call takes, unless the test decides it.
        takes: Option<Duration>,
        /// The number of calls that may end.
        ends: Semaphore,
        most: usize,
    }

    impl Calls for Fake {
        type Request = u32;
        type Batch = Vec<u32>;
        type Answer = usize;

        fn lanes(&self) -> &Lanes<Self> {
            &self.lanes
        }

        fn batch<'a>(
            self: &Arc<Self>,
            requests: impl Iterator<Item = &'a u32>,
        ) -> (Vec<u32>, usize) {
            let batch: Vec<_> = requests.take(self.most).copied().collect();
            let size = batch.len();
            (batch, size)
        }

        fn patience(&self) -> Duration {
            Duration::from_secs(10)
        }

        async fn call(self: &Arc<Self>, requests: Vec<u32>, deadline: Instant) -> Vec<usize> {
            let number = {
                let mut made = lock(&self.made);
                made.push(requests.clone());
                made.len()
            };
            lock(&self.deadlines).push(deadline);
            match self.takes {
                Some(time) => tokio::time::sleep(time).await,
                None => self.ends.acquire().await.unwrap().forget(),
            }
            assert!(!requests.contains(&PANICS));
            vec![number; requests.len()]
        }
    }

    const PANICS: u32 = 13;
    const KEY: LaneKey = [1, 2];

    fn fake(most: usize) -> Arc<Fake> {
        taking(None, most)
    }

    fn taking(takes: Option<Duration>, most: usize) -> Arc<Fake> {
        Arc::new(Fake {
            lanes: Lanes::new(),
            made: Mutex::default(),
            deadlines: Mutex::default(),
            takes,
            ends: Semaphore::new(0),
            most,
        })
    }

    impl Fake {
        /// Makes a request, and waits until it has begun.
        async fn ask(self: &Arc<Self>, key: LaneKey, request: u32) -> JoinHandle<Option<usize>> {
            let fake = self.clone();
            let asked = Instant::now();
            let asked = tokio::spawn(async move { ask(&fake, key, request, asked).await });
            tokio::task::yield_now().await;
            asked
        }

        fn made(&self) -> Vec<Vec<u32>> {
            lock(&self.made).clone()
        }

        fn is_empty(&self) -> bool {
            self.lanes.shards.iter().all(|lanes| lock(lanes).is_empty())
        }
    }

    /// Waits for calls that may end.
    async fn until_made(fake: &Fake, calls: usize) {
        while fake.made().len() < calls {
            tokio::task::yield_now().await;
        }
        tokio::task::yield_now().await;
    }

    #[tokio::test(start_paused = true)]
    async fn requests_that_arrive_during_a_call_share_the_next() {
        let fake = fake(100);
        let asked = [
            fake.ask(KEY, 1).await,
            fake.ask(KEY, 2).await,
            fake.ask(KEY, 3).await,
        ];
        let other = fake.ask([7, 8], 4).await;
        assert_eq!(fake.made(), [vec![1], vec![4]]);
        fake.ends.add_permits(3);
        let mut answers = Vec::new();
        for asked in asked {
            answers.push(asked.await.unwrap());
        }
        assert_eq!(answers, [Some(1), Some(3), Some(3)]);
        assert_eq!(other.await.unwrap(), Some(2));
        assert_eq!(fake.made()[2], [2, 3]);
        tokio::task::yield_now().await;
        assert!(fake.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn requests_that_do_not_fit_one_call_are_in_the_next_in_order() {
        let fake = fake(2);
        let mut asked = Vec::new();
        for request in 1..=6 {
            asked.push(fake.ask(KEY, request).await);
        }
        fake.ends.add_permits(10);
        for asked in asked {
            assert!(asked.await.unwrap().is_some());
        }
        assert_eq!(fake.made(), [vec![1], vec![2, 3], vec![4, 5], vec![6]]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_is_made_for_the_others_when_the_first_request_is_dropped() {
        let fake = fake(100);
        let first = fake.ask(KEY, 1).await;
        let second = fake.ask(KEY, 2).await;
        first.abort();
        assert!(first.await.is_err());
        fake.ends.add_permits(1);
        assert_eq!(second.await.unwrap(), Some(2));
        assert_eq!(fake.made(), [vec![1], vec![2]]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_dropped_request_takes_nothing() {
        let fake = fake(100);
        let first = fake.ask(KEY, 1).await;
        let second = fake.ask(KEY, 2).await;
        let third = fake.ask(KEY, 3).await;
        second.abort();
        assert!(second.await.is_err());
        fake.ends.add_permits(2);
        assert!(first.await.unwrap().is_some() && third.await.unwrap().is_some());
        assert_eq!(fake.made(), [vec![1], vec![3]]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_call_does_not_wait_for_a_slow_one() {
        let fake = fake(100);
        let first = fake.ask(KEY, 1).await;
        let others = [fake.ask(KEY, 2).await, fake.ask(KEY, 3).await];
        // Time passes only when all tasks wait.
        tokio::time::sleep(Duration::from_secs(6)).await;
        assert_eq!(fake.made(), [vec![1], vec![2, 3]]);
        let later = fake.ask(KEY, 4).await;
        fake.ends.add_permits(3);
        for asked in others.into_iter().chain([first, later]) {
            assert!(asked.await.unwrap().is_some());
        }
        assert_eq!(fake.made().len(), 3);
        tokio::task::yield_now().await;
        assert!(fake.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_server_answers_all_requests_of_a_shared_call() {
        let fake = taking(Some(Duration::from_secs(8)), 100);
        let mut asked = Vec::new();
        for request in 100..120 {
            asked.push(fake.ask(KEY, request).await);
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        for asked in asked {
            assert!(asked.await.unwrap().is_some());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn requests_that_do_not_fit_one_call_do_not_wait_for_its_answer() {
        let fake = taking(Some(Duration::from_secs(3)), 2);
        let mut asked = Vec::new();
        for request in 100..115 {
            asked.push(fake.ask(KEY, request).await);
        }
        for asked in asked {
            assert!(asked.await.unwrap().is_some());
        }
        let made = fake.made().concat();
        assert!(made.is_sorted(), "{made:?}");
        tokio::task::yield_now().await;
        assert!(fake.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_keeps_its_deadline_in_the_next_call() {
        let fake = taking(Some(Duration::from_secs(1)), 2);
        let asked = Instant::now();
        tokio::time::advance(Duration::from_secs(9)).await;
        assert!(ask(&fake, KEY, 1, asked).await.is_some());
        assert_eq!(*lock(&fake.deadlines), [asked + fake.patience()]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_without_an_answer_ends_at_its_deadline() {
        let fake = fake(100);
        let first = fake.ask(KEY, 1).await;
        let second = fake.ask(KEY, 2).await;
        let started = Instant::now();
        assert_eq!(second.await.unwrap(), None);
        assert_eq!(started.elapsed(), Duration::from_secs(10));
        first.abort();
        fake.ends.add_permits(1);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(fake.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_arrived_in_time_counts_when_it_is_polled_late() {
        let fake = fake(100);
        let first = fake.ask(KEY, 1).await;
        let mut second = tokio_test::task::spawn(ask(&fake, KEY, 2, Instant::now()));
        assert!(second.poll().is_pending());
        fake.ends.add_permits(2);
        assert!(first.await.unwrap().is_some());
        until_made(&fake, 2).await;
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(second.poll(), std::task::Poll::Ready(Some(2)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_panics_ends_its_requests() {
        let fake = fake(100);
        let first = fake.ask(KEY, 1).await;
        let second = fake.ask(KEY, PANICS).await;
        fake.ends.add_permits(1);
        assert!(first.await.unwrap().is_some());
        tokio::task::yield_now().await;
        let third = fake.ask(KEY, 3).await;
        fake.ends.add_permits(2);
        assert_eq!(second.await.unwrap(), None);
        assert_eq!(third.await.unwrap(), Some(3));
        tokio::task::yield_now().await;
        assert!(fake.is_empty());
    }

    #[test]
    fn a_request_calls_again_when_its_runtime_ends() {
        let fake = fake(100);
        let runtime = || {
            tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .build()
        };
        let (one, two) = (runtime().unwrap(), runtime().unwrap());
        let first = one.block_on(fake.ask(KEY, 1));
        let second = two.block_on(fake.ask(KEY, 2));
        let third = two.block_on(fake.ask(KEY, 3));
        drop((one, first));
        fake.ends.add_permits(3);
        let (second, third) = two.block_on(async { (second.await, third.await) });
        assert!(second.unwrap().is_some() && third.unwrap().is_some());
        two.block_on(async {
            while !fake.is_empty() {
                tokio::task::yield_now().await;
            }
        });
    }

    /// An idle runtime, or none, does not affect requests on other runtimes.
    #[test]
    fn a_waiting_request_is_answered_by_a_running_runtime() {
        let runtime = || {
            let mut builder = tokio::runtime::Builder::new_current_thread();
            builder.enable_time().start_paused(true);
            builder.build().unwrap()
        };
        for is_dropped in [false, true] {
            let fake = fake(100);
            let (left, at_work) = (runtime(), runtime());
            let mut first = tokio_test::task::spawn(ask(&fake, KEY, 1, Instant::now()));
            assert!(first.poll().is_pending());
            let second = at_work.block_on(fake.ask(KEY, 2));
            fake.ends.add_permits(2);
            if is_dropped {
                drop(first);
            } else {
                assert_eq!(left.block_on(first), Some(1));
            }
            assert_eq!(at_work.block_on(second).unwrap(), Some(2));
            at_work.block_on(tokio::task::yield_now());
            assert!(fake.is_empty());
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn all_tasks_are_answered_while_others_are_dropped() {
        let fake = fake(7);
        fake.ends.add_permits(1 << 20);
        let tasks: Vec<_> = (0..64)
            .map(|task| {
                let fake = fake.clone();
                tokio::spawn(async move {
                    for n in 0..500 {
                        let asked = ask(&fake, [n % 3, 0], 100 + task, Instant::now());
                        if n % 7 == 0 {
                            let dropped = tokio::task::unconstrained(asked);
                            tokio::select! { biased; () = std::future::ready(()) => {}, _ = dropped => {} }
                        } else if n % 5 == 0 {
                            tokio::select! { _ = asked => {}, () = tokio::task::yield_now() => {} }
                        } else {
                            assert!(asked.await.is_some());
                        }
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        while !fake.is_empty() {
            tokio::task::yield_now().await;
        }
        assert!(fake.made().len() < 64 * 500);
    }
}
