//! Reports of changes that other processes made, and of vanished overrides.

use std::collections::BTreeMap;
use std::time::Duration;

use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use tower_admission::{Limits, LimitsError, Override};

use super::{name, set, shown};
use crate::events::Log;
use crate::server::{Server, until};

const TABLE: &str = "{admission:limits}:of";

fn entry(limit: &str) -> Override {
    Override::new(limit.parse().unwrap())
}

/// What was counted of changes, by kind and origin. A snapshot takes the counts away.
#[derive(Default)]
struct Counted(BTreeMap<String, u64>);

impl Counted {
    fn add(&mut self, snapshotter: &Snapshotter) -> &BTreeMap<String, u64> {
        for (key, _, _, value) in snapshotter.snapshot().into_vec() {
            let DebugValue::Counter(count @ 1..) = value else {
                continue;
            };
            if key.key().name() == "admission_limit_changes_total" {
                let labels = key.key().labels().map(|label| label.value());
                let labels: Vec<_> = labels.collect();
                *self.0.entry(labels.join(", ")).or_default() += count;
            }
        }
        &self.0
    }
}

fn gauge(snapshotter: &Snapshotter, name: &str) -> Option<f64> {
    let metrics = snapshotter.snapshot().into_vec();
    metrics.into_iter().find_map(|(key, _, _, value)| {
        let DebugValue::Gauge(value) = value else {
            return None;
        };
        (key.key().name() == name).then_some(*value)
    })
}

#[tokio::test]
async fn a_replica_logs_and_counts_each_change_of_another_process_once() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _recording = metrics::set_default_local_recorder(&recorder);
    let log = Log::default();
    let _logging = log.collect();
    let server = Server::start().await;
    let early = Limits::in_store(&server.store());
    early
        .set(&name("org:old"), "1/h".parse().unwrap())
        .await
        .unwrap();
    // It does not hear of what was changed before it started.
    let there = Limits::in_store(&server.store());
    there.refresh().await.unwrap();
    drop(early);
    let here = Limits::in_store(&server.store());
    here.refresh().await.unwrap();
    Counted::default().add(&snapshotter);
    log.take();

    let acme = name("org:acme");
    let by = || here.edit(&acme).author("anna").origin("192.0.2.1");
    // Both are there before they are read.
    by().set(entry("5/h")).await.unwrap();
    by().set(entry("6/h").with_note("ticket 4711"))
        .await
        .unwrap();
    by().delete().await.unwrap();
    let ending = here.edit(&acme).lasting(Duration::from_millis(1));
    ending.set(entry("deny all")).await.unwrap();
    let mut counted = Counted::default();
    let expected = [
        ("override deleted, elsewhere", 1),
        ("override deleted, here", 1),
        ("override ended, elsewhere", 1),
        ("override ended, here", 1),
        ("override set, elsewhere", 3),
        ("override set, here", 3),
    ];
    let expected = expected.map(|(kind, count)| (kind.to_owned(), count));
    let expected = BTreeMap::from(expected);
    let counted = tokio::sync::Mutex::new(&mut counted);
    until("all are counted", async || {
        let mut counted = counted.lock().await;
        there.refresh().await.unwrap();
        here.refresh().await.unwrap();
        *counted.add(&snapshotter) == expected
    })
    .await;
    // Reading everything anew tells nothing twice.
    here.clear_caches().await.unwrap();
    there.refresh().await.unwrap();
    assert_eq!(*counted.lock().await.add(&snapshotter), expected);

    let lines = log.take();
    let of = |word: &str| {
        let has = |line: &&String| {
            line.contains(word) && line.contains("made=\"elsewhere\"") && line.contains("org:acme")
        };
        lines.iter().filter(has).collect::<Vec<_>>()
    };
    assert_eq!(of("override set").len(), 3, "{lines:?}");
    let second = of("override set")[1];
    for part in [
        "author=\"anna\"",
        "192.0.2.1",
        "6/h",
        "ticket 4711",
        "before=\"5/h\"",
    ] {
        assert!(second.contains(part), "{part}: {second}");
    }
    let deleted = of("override deleted")[0];
    assert!(
        deleted.contains("anna") && deleted.contains("before=\"6/h\""),
        "{deleted}"
    );
    assert_eq!(of("override ended").len(), 1, "{lines:?}");
}

/// An operator hangs up while the change is made.
#[tokio::test]
async fn a_change_whose_future_is_dropped_is_counted() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _recording = metrics::set_default_local_recorder(&recorder);
    let server = Server::start().await;
    let limits = Limits::in_store(&server.store());
    set(&limits, "5/h").await;
    limits.refresh().await.unwrap();
    let acme = name("org:acme");
    Counted::default().add(&snapshotter);
    begin_and_drop(&limits, &server, "2").await;
    let mut counted = Counted::default();
    let counted = tokio::sync::Mutex::new(&mut counted);
    until("it is counted", async || {
        limits.refresh().await.unwrap();
        !counted.lock().await.add(&snapshotter).is_empty()
    })
    .await;
    assert_eq!(shown(&limits, acme.as_str()).await.as_deref(), Some("7/h"));
}

