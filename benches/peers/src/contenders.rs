//! The compared middlewares.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::num::NonZeroU32;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum_governor::BodyPreset;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderValue, Request, Response};
use tower::limit::ConcurrencyLimit;
use tower::load_shed::LoadShed;
use tower::{Layer, Service};
use tower_admission::{
    ClientIp, ConcurrencyLimitLayer, Quota, RateLimitByTokenLayer, RateLimitHeaders, RateLimitLayer,
};
use tower_governor::GovernorError;
use tower_governor::key_extractor::{KeyExtractor, PeerIpKeyExtractor};

use crate::drive::{Contender, Driven};
use crate::requests::Setting;

/// A contender and its name.
pub struct Entry {
    pub name: &'static str,
    pub contender: Box<dyn Contender>,
}

impl Entry {
    /// The same contender with the same limit, for another thread.
    pub fn fork(&self) -> Self {
        Self {
            name: self.name,
            contender: self.contender.fork(),
        }
    }
}

pub fn entry<S>(name: &'static str, service: S) -> Entry
where
    Driven<S>: Contender + 'static,
{
    Entry {
        name,
        contender: Box::new(Driven(service)),
    }
}

/// The innermost service. Its body is axum's, because other crates require it.
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

/// Above the number of requests in flight in any benchmark.
pub const ROOM: usize = 1024;

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

pub fn our_concurrency_rejecting() -> Entry {
    let layer = ConcurrencyLimitLayer::deny_all();
    entry(
        "ours, rejecting: 503 with problem",
        layer.layer(Trivial(Setting::Bare)),
    )
}

/// The quota of every client.
#[derive(Clone, Copy, Debug)]
pub struct Allowance {
    pub interval: Duration,
    pub burst: u32,
}

impl Allowance {
    /// Never used up, and so slow that a client is in debt for the whole run after its first
    /// request. Otherwise, a table that drops clients with full buckets would have less work.
    pub const AMPLE: Self = Self {
        interval: Duration::from_secs(60),
        burst: 50_000_000,
    };

    /// Used up by one request, for the whole run.
    pub const USED_UP: Self = Self {
        interval: Duration::from_secs(3600),
        burst: 1,
    };

    /// Every bucket is full again before the next request of its client.
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

/// The key from tower_governor's own example for bearer tokens.
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

/// tower_governor's layer. Its type names a trait of governor that this function cannot name.
macro_rules! governor_layer {
    ($allowance:expr, $key:expr $(, $use_headers:ident)?) => {{
        let config = tower_governor::governor::GovernorConfigBuilder::default()
            .period($allowance.interval)
            .burst_size($allowance.burst)
            .key_extractor($key)
            $(.$use_headers())?
            .finish()
            .expect("a valid quota");
        tower_governor::GovernorLayer::<_, _, axum::body::Body>::new(config)
    }};
}
pub(crate) use governor_layer;

pub fn tower_governor(allowance: Allowance, setting: Setting) -> Entry {
    let layer = governor_layer!(allowance, UserToken);
    entry("tower_governor", layer.layer(Trivial(setting)))
}

pub fn tower_governor_headers(allowance: Allowance, setting: Setting) -> Entry {
    let layer = governor_layer!(allowance, UserToken, use_headers);
    entry("tower_governor, headers", layer.layer(Trivial(setting)))
}

/// Limits by the peer address of the connection, which only requests in a server have.
pub fn tower_governor_by_address(allowance: Allowance) -> Entry {
    let layer = governor_layer!(allowance, PeerIpKeyExtractor);
    entry("tower_governor", layer.layer(Trivial(Setting::Served)))
}

/// The key is the whole header value, as its own extractor has it. It always sends headers, and its
/// rejections are problem documents, like those of this crate.
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

/// Limits by the peer address of the connection.
pub fn ours_by_address(allowance: Allowance) -> Entry {
    let layer = RateLimitLayer::by(ClientIp::peer(), quota(allowance));
    let layer = layer.headers(RateLimitHeaders::Off);
    entry("ours", layer.layer(Trivial(Setting::Served)))
}

pub fn our_layer(allowance: Allowance) -> RateLimitByTokenLayer {
    RateLimitByTokenLayer::new(quota(allowance))
}

pub fn quota(allowance: Allowance) -> Quota {
    Quota::new(1, allowance.interval).burst(allowance.burst)
}
