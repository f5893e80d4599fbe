//! Changes with an author, and conditional changes.

use std::time::Duration;

use tower_admission::{Limits, LimitsError, Override, Quota};

use crate::{Bench, SECOND, name, now};

fn entry(limit: &str) -> Override {
    Override::new(limit.parse().unwrap())
}

#[tokio::test]
async fn a_change_records_its_author_and_the_previous_override() {
    let bench = Bench::new(Quota::per_hour(10));
    let (limits, acme) = (&bench.limits, name("org:acme"));
    let edit = || limits.edit(&acme).author("anna").origin("192.0.2.1");
    edit()
        .set(entry("20/h").with_note("ticket 4711"))
        .await
        .unwrap();
    let set = limits.get_override(&acme).unwrap();
    assert_eq!(set.author(), Some("anna"));
    assert_eq!(set.note(), Some("ticket 4711"));
    assert_eq!(set.changed_at(), Some(bench.clock.wall_clock()));
    let before = edit().delete().await.unwrap();
    assert_eq!(before.as_ref(), Some(&set));
    // A deletion of nothing is no change.
    assert_eq!(edit().delete().await.unwrap(), None);

    let changes = limits.changes(9).await.unwrap();
    let [deleted, first] = &changes[..] else {
        panic!("{changes:?}")
    };
    assert_eq!((&first.before, &first.after), (&None, &Some(set.clone())));
    assert_eq!((&deleted.before, &deleted.after), (&Some(set), &None));
    for change in &changes {
        assert_eq!(change.key.as_ref(), Some(&acme));
        assert_eq!(change.author.as_deref(), Some("anna"));
        assert_eq!(change.origin.as_deref(), Some("192.0.2.1"));
        assert_eq!(change.at, bench.clock.wall_clock());
    }
}

#[test]
fn an_override_with_a_duration_ends_by_the_process_clock() {
    let bench = Bench::new(Quota::per_hour(10));
    bench.clock.advance(SECOND / 2);
    let acme = name("org:acme");
    let noted = entry("20/h").with_note("ticket 4711");
    let edit = || bench.limits.edit(&acme).lasting(60 * SECOND);
    now(edit().set(noted.clone().with_end(bench.clock.wall_clock()))).unwrap();
    let set = bench.limits.get_override(&acme).unwrap();
    let end = bench.clock.wall_clock() + 60 * SECOND + SECOND / 2;
    assert_eq!((set.end(), set.note()), (Some(end), Some("ticket 4711")));
    // No duration panics.
    now(edit().lasting(Duration::MAX).set(noted)).unwrap();
    assert!(bench.limits.get_override(&acme).unwrap().end() > Some(end));

    // The audit trail has the previous override in full, so that it can be restored.
    now(bench.limits.edit(&acme).set(set.clone())).unwrap();
    now(bench.limits.edit(&acme).set(entry("deny all"))).unwrap();
    let before = now(bench.limits.changes(1)).unwrap()[0].before.clone();
    assert_eq!(before.unwrap().end(), set.end());
}

#[tokio::test]
async fn the_audit_trail_is_bounded() {
    let limits = Limits::new();
    for n in 0..=Limits::MAX_CHANGES {
        let limit = format!("{}/h", n + 1).parse().unwrap();
        limits.set(&name("org:acme"), limit).await.unwrap();
    }
    let changes = limits.changes(usize::MAX).await.unwrap();
    assert_eq!(changes.len(), Limits::MAX_CHANGES);
    assert_eq!(
        changes[0].after.as_ref().unwrap().limit().to_string(),
        "1001/h"
    );
    let last = changes.last().unwrap();
    assert_eq!(last.after.as_ref().unwrap().limit().to_string(), "2/h");
    assert_eq!(limits.changes(3).await.unwrap(), changes[..3]);
}

#[test]
fn a_conditional_change_detects_a_concurrent_change() {
    let bench = Bench::new(Quota::per_hour(10));
    let (limits, acme) = (&bench.limits, name("org:acme"));
    let changed = |error| match error {
        LimitsError::Changed { current } => current.map(|own| own.limit().to_string()),
        other => panic!("{other}"),
    };
    now(limits.edit(&acme).only_if(None).set(entry("20/h"))).unwrap();
    let first = limits.get_override(&acme);
    let failed = now(limits.edit(&acme).only_if(None).set(entry("30/h")));
    assert_eq!(changed(failed.unwrap_err()).as_deref(), Some("20/h"));
    now(limits
        .edit(&acme)
        .only_if(first.as_ref())
        .set(entry("30/h")))
    .unwrap();
    let failed = now(limits.edit(&acme).only_if(first.as_ref()).delete());
    assert_eq!(changed(failed.unwrap_err()).as_deref(), Some("30/h"));
    bench.delete("org:acme");
    let failed = now(limits.edit(&acme).only_if(first.as_ref()).delete());
    assert_eq!(changed(failed.unwrap_err()), None);
    now(limits.edit(&acme).only_if(None).delete()).unwrap();
}

/// Also if the key was known by its fingerprint and has a name now.
#[test]
fn a_condition_applies_to_the_key_under_any_name() {
    let bench = Bench::new(Quota::per_hour(10));
    let limits = &bench.limits;
    let fingerprint = limits.name_of(&crate::acme());
    now(limits.set(&fingerprint, "20/h".parse().unwrap())).unwrap();
    let current = limits.get_override(&fingerprint);
    let acme = name("org:acme");
    let failed = now(limits.edit(&acme).only_if(None).set(entry("30/h")));
    assert!(
        matches!(failed, Err(LimitsError::Changed { .. })),
        "{failed:?}"
    );
    let before = now(limits
        .edit(&acme)
        .only_if(current.as_ref())
        .set(entry("30/h")));
    assert_eq!(before.unwrap(), current);
    assert_eq!(limits.len(), 1);
    assert_eq!(limits.name_of(&crate::acme()), acme);
}
