//! Setters of what is counted must come before a limit is opened, and a panic names the caller's line.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Once};

use tower::Layer;
use tower_admission::store::{
    FailureMode, LeaseSlots, LeaseStore, MemoryStore, RateBuckets, RateStore,
};
use tower_admission::test_util::TestClock;
use tower_admission::{
    ByToken, ClientIp, ConcurrencyLimitLayer, Leases, Limits, Policy, Quota, RateLimitByTokenLayer,
    RateLimitLayer, RateLimiter,
};
use tower_admission_axum::ws::SocketLimits;

use crate::common::{Away, Counting, LaterStore, by_user, send, user, user_key};

thread_local! {
    /// Where the panics of a thread are written, if a test asks for it.
    static PANIC: RefCell<Option<(String, String)>> = const { RefCell::new(None) };
}

/// The file and the message of the panic of `job`.
#[track_caller]
fn panicked(job: impl FnOnce()) -> (String, String) {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let others = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANIC.with_borrow_mut(|panic| match panic {
                Some((file, message)) => {
                    info.location().unwrap().file().clone_into(file);
                    let payload = info.payload();
                    let text = payload.downcast_ref::<String>().map(String::as_str);
                    let text = text.or_else(|| payload.downcast_ref::<&str>().copied());
                    text.unwrap_or_default().clone_into(message);
                }
                None => others(info),
            });
        }));
    });
    PANIC.set(Some(Default::default()));
    let panicked = catch_unwind(AssertUnwindSafe(job)).is_err();
    let panic = PANIC.take().unwrap();
    assert!(panicked, "it does not panic");
    panic
}

/// Whether each of these panics with a message, in this file.
macro_rules! panics_here {
    ($expected:expr, $($setter:expr),+ $(,)?) => {
        $(
            let (file, message) = panicked(|| {
                let _ = $setter;
            });
            assert_eq!(file, file!(), "{}: {message}", stringify!($setter));
            assert!(message.contains($expected), "{}: {message}", stringify!($setter));
        )+
    };
}

/// A store that replicas share, without a secret.
#[derive(Clone)]
struct WithoutSecret;

impl RateStore for WithoutSecret {
    fn open(&self, policies: &[Policy]) -> Arc<dyn RateBuckets> {
        MemoryStore::new().open(policies)
    }

    fn agrees_on_fingerprints(&self) -> bool {
        false
    }
}

impl LeaseStore for WithoutSecret {
    fn open_leases(&self, name: &str) -> Arc<dyn LeaseSlots> {
        Away(FailureMode::Open).open_leases(name)
    }

    fn agrees_on_fingerprints(&self) -> bool {
        false
    }
}

#[test]
fn what_a_rate_layer_counts_cannot_change_once_its_limit_is_open() {
    let (store, limits) = (MemoryStore::new(), Limits::new());
    for way in 0..3 {
        let layer = || {
            let layer = RateLimitLayer::by(by_user, Quota::per_hour(2));
            match way {
                0 => drop(layer.limiter()),
                1 => drop(layer.layer(Counting::default())),
                _ => drop(layer.clone().limiter()),
            }
            layer
        };
        panics_here!("call `store` before", layer().store(store.clone()));
        panics_here!("call `store` before", layer().try_store(store.clone()));
        panics_here!("call `limits` before", layer().limits(&limits));
        panics_here!(
            "call `and_by` before",
            layer().and_by(ClientIp::peer(), Quota::per_hour(1)),
        );
    }
}

#[tokio::test]
async fn other_settings_of_a_rate_layer_can_change_later() {
    let layer = RateLimitLayer::by(by_user, Quota::per_hour(2)).name("api");
    let limiter = layer.limiter();
    let free = layer.clone().cost(|_| 2).layer(Counting::default());
    assert_eq!(send(&free, user("alice")).await.status(), 200);
    let left = limiter.peek(&user_key("alice")).now().unwrap().remaining();
    assert_eq!(left, Some(0));
    let service = layer.name("other").layer(Counting::default());
    assert_eq!(send(&service, user("alice")).await.status(), 429);
}

#[test]
fn what_a_concurrency_layer_counts_cannot_change_once_its_limit_is_open() {
    let (store, limits) = (Away(FailureMode::Open), Limits::new());
    for way in 0..3 {
        let layer = || {
            let layer = ConcurrencyLimitLayer::new(2).name("api");
            match way {
                0 => drop(layer.limiter()),
                1 => drop(layer.layer(Counting::default())),
                _ => drop(layer.clone().limiter()),
            }
            layer
        };
        panics_here!("call `name` before", layer().name("other"));
        panics_here!("call `store` before", layer().store(store.clone()));
        panics_here!("call `store` before", layer().try_store(store.clone()));
        panics_here!("call `per_key` before", layer().per_key(by_user, 1));
        panics_here!("call `limits` before", layer().limits(&limits));
    }
}

#[tokio::test]
async fn other_settings_of_a_concurrency_layer_can_change_later() {
    let layer = ConcurrencyLimitLayer::new(1).per_key(by_user, 1);
    let limiter = layer.limiter();
    let permit = limiter.try_acquire().unwrap();
    let waiting = layer.clone().retry_after(None).layer(Counting::default());
    let rejected = send(&waiting, user("alice")).await;
    assert_eq!(rejected.status(), 503);
    assert!(!rejected.headers().contains_key("retry-after"));
    let service = layer.skip(|_| true).layer(Counting::default());
    assert_eq!(send(&service, user("alice")).await.status(), 200);
    drop(permit);
    assert_eq!(send(&waiting, user("alice")).await.status(), 200);
}

