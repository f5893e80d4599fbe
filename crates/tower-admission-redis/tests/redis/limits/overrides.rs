//! Overrides with an end, an author and a condition, in Redis.

use std::time::{Duration, SystemTime};

use tower_admission::test_util::TestClock;
use tower_admission::{LimitChange, Limits, LimitsError, Override};

use super::{name, set, shown, with_clock};
use crate::events::Log;
use crate::server::{Server, until};

fn entry(limit: &str) -> Override {
    Override::new(limit.parse().unwrap())
}

#[expect(clippy::disallowed_methods, reason = "ends are of the wall clock")]
fn end_after(lasts: Duration) -> SystemTime {
    SystemTime::now() + lasts
}

async fn last_changes(limits: &Limits) -> Vec<LimitChange> {
    limits.changes(9).await.unwrap()
}

#[tokio::test]
async fn the_end_the_note_and_the_author_reach_other_replicas() {
    let server = Server::start().await;
    let [here, there] = [(); 2].map(|()| Limits::in_store(&server.store()));
    let acme = name("org:acme");
    let noted = entry("20/h").with_end(end_after(Duration::from_secs(3600)));
    let noted = noted.with_note("ticket 4711: \"too many\"");
    let edit = here.edit(&acme).author("anna").origin("192.0.2.1");
    assert_eq!(edit.set(noted.clone()).await.unwrap(), None);
    there.refresh().await.unwrap();
    let read = there.get_override(&acme).unwrap();
    assert_eq!(Some(&read), here.get_override(&acme).as_ref());
    assert_eq!(read.end(), noted.end());
    assert_eq!(read.note(), noted.note());
    assert_eq!(read.author(), Some("anna"));
    assert!(read.changed_at().is_some());
    let deleted = there.edit(&acme).author("ben").delete().await.unwrap();
    assert_eq!(deleted.as_ref(), Some(&read));

    // The audit trail is the store's.
    let late = Limits::in_store(&server.store());
    let changes = last_changes(&late).await;
    let [second, first] = &changes[..] else {
        panic!("{changes:?}")
    };
    assert_eq!((&first.before, &first.after), (&None, &Some(read.clone())));
    assert_eq!(first.author.as_deref(), Some("anna"));
    assert_eq!(first.origin.as_deref(), Some("192.0.2.1"));
    assert_eq!((&second.before, &second.after), (&Some(read), &None));
    assert_eq!(
        (second.author.as_deref(), &second.origin),
        (Some("ben"), &None)
    );
    assert!(first.at <= second.at && !first.has_ended);
}

#[tokio::test]
async fn an_override_with_a_duration_ends_by_the_clock_of_redis() {
    let server = Server::start().await;
    // The clock of this replica is decades behind.
    let limits = with_clock(server.store(), TestClock::default());
    let acme = name("org:acme");
    let hour = Duration::from_secs(3600);
    let earliest = end_after(hour);
    let edit = limits.edit(&acme).lasting(hour);
    let noted = entry("20/h").with_note("end: 7");
    edit.set(noted).await.unwrap();
    let set = limits.get_override(&acme).unwrap();
    let is_right = |end: SystemTime| earliest <= end && end <= end_after(hour + hour / 60);
    assert!(set.end().is_some_and(is_right), "{:?}", set.end());
    assert_eq!(set.note(), Some("end: 7"));

    // The other replicas and the audit trail have the same, also of what was before.
    let other = Limits::in_store(&server.store());
    other.refresh().await.unwrap();
    assert_eq!(other.get_override(&acme).as_ref(), Some(&set));
    let edit = other.edit(&acme).only_if(Some(&set));
    assert_eq!(
        edit.set(entry("deny all")).await.unwrap().as_ref(),
        Some(&set)
    );
    let changes = last_changes(&limits).await;
    assert_eq!(changes[0].before.as_ref(), Some(&set));
    assert_eq!(changes[1].after.as_ref(), Some(&set));
}

#[tokio::test]
async fn the_audit_trail_keeps_the_last_changes() {
    let server = Server::start().await;
    let limits = Limits::in_store(&server.store());
    for n in 0..=Limits::MAX_CHANGES {
        set(&limits, &format!("{}/h", n + 1)).await;
    }
    let changes = limits.changes(usize::MAX).await.unwrap();
    assert_eq!(changes.len(), Limits::MAX_CHANGES);
    let first = changes[0].after.as_ref().unwrap();
    assert_eq!(first.limit().to_string(), "1001/h");
    // What others wrote there is no change.
    let trail = "{admission:limits}:audit";
    server.command(&["LPUSH", trail, "junk"]).await.unwrap();
    assert_eq!(limits.changes(2).await.unwrap().len(), 1);
}

#[tokio::test]
async fn one_of_two_operators_with_the_same_condition_succeeds() {
    let server = Server::start().await;
    let [here, there] = [(); 2].map(|()| Limits::in_store(&server.store()));
    let acme = name("org:acme");
    set(&here, "20/h").await;
    there.refresh().await.unwrap();
    let seen = here.get_override(&acme);
    let edit = async |limits: &Limits, limit: &str| {
        let edit = limits.edit(&acme).only_if(seen.as_ref());
        edit.set(entry(limit)).await
    };
    edit(&here, "30/h").await.unwrap();
    // It has not read that change yet, and the store has.
    let failed = edit(&there, "40/h").await;
    let Err(LimitsError::Changed { current }) = failed else {
        panic!("{failed:?}")
    };
    assert_eq!(current.unwrap().limit().to_string(), "30/h");
    let failed = there.edit(&acme).only_if(None).delete().await;
    assert!(
        matches!(failed, Err(LimitsError::Changed { .. })),
        "{failed:?}"
    );
    until("it is known", async || {
        shown(&there, "org:acme").await.as_deref() == Some("30/h")
    })
    .await;
}

