//! What is without effect is warned of, and can be made an error.

use tower_admission_config::{Admission, Config, WarningKind};

use super::{File, NOTHING, config};
use crate::logged::logged;

fn warnings(config: &Config) -> Vec<(WarningKind, String)> {
    let warnings = config.warnings().into_iter();
    warnings
        .map(|warning| (warning.kind(), warning.to_string()))
        .collect()
}

/// What is warned of, behind the name of the file.
fn told(text: &str, variables: &[(&str, &str)]) -> Vec<(WarningKind, String)> {
    let file = File::new(text);
    let place = file.path().display().to_string();
    let all = warnings(&file.load(variables).unwrap()).into_iter();
    all.map(|(kind, told)| (kind, told.replace(&place, "F")))
        .collect()
}

#[test]
fn each_warning_says_where_it_is_from() {
    use WarningKind::*;
    for (text, kind, expected) in [
        ("", NoGroups, "F: there are no groups"),
        (
            "[groups.api]\nrate = '1/s'",
            NoPath,
            "F:1:9: groups.api: this group selects no requests",
        ),
        (
            "[groups.api]\npath = '/'",
            NoLimit,
            "F:1:9: groups.api: this group has no limit",
        ),
        (
            "[groups.api]\npath = '/api'\nrate = '1/s'\nexclude = ['/api/a', '/health']",
            Exclude,
            "F:4:11: groups.api.exclude: `/health` is outside of this group's paths",
        ),
        (
            "[groups.api]\npath = ['/api/a', '/api/b']\nrate = '1/s'\nexclude = '/api'",
            Exclude,
            "F:4:11: groups.api.exclude: `/api` is all of this group",
        ),
        (
            "[store]\nsecret = '000102030405060708090a0b0c0d0e0f'\n[groups.api]\npath = '/'\nrate = '1/s'",
            NoStore,
            "F:2:10: store.secret: without `store.url` limits are counted in memory",
        ),
        (
            "[clients]\nforwarded_header = 'forwarded'\n[groups.api]\npath = '/'\nrate = '1/s'",
            NoProxies,
            "F:2:20: clients.forwarded_header: this header is not read, as no proxy is trusted",
        ),
        (
            "[groups.api]\npath = '/'\nrate = '1/s'\non_failure = 'closed'",
            NoStore,
            "F:4:14: groups.api.on_failure: without `store.url`, limits count in memory, which does not \
                    fail",
        ),
        (
            "[leases.jobs]\ntotal = 1\non_failure = 'closed'",
            NoStore,
            "F:3:14: leases.jobs.on_failure: without `store.url`",
        ),
    ] {
        let told = told(text, &[]);
        let [(found, told)] = &told[..] else {
            panic!("{told:?}")
        };
        assert_eq!(*found, kind);
        assert!(told.starts_with(expected), "{told}");
    }
}

#[test]
fn what_is_meant_is_not_warned_of() {
    for text in [
        NOTHING,
        "[groups.api]\npath = ['/api', '/v2']\nrate = '1/s'\nexclude = ['/api/a', '/v2']",
        // Switched off.
        "[groups.api]\npath = '/'\nrate = '0'",
        "[groups.api]\npath = '/'\nconcurrency = 0",
        "[groups.api]\npath = '/'\nrates = { a = 'off' }",
        // The program puts it on routes.
        "[groups.api]\npath = 'off'\nrate = '1/s'\nexclude = '/health'",
        "[groups.api]\npath = ['off']\nbad_credentials_per_ip = '1/s'",
    ] {
        assert_eq!(told(text, &[]), [], "{text}");
    }
    let error = Config::from_toml("[groups.api]\npath = ['off', '/api']")
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "groups.api.path: `off` cannot be in a list with others, not ['off', '/api']"
    );
}

