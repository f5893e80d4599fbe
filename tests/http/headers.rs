//! Rate-limit fields of responses, parsed as a client would.

use std::collections::BTreeMap;
use std::time::Duration;

use http::{HeaderMap, Response, StatusCode};
use sfv::{BareItem, List, ListEntry, Parser};
use tower::Layer;
use tower_admission::{
    ConcurrencyLimitLayer, Policy, Quota, RateLimitByTokenLayer, RateLimitHeaders, RateLimitLayer,
    Rejection, RequestHead,
};

use crate::common::{
    Counting, SECOND, answering, by_user, header, ok, retry_after, send, status, timed, user,
};

/// The items of a structured field: each name with its parameters.
type Items = Vec<(String, BTreeMap<String, i64>)>;

/// Reads a field as RFC 9651 does: all lines are one list.
fn list(headers: &HeaderMap, name: &str) -> Items {
    let lines = headers
        .get_all(name)
        .iter()
        .map(|line| line.to_str().unwrap());
    let field = lines.collect::<Vec<_>>().join(", ");
    let list: List = Parser::new(&field).parse().expect("a structured list");
    let item = |entry: ListEntry| {
        let ListEntry::Item(item) = entry else {
            panic!("an inner list in {field}");
        };
        let name = item
            .bare_item
            .as_string()
            .expect("a String")
            .as_str()
            .to_owned();
        let parameters = item.params.into_iter().map(|(key, value)| {
            let BareItem::Integer(value) = value else {
                panic!("{key} is no Integer in {field}");
            };
            (key.to_string(), value.into())
        });
        (name, parameters.collect())
    };
    list.into_iter().map(item).collect()
}

fn item(name: &str, parameters: &[(&str, i64)]) -> (String, BTreeMap<String, i64>) {
    let parameters = parameters
        .iter()
        .map(|(key, value)| (key.to_string(), *value));
    (name.to_owned(), parameters.collect())
}

#[tokio::test]
async fn a_sliding_window_reports_count_and_burst() {
    let fraction = Quota::new(5, Duration::from_millis(1400)).sliding();
    let short = Quota::new(5, Duration::from_millis(900)).sliding();
    let policy = Policy::new("a", Quota::per_minute(60).burst(10).sliding())
        .and("b", fraction)
        .and("c", short);
    let (layer, _) = timed(by_user, policy);
    let response = send(&layer.layer(Counting::default()), user("alice")).await;
    assert_eq!(
        list(response.headers(), "ratelimit-policy"),
        [
            item("a", &[("q", 70), ("w", 60)]),
            item("b", &[("q", 5), ("w", 2)]),
            item("c", &[("q", 5)]),
        ]
    );
    assert_eq!(
        list(response.headers(), "ratelimit")[0],
        // Sixteen sub-windows of four seconds, from the clock's zero.
        item("a", &[("r", 69), ("t", 64)])
    );
}

#[tokio::test]
async fn the_draft_fields_report_every_quota() {
    let policy =
        Policy::new("burst", Quota::per_second(10).burst(20)).and("daily", Quota::per_day(1000));
    let (layer, clock) = timed(by_user, policy);
    let service = layer.layer(Counting::default());
    let headers = send(&service, user("alice")).await.headers().clone();
    let daily = 24 * 60 * 60;
    assert_eq!(
        list(&headers, "ratelimit-policy"),
        [
            item("burst", &[("q", 20), ("w", 2)]),
            item("daily", &[("q", 1000), ("w", daily)])
        ]
    );
    assert_eq!(
        list(&headers, "ratelimit"),
        [
            item("burst", &[("r", 19), ("t", 1)]),
            item("daily", &[("r", 999), ("t", 87)])
        ]
    );
    clock.advance(Duration::from_millis(100));
    let headers = send(&service, user("alice")).await.headers().clone();
    assert_eq!(
        list(&headers, "ratelimit")[0],
        item("burst", &[("r", 19), ("t", 1)])
    );
}

