//! The command line, without a server.

use crate::run::{end, end_with, program};

async fn failed(words: &[&str], environment: &[(&str, &str)]) -> String {
    let mut command = program();
    command.args(words).envs(environment.iter().copied());
    let ran = end(command).await;
    assert_eq!((ran.code, &*ran.out), (2, ""), "{words:?}: {}", ran.err);
    ran.err
}

#[tokio::test]
async fn an_invalid_command_line_is_one_error_message() {
    let redis = ["--redis", "redis://127.0.0.1:1"];
    for (words, told) in [
        (&["limits", "list"][..], "--redis URL or --admin URL"),
        (&["limits"], "Usage"),
        (&["limits", "set", "org:acme"], "<LIMIT>"),
        (&["limits", "list", "--timeout", "0"], "--timeout"),
        (&["completions", "tcsh"], "tcsh"),
        (&["limits", "list", "--redis", "nowhere"], "redis://"),
        (&["limits", "list", "--admin", "nowhere"], "http://host"),
        (
            &["limits", "list", "--admin", "https://a"],
            "does not support https",
        ),
        (
            &["limits", "list", "--admin", "http://a:b@c"],
            "http://host",
        ),
        (
            &[
                "limits",
                "list",
                "--admin",
                "http://a",
                "--redis",
                "redis://b",
            ],
            "use one",
        ),
    ] {
        let err = failed(words, &[]).await;
        assert!(err.contains(told), "{words:?}: {err}");
    }
    let err = failed(&["limits", "set", "org:acme", "--json"], &[]).await;
    let err: serde_json::Value = serde_json::from_str(&err).unwrap();
    let told = "the following required arguments were not provided: <LIMIT>...";
    assert_eq!(err["error"], told);
    for secret in ["hunter2", "hunter2hunter2hunter2hunter2hunt", "ää"] {
        let words = ["limits", "list", redis[0], redis[1], "--secret", secret];
        let err = failed(&words, &[]).await;
        assert!(err.contains("32 hexadecimal digits"), "{err}");
        assert!(!err.contains("hunter2") && !err.contains('ä'), "{err}");
    }
    let token = [("ADMISSION_TOKEN", "hunter2\u{7f}")];
    let err = failed(&["limits", "list", "--admin", "http://a"], &token).await;
    assert!(
        err.contains("invalid token") && !err.contains("hunter2"),
        "{err}"
    );
    let both = [
        ("ADMISSION_REDIS", "redis://127.0.0.1:1"),
        ("ADMISSION_ADMIN", "http://127.0.0.1:1"),
    ];
    let err = failed(&["limits", "list"], &both).await;
    assert!(err.contains("ADMISSION_ADMIN"), "{err}");
}

#[tokio::test]
async fn the_command_line_overrides_the_environment() {
    for (written, url, told) in [
        ("--redis", "redis://127.0.0.1:1", "redis cannot be reached"),
        ("--admin", "http://127.0.0.1:1", "admin endpoints cannot"),
    ] {
        let mut command = program();
        command
            .args(["limits", "list", written, url])
            .env("ADMISSION_REDIS", "redis://127.0.0.1:2")
            .env("ADMISSION_ADMIN", "http://127.0.0.1:2");
        let err = end(command).await.failed(4);
        assert!(err.contains(told), "{err}");
    }
    // Empty is as if it was not set.
    let mut command = program();
    command
        .args(["limits", "list"])
        .env("ADMISSION_REDIS", "")
        .env("ADMISSION_ADMIN", "http://127.0.0.1:1");
    end(command).await.failed(4);
}

