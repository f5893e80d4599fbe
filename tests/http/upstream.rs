//! Limits that a proxied service reports, together with those of a layer.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::FutureExt;
use http::{HeaderMap, HeaderName, HeaderValue, Response};
use proptest::collection::vec;
use proptest::prelude::*;
use sfv::{BareItem, FieldType, List, ListEntry, Parser};
use tower::Layer;
use tower_admission::{Policy, Quota, RateLimitHeaders, RateLimitLayer};

use crate::common::{Counting, Ok200, answering, by_user, header, ok, send, timed, user};

/// The names of a field's members, each with its parameters, read as RFC 9651 does.
fn members(headers: &HeaderMap, field: &str) -> Result<Vec<(String, String)>, String> {
    let lines: Vec<_> = headers
        .get_all(field)
        .iter()
        .map(|l| l.as_bytes())
        .collect();
    let field = lines.join(&b", "[..]);
    let shown = String::from_utf8_lossy(&field);
    let list: List = Parser::new(&field[..])
        .parse()
        .map_err(|error| format!("{error}: {shown}"))?;
    let member = |entry| match entry {
        ListEntry::Item(sfv::Item {
            bare_item: BareItem::String(name),
            params,
        }) => {
            let text = vec![ListEntry::Item(sfv::Item {
                bare_item: BareItem::Boolean(true),
                params,
            })];
            Ok((name.as_str().to_owned(), text.serialize().unwrap()))
        }
        _ => Err(format!("no String: {shown}")),
    };
    list.into_iter().map(member).collect()
}