#[tokio::test]
async fn names_with_quotes_and_backslashes_read_back() {
    let names = [
        r#"a "quoted" one"#,
        r"back\slash",
        r#"\""#,
        "a;b=c, d",
        " ~!",
    ];
    let policy = names[1..]
        .iter()
        .fold(Policy::new(names[0], Quota::per_hour(5)), |policy, name| {
            policy.and(name, Quota::per_hour(5))
        });
    let (layer, _clock) = timed(by_user, policy);
    let service = layer.layer(Counting::default());
    for _ in 0..6 {
        let response = send(&service, user("alice")).await;
        for field in ["ratelimit", "ratelimit-policy"] {
            let items = list(response.headers(), field);
            assert_eq!(
                items.iter().map(|(name, _)| name).collect::<Vec<_>>(),
                names
            );
        }
    }
}

#[tokio::test]
async fn two_layers_on_one_route_merge_their_fields() {
    let tokens = RateLimitByTokenLayer::new(Policy::new("tokens", Quota::per_hour(10)));
    let users = RateLimitLayer::by(by_user, Policy::new("users", Quota::per_hour(5)));
    let service = tokens.layer(users.layer(Counting::default()));
    let response = send(&service, user("alice")).await;
    for field in ["ratelimit", "ratelimit-policy"] {
        let items = list(response.headers(), field);
        let mut names: Vec<_> = items.into_iter().map(|(name, _)| name).collect();
        names.sort();
        assert_eq!(names, ["tokens", "users"], "{field}");
    }
}

#[tokio::test]
async fn fields_of_a_handler_are_kept() {
    let (layer, _clock) = timed(by_user, Quota::per_hour(5));
    let service = layer.layer(answering(|_| {
        let mut response = ok();
        let headers = response.headers_mut();
        headers.insert("ratelimit", "\"theirs\";r=7".parse().unwrap());
        response
    }));
    let response = send(&service, user("alice")).await;
    assert_eq!(list(response.headers(), "ratelimit").len(), 2);
}

#[tokio::test]
async fn responses_of_every_status_have_the_fields() {
    for code in [200, 201, 204, 301, 304, 400, 401, 404, 418, 429, 500, 503] {
        for dialect in [RateLimitHeaders::Draft, RateLimitHeaders::Legacy] {
            let layer = RateLimitLayer::by(by_user, Quota::per_hour(9)).headers(dialect);
            let service = layer.layer(answering(move |_| {
                let mut response = ok();
                *response.status_mut() = StatusCode::from_u16(code).unwrap();
                response
            }));
            let response = send(&service, user("alice")).await;
            assert_eq!(response.status(), code);
            match dialect {
                RateLimitHeaders::Draft => {
                    assert_eq!(list(response.headers(), "ratelimit")[0].1["r"], 8);
                }
                _ => assert_eq!(header(&response, "x-ratelimit-remaining"), Some("8")),
            }
            assert_eq!(header(&response, "retry-after"), None);
            assert_eq!(header(&response, "cache-control"), None, "not ours to say");
        }
    }
}

#[tokio::test]
async fn the_legacy_fields_report_the_tightest_quota() {
    let policy = Policy::new("roomy", Quota::per_day(1000)).and("tight", Quota::per_minute(2));
    let (layer, _clock) = timed(by_user, policy);
    let service = layer
        .headers(RateLimitHeaders::Legacy)
        .layer(Counting::default());
    let numbers = |response: &Response<_>| {
        ["limit", "remaining", "reset"].map(|name| {
            let value = header(response, &format!("x-ratelimit-{name}"));
            value.unwrap().parse::<u64>().unwrap()
        })
    };
    let response = send(&service, user("alice")).await;
    assert_eq!(numbers(&response), [2, 1, 30]);
    assert_eq!(header(&response, "ratelimit"), None);
    assert_eq!(header(&response, "ratelimit-policy"), None);
    assert_eq!(numbers(&send(&service, user("alice")).await), [2, 0, 60]);
    let refused = send(&service, user("alice")).await;
    assert_eq!(refused.status(), 429);
    assert_eq!(numbers(&refused), [2, 0, 60]);
    assert_eq!(retry_after(&refused), Some(30));
}

#[tokio::test]
async fn the_legacy_fields_of_two_layers_report_the_tighter() {
    for (outer, inner) in [(10, 5), (5, 10)] {
        let layer = |count| {
            RateLimitLayer::by(by_user, Quota::per_hour(count)).headers(RateLimitHeaders::Legacy)
        };
        let service = layer(outer).layer(layer(inner).layer(Counting::default()));
        let response = send(&service, user("alice")).await;
        assert_eq!(header(&response, "x-ratelimit-limit"), Some("5"));
        assert_eq!(header(&response, "x-ratelimit-remaining"), Some("4"));
    }
}

