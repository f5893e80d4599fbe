//! Entries that end, with a test clock.

use std::time::Duration;

use http::Response;
use http_body_util::BodyExt;
use tower::Layer;
use tower_admission::access::Access;
use tower_admission::test_util::TestClock;
use tower_admission::{
    AccessLayer, ClientIp, Limit, Limits, Override, Quota, RateLimit, RateLimitLayer,
};

use crate::{Counting, from, name, now, send, set, status, with};

const HOUR: Duration = Duration::from_secs(3600);

struct Bench {
    clock: TestClock,
    limits: Limits,
}

impl Bench {
    fn new() -> Self {
        let clock = TestClock::default();
        let limits = Limits::new().clock(clock.clone());
        Self { clock, limits }
    }

    fn set_for(&self, key: &str, limit: &str, time: Duration) {
        let entry = Override::new(limit.parse::<Limit>().unwrap());
        let entry = entry.with_end(self.clock.wall_clock() + time);
        let entry = entry.with_note("a secret of the operators");
        now(self.limits.edit(&name(key)).author("anna").set(entry)).unwrap();
    }

    /// The inner service admits only exempt requests.
    fn service(&self) -> Access<RateLimit<Counting>> {
        let nothing = RateLimitLayer::by(ClientIp::peer(), Quota::per_hour(1)).cost(|_| 2);
        let inner = Counting::default();
        AccessLayer::new(&self.limits).layer(nothing.layer(inner))
    }
}

fn retry_after<B>(response: &Response<B>) -> Option<&str> {
    response
        .headers()
        .get("retry-after")
        .map(|value| value.to_str().unwrap())
}

#[test]
fn a_ban_ends_at_its_retry_after() {
    let bench = Bench::new();
    let service = bench.service();
    bench.set_for("ip:203.0.113.0/24", "deny all", HOUR);
    let response = send(&service, from("203.0.113.7"));
    assert_eq!(response.status(), 403);
    assert_eq!(retry_after(&response), Some("3600"));
    let text = format!("{:?}", response.headers());
    let body = now(response.into_body().collect()).unwrap().to_bytes();
    let text = text + std::str::from_utf8(&body).unwrap();
    assert!(!text.contains("secret") && !text.contains("anna"), "{text}");
    bench.clock.advance(HOUR - Duration::from_millis(1_500));
    let response = send(&service, from("203.0.113.7"));
    assert_eq!(retry_after(&response), Some("2"));
    bench.clock.advance(Duration::from_millis(1_499));
    assert_eq!(retry_after(&send(&service, from("203.0.113.7"))), Some("1"));
    bench.clock.advance(Duration::from_millis(1));
    assert_eq!(status(&service, from("203.0.113.7")), 429);
    assert!(bench.limits.is_empty());
}

#[test]
fn a_ban_of_a_grpc_client_has_retry_info() {
    let bench = Bench::new();
    bench.set_for("ip:203.0.113.7", "deny all", HOUR);
    let request = with(from("203.0.113.7"), "content-type", "application/grpc");
    let response = send(&bench.service(), request);
    assert_eq!(response.headers()["grpc-status"], "7");
    assert_eq!(response.headers()["grpc-retry-pushback-ms"], "3600000");
}

#[test]
fn an_exemption_ends() {
    let bench = Bench::new();
    let service = bench.service();
    bench.set_for("ip:203.0.113.7", "unlimited", HOUR);
    assert_eq!(status(&service, from("203.0.113.7")), 200);
    bench.clock.advance(HOUR);
    assert_eq!(status(&service, from("203.0.113.7")), 429);
}

/// When an entry ends, the next specific one applies.
#[test]
fn the_next_specific_entry_decides_after_the_end() {
    let bench = Bench::new();
    let service = bench.service();
    set(&bench.limits, "ip:203.0.0.0/16", "deny all");
    bench.set_for("ip:203.0.113.0/24", "unlimited", 2 * HOUR);
    bench.set_for("ip:203.0.113.7", "deny all", HOUR);
    assert_eq!(status(&service, from("203.0.113.7")), 403);
    bench.clock.advance(HOUR);
    assert_eq!(status(&service, from("203.0.113.7")), 200);
    bench.clock.advance(HOUR);
    let response = send(&service, from("203.0.113.7"));
    assert_eq!(
        (response.status().as_u16(), retry_after(&response)),
        (403, None)
    );
    // An override at run time replaces one of the configuration, which applies again when it ends.
    let base = [(name("ip:203.0.113.7"), Override::new(Limit::unlimited()))];
    bench.limits.set_base(base).unwrap();
    assert_eq!(status(&service, from("203.0.113.7")), 200);
    bench.set_for("ip:203.0.113.7", "deny all", HOUR);
    assert_eq!(status(&service, from("203.0.113.7")), 403);
    bench.clock.advance(HOUR);
    assert_eq!(status(&service, from("203.0.113.7")), 200);
}

#[test]
fn the_base_rejects_other_limits_for_a_network() {
    let bench = Bench::new();
    let base = [(
        name("ip:203.0.113.0/24"),
        Override::new("10/s".parse().unwrap()),
    )];
    let error = bench.limits.set_base(base).unwrap_err().to_string();
    assert!(
        error.starts_with("ip:203.0.113.0/24 is a network"),
        "{error}"
    );
}