/// Begins a change whose future is dropped once Redis has made it, and before its answer is looked at.
async fn begin_and_drop(limits: &Limits, server: &Server, version: &str) {
    let acme = name("org:acme");
    let mut set = tokio_test::task::spawn(limits.set(&acme, "7/h".parse().unwrap()));
    assert!(set.poll().is_pending());
    until("Redis has made it", async || {
        let state = ["HGET", "{admission:limits}:state", "version"];
        let found = server.command(&state).await.unwrap();
        found == redis::Value::BulkString(version.into())
    })
    .await;
}

#[tokio::test]
async fn all_replicas_notice_a_failover_when_the_change_that_finds_it_is_dropped() {
    let server = Server::start().await;
    let [here, there] = [(); 2].map(|()| Limits::in_store(&server.store()));
    set(&here, "5/h").await;
    let lost = name("org:lost");
    here.set(&lost, "2/h".parse().unwrap()).await.unwrap();
    for limits in [&here, &there] {
        limits.refresh().await.unwrap();
        assert_eq!(limits.len(), 2);
    }
    // At once, so that no replica reads in between.
    let mut connection = server.connection().await.unwrap();
    let mut lose = redis::pipe();
    lose.atomic().hdel(TABLE, "org:lost").ignore();
    lose.zrem("{admission:limits}:changes", "org:lost").ignore();
    lose.hset("{admission:limits}:state", "version", 1).ignore();
    let _: () = lose.query_async(&mut connection).await.unwrap();
    begin_and_drop(&here, &server, "2").await;
    until("both know what is lost", async || {
        let is_known = |limits: &Limits| limits.lost() == 1 && limits.get(&lost).is_some();
        is_known(&here) && is_known(&there)
    })
    .await;
}

#[tokio::test]
async fn an_accepted_loss_is_in_the_audit_trail_and_in_the_log_of_each_replica() {
    let server = Server::start().await;
    let log = Log::default();
    let _logging = log.collect();
    let [here, there] = [(); 2].map(|()| Limits::in_store(&server.store()));
    for n in 0..12 {
        let key = name(&format!("org:{n}"));
        here.set(&key, "25/h".parse().unwrap()).await.unwrap();
    }
    there.refresh().await.unwrap();
    server.clear().await;
    until("the loss is seen", async || {
        here.lost() == 12 && there.lost() == 12
    })
    .await;
    // What was deleted meanwhile was before what it is in the audit trail.
    let deleted = here.delete(&name("org:0")).await.unwrap();
    assert!(deleted.is_some());
    log.take();
    here.accept_loss_by(Some("anna"), Some("192.0.2.1"))
        .await
        .unwrap();
    until("both have dropped them", async || {
        here.is_empty() && there.is_empty()
    })
    .await;
    let changes = here.changes(9).await.unwrap();
    assert_eq!(changes.len(), 2, "{changes:?}");
    assert_eq!((&changes[0].key, &changes[0].after), (&None, &None));
    assert_eq!(changes[0].author.as_deref(), Some("anna"));
    assert_eq!(changes[0].origin.as_deref(), Some("192.0.2.1"));
    let before = changes[1].before.as_ref().unwrap();
    assert_eq!(before.limit().to_string(), "25/h");
    let lines = log.take();
    let dropped = |line: &&String| line.contains("because an operator accepted the loss");
    let dropped: Vec<_> = lines.iter().filter(dropped).collect();
    assert_eq!(dropped.len(), 2, "{lines:?}");
    for line in dropped {
        assert!(
            line.starts_with("WARN") && line.contains("overrides=11"),
            "{line}"
        );
        assert!(
            line.contains("org:1, ") && !line.contains("org:9"),
            "{line}"
        );
    }
    let accepted = |line: &&String| line.contains("loss of overrides accepted");
    assert_eq!(lines.iter().filter(accepted).count(), 2, "{lines:?}");
}

#[tokio::test]
async fn an_override_that_vanishes_without_a_loss_is_logged() {
    let server = Server::start().await;
    let log = Log::default();
    let limits = Limits::in_store(&server.store());
    set(&limits, "5/h").await;
    limits.refresh().await.unwrap();
    let deleted = name("org:deleted");
    limits.set(&deleted, "5/h".parse().unwrap()).await.unwrap();
    limits.refresh().await.unwrap();
    let _logging = log.collect();
    let other = Limits::in_store(&server.store());
    other.delete(&deleted).await.unwrap();
    server.command(&["HDEL", TABLE, "org:acme"]).await.unwrap();
    limits.clear_caches().await.unwrap();
    assert_eq!((limits.len(), limits.lost()), (0, 0));
    let lines = log.take();
    let gone = |line: &&String| line.contains("missing from the store");
    let gone: Vec<_> = lines.iter().filter(gone).collect();
    assert!(
        gone.iter().any(|line| line.contains("first=\"org:acme\"")),
        "{lines:?}"
    );
    assert!(
        !gone.iter().any(|line| line.contains("deleted;")),
        "{lines:?}"
    );
}