#[tokio::test]
async fn fields_that_are_off_leave_only_retry_after() {
    let (layer, _clock) = timed(by_user, Quota::per_hour(1));
    let service = layer
        .headers(RateLimitHeaders::Off)
        .layer(Counting::default());
    assert!(send(&service, user("alice")).await.headers().is_empty());
    let refused = send(&service, user("alice")).await;
    let names: Vec<_> = refused.headers().keys().map(|name| name.as_str()).collect();
    assert!(
        names.iter().all(|name| !name.contains("ratelimit")),
        "{names:?}"
    );
    assert_eq!(retry_after(&refused), Some(3600));
}

/// Every `t` of a rejection is at most its `Retry-After`.
fn assert_consistent<B>(refused: &Response<B>) {
    let wait = i64::try_from(retry_after(refused).unwrap()).unwrap();
    for (name, parameters) in list(refused.headers(), "ratelimit") {
        let reset = parameters.get("t");
        assert!(
            reset.is_none_or(|t| *t <= wait),
            "{name}: {parameters:?}, {wait}"
        );
    }
}

#[tokio::test]
async fn no_t_of_a_rejection_exceeds_retry_after() {
    let policy = Policy::new("s", Quota::per_second(3))
        .and("min", Quota::per_minute(7))
        .and("day", Quota::per_day(9));
    let (layer, clock) = timed(by_user, policy);
    let service = layer.layer(Counting::default());
    let mut refusals = 0;
    for round in 0..60u32 {
        clock.advance(Duration::from_millis(u64::from(round) * 37 % 1100));
        let response = send(&service, user("alice")).await;
        if response.status() == 429 {
            refusals += 1;
            assert_consistent(&response);
            let items = list(response.headers(), "ratelimit");
            let longest = items
                .iter()
                .filter_map(|(_, parameters)| parameters.get("t"))
                .max();
            assert_eq!(longest.copied(), retry_after(&response).map(|t| t as i64));
        }
    }
    assert!(refusals > 10);
}

#[tokio::test]
async fn no_t_of_an_outer_layer_exceeds_an_inner_retry_after() {
    let daily = RateLimitLayer::by(by_user, Policy::new("daily", Quota::per_day(10)));
    let burst = RateLimitLayer::by(
        by_user,
        Policy::new("burst", Quota::per_minute(60).burst(1)),
    );
    let service = daily.layer(burst.layer(Counting::default()));
    assert_eq!(status(&service, user("alice")).await, 200);
    let refused = send(&service, user("alice")).await;
    assert_eq!(refused.status(), 429);
    assert_consistent(&refused);

    let full = ConcurrencyLimitLayer::deny_all();
    let refused = send(&daily.layer(full.layer(Counting::default())), user("bob")).await;
    assert_eq!(refused.status(), 503);
    assert_consistent(&refused);
}

#[tokio::test]
async fn windows_are_in_whole_seconds_or_omitted() {
    for (quota, q, w) in [
        (Quota::per_second(100).burst(10), 10, None),
        (Quota::per_second(10), 10, Some(1)),
        (Quota::per_second(10).burst(11), 11, Some(1)),
        (Quota::per_second(10).burst(15), 15, Some(2)),
        (Quota::per_second(3), 3, Some(1)),
        (Quota::per_minute(7), 7, Some(60)),
        (Quota::per_hour(7), 7, Some(3600)),
        (Quota::new(1, Duration::from_nanos(1)), 1, None),
        (Quota::new(3, 10 * SECOND), 3, Some(10)),
    ] {
        let (layer, _clock) = timed(by_user, quota);
        let response = send(&layer.layer(Counting::default()), user("alice")).await;
        let (_, parameters) = &list(response.headers(), "ratelimit-policy")[0];
        assert_eq!(parameters["q"], q, "{quota}");
        assert_eq!(parameters.get("w").copied(), w, "{quota}");
    }
}