/// As a person may write it.
#[tokio::test]
async fn a_condition_matches_an_override_in_another_notation() {
    let server = Server::start().await;
    let table = "{admission:limits}:of";
    let written = "  20/h \nauthor: anna";
    server
        .command(&["HSET", table, "org:acme", written])
        .await
        .unwrap();
    let limits = Limits::in_store(&server.store());
    limits.refresh().await.unwrap();
    let acme = name("org:acme");
    let seen = limits.get_override(&acme).unwrap();
    assert_eq!(seen.author(), Some("anna"));
    let edit = limits.edit(&acme).only_if(Some(&seen));
    assert_eq!(edit.set(entry("30/h")).await.unwrap(), Some(seen));
}

#[tokio::test]
async fn an_override_that_has_ended_is_deleted_in_the_store_once() {
    let server = Server::start().await;
    let replicas = [(); 3].map(|()| Limits::in_store(&server.store()));
    let acme = name("org:acme");
    let ending = entry("20/h").with_end(end_after(Duration::from_secs(1)));
    replicas[0].edit(&acme).set(ending).await.unwrap();
    until("it has ended everywhere", async || {
        let table = server.command(&["HGET", "{admission:limits}:of", "org:acme"]);
        let is_there = table.await.unwrap() != redis::Value::Nil;
        !is_there && replicas.iter().all(Limits::is_empty)
    })
    .await;
    let changes = last_changes(&replicas[1]).await;
    let [ended, set] = &changes[..] else {
        panic!("{changes:?}")
    };
    assert!(ended.has_ended && !set.has_ended);
    assert_eq!(ended.before, set.after);
    // One of a later operator stays.
    set_and_keep(&server, &replicas[2]).await;
}

/// Ends are by the clock of Redis, and this replica's is an hour ahead.
#[tokio::test]
async fn a_clock_that_is_briefly_ahead_deletes_no_override() {
    let server = Server::start().await;
    let log = Log::default();
    let _logging = log.collect();
    let clock = TestClock::default();
    let limits = with_clock(server.store(), clock.clone());
    let right = end_after(Duration::ZERO);
    let behind = right.duration_since(clock.wall_clock()).unwrap();
    let hour = Duration::from_secs(3600);
    clock.advance(behind + hour);
    let acme = name("org:acme");
    let banned = entry("deny all");
    let edit = limits.edit(&acme).lasting(hour / 2);
    edit.set(banned.clone()).await.unwrap();
    limits.refresh().await.unwrap();
    // Here it has ended, and the store keeps it.
    assert_eq!((limits.get(&acme), limits.len()), (None, 0));
    until("the replica knows that it is ahead", async || {
        let lines = log.take();
        let is_ahead = |line: &&String| line.contains("ahead of the clock of the store");
        lines.iter().filter(is_ahead).count() == 1
    })
    .await;
    let is_there = ["HEXISTS", "{admission:limits}:of", "org:acme"];
    let is_there = server.command(&is_there).await.unwrap();
    assert_eq!(is_there, redis::Value::Int(1));

    clock.step_back(hour);
    assert_eq!(limits.get(&acme).as_ref(), Some(banned.limit()));
    let listed = limits.list();
    assert_eq!(listed.len(), 1, "{listed:?}");
    assert_eq!(last_changes(&limits).await.len(), 1);
}

async fn set_and_keep(server: &Server, limits: &Limits) {
    set(limits, "25/h").await;
    limits.refresh().await.unwrap();
    assert_eq!(shown(limits, "org:acme").await.as_deref(), Some("25/h"));
    let stored = server
        .word(&["HGET", "{admission:limits}:of", "org:acme"])
        .await;
    assert!(stored.starts_with("25/h\n"), "{stored}");
}

/// It is none to operators, and the store has it until a replica deletes it.
#[tokio::test]
async fn an_override_can_be_set_where_one_has_just_ended() {
    let server = Server::start().await;
    // The clock of this replica is ahead of that of Redis.
    let clock = TestClock::default();
    let limits = with_clock(server.store(), clock.clone());
    let behind = end_after(Duration::ZERO).duration_since(clock.wall_clock());
    clock.advance(behind.unwrap() + Duration::from_secs(60));
    let acme = name("org:acme");
    let edit = limits.edit(&acme).lasting(Duration::from_secs(30));
    edit.set(entry("deny all")).await.unwrap();
    assert_eq!(limits.get_override(&acme), None);
    let edit = || limits.edit(&acme).only_if(None);
    edit().set(entry("5/h")).await.unwrap();
    let failed = edit().set(entry("6/h")).await;
    let Err(LimitsError::Changed { current }) = failed else {
        panic!("{failed:?}")
    };
    assert_eq!(current.unwrap().limit().to_string(), "5/h");
}
