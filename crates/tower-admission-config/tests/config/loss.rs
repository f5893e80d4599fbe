//! A reload takes no limits away by accident, and says what it changes and how it went.

use std::time::{Duration, SystemTime};

use tower_admission_config::{Admission, ConfigWarning, WarningKind};

use super::{File, NOTHING, admitted, app, config};
use crate::logged::logged;

const API: &str = "[groups.api]\npath = '/api'\nrate = '5/h'\n";

#[tokio::test]
async fn a_reload_to_no_groups_is_rejected_unless_it_is_meant() {
    let file = File::new(API);
    let admission = Admission::new(&file.load(&[]).unwrap()).unwrap();
    let app = app(&admission);
    for nothing in [
        "",
        "# limits\n",
        "[groups]\n",
        "groups = {}",
        "allow_empty = true",
        "allow_empty = false\ngroups = {}",
        "[clients]\nipv6_prefix = 56\n",
    ] {
        file.write(nothing);
        let read = file.load(&[]).unwrap();
        let error = admission.reload(&read).unwrap_err().to_string();
        assert!(
            error.contains("would go the limits of: api"),
            "{nothing}: {error}"
        );
        assert!(
            error.contains("`allow_empty = true` and `groups = {}`"),
            "{error}"
        );
        // The same where it is no file.
        admission.reload(&config(nothing)).unwrap_err();
    }
    assert_eq!(admitted(&app, "/api", "alice").await, 5);
    // Variables make groups as well.
    file.write("");
    let variables = [
        ("ADMISSION_GROUPS__API__PATH", "/api"),
        ("ADMISSION_GROUPS__API__RATE", "6/h"),
    ];
    admission.reload(&file.load(&variables).unwrap()).unwrap();
    assert_eq!(admitted(&app, "/api", "alice").await, 1);
    admission.reload(&config(NOTHING)).unwrap();
    // From none to none nothing is lost.
    admission.reload(&config("")).unwrap();
}

/// Each line of a file may be the last one that was written.
#[tokio::test]
async fn a_half_written_file_takes_no_limits_away() {
    let whole =
        "[clients]\nipv6_prefix = 56\n[groups.api]\npath = '/api'\nconcurrency = 9\nrate = '5/h'\n";
    let file = File::new(whole);
    let admission = Admission::new(&file.load(&[]).unwrap()).unwrap();
    let app = app(&admission);
    assert_eq!(admitted(&app, "/api", "alice").await, 5);
    for end in 0..whole.find("concurrency").unwrap() {
        file.write(&whole[..end]);
        if let Ok(half) = file.load(&[]) {
            admission.reload(&half).unwrap_err();
        }
    }
    file.write("[groups.api]\npath = '/api'\n");
    let error = admission.reload(&file.load(&[]).unwrap()).unwrap_err();
    assert_eq!(error.field(), Some("groups.api"));
    assert_eq!(error.line(), Some(1));
    assert_eq!(admitted(&app, "/api", "alice").await, 0);
    // What is off is written.
    file.write("[groups.api]\npath = '/api'\nrate = '0'\n");
    admission.reload(&file.load(&[]).unwrap()).unwrap();
    // It has a limit, were it off.
    file.write("[groups.api]\npath = '/api'\nconcurrency = 0\n");
    admission.reload(&file.load(&[]).unwrap()).unwrap();
}

#[test]
fn what_appears_disappears_and_changes_is_logged() {
    let before = "[store]\nprefix = 'admission'\n[admin]\ntoken = 'hunter2hunter2hunter2'\n\
                  [groups.api]\npath = '/api'\nrate = '5/h'\nconcurrency = 5\n\
                  [groups.old]\npath = '/old'\nrates = { a = '1/s', b = '2/s' }";
    let after = "[admin]\ntoken = 'changedchangedchanged'\n[clients]\ntrusted_proxies = ['10.0.0.0/8']\n\
                 [groups.api]\npath = ['/api', '/v2']\nrate = '6/h'\nheaders = 'off'\n\
                 [groups.new]\npath = '/new'\nconcurrency = 7";
    let admission = Admission::new(&config(before)).unwrap();
    let log = logged(|| admission.reload(&config(after)).unwrap());
    for line in [
        r#"WARN a group was removed, with its limits group="old" fields="path = \"/old\", rates.a = \"1/s\", rates.b = \"2/s\"""#,
        r#"INFO a group was added group="new" fields="concurrency = 7, path = \"/new\"""#,
        r#"INFO a group changed group="api" changes="concurrency from 5 to its default, headers from its default to \"off\", path from \"/api\" to [\"/api\", \"/v2\"], rate from \"5/h\" to \"6/h\"""#,
        r#"INFO settings changed changes="admin.token from (not shown) to (not shown), clients.trusted_proxies from its default to [\"10.0.0.0/8\"], store.prefix from (not shown) to its default""#,
        "INFO the new configuration is applied",
    ] {
        assert!(log.iter().any(|logged| logged == line), "{line}\n{log:#?}");
    }
    let all = log.join("\n");
    assert!(
        !all.contains("hunter2") && !all.contains("changedchanged"),
        "{all}"
    );
    // Nothing is logged of what stays.
    let log = logged(|| admission.reload(&config(after)).unwrap());
    assert_eq!(log, ["INFO the new configuration is applied"]);
    // What does not come to be is not.
    let log = logged(|| drop(admission.reload(&config("")).unwrap_err()));
    let [line] = &log[..] else { panic!("{log:?}") };
    assert!(
        line.starts_with("ERROR the new configuration is rejected; the running limits stay"),
        "{line}"
    );
    assert!(line.contains("would go the limits of: api, new"), "{line}");
}

