//! Overrides in a file, under those that are set at run time.

use tower_admission::config::{Admission, Config, LimitsTable};
use tower_admission::{Key, Override};

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
        .filter(|line| line.contains("an override of the file changes"))
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

fn of_plans(text: &str) -> Result<Admission, tower_admission::config::ConfigError> {
    let config = config(text);
    Admission::builder(&config).tier_by(|_| None).build()
}

const PLANS: &str = "[groups.api]\npath = '/api'\nrate = '3/h'\ntiers.pro.rate = '5/h'\n";

#[tokio::test]
async fn a_tier_and_an_override_that_names_it_come_together() {
    let wrong = of_plans(&format!("{PLANS}[limits]\n'org:a' = 'tier=prro'"));
    assert!(wrong.unwrap_err().to_string().contains("prro"));
    let admission = of_plans(PLANS).unwrap();
    let both = format!("{PLANS}tiers.max.rate = '9/h'\n[limits]\n'bearer:a' = 'tier=max'");
    admission.reload(&config(&both)).unwrap();
    assert_eq!(admitted(&admission, "a").await, 9);
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
        .filter(|line| line.contains("an override of the file changes"));
    assert_eq!(changes.count(), 20);
    assert!(
        lines
            .iter()
            .any(|line| line.ends_with("more overrides of the file change more=30")),
        "{lines:?}"
    );
}
