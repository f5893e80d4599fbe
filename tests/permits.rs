//! Permits under random load from several threads: none is lost, none is granted twice, and only
//! responses that their clients do not read lose theirs.

#![expect(
    clippy::disallowed_methods,
    reason = "these threads poll without a runtime and use the real clock"
)]

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame, SizeHint};
use tower::{BoxError, Layer, Service};
use tower_admission::extract::RequestHead;
use tower_admission::{
    ConcurrencyLimit, ConcurrencyLimitLayer, ConcurrencyLimiter, Key, Observer, PermitBody,
    ResponseStalled,
};

const STALL: Duration = Duration::from_millis(2);
const THREADS: u64 = 6;

/// What a body returns when it is polled.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Step {
    Data(u8),
    Pending,
    Trailers,
    Error,
}

struct Scripted {
    steps: VecDeque<Step>,
    sized: bool,
    knows_end: bool,
    on_drop: OnDrop,
}

#[derive(Clone)]
enum OnDrop {
    Nothing,
    Panic,
    Acquire(Arc<OnceLock<ConcurrencyLimiter>>),
}

impl Scripted {
    fn left(&self) -> u64 {
        let is_data = |step: &&Step| matches!(step, Step::Data(_));
        self.steps.iter().filter(is_data).count() as u64
    }
}

impl Body for Scripted {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.steps.pop_front() {
            None => Poll::Ready(None),
            Some(Step::Pending) => Poll::Pending,
            Some(Step::Data(byte)) => Poll::Ready(Some(Ok(Frame::data(vec![byte].into())))),
            Some(Step::Trailers) => Poll::Ready(Some(Ok(Frame::trailers(HeaderMap::new())))),
            Some(Step::Error) => {
                self.steps.clear();
                Poll::Ready(Some(Err("the body fails".into())))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.knows_end && self.steps.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        if self.sized {
            SizeHint::with_exact(self.left())
        } else {
            SizeHint::new()
        }
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        match &self.on_drop {
            OnDrop::Nothing => {}
            OnDrop::Panic => {
                if !std::thread::panicking() {
                    panic!("a panic at the end of a body");
                }
            }
            OnDrop::Acquire(limiter) => {
                let limiter = limiter.get().unwrap();
                drop(limiter.try_acquire());
                drop(limiter.try_acquire_for(&Key::id("key", "1")));
            }
        }
    }
}

#[derive(Clone)]
struct Inner;

impl Service<Request<Option<Scripted>>> for Inner {
    type Response = Response<Scripted>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Response<Scripted>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Option<Scripted>>) -> Self::Future {
        std::future::ready(Ok(Response::new(request.into_body().unwrap())))
    }
}

#[derive(Clone, Default)]
struct Counts {
    held: Arc<AtomicI64>,
    reclaimed: Arc<AtomicU64>,
    limiter: Arc<OnceLock<ConcurrencyLimiter>>,
}

impl Counts {
    fn look(&self) {
        if let Some(limiter) = self.limiter.get() {
            let _ = (limiter.in_flight(), limiter.limit());
        }
    }
}

impl Observer for Counts {
    fn acquired(&self, _: &str, _: u64) {
        self.held.fetch_add(1, Ordering::SeqCst);
        self.look();
    }

    fn released(&self, _: &str) {
        self.held.fetch_sub(1, Ordering::SeqCst);
        self.look();
    }

    fn reclaimed(&self, _: &str, _: Option<&Key>, stalled: Duration) {
        assert!(stalled >= STALL - Duration::from_millis(1), "{stalled:?}");
        self.reclaimed.fetch_add(1, Ordering::SeqCst);
        if let Some(limiter) = self.limiter.get() {
            drop(limiter.try_acquire());
        }
    }
}

struct Live {
    body: Pin<Box<PermitBody<Scripted>>>,
    expected: VecDeque<Step>,
    /// The time at which its last frame was polled; `None` while it waits for its handler.
    frame_at: Option<Instant>,
    done: bool,
}

type Limited = ConcurrencyLimit<Inner>;
type Waiting = (
    Pin<Box<<Limited as Service<Request<Option<Scripted>>>>::Future>>,
    VecDeque<Step>,
);

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % n
    }
}

fn by_header(name: &'static str) -> impl Fn(RequestHead<'_>) -> Option<Key> {
    move |head| {
        let value = head.headers.get(name)?.to_str().ok()?;
        Some(Key::id("key", value))
    }
}