#[test]
fn groups_that_only_variables_make_are_warned_of() {
    use WarningKind::*;
    let file =
        "[groups.Upper]\npath = '/upper'\nrate = '1/s'\n[groups.api]\npath = '/api'\nrate = '1/s'";
    for (variable, expected) in [
        (
            ("ADMISSION_GROUPS__UPPER__RATE", "5/s"),
            "ADMISSION_GROUPS__UPPER__RATE: groups.upper: the file calls it `Upper`, and variables reach only",
        ),
        (
            ("ADMISSION_GROUPS__UPPER__PATH", "/x"),
            "ADMISSION_GROUPS__UPPER__PATH: groups.upper: the file calls it `Upper`",
        ),
        (
            ("ADMISSION_GROUPS__APY__RATE", "5/s"),
            "ADMISSION_GROUPS__APY__RATE: groups.apy: the file has no such group, and this one has no path: \
                    did you mean `api`?",
        ),
        (
            ("ADMISSION_GROUPS__BATCH__RATE", "5/s"),
            "ADMISSION_GROUPS__BATCH__RATE: groups.batch: the file has no such group, and this one has no \
                    path: no request",
        ),
    ] {
        let told = told(file, &[variable]);
        let [(UnknownGroup, told)] = &told[..] else {
            panic!("{told:?}")
        };
        assert!(told.starts_with(expected), "{told}");
    }
    // With a path it is a group like others.
    let whole = [
        ("ADMISSION_GROUPS__BATCH__RATE", "5/s"),
        ("ADMISSION_GROUPS__BATCH__PATH", "/batch"),
    ];
    assert_eq!(told(file, &whole), []);
    let same = [("ADMISSION_GROUPS__API__RATE", "1/s")];
    assert_eq!(told(file, &same), []);
}

/// That is what variables are for, so it is no error.
#[test]
fn a_field_that_a_variable_hides_is_warned_of_without_its_value() {
    let file = File::new(
        "[admin]\ntoken = 'hunter2hunter2hunter2'\n[groups.api]\npath = '/api'\nconcurrency = 5",
    );
    let variables = [
        ("ADMISSION_ADMIN__TOKEN", "leakedleakedleaked"),
        ("ADMISSION_GROUPS__API__CONCURRENCY", "5"),
        ("ADMISSION_GROUPS__API__RATE", "5/s"),
    ];
    let config = file.load(&variables).unwrap();
    let [warning] = &config.warnings()[..] else {
        panic!("{:?}", config.warnings())
    };
    assert_eq!(warning.kind(), WarningKind::HiddenByVariable);
    assert!(warning.may_be_intended());
    let expected = format!(
        "{}:2:9: admin.token: the variable ADMISSION_ADMIN__TOKEN overrides this value",
        file.path().display()
    );
    assert_eq!(warning.to_string(), expected);
    let admission = Admission::builder(&config).deny_warnings().build().unwrap();
    // A token that is changed in vain.
    file.write(
        "[admin]\ntoken = 'changedchangedchanged'\n[groups.api]\npath = '/api'\nconcurrency = 5",
    );
    let log = logged(|| admission.reload(&file.load(&variables).unwrap()).unwrap());
    let changes = log
        .iter()
        .filter(|line| line.contains("changes without effect"));
    let changes: Vec<_> = changes.collect();
    assert!(
        matches!(&changes[..], [line] if line.contains("field=\"admin.token\" variable=\"ADMISSION_ADMIN__TOKEN\"")),
        "{log:?}"
    );
    let all = log.join("\n");
    assert!(
        !all.contains("hunter2") && !all.contains("leaked") && !all.contains("changedchanged"),
        "{all}"
    );
}

#[test]
fn parts_of_overrides_about_no_limit_are_warned_of() {
    let limits = |limits: &str| {
        config(&format!(
            "[groups.api]\npath = '/'\nrates = {{ burst = '1/s' }}\nrate_per_ip = '9/s'\n\
             [leases.jobs]\ntotal = 9\n[limits]\n{limits}"
        ))
    };
    let right = "'org:a' = '1/s, jobs=1 concurrent, api=2 concurrent'\n\
                 'org:b' = 'api.burst=2/s'\n'ip:192.0.2.1' = 'api.ip=1/s'";
    assert_eq!(warnings(&limits(right)), []);
    let found =
        limits("'org:a' = 'jbos=1 concurrent'\n'bearer:hunter2' = 'uploads=1/s'").warnings();
    let found: Vec<_> = found
        .iter()
        .map(|found| (found.to_string(), found.may_be_intended()))
        .collect();
    let [(near, false), (other, true)] = &found[..] else {
        panic!("{found:?}")
    };
    assert_eq!(
        near,
        "limits.\"org:a\": unknown limit `jbos`: did you mean `jobs`?"
    );
    let expected =
        "limits.\"bearer:..\": there is no limit `uploads` in this configuration, and no effect";
    assert!(other.starts_with(expected), "{other}");
}