#[test]
fn a_url_in_a_group_is_not_logged() {
    let group = |name: &str| config(&format!("[groups.api]\nrate = '1/s'\nname = '{name}'"));
    let admission = Admission::new(&group("one")).unwrap();
    let log = logged(|| admission.reload(&group("redis://:hunter2@h")).unwrap());
    assert!(
        log.iter().any(|line| line.contains("a group changed")),
        "{log:?}"
    );
    assert!(!log.join("\n").contains("hunter2"), "{log:?}");
}

/// What gauges are set to.
#[cfg(feature = "metrics")]
pub(crate) fn gauges_named<const N: usize>(names: [&str; N], job: impl FnOnce()) -> [f64; N] {
    use metrics_util::debugging::{DebugValue, DebuggingRecorder};

    let recorder = DebuggingRecorder::new();
    metrics::with_local_recorder(&recorder, job);
    let all = recorder.snapshotter().snapshot().into_vec();
    names.map(|name| {
        let found = all.iter().find(|(key, ..)| key.key().name() == name);
        match found.map(|(.., value)| value) {
            Some(DebugValue::Gauge(value)) => value.into_inner(),
            _ => panic!("no {name}"),
        }
    })
}

/// Seconds of the last reload that succeeded, and whether the last one did.
#[cfg(feature = "metrics")]
fn gauges(job: impl FnOnce()) -> (f64, f64) {
    let names = [
        "admission_config_last_reload_success_timestamp_seconds",
        "admission_config_last_reload_successful",
    ];
    gauges_named(names, job).into()
}

#[tokio::test(start_paused = true)]
async fn how_the_last_reload_went_is_known() {
    let file = File::new(API);
    let written = file.path().metadata().unwrap().modified().unwrap();
    let admission = Admission::new(&file.load(&[]).unwrap()).unwrap();
    let start = admission.last_reload();
    assert!(start.error.is_none());
    assert!(start.at >= written && start.succeeded_at == start.at);
    let _following = admission.follow(file.path(), |_| {});
    let pass = || tokio::time::sleep(Duration::from_secs(10));

    file.write("[groups.api]\nrate = '3 in an hour'");
    pass().await;
    let wrong = admission.last_reload();
    let error = wrong.error.unwrap();
    assert_eq!(
        (error.field(), error.line()),
        (Some("groups.api.rate"), Some(2))
    );
    assert_eq!(wrong.succeeded_at, start.succeeded_at);
    assert!(wrong.at >= start.at);

    file.write("");
    pass().await;
    assert_eq!(
        admission.last_reload().error.unwrap().field(),
        Some("groups")
    );

    let fixed = API.replace("5/h", "6/h");
    file.write(&fixed);
    pass().await;
    let right = admission.last_reload();
    assert!(right.error.is_none());
    assert!(right.succeeded_at >= wrong.at);

    // It comes back as it was.
    std::fs::remove_file(file.path()).unwrap();
    pass().await;
    let away = admission.last_reload();
    assert!(away.error.unwrap().to_string().contains("No such file"));
    assert_eq!(away.succeeded_at, right.succeeded_at);
    file.write(&fixed);
    pass().await;
    assert!(admission.last_reload().error.is_none());
    assert_eq!(admission.last_reload().succeeded_at, right.succeeded_at);

    // What was wrong before it went away still is.
    file.write("[groups.api]\nraet = '3/h'");
    pass().await;
    std::fs::remove_file(file.path()).unwrap();
    pass().await;
    file.write("[groups.api]\nraet = '3/h'");
    pass().await;
    assert_eq!(
        admission.last_reload().error.unwrap().field(),
        Some("groups.api")
    );
}