/// Returns the number of responses that ended as stalled.
fn work(
    seed: u64,
    limiter: &ConcurrencyLimiter,
    service: &Limited,
    counts: &Counts,
    changes_limit: bool,
    on_drop_panics: bool,
) -> u64 {
    let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let mut cx = Context::from_waker(Waker::noop());
    let mut live: Vec<Live> = Vec::new();
    let mut waiting: Vec<Waiting> = Vec::new();
    let mut stalled = 0;
    let until = Instant::now() + Duration::from_millis(400);
    while Instant::now() < until {
        match random.below(100) {
            0..30 if live.len() + waiting.len() < 6 => {
                let length = random.below(6);
                let mut steps: VecDeque<Step> = (0..length)
                    .flat_map(|n| {
                        let pending = (0..random.below(3)).map(|_| Step::Pending);
                        pending.chain([Step::Data(n as u8)]).collect::<Vec<_>>()
                    })
                    .collect();
                match random.below(6) {
                    0 => steps.push_back(Step::Trailers),
                    1 => steps.push_back(Step::Error),
                    2 => steps.push_back(Step::Pending),
                    _ => {}
                }
                let on_drop = match random.below(6) {
                    0 if on_drop_panics => OnDrop::Panic,
                    1 => OnDrop::Acquire(counts.limiter.clone()),
                    _ => OnDrop::Nothing,
                };
                let body = Scripted {
                    steps: steps.clone(),
                    sized: random.below(2) == 0,
                    knows_end: random.below(2) == 0,
                    on_drop,
                };
                let request = Request::builder()
                    .header("a", random.below(4).to_string())
                    .header("b", random.below(4).to_string())
                    .body(Some(body))
                    .unwrap();
                waiting.push((Box::pin(service.clone().call(request)), steps));
            }
            30..50 if !waiting.is_empty() => {
                let place = random.below(waiting.len() as u64) as usize;
                if random.below(10) == 0 {
                    let gone = waiting.swap_remove(place);
                    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(gone)));
                } else if let Poll::Ready(response) = waiting[place].0.as_mut().poll(&mut cx) {
                    let (future, expected) = waiting.swap_remove(place);
                    let response = response.unwrap();
                    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(future)));
                    if response.status() == 200 {
                        live.push(Live {
                            body: Box::pin(response.into_body()),
                            expected,
                            frame_at: None,
                            done: false,
                        });
                    }
                }
            }
            50..85 if !live.is_empty() => {
                let place = random.below(live.len() as u64) as usize;
                let one = &mut live[place];
                let _ = (one.body.is_end_stream(), one.body.size_hint());
                let before = Instant::now();
                let polled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    one.body.as_mut().poll_frame(&mut cx)
                }));
                let Ok(polled) = polled else {
                    // The end of an inline body, found reclaimed.
                    stalled += 1;
                    let gone = live.swap_remove(place);
                    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(gone)));
                    continue;
                };
                let now = Instant::now();
                if one.done {
                    assert!(matches!(polled, Poll::Ready(None)), "{polled:?}");
                    let gone = live.swap_remove(place);
                    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(gone)));
                    continue;
                }
                match (polled, one.expected.pop_front()) {
                    (Poll::Ready(Some(Err(error))), _) if error.is::<ResponseStalled>() => {
                        let since = one
                            .frame_at
                            .expect("only a response that passed on a frame");
                        assert!(now - since >= STALL - Duration::from_millis(1));
                        one.done = true;
                        stalled += 1;
                        assert!(one.body.is_end_stream());
                    }
                    (Poll::Pending, Some(Step::Pending)) => one.frame_at = None,
                    (Poll::Ready(Some(Ok(frame))), Some(Step::Data(byte))) => {
                        assert_eq!(frame.into_data().unwrap()[..], [byte]);
                        one.frame_at = Some(before);
                    }
                    (Poll::Ready(Some(Ok(frame))), Some(Step::Trailers)) => {
                        assert!(frame.is_trailers());
                    }
                    (Poll::Ready(Some(Err(_))), Some(Step::Error)) => one.done = true,
                    (Poll::Ready(None), None) => one.done = true,
                    (polled, expected) => panic!("{polled:?} in place of {expected:?}"),
                }
            }
            85 if !live.is_empty() => {
                let place = random.below(live.len() as u64) as usize;
                let gone = live.swap_remove(place);
                let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(gone)));
            }
            90 if changes_limit => limiter.set_limit(random.below(9) as usize),
            91 => {
                let _permit = limiter.try_acquire_for(&Key::id("key", "2"));
                assert!(limiter.in_flight() <= 8 || changes_limit);
            }
            92 => std::thread::sleep(Duration::from_millis(random.below(6))),
            _ => std::thread::yield_now(),
        }
        if !changes_limit {
            let in_flight = limiter.in_flight();
            assert!(in_flight <= 8, "{in_flight}");
        }
    }
    for one in live {
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(one)));
    }
    for one in waiting {
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(one)));
    }
    stalled
}

