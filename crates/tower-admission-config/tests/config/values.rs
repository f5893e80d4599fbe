//! Values are read as what their fields are, from the file and from the environment.

use tower_admission_config::Config;

use super::File;

/// What a configuration says of itself, or what is wrong with it.
fn read(text: &str) -> String {
    match Config::from_toml(text) {
        Ok(config) => format!("{config:?}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn spellings_of_other_systems_are_accepted() {
    for field in [
        "[store]\nreplicas = 2\non_failure = 'local_share'",
        "[store]\nreplicas = 2\non_failure = 'local-share'",
        "[clients]\nforwarded_header = 'X-Forwarded-For'",
        "[clients]\nforwarded_header = 'Forwarded'",
        "[clients]\nforwarded_header = 'single x-real-ip'",
        "[clients]\ntrusted_proxies = '10.0.0.0/8'\n[groups.api]\nkey = 'header x-user'",
        "[groups.api]\nheaders = 'legacy_epoch'",
        "[groups.api]\nrate = '10r/s'",
        "[groups.api]\nrate = '10rps'",
        "[groups.api]\nrate = '600 rpm burst 1k'",
        "[groups.api]\nrates = { a = '1_000/h', b = '1k/min', c = '10/week' }",
    ] {
        let shown = read(field);
        assert!(shown.starts_with("Config"), "{field}: {shown}");
    }
    let local = "on_failure: LocalShare, replicas: Some(2)";
    assert!(read("[store]\nreplicas = 2\non_failure = 'local_share'").contains(local));
    let header = "ForwardedHeader(Forwarded)";
    assert!(read("[clients]\nforwarded_header = 'FORWARDED'").contains(header));
}

#[test]
fn variables_are_text() {
    let file = File::new("");
    for prefix in [
        "0123456",
        "1e5",
        "TRUE",
        "+5",
        "nan",
        "00",
        "1.10",
        "inf",
        " x ",
        "0x10",
        "12345678901234567890123",
    ] {
        let config = file.load(&[("ADMISSION_STORE__PREFIX", prefix)]);
        let shown = format!("{:?}", config.unwrap());
        assert!(
            shown.contains(&format!("prefix: Some({prefix:?})")),
            "{shown}"
        );
    }
    let token = "01234567890123456789";
    let config = file.load(&[("ADMISSION_ADMIN__TOKEN", token)]).unwrap();
    assert_eq!(config.admin_tokens().collect::<Vec<_>>(), ["admin"]);
    for secret in [
        "00000000000000000000000000000012",
        "12345678901234567890123456789012",
        "1234567890123456789012345678e123",
    ] {
        file.load(&[("ADMISSION_STORE__SECRET", secret)]).unwrap();
    }
}

#[cfg(feature = "axum")]
#[test]
fn a_token_is_one_of_the_admin_endpoints() {
    let shortest = tower_admission_axum::admin::Token::MIN_BYTES;
    let with = |length: usize| format!("[admin]\ntoken = '{}'", "x".repeat(length));
    tower_admission_config::Config::from_toml(&with(shortest)).unwrap();
    tower_admission_config::Config::from_toml(&with(shortest - 1)).unwrap_err();
}

#[test]
fn variables_of_numbers_and_booleans_are_read_strictly() {
    let file = File::new("");
    let field = |value: &str| {
        let limit = file.load(&[("ADMISSION_GROUPS__API__CONCURRENCY", value)]);
        let dry = file.load(&[("ADMISSION_GROUPS__API__DRY_RUN", value)]);
        let shown = |config: Result<Config, _>| match config {
            Ok(config) => format!("{config:?}"),
            Err(error) => format!("{error}"),
        };
        (shown(limit), shown(dry))
    };
    assert!(field("64").0.contains("concurrency: 64,"));
    assert!(field("007").0.contains("concurrency: 7,"));
    assert!(field("true").1.contains("dry_run: true"));
    assert!(field("false").1.contains("dry_run: false"));
    for value in [
        "",
        "+5",
        "-1",
        "1.0",
        "1e3",
        "5 ",
        "0x10",
        "true",
        "99999999999999999999",
    ] {
        let expected =
            "ADMISSION_GROUPS__API__CONCURRENCY: groups.api.concurrency: expected a whole number";
        let told = field(value).0;
        assert!(told.starts_with(expected), "{value}: {told}");
    }
    for value in ["", "yes", "on", "1", "TRUE", "0"] {
        let expected =
            "ADMISSION_GROUPS__API__DRY_RUN: groups.api.dry_run: expected `true` or `false`";
        let told = field(value).1;
        assert!(told.starts_with(expected), "{value}: {told}");
    }
}

#[test]
fn values_are_not_converted_between_types() {
    let whole = "expected a whole number from 0 to ";
    let text = "expected text";
    for (written, field, expected) in [
        (
            "[groups.api]\nconcurrency = 1.9",
            "groups.api.concurrency",
            whole,
        ),
        (
            "[groups.api]\nconcurrency = true",
            "groups.api.concurrency",
            whole,
        ),
        (
            "[groups.api]\nconcurrency_per_key = 1.0",
            "groups.api.concurrency_per_key",
            whole,
        ),
        (
            "[groups.api]\nconcurrency_per_ip = true",
            "groups.api.concurrency_per_ip",
            whole,
        ),
        (
            "[groups.api]\ndry_run = 17",
            "groups.api.dry_run",
            "expected `true` or `false`",
        ),
        ("[groups.api]\nname = 5", "groups.api.name", text),
        ("[groups.api]\nrate = 0", "groups.api.rate", text),
        (
            "[groups.api]\nrates = { a = 5 }",
            "groups.api.rates.a",
            text,
        ),
        (
            "[groups.api]\npath = 5",
            "groups.api.path",
            "expected text or a list of texts",
        ),
        (
            "[groups.api]\npath = [5]",
            "groups.api.path",
            "expected text or a list of texts",
        ),
        ("[groups]\napi = 5", "groups.api", "expected a table"),
        ("groups = [{ rate = '5/h' }]", "groups", "expected a table"),
        (
            "[store]\nreplicas = 4.7",
            "store.replicas",
            "expected a whole number from 0 to 4294967295",
        ),
        ("[store]\nprefix = 1", "store.prefix", text),
        (
            "[clients]\nipv6_prefix = 64.9",
            "clients.ipv6_prefix",
            whole,
        ),
        (
            "[clients]\nipv6_prefix = 300",
            "clients.ipv6_prefix",
            "expected a whole number from 0 to 255",
        ),
        ("[admin]\ntoken = 123456", "admin.token", text),
    ] {
        let told = read(written);
        assert!(
            told.starts_with(&format!("{field}: {expected}")),
            "{written}: {told}"
        );
    }
}

#[test]
fn no_error_tells_a_secret() {
    let file = File::new("");
    let error = file.load(&[("ADMISSION_ADMIN__TOKEN", "hunter2")]);
    let told = format!("{:?}", error.unwrap_err());
    assert!(!told.contains("hunter2"), "{told}");
    let token = "hunter2hunter2hunter2";
    let config = file.load(&[("ADMISSION_ADMIN__TOKEN", token)]).unwrap();
    let told = format!("{config:?}");
    assert!(!told.contains("hunter2"), "{told}");
    for text in [
        "admin = 'hunter2'",
        "admin = '''\nhunter2'''",
        "store = 'redis://:hunter2@h'",
        "store = ['redis://:hunter2@h']",
        "groups = 'redis://:hunter2@h'",
        "clients = 'redis://:hunter2@h'",
        "[groups]\napi = 'redis://:hunter2@h'",
        "[groups.api]\nrates = 'redis://:hunter2@h'",
        "[groups.api]\nrate = 'redis://:hunter2@h'",
        "[groups.api]\nconcurrency = 'redis://:hunter2@h'",
        "[groups.api]\npath = 'redis://:hunter2@h'",
        "[groups.api]\non_failure = 'redis://:hunter2@h'",
        "[clients]\ntrusted_proxies = 'redis://:hunter2@h'",
        "[store]\nurl = 'redis://:hunter2@h:notaport'\nsecret = '07070707070707070707070707070707'",
        "[store]\nurl = 'http://:hunter2@h'\nsecret = '07070707070707070707070707070707'",
        "[store]\nurl = ['redis://:hunter2@h']",
        "[store]\nsecret = 'hunter2'",
        "[store]\nsecret = ['hunter2']",
        "[store]\nsecret = hunter2",
        "[store]\nreplicas = 'hunter2'",
        "[store]\ndeadline = 'redis://:hunter2@h'",
        "[store]\non_failure = 'redis://:hunter2@h'",
        "[store]\nprefix = { a = 'hunter2' }",
        "[admin]\ntoken = ['hunter2']",
        "[admin]\ntoken = { a = 'hunter2' }",
        "[admin]\ntoken = hunter2",
        "[admin]\ntoken = 'hunter2",
        "[admin]\ntoken = '''hunter2\nb|c",
        "[[admin]]\ntoken = 'hunter2'",
    ] {
        let error = Config::from_toml(text).unwrap_err();
        let told = format!("{error} {error:?}");
        assert!(!told.contains("hunter2"), "{text}: {told}");
    }
}