/// As on a signal.
#[test]
fn a_file_is_reloaded_at_once() {
    let file = File::new(API);
    let given = [("ADMISSION_GROUPS__API__RATE", "8/h")];
    let admission = Admission::new(&file.load(&given).unwrap()).unwrap();
    file.write(&API.replace("[groups.api]", "[groups.api]\nraet = '1/s'"));
    let error = admission.reload_file(file.path()).unwrap_err();
    assert_eq!(admission.last_reload().error, Some(error));
    std::fs::remove_file(file.path()).unwrap();
    let error = admission.reload_file(file.path()).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with(&format!("{}: ", file.path().display()))
    );
    assert_eq!(admission.last_reload().error, Some(error));
    file.write(&API.replace("5/h", "7/h"));
    // The variables of the start go before it.
    let log = logged(|| admission.reload_file(file.path()).unwrap());
    let [changes, hidden, applied] = &log[..] else {
        panic!("{log:?}")
    };
    let expected = "WARN a changed field of the file has no effect: a variable sets it field=\"groups.api.rate\" \
            variable=\"ADMISSION_GROUPS__API__RATE\"";
    assert_eq!(changes, expected);
    assert!(hidden.starts_with("WARN this has no effect"), "{hidden}");
    assert_eq!(applied, "INFO the new configuration is applied");
    assert!(admission.last_reload().error.is_none());
}

#[cfg(feature = "metrics")]
#[test]
fn metrics_have_the_last_reload() {
    use tower_admission::observe::MetricsObserver;

    let admission = Admission::new(&config(API)).unwrap();
    let publish = || gauges(|| admission.publish(&MetricsObserver::new()));
    let (start, success) = publish();
    let since_epoch = admission
        .last_reload()
        .at
        .duration_since(SystemTime::UNIX_EPOCH);
    assert_eq!(start, since_epoch.unwrap().as_secs_f64());
    assert_eq!(success, 1.0);
    let (at, success) = gauges(|| drop(admission.reload(&config("")).unwrap_err()));
    assert_eq!((at, success), (start, 0.0));
    assert_eq!(publish(), (start, 0.0));
    let (at, success) = gauges(|| admission.reload(&config(API)).unwrap());
    assert!(at >= start);
    assert_eq!(success, 1.0);
    // At the start, too, on a recorder that is there already.
    let (_, success) = gauges(|| drop(Admission::new(&config(API)).unwrap()));
    assert_eq!(success, 1.0);
}

/// What variables set is there also when the file is empty.
#[tokio::test]
async fn variables_hide_no_emptied_file() {
    let text = "[groups.api]\npath = '/api'\nrate = '5/h'\n[groups.batch]\npath = '/batch'\nrate = '1/h'\n";
    let file = File::new(text);
    let variables = [("ADMISSION_GROUPS__API__RATE", "6/h")];
    let admission = Admission::new(&file.load(&variables).unwrap()).unwrap();
    file.write("");
    let error = admission.reload(&file.load(&variables).unwrap());
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("with them would go the limits of: api, batch"),
        "{error}"
    );
    assert_eq!(admitted(&app(&admission), "/api", "alice").await, 6);
}

#[test]
fn what_is_cut_behind_a_header_or_before_a_selector_is_a_loss() {
    for (whole, cut, field) in [
        (
            "[groups.api]\nrate = '5/h'\npath = '/api'\n",
            "[groups.api]\nrate = '5/h'\n",
            "groups.api",
        ),
        (
            "[groups.api]\npath = '/api'\n[groups.api.rates]\na = '5/h'\n",
            "[groups.api]\npath = '/api'\n[groups.api.rates]\n",
            "groups.api",
        ),
        (
            "[groups.api]\npath = '/api'\nrate = '5/h'\n",
            "[groups.api]\npath = '/api'\nalso = []\n",
            "groups.api",
        ),
        ("[leases.jobs]\nper_tenant = 1\n", "", "leases"),
        ("[limits]\n'org:acme' = '5/h'\n", "", "limits"),
        ("[limits]\n'org:acme' = '5/h'\n", "[limits]\n", "limits"),
        ("[lists]\ndeny = ['ip:192.0.2.1']\n", "", "lists"),
        (
            "[lists]\nallow = ['ip:192.0.2.2']\ndeny = ['ip:192.0.2.1']\n",
            "[lists]\nallow = ['ip:192.0.2.2']\n",
            "lists",
        ),
        (
            "[leases.jobs]\nttl = '2s'\nper_tenant = 1\n",
            "[leases.jobs]\nttl = '2s'\n",
            "leases.jobs",
        ),
        #[cfg(feature = "axum")]
        (
            "[sockets.web]\nmessages = '1/s'\n",
            "[sockets.web]\n",
            "sockets.web",
        ),
        (
            "[groups.api]\npath = '/'\nrate = '1/s'\n[clients]\ntrusted_proxies = ['10.0.0.0/8']\n",
            "[groups.api]\npath = '/'\nrate = '1/s'\n",
            "clients",
        ),
        (
            "[groups.api]\npath = '/'\nrate = '1/s'\n[clients]\nipv6_prefix = 60\ntrusted_hops = 1\n",
            "[groups.api]\npath = '/'\nrate = '1/s'\n[clients]\nipv6_prefix = 60\n",
            "clients",
        ),
    ] {
        let file = File::new(whole);
        let admission = Admission::new(&file.load(&[]).unwrap()).unwrap();
        file.write(cut);
        let error = admission.reload(&file.load(&[]).unwrap()).unwrap_err();
        assert_eq!(error.field(), Some(field), "{cut}");
        // What is written is meant.
        let meant = match field {
            "lists" => "lists.deny = []",
            "clients" => "clients.trusted_proxies = []",
            "leases.jobs" => "leases.jobs.total = 0",
            "sockets.web" => "sockets.web.connections = 0",
            "groups.api" => continue,
            "limits" => {
                file.write("allow_empty = true\n[limits]\n");
                admission.reload(&file.load(&[]).unwrap()).unwrap();
                continue;
            }
            table => &format!("[{table}]"),
        };
        let table = format!("[{field}]\n");
        let meant = match cut.contains(&table) {
            true => cut.replace(
                &table,
                &format!("{table}{}\n", meant.rsplit('.').next().unwrap()),
            ),
            false => format!("{meant}\n{cut}"),
        };
        file.write(&meant);
        admission.reload(&file.load(&[]).unwrap()).unwrap();
    }
}