fn run(round: u64, changes_limit: bool, panics: bool, waits: bool, dry_run: bool) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_time()
        .build()
        .unwrap();
    let counts = Counts::default();
    let mut layer = ConcurrencyLimitLayer::new(8)
        .reclaim_after(Some(STALL))
        .per_key(by_header("a"), 3)
        .per_key(by_header("b"), 4)
        .observe(counts.clone());
    if waits {
        layer = layer.wait(4, Duration::from_millis(20));
    }
    if dry_run {
        layer = layer.dry_run(true);
    }
    let limiter = layer.limiter();
    let _ = counts.limiter.set(limiter.clone());
    let service = layer.layer(Inner);
    let stalled: u64 = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let (limiter, service, counts) = (&limiter, &service, &counts);
                let handle = runtime.handle().clone();
                scope.spawn(move || {
                    let _entered = handle.enter();
                    let seed = 1 + round * THREADS + thread;
                    work(seed, limiter, service, counts, changes_limit, panics)
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .sum()
    });
    assert_eq!(limiter.in_flight(), 0);
    assert_eq!(counts.held.load(Ordering::SeqCst), 0);
    let reclaimed = counts.reclaimed.load(Ordering::SeqCst);
    if dry_run {
        assert_eq!(stalled, 0);
    } else if !panics {
        assert!(stalled <= reclaimed, "{stalled} of {reclaimed}");
    }
    assert!(reclaimed > 0);
    limiter.set_limit(8);
    let keys = |n: usize| {
        [
            Key::id("key", &format!("x{n}")),
            Key::id("key", &format!("y{n}")),
        ]
    };
    let held: Vec<_> = (0..8)
        .map(|n| limiter.try_acquire_for_all(&keys(n)).unwrap())
        .collect();
    assert!(limiter.try_acquire().is_err());
    drop(held);
    let one = Key::id("key", "1");
    let of_key: Vec<_> = (0..3)
        .map(|_| limiter.try_acquire_for(&one).unwrap())
        .collect();
    assert!(limiter.try_acquire_for(&one).is_err());
    drop(of_key);
    assert_eq!(limiter.in_flight(), 0);
    if !dry_run {
        // The same number of responses can be reclaimed as at the start.
        let _entered = runtime.enter();
        let mut lingering = Vec::new();
        for n in 0..8 * 5 {
            if n % 8 == 0 {
                std::thread::sleep(2 * STALL);
            }
            let body = Scripted {
                steps: [Step::Data(0), Step::Data(1)].into(),
                sized: n % 2 == 0,
                knows_end: false,
                on_drop: OnDrop::Nothing,
            };
            let request = Request::builder().header("a", format!("x{n}"));
            let request = request
                .header("b", format!("x{n}"))
                .body(Some(body))
                .unwrap();
            let mut cx = Context::from_waker(Waker::noop());
            let mut future = Box::pin(service.clone().call(request));
            let Poll::Ready(Ok(response)) = future.as_mut().poll(&mut cx) else {
                panic!("request {n} waits");
            };
            assert_eq!(response.status(), 200, "{n}");
            let mut body = Box::pin(response.into_body());
            assert!(body.as_mut().poll_frame(&mut cx).is_ready());
            lingering.push(body);
        }
    }
    assert_eq!(limiter.in_flight(), 0);
}

fn quiet() {
    std::panic::set_hook(Box::new(|info| {
        let text = info.to_string();
        if !text.contains("a panic at the end of a body") {
            eprintln!("{text}");
        }
    }));
}

#[test]
fn permits_are_neither_lost_nor_granted_twice() {
    quiet();
    for round in 0..2 {
        for (changes, panics, waits, dry_run) in [
            (false, false, false, false),
            (true, false, false, false),
            (false, true, false, false),
            (true, true, true, false),
            (false, false, true, false),
            (true, false, false, true),
        ] {
            run(round, changes, panics, waits, dry_run);
        }
    }
}