#[test]
fn variables_that_set_nothing_are_warned_of() {
    let file = "[groups.api]\npath = '/api'\nrate = '1/s'";
    for variable in [
        "ADMISSION_GROUPS_API_RATE",
        "ADMISSION_groups_api_rate",
        "ADMISSION_GROUP_API_RATE",
        "ADMISSION_STORE_URL",
        "ADMISSION_ADMIN_TOKEN",
        "ADMISSION_CLIENTS_TRUSTED_PROXIES",
        "ADMISSION_ALLOW_EMPTY",
    ] {
        let told = told(file, &[(variable, "hunter2")]);
        let expected = format!(
            "{variable}: this variable is not read: write two underscores for a dot, as in \
                    `ADMISSION_GROUPS__API__RATE`"
        );
        assert_eq!(told, [(WarningKind::UnreadVariable, expected)]);
    }
    // The program's own, and others'.
    for variable in [
        "ADMISSION_REDIS",
        "ADMISSION_REDIS_CA",
        "ADMISSION_REDIS_CERTIFICATE",
        "ADMISSION_REDIS_KEY",
        "ADMISSION_ADMIN",
        "ADMISSION_TOKEN",
        "ADMISSION_SECRET",
        "ADMISSION_PREFIX",
        "ADMISSION_MODE_X",
        // Of a service in Kubernetes that is called `admission-store`.
        "ADMISSION_STORE_PORT",
        "ADMISSION_STORE_SERVICE_HOST",
        "ADMISSION_STORE_SERVICE_PORT_REDIS",
        "ADMISSION_STORE_PORT_6379_TCP_ADDR",
        "ADMISSIONS_GROUPS_API_RATE",
        "OTHER_GROUPS_API_RATE",
    ] {
        assert_eq!(told(file, &[(variable, "x")]), [], "{variable}");
    }
}

#[test]
fn warnings_are_logged_at_start_and_on_reload() {
    let good = config("[groups.api]\npath = '/api'\nrate = '1/s'");
    let bad = config("[groups.api]\npath = '/api'\nrate = '1/s'\nexclude = '/health'");
    let warned = |log: Vec<String>| {
        let of_it = |line: &&String| line.contains("a setting has no effect");
        let told: Vec<_> = log.iter().filter(of_it).collect();
        for line in &told {
            assert!(
                line.starts_with("WARN ") && line.contains("groups.api.exclude: `/health`"),
                "{line}"
            );
        }
        told.len()
    };
    assert_eq!(warned(logged(|| drop(Admission::new(&bad).unwrap()))), 1);
    let admission = Admission::new(&good).unwrap();
    assert_eq!(warned(logged(|| admission.reload(&bad).unwrap())), 1);
    assert_eq!(warned(logged(|| admission.reload(&good).unwrap())), 0);
}

/// Whether a program makes a layer of a group is known only once it has made its layers.
#[test]
fn a_group_without_a_path_is_warned_of_unless_it_has_a_layer() {
    let text = "[groups.api]\nrate = '1/s'\n[groups.batch]\nrate = '1/s'";
    let groups = |log: Vec<String>| {
        let of_it = |line: &String| {
            line.contains("selects no requests")
                .then(|| line.contains("groups.api: "))
        };
        log.iter().filter_map(of_it).collect::<Vec<_>>()
    };
    let mut admission = None;
    let start = logged(|| admission = Some(Admission::new(&config(text)).unwrap()));
    assert!(
        start
            .iter()
            .all(|line| line.starts_with("INFO these limits are off")),
        "{start:?}"
    );
    let admission = admission.unwrap();
    let _batch = admission.layer_of("batch").unwrap();
    assert_eq!(groups(logged(|| drop(admission.layer()))), [true]);
    assert_eq!(groups(logged(|| drop(admission.layer()))), [] as [bool; 0]);
    // From then on all are made.
    assert_eq!(
        groups(logged(|| admission.reload(&config(text)).unwrap())),
        [true]
    );
    let _api = admission.layer_of("api").unwrap();
    assert_eq!(
        groups(logged(|| admission.reload(&config(text)).unwrap())),
        [] as [bool; 0]
    );
    let error = Admission::builder(&config(text))
        .deny_warnings()
        .build()
        .unwrap_err();
    assert_eq!(error.field(), Some("groups.api"));
}

#[test]
fn warnings_can_be_errors() {
    let good = config("[groups.api]\npath = '/api'\nrate = '1/s'");
    let bad = config("[groups.api]\npath = '/api'\nrate = '1/s'\nexclude = '/health'");
    let error = Admission::builder(&bad)
        .deny_warnings()
        .build()
        .unwrap_err();
    assert_eq!(error.field(), Some("groups.api.exclude"));
    let admission = Admission::builder(&good).deny_warnings().build().unwrap();
    let error = admission.reload(&bad).unwrap_err();
    assert_eq!(error.field(), Some("groups.api.exclude"));
    assert_eq!(error.line(), Some(4));
    assert!(admission.last_reload().error.is_some());
    admission.reload(&good).unwrap();
}