/// At start there is nothing to compare a file with.
#[test]
fn a_service_does_not_start_with_an_emptied_file() {
    for nothing in [
        "",
        "# limits\n",
        "groups = {}",
        "allow_empty = true",
        "[limits]",
        "[clients]\nipv6_prefix = 56",
    ] {
        let file = File::new(nothing);
        let error = Admission::new(&file.load(&[]).unwrap()).unwrap_err();
        let error = error.to_string();
        assert!(
            error.starts_with(&file.path().display().to_string()),
            "{error}"
        );
        assert!(
            error.contains("`allow_empty = true` and `groups = {}`"),
            "{error}"
        );
        // The text of a program is no file that may have been emptied.
        Admission::new(&config(nothing)).unwrap();
    }
    // Whatever variables add.
    for variable in [
        ("ADMISSION_LISTS__ENABLED", "true"),
        ("ADMISSION_LISTS__DENY", "ip:192.0.2.1"),
        ("ADMISSION_GROUPS__API__RATE", "20/s"),
    ] {
        let emptied = File::new("").load(&[variable]).unwrap();
        let error = Admission::new(&emptied).unwrap_err().to_string();
        assert!(error.contains("`allow_empty = true`"), "{error}");
        // By this `config check` knows.
        assert_eq!(emptied.warnings()[0].kind(), WarningKind::NoGroups);
    }
    for meant in [
        NOTHING,
        "[leases.jobs]",
        "[lists]\ndeny = 'ip:192.0.2.1'",
        "limits = {'org:a' = '1/s'}",
    ] {
        Admission::new(&File::new(meant).load(&[]).unwrap()).unwrap();
    }
}

/// A file that is cut behind its lists has no limits.
#[test]
fn lists_and_overrides_alone_are_warned_of() {
    for text in [
        "[lists]\ndeny = 'ip:192.0.2.1'\n",
        "[lists]\nenabled = true\n",
        "[limits]\n'org:a' = 'deny all'\n",
    ] {
        let cut = File::new(text).load(&[]).unwrap();
        let kinds: Vec<_> = cut.warnings().iter().map(ConfigWarning::kind).collect();
        assert_eq!(kinds, [WarningKind::NoGroups], "{text}");
        let builder = Admission::builder(&cut).deny_warnings();
        builder.build().unwrap_err();
        let meant = config(&format!("{NOTHING}{text}"));
        assert_eq!(meant.warnings().len(), 0, "{text}");
    }
}

/// By two ways a file is read, and by each it is known that it is there again.
#[tokio::test(start_paused = true)]
async fn a_file_that_is_back_is_no_failure_any_more() {
    let file = File::new(API);
    let other = File::new(API);
    let admission = Admission::new(&file.load(&[]).unwrap()).unwrap();
    std::fs::remove_file(file.path()).unwrap();
    admission.reload_file(file.path()).unwrap_err();
    file.write(API);
    let _following = admission.follow(file.path(), |_| {});
    let pass = || tokio::time::sleep(Duration::from_secs(10));
    pass().await;
    assert!(admission.last_reload().error.is_none());
    // Another file does not hide that one is away.
    std::fs::remove_file(file.path()).unwrap();
    pass().await;
    admission.reload_file(other.path()).unwrap();
    assert!(admission.last_reload().error.is_some());
    file.write(API);
    pass().await;
    assert!(admission.last_reload().error.is_none());
}
