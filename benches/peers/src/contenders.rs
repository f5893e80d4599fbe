//! Who is compared.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::num::NonZeroU32;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use axum::body::Body;
use axum_governor::BodyPreset;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderValue, Request, Response};
use tower::limit::ConcurrencyLimit;
use tower::load_shed::LoadShed;
use tower::{Layer, Service};
use tower_admission::{
    ConcurrencyLimitLayer, Key, KeyName, Limit, Limits, Quota, RateLimitByTokenLayer,
    RateLimitHeaders,
};
use tower_governor::GovernorError;
use tower_governor::governor::GovernorConfigBuilder;
use tower_governor::key_extractor::KeyExtractor;

use crate::drive::{Contender, Driven};
use crate::requests::{Setting, token};

/// A contender and what it is called.
pub struct Entry {
    pub name: &'static str,
    pub contender: Box<dyn Contender>,
}

impl Entry {
    /// The same contender on the same limit, for another thread.
    pub fn fork(&self) -> Self {
        Self {
            name: self.name,
            contender: self.contender.fork(),
        }
    }
}

fn entry<S>(name: &'static str, service: S) -> Entry
where
    Driven<S>: Contender + 'static,
{
    Entry {
        name,
        contender: Box::new(Driven(service)),
    }
}

/// The innermost service. Its body is axum's, because peers ask for that.
#[derive(Clone, Copy)]
pub struct Trivial(pub Setting);

impl Service<Request<()>> for Trivial {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<()>) -> Self::Future {
        let mut response = Response::new(Body::empty());
        if self.0 == Setting::Served {
            let text = HeaderValue::from_static("text/plain");
            response.headers_mut().insert(CONTENT_TYPE, text);
        }
        ready(Ok(response))
    }
}

pub fn none(setting: Setting) -> Entry {
    entry("no middleware", Trivial(setting))
}

/// More than is ever in flight here.
const ROOM: usize = 1024;

pub fn tower_concurrency() -> Entry {
    let service = ConcurrencyLimit::new(Trivial(Setting::Bare), ROOM);
    entry("tower ConcurrencyLimit", service)
}

pub fn tower_load_shed() -> Entry {
    let service = LoadShed::new(ConcurrencyLimit::new(Trivial(Setting::Bare), ROOM));
    entry("tower ConcurrencyLimit, LoadShed", service)
}

pub fn our_concurrency(setting: Setting) -> Entry {
    let layer = ConcurrencyLimitLayer::new(ROOM);
    entry("ours", layer.layer(Trivial(setting)))
}

pub fn our_concurrency_refusing() -> Entry {
    let layer = ConcurrencyLimitLayer::deny_all();
    entry(
        "ours, refusing: 503 with problem",
        layer.layer(Trivial(Setting::Bare)),
    )
}

/// What every client may do.
#[derive(Clone, Copy, Debug)]
pub struct Allowance {
    pub interval: Duration,
    pub burst: u32,
}

impl Allowance {
    /// Never used up, and slow, so that a client who was seen once is in debt for the whole run:
    /// a table that forgets clients whose buckets are full again would else be spared its work.
    pub const AMPLE: Self = Self {
        interval: Duration::from_secs(60),
        burst: 50_000_000,
    };

    /// Used up by one request, for the whole run.
    pub const USED_UP: Self = Self {
        interval: Duration::from_secs(3600),
        burst: 1,
    };

    /// Every bucket is full again when its client comes back.
    pub const FAST: Self = Self {
        interval: Duration::from_micros(1),
        burst: 1000,
    };

    fn for_axum_governor(self) -> axum_governor::Quota {
        let whole = |number| NonZeroU32::new(number).expect("not 0");
        let seconds = whole(self.interval.as_secs() as u32);
        axum_governor::Quota::seconds_per_request(seconds).burst(whole(self.burst))
    }
}

/// The key of tower_governor's own example for bearer tokens.
#[derive(Clone, Debug)]
pub struct UserToken;

impl KeyExtractor for UserToken {
    type Key = String;

    fn extract<B>(&self, request: &Request<B>) -> Result<String, GovernorError> {
        request
            .headers()
            .get(AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.strip_prefix("Bearer "))
            .map(|token| token.trim().to_owned())
            .ok_or(GovernorError::UnableToExtractKey)
    }
}

pub fn tower_governor(allowance: Allowance, setting: Setting) -> Entry {
    let config = GovernorConfigBuilder::default()
        .period(allowance.interval)
        .burst_size(allowance.burst)
        .key_extractor(UserToken)
        .finish()
        .expect("a valid quota");
    let layer = tower_governor::GovernorLayer::<_, _, Body>::new(config);
    entry("tower_governor", layer.layer(Trivial(setting)))
}

pub fn tower_governor_headers(allowance: Allowance, setting: Setting) -> Entry {
    let config = GovernorConfigBuilder::default()
        .period(allowance.interval)
        .burst_size(allowance.burst)
        .key_extractor(UserToken)
        .use_headers()
        .finish()
        .expect("a valid quota");
    let layer = tower_governor::GovernorLayer::<_, _, Body>::new(config);
    entry("tower_governor, headers", layer.layer(Trivial(setting)))
}

/// Its key is the whole value of the header, as its own extractor has it. It always sends
/// headers, and its refusals are problems here as ours are.
pub fn axum_governor(allowance: Allowance, setting: Setting) -> Entry {
    let config = axum_governor::GovernorConfigBuilder::default()
        .with_extractor(axum_governor::extractor::Header(&AUTHORIZATION))
        .quota_default(allowance.for_axum_governor())
        .body_preset(BodyPreset::ProblemJson)
        .finish()
        .expect("a valid quota");
    let layer = axum_governor::GovernorLayer::new(config);
    entry("axum-governor, headers", layer.layer(Trivial(setting)))
}

pub fn ours(allowance: Allowance, setting: Setting) -> Entry {
    let layer = our_layer(allowance).headers(RateLimitHeaders::Off);
    entry("ours", layer.layer(Trivial(setting)))
}

pub fn ours_headers(allowance: Allowance, setting: Setting) -> Entry {
    entry(
        "ours, headers",
        our_layer(allowance).layer(Trivial(setting)),
    )
}

fn our_layer(allowance: Allowance) -> RateLimitByTokenLayer {
    RateLimitByTokenLayer::new(quota(allowance))
}

fn quota(allowance: Allowance) -> Quota {
    Quota::new(1, allowance.interval).burst(allowance.burst)
}

/// Ours where keys may have limits of their own: none has, so many others have, or these clients have
/// as well.
pub fn ours_with_limits(
    name: &'static str,
    allowance: Allowance,
    others: u64,
    clients: u64,
) -> Entry {
    let limits = Limits::new();
    let layer = our_layer(allowance)
        .headers(RateLimitHeaders::Off)
        .limits(&limits);
    let own = Limit::rate(quota(Allowance {
        burst: allowance.burst - 1,
        ..allowance
    }));
    let own = own.expect("a quota that limits");
    let set = |key: &KeyName| now(limits.set(key, own.clone())).expect("room for it");
    for other in 0..others {
        set(&KeyName::id("org", &other.to_string()).expect("a name"));
    }
    for client in 0..clients {
        set(&KeyName::from(Key::new("bearer", token(client).as_bytes())));
    }
    entry(name, layer.layer(Trivial(Setting::Bare)))
}

/// Limits in memory are set at once.
fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => done,
        Poll::Pending => unreachable!("nothing is waited for"),
    }
}