#[tokio::test]
async fn rejections_must_not_be_stored() {
    let rate = RateLimitLayer::by(by_user, Quota::deny_all()).layer(Counting::default());
    let full = ConcurrencyLimitLayer::deny_all().layer(Counting::default());
    for refused in [
        send(&rate, user("alice")).await.map(drop),
        send(&full, user("alice")).await.map(drop),
    ] {
        assert_eq!(header(&refused, "cache-control"), Some("no-store"));
    }
}

#[tokio::test]
async fn a_rejection_at_capacity_has_the_configured_wait() {
    for (wait, told) in [
        (Some(Duration::ZERO), None),
        (Some(Duration::from_millis(1)), Some(1)),
        (Some(Duration::from_millis(2500)), Some(3)),
        (Some(Duration::MAX), Some(u64::MAX)),
        (None, None),
    ] {
        let layer = ConcurrencyLimitLayer::deny_all().retry_after(wait);
        let refused = send(&layer.layer(Counting::default()), user("alice")).await;
        assert_eq!(retry_after(&refused), told, "{wait:?}");
    }
}

#[tokio::test]
async fn retry_after_ms_is_sent_only_if_configured() {
    let (layer, clock) = timed(by_user, Quota::per_second(2).burst(1));
    let without = layer.clone().layer(Counting::default());
    let with = layer.retry_after_ms(true).layer(Counting::default());
    let admitted = send(&with, user("alice")).await;
    assert_eq!(header(&admitted, "retry-after-ms"), None);
    clock.advance(Duration::from_nanos(123_456_789));
    let rejected = send(&with, user("alice")).await;
    assert_eq!(
        header(&rejected, "retry-after-ms"),
        Some("377"),
        "rounded up"
    );
    assert_eq!(retry_after(&rejected), Some(1));
    let rejected = send(&without, user("alice")).await;
    assert_eq!(header(&rejected, "retry-after-ms"), None);

    let full = ConcurrencyLimitLayer::deny_all().retry_after(Some(Duration::from_nanos(1)));
    let rejected = send(&full.clone().layer(Counting::default()), user("alice")).await;
    assert_eq!(header(&rejected, "retry-after-ms"), None);
    let full = full.retry_after_ms(true);
    let rejected = send(&full.layer(Counting::default()), user("alice")).await;
    assert_eq!(header(&rejected, "retry-after-ms"), Some("1"));
    let full = full.retry_after(None).layer(Counting::default());
    let rejected = send(&full, user("alice")).await;
    assert_eq!(header(&rejected, "retry-after-ms"), None);
}

#[tokio::test]
async fn retry_after_ms_never_contradicts_a_responder() {
    let layer = ConcurrencyLimitLayer::deny_all()
        .retry_after_ms(true)
        .respond(|_: &Rejection, _: RequestHead<'_>| {
            let mut response = Response::new("later");
            response
                .headers_mut()
                .insert("retry-after", "60".parse().unwrap());
            response
        });
    let rejected = send(&layer.layer(Counting::default()), user("alice")).await;
    assert_eq!(retry_after(&rejected), Some(60));
    assert_eq!(header(&rejected, "retry-after-ms"), None);
}

#[tokio::test]
async fn jitter_spreads_the_retries_of_rejected_clients() {
    let wait = Duration::from_secs(2);
    let layer = ConcurrencyLimitLayer::deny_all()
        .retry_after(Some(wait))
        .retry_after_jitter(100 * SECOND);
    let service = layer.clone().layer(Counting::default());
    let mut waits = std::collections::BTreeSet::new();
    for _ in 0..200 {
        let rejected = send(&service, user("alice")).await;
        let wait = retry_after(&rejected).unwrap();
        assert!((2..=102).contains(&wait), "{wait}");
        waits.insert(wait);
    }
    assert!(waits.len() > 1, "{waits:?}");
    // Without a configured wait there is nothing to spread.
    let service = layer.retry_after(None).layer(Counting::default());
    assert_eq!(retry_after(&send(&service, user("alice")).await), None);
    // A key at its own limit does not compete with other clients, so its wait has no jitter.
    let layer = ConcurrencyLimitLayer::new(9)
        .per_key(by_user, 1)
        .retry_after_jitter(100 * SECOND);
    let service = layer.layer(Counting::default());
    let _held = send(&service, user("alice")).await;
    for _ in 0..9 {
        assert_eq!(retry_after(&send(&service, user("alice")).await), Some(1));
    }
}