#[tokio::test]
async fn a_wrong_word_is_named_with_the_right_one() {
    for (words, told) in [
        (&["limts", "list"][..], "did you mean \"limits\"?"),
        (&["limits", "lst"], "did you mean \"ls\"?"),
        (&["limits", "list", "--usag"], "did you mean --usage?"),
        (&["limits", "list", "--colour"], "unknown option --colour"),
        (
            &["limits", "set", "org:a", "1/s", "--for", "soon"],
            "'soon'",
        ),
        (
            &["limits", "set", "org:a", "1/s", "--until", "soon"],
            "'soon'",
        ),
    ] {
        let redis = [("ADMISSION_REDIS", "redis://127.0.0.1:1")];
        let err = failed(words, &redis).await;
        assert!(err.contains(told), "{words:?}: {err}");
    }
}

#[tokio::test]
async fn the_manual_is_of_this_version() {
    let mut command = program();
    command.arg("man");
    let page = end(command).await.ok();
    let title = format!("\"tower-admission {}\"", env!("CARGO_PKG_VERSION"));
    assert!(page.contains(&title), "{page}");
    let folder = std::env::temp_dir().join(format!("tower-admission-man-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let mut command = program();
    command.arg("man").arg("--dir").arg(&folder);
    end(command).await.ok();
    let page = std::fs::read_to_string(folder.join("tower-admission-limits-set.1")).unwrap();
    assert!(page.contains("key\\-stdin"), "{page}");
    std::fs::remove_dir_all(folder).unwrap();
}

#[tokio::test]
async fn help_has_the_exit_codes_and_no_secret() {
    let mut command = program();
    command
        .arg("--help")
        .env("ADMISSION_TOKEN", "hunter2")
        .env("ADMISSION_SECRET", "hunter2")
        .env("ADMISSION_REDIS", "redis://:hunter2@127.0.0.1");
    let help = end(command).await.ok();
    for line in [
        "Exit codes:",
        "  1  not found",
        "  4  the server cannot be reached",
    ] {
        assert!(help.contains(line), "{help}");
    }
    assert!(!help.contains("hunter2"), "{help}");
}

#[tokio::test]
async fn a_configuration_is_checked() {
    let file = std::env::temp_dir().join(format!("tower-admission-{}.toml", std::process::id()));
    let path = file.to_str().unwrap();
    let check = async |arguments: &[&str]| {
        let mut command = program();
        command.args(["config", "check", path]).args(arguments);
        end(command).await
    };
    let batch = "[groups.batch]\npath = 'off'\nrate = '1/s'\n";
    std::fs::write(
        &file,
        format!("[groups.api]\npath = '/'\nrate = '10/s'\n{batch}"),
    )
    .unwrap();
    assert_eq!(check(&[]).await.ok(), format!("{path}: ok: api, batch"));
    assert_eq!(
        check(&["--strict"]).await.ok(),
        format!("{path}: ok: api, batch")
    );
    let json = check(&["--json"]).await.json();
    assert_eq!(
        (&json["groups"][1], &json["warnings"]),
        (&"batch".into(), &serde_json::json!([]))
    );
    // The program checks tables that it cannot run.
    let sockets = "[sockets.web]\nconnections_per_key = 5\nmessages = '100/min'\n[groups.api]\npath = '/'\nrate = '10/s'\n";
    std::fs::write(&file, sockets).unwrap();
    assert_eq!(check(&["--strict"]).await.ok(), format!("{path}: ok: api"));
    std::fs::write(&file, sockets.replace("100/min", "many")).unwrap();
    let wrong = check(&[]).await.failed(3);
    assert!(wrong.contains(":3:12: sockets.web.messages: "), "{wrong}");
    std::fs::write(&file, "[groups.api]\nrate = '10/0s'").unwrap();
    let wrong = check(&[]).await.failed(3);
    assert!(
        wrong.starts_with(&format!(
            "{path}:2:8: groups.api.rate: \"10/0s\" is not a valid quota: "
        )),
        "{wrong}"
    );
    // What has no effect.
    std::fs::write(
        &file,
        "[groups.api]\nrate = '10/s'\n[groups.batch]\npath = '/batch'",
    )
    .unwrap();
    let warned = check(&[]).await;
    assert_eq!(
        (warned.code, warned.out.trim_end()),
        (0, &*format!("{path}: ok: api, batch"))
    );
    let [no_path, no_limit] = &warned.err.lines().collect::<Vec<_>>()[..] else {
        panic!("{warned:?}")
    };
    assert!(no_path.starts_with(&format!(
        "warning: {path}:1:9: groups.api: this group selects no requests"
    )));
    assert!(no_limit.starts_with(&format!(
        "warning: {path}:3:9: groups.batch: this group has no limit"
    )));
    let json = check(&["--json"]).await.json();
    assert_eq!(json["warnings"][1]["kind"], "no_limit");
    let strict = check(&["--strict"]).await.failed(3);
    assert!(
        strict.starts_with(&format!("{path}:1:9: groups.api: ")),
        "{strict}"
    );
    assert!(
        strict.contains(&format!("; {path}:3:9: groups.batch: ")),
        "{strict}"
    );
    // A variable is made to hide a field.
    std::fs::write(&file, "[groups.api]\npath = '/'\nrate = '10/s'").unwrap();
    let mut command = program();
    command.args(["config", "check", path, "--strict"]);
    command.env("ADMISSION_GROUPS__API__RATE", "9/s");
    let hidden = end(command).await;
    assert_eq!(hidden.code, 0, "{hidden:?}");
    let told = "groups.api.rate: the variable ADMISSION_GROUPS__API__RATE overrides this value";
    assert!(hidden.err.contains(told), "{hidden:?}");
    // In memory there is nothing to connect to.
    std::fs::write(&file, "[groups.api]\npath = '/'\nrate = '10/s'").unwrap();
    assert_eq!(check(&["--connect"]).await.ok(), format!("{path}: ok: api"));
    let store = "[store]\nurl = 'redis://127.0.0.1:1'\nsecret = '00112233445566778899aabbccddeeff'";
    // No service starts without limits that does not mean it.
    std::fs::write(&file, store).unwrap();
    let nothing = check(&[]).await.failed(3);
    assert!(
        nothing.contains("there are no groups, so no request is limited"),
        "{nothing}"
    );
    let meant = format!("allow_empty = true\ngroups = {{}}\n{store}");
    std::fs::write(&file, &meant).unwrap();
    assert_eq!(check(&[]).await.ok(), format!("{path}: ok: no groups"));
    #[cfg(feature = "tls")]
    {
        let tls = format!(
            "{}\ntls_ca_file = '/nowhere/ca.pem'",
            meant.replace("redis:", "rediss:")
        );
        std::fs::write(&file, tls).unwrap();
        let missing = check(&[]).await.failed(3);
        assert!(
            missing.contains("store.tls_ca_file: /nowhere/ca.pem: No such file"),
            "{missing}"
        );
        std::fs::write(&file, &meant).unwrap();
    }
    let away = check(&["--connect"]).await.failed(4);
    assert!(away.contains("127.0.0.1:1: "), "{away}");
    std::fs::remove_file(&file).unwrap();
    let missing = check(&[]).await.failed(3);
    assert!(missing.starts_with(path), "{missing}");
}

#[tokio::test]
async fn a_configuration_is_checked_from_standard_input() {
    let check = async |text: &str| {
        let mut command = program();
        command.args(["config", "check", "-"]);
        end_with(command, text).await
    };
    let right = check("[groups.api]\npath = '/'\nrate = '10/s'").await;
    assert_eq!(right.ok(), "standard input: ok: api");
    let wrong = check("[groups.api]\nrate = '10/0s'").await.failed(3);
    assert!(
        wrong.starts_with("standard input:2:8: groups.api.rate: "),
        "{wrong}"
    );
}

/// A credential that is given a word too far.
#[tokio::test]
async fn an_unexpected_argument_is_not_shown() {
    for words in [
        &["usage", "org:x", "bearer:hunter2"][..],
        &["limits", "bearer:hunter2"],
        &["--json", "usage", "org:x", "bearer:hunter2"],
    ] {
        let told = failed(words, &[]).await;
        assert!(!told.contains("hunter2"), "{told}");
    }
}
