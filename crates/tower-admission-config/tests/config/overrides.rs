//! Overrides in a file, under those that are set at run time.

use tower_admission::{Key, Override};
use tower_admission_config::{Admission, Config, LimitsTable};

use super::{app, config, status};
use crate::logged::logged;

const GROUP: &str = "[groups.api]\npath = '/api'\nrate = '1/h'\n";

async fn admitted(admission: &Admission, token: &str) -> usize {
    let app = app(admission);
    let mut admitted = 0;
    while admitted < 9 && status(&app, "/api", token).await.is_success() {
        admitted += 1;
    }
    admitted
}

fn with(limits: &str) -> Config {
    config(&format!("{GROUP}[limits]\n{limits}"))
}

#[tokio::test]
async fn an_override_of_the_file_counts_until_another_is_set() {
    let admission = Admission::new(&with("'bearer:alice' = '3/h'")).unwrap();
    assert_eq!(admitted(&admission, "alice").await, 3);
    assert_eq!(admitted(&admission, "bob").await, 1);
    let alice = "bearer:alice".parse().unwrap();
    let limits = admission.limits();
    limits.set(&alice, "5/h".parse().unwrap()).await.unwrap();
    assert_eq!(admitted(&admission, "alice").await, 2);
    limits.delete(&alice).await.unwrap();
    assert_eq!(limits.get(&alice).unwrap().to_string(), "3/h");

    admission
        .reload(&with("'bearer:bob' = { limit = '2/h', note = 'x' }"))
        .unwrap();
    assert_eq!(limits.get(&alice), None);
    assert_eq!(admitted(&admission, "bob").await, 1);
    // What is rejected as a whole changes no override.
    let wrong =
        format!("{GROUP}on_failure = 'closed'\nkey = 'nobody'\n[limits]\n'bearer:bob' = '9/h'");
    admission.reload(&config(&wrong)).unwrap_err();
    let bob = Key::new("bearer", b"bob").into();
    assert_eq!(limits.get(&bob).unwrap().to_string(), "2/h");
    admission.reload(&config(GROUP)).unwrap();
    assert_eq!(limits.list(), []);
}

#[tokio::test]
async fn a_change_is_logged_without_credentials() {
    let lines = logged(|| {
        let admission = Admission::new(&with("'bearer:hunter22' = '3/h'")).unwrap();
        admission
            .reload(&with("'bearer:hunter22' = '4/h'\n'org:acme' = '5/h'"))
            .unwrap();
        admission.reload(&config(GROUP)).unwrap();
    });
    let changes: Vec<_> = lines
        .iter()
        .filter(|line| line.contains("an override of the file changed"))
        .collect();
    assert_eq!(changes.len(), 4, "{lines:?}");
    assert!(
        changes
            .iter()
            .any(|line| line.contains("bearer#") && line.contains("4/h"))
    );
    assert!(
        !lines.iter().any(|line| line.contains("hunter22")),
        "{lines:?}"
    );
}

#[test]
fn what_is_wrong_is_told_without_credentials() {
    for (limits, expected) in [
        (
            "'bearer:hunter22' = 'fast'",
            "limits.\"bearer:..\": \"fast\" is no limit",
        ),
        (
            "'org:acme' = 'fast'",
            "limits.\"org:acme\": \"fast\" is no limit",
        ),
        ("'acme' = '3/h'", "limits.\"..\": "),
        (
            "'org:acme' = { limit = '3/h', until = 'x' }",
            "unknown field `until`",
        ),
        (
            "'org:acme' = { limit = '3/h', end = 'tomorrow' }",
            "is no `end`",
        ),
    ] {
        let error = Config::from_toml(&format!("{GROUP}[limits]\n{limits}")).unwrap_err();
        let error = error.to_string();
        assert!(error.contains(expected), "{limits}: {error}");
        assert!(!error.contains("hunter22"), "{error}");
    }
}

/// What the program exports is what a file takes.
#[tokio::test]
async fn an_exported_table_is_part_of_a_file() {
    let key = "org:acme".parse().unwrap();
    let entry = Override::new("3/h, jobs=5 concurrent".parse().unwrap()).with_note("a \"note\"");
    let table: LimitsTable = [(key, entry.clone())].into_iter().collect();
    let admission = Admission::new(&config(&format!("{GROUP}{}", table.to_toml()))).unwrap();
    let read = admission
        .limits()
        .get_override(&"org:acme".parse().unwrap());
    assert_eq!(read, Some(entry));
}

fn of_plans(text: &str) -> Result<Admission, tower_admission_config::ConfigError> {
    let config = config(text);
    Admission::builder(&config).tier_by(|_| None).build()
}

const PLANS: &str = "[groups.api]\npath = '/api'\nrate = '3/h'\ntiers.pro.rate = '5/h'\n";

#[tokio::test]
async fn a_tier_and_an_override_that_names_it_come_together() {
    let admission = of_plans(PLANS).unwrap();
    let both = format!("{PLANS}tiers.max.rate = '9/h'\n[limits]\n'bearer:a' = 'tier=max'");
    admission.reload(&config(&both)).unwrap();
    assert_eq!(admitted(&admission, "a").await, 9);
}

