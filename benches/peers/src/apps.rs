//! The axum services that are compared over a connection.

use axum::Router;
use axum::routing::get;
use tower_admission::{ConcurrencyLimitLayer, RateLimitHeaders};

use crate::contenders::{Allowance, ROOM, UserToken, governor_layer, our_layer};
use crate::measure::NO_MIDDLEWARE;

/// A service and its names.
pub struct App {
    pub name: &'static str,
    /// The name on the command line.
    pub argument: &'static str,
    pub router: fn() -> Router,
    pub rejects: bool,
}

impl App {
    const fn new(name: &'static str, argument: &'static str, router: fn() -> Router) -> Self {
        Self {
            name,
            argument,
            router,
            rejects: false,
        }
    }

    const fn rejecting(self) -> Self {
        Self {
            rejects: true,
            ..self
        }
    }

    /// The start of a response to a client that the app has seen before.
    pub fn status_line(&self) -> &'static [u8] {
        if self.rejects {
            b"HTTP/1.1 429 "
        } else {
            b"HTTP/1.1 200 "
        }
    }
}

pub const OURS: &str = "ours";
pub const OURS_BOTH: &str = "ours, both layers, default headers";
pub const OURS_REJECTING: &str = "ours, rejecting";

/// The first app is the baseline of the others.
pub const APPS: [App; 7] = [
    App::new(NO_MIDDLEWARE, "none", hello),
    App::new("tower_governor", "tower_governor", || {
        hello().layer(governor_layer!(Allowance::AMPLE, UserToken))
    }),
    App::new("tower_governor, headers", "tower_governor_headers", || {
        hello().layer(governor_layer!(Allowance::AMPLE, UserToken, use_headers))
    }),
    App::new(OURS, "ours", || {
        hello().layer(our_layer(Allowance::AMPLE).headers(RateLimitHeaders::Off))
    }),
    App::new(OURS_BOTH, "both", || {
        hello()
            .layer(our_layer(Allowance::AMPLE))
            .layer(ConcurrencyLimitLayer::new(ROOM))
    }),
    App::new(OURS_REJECTING, "rejecting", || {
        hello().layer(our_layer(Allowance::USED_UP).headers(RateLimitHeaders::Off))
    })
    .rejecting(),
    App::new("ours, headers, rejecting", "rejecting_headers", || {
        hello().layer(our_layer(Allowance::USED_UP))
    })
    .rejecting(),
];

fn hello() -> Router {
    Router::new().route("/", get(|| async { "hello, world!" }))
}