type Lines = Vec<(&'static str, Vec<u8>)>;

/// The fields that a client reads from a service with these lines, behind a layer.
fn proxied(
    policy: Policy,
    dialect: RateLimitHeaders,
    lines: &Lines,
) -> Response<impl Sized + use<>> {
    let (layer, _clock) = timed(by_user, policy);
    let lines = lines.clone();
    let service = layer.headers(dialect).layer(answering(move |_| {
        let mut response: Ok200 = ok();
        for (name, value) in &lines {
            let name = HeaderName::from_static(name);
            let value = HeaderValue::from_bytes(value).unwrap();
            response.headers_mut().append(name, value);
        }
        response
    }));
    send(&service, user("alice")).now_or_never().unwrap()
}

fn line(name: &'static str, value: &str) -> (&'static str, Vec<u8>) {
    (name, value.as_bytes().to_vec())
}

fn names(headers: &HeaderMap, field: &str) -> Vec<String> {
    let members = members(headers, field).unwrap();
    members.into_iter().map(|(name, _)| name).collect()
}

#[test]
fn a_member_with_the_name_of_a_quota_is_replaced_and_others_stay() {
    let upstream = vec![
        line("ratelimit", r#""default";r=7;t=9, "theirs";r=3;t=2"#),
        line("ratelimit-policy", r#""theirs";q=5;w=10;pk=:AAA=:"#),
        line("ratelimit-policy", r#""default";q=100;w=60"#),
    ];
    let policy = Policy::from(Quota::per_hour(5));
    let response = proxied(policy, RateLimitHeaders::Draft, &upstream);
    let member = |name: &str, parameters: &str| (name.to_owned(), parameters.to_owned());
    assert_eq!(
        members(response.headers(), "ratelimit").unwrap(),
        [
            member("theirs", "?1;r=3;t=2"),
            member("default", "?1;r=4;t=720")
        ]
    );
    assert_eq!(
        members(response.headers(), "ratelimit-policy").unwrap(),
        [
            member("theirs", "?1;q=5;w=10;pk=:AAA=:"),
            member("default", "?1;q=5;w=3600")
        ]
    );
}

#[test]
fn an_invalid_field_is_replaced() {
    for theirs in [
        "limit=100, remaining=50, reset=30",
        "100, 100;w=60",
        "\"theirs\";r=1,",
        "\"theirs",
        "",
        "\"ä\";r=1",
    ] {
        let upstream = vec![line("ratelimit", theirs), line("ratelimit-policy", theirs)];
        let policy = Policy::from(Quota::per_hour(5));
        let response = proxied(policy, RateLimitHeaders::Draft, &upstream);
        for field in ["ratelimit", "ratelimit-policy"] {
            assert_eq!(names(response.headers(), field), ["default"], "{theirs}");
        }
    }
}

#[tokio::test]
async fn two_layers_with_one_quota_name_report_it_once() {
    let layer = |count| RateLimitLayer::by(by_user, Quota::per_hour(count));
    let service = layer(10).layer(layer(5).layer(Counting::default()));
    let response = send(&service, user("alice")).await;
    for field in ["ratelimit", "ratelimit-policy"] {
        assert_eq!(names(response.headers(), field), ["default"]);
    }
}

/// Text of which some is a member of a list.
fn text() -> impl Strategy<Value = Vec<u8>> {
    let known = [
        r#""default";r=1;t=2"#,
        r#""a \"b\"";q=9"#,
        r#""theirs";r=3"#,
        r#""theirs";q=3;w=9"#,
        r#""other""#,
        "token;r=1",
        "100;w=60",
        r#"("default" "x")"#,
        "limit=100",
        "remaining=50",
        ", ",
        ",",
        ";",
        "\"",
    ];
    let part = prop_oneof![
        6 => prop::sample::select(known.map(str::as_bytes).to_vec()).prop_map(<[u8]>::to_vec),
        1 => vec(prop_oneof![Just(b'\t'), 32..=126u8, 128..=255u8], 0..8),
    ];
    let separator = prop_oneof![8 => Just(", "), 1 => Just("")];
    (vec(part, 0..5), separator).prop_map(|(parts, separator)| parts.join(separator.as_bytes()))
}

proptest! {
    #[test]
    fn the_fields_of_any_upstream_merge_into_one_list(
        limits in vec(text(), 0..4),
        policies in vec(text(), 0..4),
    ) {
        let lines = |field, values: Vec<Vec<u8>>| values.into_iter().map(move |value| (field, value));
        let upstream = lines("ratelimit", limits).chain(lines("ratelimit-policy", policies));
        let policy = Policy::from(Quota::per_hour(5)).and(r#"a "b""#, Quota::per_day(9));
        let response = proxied(policy, RateLimitHeaders::Draft, &upstream.collect());
        for (field, ours) in [
            ("ratelimit", ["?1;r=4;t=720", "?1;r=8;t=9600"]),
            ("ratelimit-policy", ["?1;q=5;w=3600", "?1;q=9;w=86400"]),
        ] {
            let members = members(response.headers(), field).map_err(TestCaseError::fail)?;
            let by_name: BTreeMap<_, _> = members.iter().cloned().collect();
            prop_assert_eq!(by_name.len(), members.len(), "{:?}", members);
            prop_assert_eq!(&by_name["default"], ours[0]);
            prop_assert_eq!(&by_name[r#"a "b""#], ours[1]);
        }
    }
}

/// The three fields that begin with `prefix`, as a client reads them.
fn three(response: &Response<impl Sized>, prefix: &str) -> [u64; 3] {
    ["limit", "remaining", "reset"].map(|field| {
        let value = header(response, &format!("{prefix}-{field}"));
        value.unwrap().parse().unwrap()
    })
}

#[test]
fn three_separate_fields_report_one_limit() {
    const OURS: [u64; 3] = [5, 4, 720];
    for (dialect, prefix) in [
        (RateLimitHeaders::Legacy, "x-ratelimit"),
        (RateLimitHeaders::Draft6, "ratelimit"),
    ] {
        let names = match dialect {
            RateLimitHeaders::Draft6 => {
                ["ratelimit-limit", "ratelimit-remaining", "ratelimit-reset"]
            }
            _ => [
                "x-ratelimit-limit",
                "x-ratelimit-remaining",
                "x-ratelimit-reset",
            ],
        };
        let told = |upstream: &[(usize, &str)]| {
            let upstream = upstream.iter().map(|(at, value)| line(names[*at], value));
            let policy = Policy::from(Quota::per_hour(5));
            three(&proxied(policy, dialect, &upstream.collect()), prefix)
        };
        // Some of them, several of one, or others than numbers of seconds.
        assert_eq!(told(&[]), OURS);
        assert_eq!(told(&[(1, "1")]), OURS);
        assert_eq!(told(&[(0, "9"), (1, "1")]), OURS);
        assert_eq!(told(&[(0, "9"), (2, "1")]), OURS);
        assert_eq!(told(&[(0, "9"), (1, "1"), (2, "soon")]), OURS);
        assert_eq!(told(&[(0, "9"), (1, "+1"), (2, "60")]), OURS);
        assert_eq!(told(&[(0, "9"), (1, "-1"), (2, "60")]), OURS);
        assert_eq!(told(&[(0, "9"), (1, ""), (2, "60")]), OURS);
        assert_eq!(told(&[(0, "9, 9;w=1"), (1, "1"), (2, "60")]), OURS);
        assert_eq!(told(&[(0, "9"), (1, "1"), (1, "2"), (2, "60")]), OURS);
        assert_eq!(told(&[(0, "9"), (1, "1"), (2, "1800000000")]), OURS);
        // The tighter limit is reported as a whole.
        assert_eq!(told(&[(0, "9"), (1, "3"), (2, "60")]), [9, 3, 60]);
        assert_eq!(told(&[(0, "9"), (1, "5"), (2, "60")]), OURS);
        // With equal remaining requests, the one that resets later.
        assert_eq!(told(&[(0, "9"), (1, "4"), (2, "721")]), [9, 4, 721]);
        assert_eq!(told(&[(0, "9"), (1, "4"), (2, "719")]), OURS);
    }
}

#[test]
fn of_two_quotas_with_equal_remaining_the_one_that_resets_later_is_reported() {
    let (short, long) = (Quota::per_minute(3), Quota::per_hour(3));
    for policy in [
        Policy::new("short", short).and("long", long),
        Policy::new("long", long).and("short", short),
    ] {
        let response = proxied(policy, RateLimitHeaders::Legacy, &Vec::new());
        assert_eq!(three(&response, "x-ratelimit"), [3, 2, 1200]);
    }
}

#[test]
fn the_draft_6_fields_report_policies_with_a_window() {
    let policy = Policy::new("burst", Quota::per_second(10).burst(20))
        .and("short", Quota::per_second(100).burst(50))
        .and("daily", Quota::per_day(1000));
    let response = proxied(policy, RateLimitHeaders::Draft6, &Vec::new());
    assert_eq!(three(&response, "ratelimit"), [20, 19, 1]);
    assert_eq!(
        header(&response, "ratelimit-policy"),
        Some("20;w=2, 1000;w=86400")
    );
    assert_eq!(header(&response, "ratelimit"), None);
    assert_eq!(header(&response, "x-ratelimit-limit"), None);
    // The policy goes with the numbers: that of a tighter upstream stays, any other is replaced.
    for (remaining, expected) in [("1", "7;w=9"), ("9", "5;w=3600")] {
        let upstream = vec![
            line("ratelimit-limit", "7"),
            line("ratelimit-remaining", remaining),
            line("ratelimit-reset", "8"),
            line("ratelimit-policy", "7;w=9"),
        ];
        let policy = Policy::from(Quota::per_hour(5));
        let response = proxied(policy, RateLimitHeaders::Draft6, &upstream);
        assert_eq!(header(&response, "ratelimit-policy"), Some(expected));
    }
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the layer reads the wall clock")]
fn a_reset_as_a_timestamp_is_never_too_early() {
    let epoch = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let told = |upstream: Lines| {
        let policy = Policy::from(Quota::per_hour(5));
        let response = proxied(policy, RateLimitHeaders::LegacyEpoch, &upstream);
        three(&response, "x-ratelimit")
    };
    let wait = Duration::from_secs(720);
    for reset in ["", "60"] {
        // Seconds reported by an upstream are not mixed with timestamps.
        let upstream = vec![
            line("x-ratelimit-limit", "9"),
            line("x-ratelimit-remaining", "1"),
            line("x-ratelimit-reset", reset),
        ];
        let before = epoch() + wait;
        let [limit, remaining, reset] = told(upstream);
        let after = epoch() + wait;
        assert_eq!([limit, remaining], [5, 4]);
        assert!(Duration::from_secs(reset) >= before);
        assert!(reset <= after.as_secs() + 1);
    }
    let tighter = vec![
        line("x-ratelimit-limit", "9"),
        line("x-ratelimit-remaining", "1"),
        line("x-ratelimit-reset", "1800000000"),
    ];
    assert_eq!(told(tighter), [9, 1, 1_800_000_000]);
}