/// One entry about a tier that is gone does not cost the others.
#[tokio::test]
async fn a_tier_goes_with_a_warning_and_other_overrides_are_applied() {
    let file = |tiers: &str, more: &str| {
        let limits = format!("[limits]\n'bearer:a' = 'tier=old'\n{more}");
        config(&format!("{PLANS}{tiers}{limits}"))
    };
    let before = file("tiers.old.rate = '9/h'\n", "");
    let admission = Admission::builder(&before).tier_by(|_| None);
    let admission = admission.build().unwrap();
    let after = file("", "'bearer:eve' = 'deny all'\n");
    for _ in 0..2 {
        let lines = logged(|| admission.reload(&after).unwrap());
        let warned = "there is no tier `old` in this configuration";
        assert!(lines.iter().any(|line| line.contains(warned)), "{lines:?}");
    }
    assert_eq!(status(&app(&admission), "/api", "eve").await, 403);
    assert_eq!(admitted(&admission, "a").await, 3);
    // Nor does a restart.
    Admission::builder(&after)
        .tier_by(|_| None)
        .deny_warnings()
        .build()
        .unwrap();
}

#[test]
fn a_tier_that_is_spelled_wrong_is_warned_of() {
    let config = config(&format!("{PLANS}[limits]\n'org:a' = 'tier=prro'"));
    let [warning] = &config.warnings()[..] else {
        panic!("{:?}", config.warnings())
    };
    let expected = "limits.\"org:a\": unknown tier `prro`: did you mean `pro`?";
    assert_eq!(warning.to_string(), expected);
    assert!(!warning.may_be_intended());
}

/// An operator switches off limits in an incident, and the service restarts then.
#[test]
fn overrides_of_a_group_that_is_suspended_are_no_error() {
    let groups = "[groups.api]\npath = '/api'\nrate = '1/h'\ntiers.pro.rate = '2/h'\n\
                  [groups.downloads]\nOFF\npath = '/'\nrates.daily = '1/h'\nrate_per_ip = '9/s'\n\
                  tiers.max.rates.daily = '2/h'\n[groups.uploads]\npath = '/up'\nrates.daily = '1/h'\n";
    let limits = "[limits]\n'org:acme' = 'tier=max, downloads.daily=9/h'\n'ip:192.0.2.1' = 'downloads.ip=99/s'\n";
    let text = format!("{groups}{limits}");
    let off = text.replace("OFF", "enabled = false");
    let all_off = format!("enabled = false\n{}", text.replace("OFF", ""));
    let on = config(&text.replace("OFF", ""));
    let strict = |config: &Config| {
        let builder = Admission::builder(config).tier_by(|_| None);
        builder.deny_warnings().build().unwrap()
    };
    let admission = strict(&on);
    for off in [off, all_off] {
        let off = config(&off);
        assert!(off.warnings().is_empty(), "{:?}", off.warnings());
        admission.reload(&off).unwrap();
        strict(&off);
    }
}

#[test]
fn an_entry_that_no_service_takes_is_an_error_when_a_file_is_read() {
    for limits in [
        "'ip:192.0.2.0/24' = '10/s'",
        "'ip:64:ff9b::c000:201' = 'unlimited'",
    ] {
        let file = super::File::new(&format!("{GROUP}[limits]\n{limits}"));
        let error = file.load(&[]).unwrap_err();
        assert_eq!(error.line(), Some(5), "{error}");
    }
    with("'ip:192.0.2.0/24' = 'deny all'\n'ip:192.0.2.1' = '10/s'");
}

/// Whatever is wrong with a file, nothing of it is in force for a moment.
#[tokio::test]
async fn a_rejected_file_keeps_what_was_used_of_an_override() {
    let with =
        |limit: &str, more: &str| config(&format!("{GROUP}{more}[limits]\n'bearer:a' = '{limit}'"));
    let admission = Admission::new(&with("8/h", "")).unwrap();
    assert_eq!(admitted(&admission, "a").await, 8);
    admission
        .reload(&with("2/h", "key = 'nobody'\n"))
        .unwrap_err();
    assert_eq!(admitted(&admission, "a").await, 0);
    assert_eq!(admission.limits().list()[0].1.to_string(), "8/h");
}

#[test]
fn an_error_is_at_the_entry_also_of_a_credential() {
    for (limits, line) in [
        ("'bearer:alice' = '1/s'\n'bearer:hunter22' = 'fast'", 6),
        ("'org:acme' = 'fast'", 5),
        ("'ip:192.0.2.1' = '1/s'\n'ip:192.0.2.1/32' = '2/s'", 6),
        ("'org:acme' = '1/s'\n\n'acme' = '1/s'", 7),
    ] {
        let file = super::File::new(&format!("{GROUP}[limits]\n{limits}"));
        let error = file.load(&[]).unwrap_err();
        assert_eq!(
            (error.line(), error.column()),
            (Some(line), Some(1)),
            "{error}"
        );
        let place = format!("{}:{line}:1: limits.", file.path().display());
        assert!(error.to_string().starts_with(&place), "{error}");
        assert!(!error.to_string().contains("hunter22"), "{error}");
    }
    let error = LimitsTable::from_toml("[limits]\n'org:a' = '1/s'\n'bearer:hunter22' = 'x'");
    assert_eq!(error.unwrap_err().line(), Some(3));
}

#[test]
fn the_first_of_many_changes_are_logged() {
    let many: String = (0..50).map(|n| format!("'org:o{n}' = '1/s'\n")).collect();
    let admission = Admission::new(&config(GROUP)).unwrap();
    let lines = logged(|| admission.reload(&with(&many)).unwrap());
    let changes = lines
        .iter()
        .filter(|line| line.contains("an override of the file changed"));
    assert_eq!(changes.count(), 20);
    assert!(
        lines
            .iter()
            .any(|line| line.ends_with("more overrides of the file changed more=30")),
        "{lines:?}"
    );
}