#[tokio::test]
async fn an_unreadable_override_keeps_the_previous_one_in_force() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _recording = metrics::set_default_local_recorder(&recorder);
    let log = Log::default();
    let _logging = log.collect();
    let server = Server::start().await;
    let limits = Limits::in_store(&server.store());
    set(&limits, "5/h").await;
    limits.refresh().await.unwrap();
    let acme = name("org:acme");
    let seen = limits.get_override(&acme).unwrap();
    log.take();

    // As a later version writes it.
    let later = "5/h per shard\nend: 7";
    for write in [
        &["HSET", TABLE, "org:acme", later][..],
        &["HINCRBY", "{admission:limits}:state", "version", "1"],
        &["ZADD", "{admission:limits}:changes", "2", "org:acme"],
        &["HSET", TABLE, "ip:192.0.2.0/24", "5/h"],
    ] {
        server.command(write).await.unwrap();
    }
    limits.refresh().await.unwrap();
    assert_eq!(&*limits.unreadable()[0], "org:acme");
    limits.clear_caches().await.unwrap();
    limits.clear_caches().await.unwrap();
    assert_eq!(limits.unreadable().len(), 2);
    assert_eq!(
        gauge(&snapshotter, "admission_limits_unreadable"),
        Some(2.0)
    );
    assert_eq!(limits.get_override(&acme).as_ref(), Some(&seen));
    let lines = log.take();
    let warned =
        |line: &&String| line.starts_with("WARN") && line.contains("cannot read an override");
    assert_eq!(lines.iter().filter(warned).count(), 2, "{lines:?}");

    for expected in [Some(&seen), None] {
        let edit = || limits.edit(&acme).only_if(expected);
        for changed in [edit().set(entry("6/h")).await, edit().delete().await] {
            assert!(
                matches!(changed, Err(LimitsError::Unreadable)),
                "{changed:?}"
            );
        }
    }
    assert_eq!(server.word(&["HGET", TABLE, "org:acme"]).await, later);
    // A replica that starts now has none, and knows that it lacks them.
    let late = Limits::in_store(&server.store());
    late.refresh().await.unwrap();
    assert_eq!((late.len(), late.unreadable().len()), (0, 2));
    // Without a condition it is replaced.
    set(&limits, "6/h").await;
    limits.delete(&name("ip:192.0.2.0/24")).await.unwrap();
    until("all can be read", async || {
        limits.refresh().await.unwrap();
        late.refresh().await.unwrap();
        limits.unreadable().is_empty() && late.unreadable().is_empty()
    })
    .await;
    assert_eq!(shown(&late, "org:acme").await.as_deref(), Some("6/h"));
}

/// A change that is not in the journal is found though the version alone tells of it.
#[tokio::test]
async fn a_change_that_the_journal_lost_is_read() {
    let server = Server::start().await;
    let limits = Limits::in_store(&server.store());
    set(&limits, "5/h").await;
    limits.refresh().await.unwrap();
    let mut connection = server.connection().await.unwrap();
    let mut change = redis::pipe();
    change.atomic().hset(TABLE, "org:acme", "6/h").ignore();
    change
        .hincr("{admission:limits}:state", "version", 1)
        .ignore();
    let _: () = change.query_async(&mut connection).await.unwrap();
    limits.refresh().await.unwrap();
    assert_eq!(shown(&limits, "org:acme").await.as_deref(), Some("6/h"));
}

#[tokio::test]
async fn a_new_process_deletes_an_override_by_any_name_of_the_key() {
    let server = Server::start().await;
    let limits = Limits::in_store(&server.store());
    set(&limits, "5/h").await;
    let fingerprint = tower_admission::KeyName::from(name("org:acme").key());
    assert_ne!(fingerprint, name("org:acme"));
    let late = Limits::in_store(&server.store());
    let deleted = late.delete(&fingerprint).await.unwrap();
    assert_eq!(deleted.unwrap().to_string(), "5/h");
}

/// During an upgrade a newer version sets overrides that this one cannot read.
#[tokio::test]
async fn a_change_to_an_unreadable_override_is_no_deletion() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _recording = metrics::set_default_local_recorder(&recorder);
    let server = Server::start().await;
    let limits = Limits::in_store(&server.store());
    set(&limits, "5/h").await;
    limits.refresh().await.unwrap();
    Counted::default().add(&snapshotter);
    let newer = "deny all in the next version";
    let change = format!(
        r#"{{"id":"00000000000000aa","version":2,"at":1,"key":"org:acme","before":"","after":"{newer}"}}"#
    );
    for command in [
        &["HSET", TABLE, "org:acme", newer][..],
        &["LPUSH", "{admission:limits}:audit", &change],
        &["ZADD", "{admission:limits}:changes", "2", "org:acme"],
        &["HSET", "{admission:limits}:state", "version", "2"],
    ] {
        server.command(command).await.unwrap();
    }
    limits.refresh().await.unwrap();
    let mut counted = Counted::default();
    let set_elsewhere = ("override set, elsewhere".to_owned(), 1);
    assert_eq!(counted.add(&snapshotter), &BTreeMap::from([set_elsewhere]));
    let changes = limits.changes(1).await.unwrap();
    assert!(changes[0].is_unreadable && changes[0].after.is_none());
}