/// Counts how often a limit is opened.
#[derive(Clone, Default)]
struct Opened(Arc<std::sync::atomic::AtomicUsize>);

impl RateStore for Opened {
    fn open(&self, policies: &[Policy]) -> Arc<dyn RateBuckets> {
        self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        MemoryStore::new().open(policies)
    }
}

impl LeaseStore for Opened {
    fn open_leases(&self, name: &str) -> Arc<dyn LeaseSlots> {
        assert_eq!(name, "api");
        self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        Away(FailureMode::Open).open_leases(name)
    }
}

impl Opened {
    fn times(&self) -> usize {
        self.0.load(std::sync::atomic::Ordering::SeqCst)
    }
}

#[test]
fn a_limit_is_opened_once() {
    let limits = Limits::new();
    let rates = Opened::default();
    let layer = RateLimitLayer::by(by_user, Quota::per_hour(2))
        .store(rates.clone())
        .and_by(ClientIp::peer(), Quota::per_hour(1))
        .limits(&limits)
        .name("api");
    assert_eq!(rates.times(), 0);
    let clone = layer.clone();
    let _ = (layer.layer(Counting::default()), clone.limiter());
    let _ = clone.dry_run(true).layer(Counting::default());
    assert_eq!(rates.times(), 1);

    let slots = Opened::default();
    let layer = ConcurrencyLimitLayer::new(2)
        .store(slots.clone())
        .per_key(by_user, 1)
        .limits(&limits)
        .name("api");
    assert_eq!(slots.times(), 0);
    let clone = layer.clone();
    let _ = (layer.layer(Counting::default()), clone.limiter());
    let _ = clone.dry_run(true).layer(Counting::default());
    assert_eq!(slots.times(), 1);
}

#[test]
fn invalid_numbers_and_names_panic_at_the_callers_line() {
    let hour = Quota::per_hour(1);
    let policy = || Policy::new("a", hour);
    panics_here!(
        "printable ASCII",
        Policy::new("", hour),
        policy().and("é", hour)
    );
    panics_here!(
        "already",
        policy().and("a", hour),
        policy().tier("t", hour).tier("t", hour)
    );
    panics_here!(
        "must name at least one quota of its policy",
        policy().tier("t", "b=1/h")
    );
    panics_here!(
        "expected a quota such as",
        policy().tier("t", "b"),
        Limits::new().tier("t", "b")
    );
    panics_here!(
        "cannot name another tier",
        Limits::new().tier("t", "tier=x")
    );
    panics_here!("the period is 0", Quota::new(1, std::time::Duration::ZERO));
    panics_here!("burst of 0", hour.burst(0));
    panics_here!(
        "at most 4294967295",
        Quota::per_hour(u32::MAX).burst(1).sliding()
    );
    panics_here!(
        "101 percent",
        RateLimitByTokenLayer::new(hour).enforce(101),
        ConcurrencyLimitLayer::new(1).enforce(101),
    );
    panics_here!("at most 8 keys", {
        let layer = RateLimitByTokenLayer::new(hour);
        (0..8).fold(layer, |layer, _| layer.and_by(by_user, hour))
    });
}

#[test]
fn an_unsuitable_store_panics_at_the_callers_line() {
    let hour = Quota::per_hour(1);
    panics_here!(
        "needs a secret",
        RateLimitByTokenLayer::new(hour).store(WithoutSecret),
        RateLimitLayer::by(ClientIp::peer(), hour)
            .store(WithoutSecret)
            .and_by(ByToken::default(), hour),
        RateLimiter::with_store(hour, &WithoutSecret),
        RateLimiter::with_limits(hour, &WithoutSecret, &Limits::new()),
        ConcurrencyLimitLayer::new(1)
            .per_key(ByToken::default(), 1)
            .store(WithoutSecret),
        ConcurrencyLimitLayer::new(1)
            .store(WithoutSecret)
            .per_key(ByToken::default(), 1),
        ConcurrencyLimitLayer::new(1)
            .store(WithoutSecret)
            .per_key(ByToken::default(), 0)
            .limits(&Limits::new()),
        Leases::new().store(WithoutSecret),
        SocketLimits::new().store(WithoutSecret),
        SocketLimits::new().message_store(WithoutSecret),
    );

    let later = LaterStore::new(&TestClock::default());
    let tiered = || Policy::from(hour).tier("pro", hour);
    let limits = Limits::new().tier("pro", hour);
    let layer = || RateLimitLayer::by(by_user, hour).store(later.clone());
    panics_here!(
        "this store has no tiers",
        RateLimiter::with_store(tiered(), &later),
        RateLimiter::try_with_store(tiered(), &later),
        RateLimiter::with_limits(hour, &later, &limits),
        layer().limits(&limits).limiter(),
        layer().limits(&limits).layer(()),
        SocketLimits::new()
            .message_store(later.clone())
            .messages_per_key(tiered()),
        SocketLimits::new()
            .messages_per_key(tiered())
            .message_store(later.clone()),
        SocketLimits::new()
            .messages_per_key(hour)
            .message_store(later.clone())
            .limits(&limits),
    );
}
