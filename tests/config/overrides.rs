//! Overrides in a file, under those that are set at run time.

use tower_admission::config::{Admission, Config, LimitsTable};
use tower_admission::{Key, Override};

use super::off::logged;
use super::{app, config, status};

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
