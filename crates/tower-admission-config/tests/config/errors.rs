//! What is wrong is told with the file or variable, the field, and what would be right.

use tower_admission_config::{Admission, Config};

use super::File;

#[test]
fn each_field_is_read() {
    let file = File::new(
        r#"
        [store]
        url = "redis://127.0.0.1:6379"
        secret = "000102030405060708090a0b0c0d0e0f"
        prefix = "gateway"
        deadline = "50ms"
        on_failure = "local share"
        replicas = 3

        [clients]
        trusted_proxies = ["10.0.0.0/8", "192.0.2.1"]
        forwarded_header = "forwarded"
        ipv6_prefix = 56
        trust_unix_socket = true

        [admin]
        token = "hunter2hunter2hunter2"

        [groups.api]
        path = "/api"
        name = "AI Bridge"
        concurrency = 64
        concurrency_per_key = 4
        concurrency_per_ip = 8
        rates = { burst = "10/s", daily = "50000/day" }
        rate_per_ip = "50/s"
        bad_credentials_per_ip = "20/min"
        key = "bearer"
        exclude = ["/api/health", "/api/metrics"]
        headers = "legacy"
        retry_after_ms = true
        on_failure = "closed"
        dry_run = true

        [groups.batch]
        rate = "600/min burst 50"
        "#,
    );
    let config = file.load(&[]).unwrap();
    assert_eq!(config.groups().collect::<Vec<_>>(), ["api", "batch"]);
    assert_eq!(config.admin_tokens().collect::<Vec<_>>(), ["admin"]);
    let shown = format!("{config:?}");
    assert!(!shown.contains("hunter2"), "{shown}");
}

#[test]
fn errors_name_the_position_and_the_fix() {
    let mut wrong = Vec::new();
    for (text, expected) in [
        (
            "[groups.api]\npath = ''",
            "groups.api.path: \"\" is not a path: a path begins with `/`, such as \"/api\"",
        ),
        (
            "[groups.api]\npath = []",
            "groups.api.path: \"\" is not a path: a path begins with `/`",
        ),
        (
            "[groups.api]\npath = ' , '",
            "groups.api.path: \"\" is not a path: a path begins with `/`",
        ),
        (
            "[groups.api]\nrate = '1/0s'",
            "groups.api.rate: \"1/0s\" is not a valid quota: the period is 0; write a period above 0, as in \
                    `10/s`",
        ),
        (
            "[groups.api]\nrate = '0/0s'",
            "groups.api.rate: \"0/0s\" is not a valid quota: the period is 0; write a period above 0, as in \
                    `10/s`",
        ),
        (
            "[admin]\ntoken = 'short'",
            "admin.token: a token has at least 16 bytes",
        ),
        (
            "[admin]\ntoken = ''",
            "admin.token: a token has at least 16 bytes",
        ),
        ("[store]\nurl = ''", "store.url: "),
        (
            "[groups.api]\npth = '/api'",
            "groups.api: unknown field `pth`, expected one of `path`",
        ),
        (
            "[group.api]",
            "unknown field `group`, expected one of `store`",
        ),
        ("[groups.api]\nrate = '10'", "groups.api.rate: "),
        ("[groups.api]\nrate = '10/0s'", "groups.api.rate: "),
        ("[groups.api]\nrate = '10/s burst 0'", "groups.api.rate: "),
        (
            "[groups.api]\nrates = { a = '1/fortnight' }",
            "groups.api.rates.a: ",
        ),
        (
            "[groups.api]\nrates = { 'ä' = '1/s' }",
            "groups.api.rates.ä: a name is 1 to 64 bytes",
        ),
        (
            "[groups.api]\nrate = '1/s'\nrates = { a = '1/s' }",
            "groups.api.rate: use either `rate` or `rates`",
        ),
        ("[groups.api]\nconcurrency = -1", "groups.api.concurrency: "),
        (
            "[groups.api]\nconcurrency = 'many'",
            "groups.api.concurrency: expected a whole number from 0 to ",
        ),
        (
            "[groups.api]\npath = 'api'",
            "groups.api.path: \"api\" is not a path: a path begins with `/`, such as \"/api\"",
        ),
        (
            "[groups.api]\nexclude = ['health']",
            "groups.api.exclude: \"health\" is not a path: a path begins with `/`",
        ),
        (
            "[groups.api]\nexclude = ['/a/*']",
            "groups.api.exclude: \"/a/*\" is not a valid pattern: a parameter is a whole segment",
        ),
        (
            "[groups.api]\nkey = 'a cookie'",
            "groups.api.key: \"a cookie\" is not one of `token`, `bearer`, `api-key`, `ip`, `shared`, \
                    `header X-User`",
        ),
        (
            "[groups.api]\nkey = 'header X-User'",
            "groups.api.key: a client can forge this header: list the proxies that write it in \
                    `clients.trusted_proxies`",
        ),
        (
            "[clients]\ntrusted_hops = 1\n[groups.api]\nkey = 'header X-User'",
            "groups.api.key: a client can forge this header",
        ),
        (
            "[groups.api]\nkey = 'header x user'",
            "groups.api.key: \"x user\" is not the name of a header, such as `X-User`",
        ),
        (
            "[groups.api]\nkey = 'header '",
            "groups.api.key: \"\" is not the name of a header, such as `X-User`",
        ),
        (
            "[groups.api]\nkey = 'header X-Api-Key'",
            "groups.api.key: \"X-Api-Key\" cannot hold an identity: for credentials use `bearer`",
        ),
        (
            "[clients]\nforwarded_header = 'x-real-ip'",
            "clients.forwarded_header: \"x-real-ip\" is not one of `x-forwarded-for`, `forwarded`, `single \
                    X-Real-IP`",
        ),
        (
            "[clients]\nforwarded_header = 'single x y'",
            "clients.forwarded_header: \"single x y\" is not one of",
        ),
        (
            "[clients]\ntrusted_hops = 256",
            "clients.trusted_hops: expected a whole number from 0 to 255",
        ),
        (
            "[clients]\ntrusted_hops = 1\ntrusted_proxies = '10.0.0.0/8'",
            "clients.trusted_hops: use either the number of proxies, or their networks",
        ),
        (
            "[clients]\ntrusted_hops = 1\ntrust_unix_socket = true",
            "clients.trusted_hops: use either",
        ),
        (
            "[groups.api]\nexclude = ['/api/../health']",
            "groups.api.exclude: \"/api/../health\" has a `.` or `..` segment: remove it",
        ),
        (
            "[groups.api]\nheaders = 'yes'",
            "groups.api.headers: \"yes\" is not one of `draft`, `draft-6`, `legacy`, `legacy-epoch`, `off`",
        ),
        (
            "[groups.a]\npath = '/x'\n[groups.b]\npath = '/x/'",
            "groups.b.path: group `a` already has this path",
        ),
        (
            "[groups.a]\n[groups.b]\nname = 'a'",
            "groups.b.name: group `a` already has the name `a`",
        ),
        (
            "[groups.a]\nrates = { ip = '5/h' }\nrate_per_ip = '9/h'",
            "groups.a.rate_per_ip: `groups.a.rates.ip` already has the name `a.ip`",
        ),
        (
            "[groups.a]\nrates = { b = '5/h' }\n[groups.'a.b']",
            "groups.a.rates.b: group `a.b` already has the name `a.b`",
        ),
        (
            "[groups.a]\nname = 'x.ip'\n[groups.x]\nrate_per_ip = '0'",
            "groups.x.rate_per_ip: group `a` already has the name `x.ip`",
        ),
        (
            "[groups.a]\nname = 'x'\nrates = { 'y.z' = '5/h' }\n[groups.b]\nname = 'x.y'\nrates = { z = '1/s' }",
            "groups.b.rates.z: `groups.a.rates.y.z` already has the name `x.y.z`",
        ),
        (
            "[groups.a]\nname = ''\n[groups.b]",
            "groups.a.name: a name is 1 to 64 bytes",
        ),
        (
            "[clients]\ntrusted_proxies = ['10.0.0.0/33']",
            "clients.trusted_proxies: \"10.0.0.0/33\" is not a network, such as",
        ),
        (
            "[clients]\ntrusted_proxies = ['10.0.0.5/3']",
            "clients.trusted_proxies: \"10.0.0.5/3\": the address has bits after the prefix: the network is \
                    \"0.0.0.0/3\"",
        ),
        (
            "[clients]\ntrusted_proxies = '2001:db8::1/32'",
            "clients.trusted_proxies: \"2001:db8::1/32\": the address has bits after the prefix",
        ),
        (
            "[lists]\ndeny = ['ip:192.0.2.1', 'ip:192.0.2.1/32 until 2026-12-01T00:00:00Z']",
            "lists.deny: \"ip:192.0.2.1/32\": this key occurs twice",
        ),
        (
            "[lists]\nallow = ['bearer:hunter2', 'bearer: hunter2']",
            "lists.allow: a key of the kind \"bearer\": this key occurs twice",
        ),
        (
            "[lists]\ndeny = ['shared']",
            "lists.deny: \"shared\": no request is looked up by this key",
        ),
        (
            "[lists]\nallow = ['unknown']",
            "lists.allow: \"unknown\": no request is looked up by this key",
        ),
        (
            "[lists]\ndeny = ['X-User:eve']\n[clients]\ntrust_unix_socket = true\n\
             [groups.api]\nkey = 'header X-User'",
            "lists.deny: a key of the kind \"X-User\": keys of `header X-User` have lowercase names: write \
                    `x-user:..`",
        ),
        (
            "[clients]\ntrust_unix_socket = true\n[groups.api]\nkey = 'header X-User'\n[limits]\n\
             'org:acme' = '1/s'\n'X-User:eve' = '1/s'",
            "limits.\"X-User:eve\": keys of `header X-User` have lowercase names",
        ),
        (
            "[limits]\n'org:acme' = '1/s'\n'org: acme' = '2/s'",
            "limits.\"org:acme\": this key occurs twice",
        ),
        (
            "[clients]\nipv6_prefix = 129",
            "clients.ipv6_prefix: an IPv6 address has 128 bits",
        ),
        (
            "[store]\nurl = 'redis://127.0.0.1'",
            "store.secret: a shared store needs `store.secret`",
        ),
        (
            "[store]\nsecret = 'hunter2'",
            "store.secret: a secret is 32 hexadecimal digits",
        ),
        (
            "[store]\nurl = 'http://hunter2@x'\nsecret = '000102030405060708090a0b0c0d0e0f'",
            "store.url: this is not a URL of Redis, such as \"redis://",
        ),
        #[cfg(feature = "redis-tls")]
        (
            "[store]\nurl = 'rediss://x'\nsecret = '000102030405060708090a0b0c0d0e0f'\n\
             tls_key_file = '/nowhere/key.pem'",
            "store.tls_key_file: a key needs its certificate in `store.tls_certificate_file`",
        ),
        #[cfg(feature = "redis-tls")]
        (
            "[store]\nurl = 'redis://x'\nsecret = '000102030405060708090a0b0c0d0e0f'\n\
             tls_server_name = 'x'",
            "store.tls_server_name: certificates need a URL with TLS: rediss://",
        ),
        (
            "[store]\ndeadline = '25'",
            "store.deadline: \"25\" is not a duration, such as \"25ms\"",
        ),
        (
            "[store]\non_failure = 'local share'",
            "store.on_failure: `local share` needs the number of replicas in `store.replicas`",
        ),
        (
            "[store]\non_failure = 'panic'",
            "store.on_failure: \"panic\" is not one of `open`, `closed`, `local share`",
        ),
        (
            "[groups.a]\non_failure = 'local share'",
            "groups.a.on_failure: `local share` needs the number of replicas",
        ),
        ("[groups.api\n", "invalid TOML: unclosed table"),
        ("[admin]\ntoken = 'hunter2\n", "invalid TOML: "),
    ] {
        let file = File::new(text);
        let error = file.load(&[]).unwrap_err().to_string();
        if !in_file(&file, &error).starts_with(expected) {
            wrong.push(format!("{text}: {error}"));
        }
        assert!(!error.contains("hunter2"), "{error}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let missing = Config::load("/nowhere/gateway.toml").unwrap_err();
    assert!(
        missing.to_string().starts_with("/nowhere/gateway.toml: "),
        "{missing}"
    );
    assert_eq!(missing.field(), None);
}

#[test]
fn the_environment_goes_before_the_file() {
    let file = File::new("[groups.api]\nconcurrency = 5\nrate = '10/s'\nexclude = ['/a']");
    let variables = [
        ("ADMISSION_GROUPS__API__CONCURRENCY", "7"),
        ("ADMISSION_GROUPS__API__DRY_RUN", "true"),
        ("ADMISSION_GROUPS__API__EXCLUDE", "/health, /metrics"),
        ("ADMISSION_GROUPS__BATCH__RATE", "1/s"),
        ("ADMISSION_CLIENTS__TRUSTED_PROXIES", "10.0.0.0/8"),
        // A command's.
        ("ADMISSION_TOKEN", "x"),
        ("OTHER__GROUPS__API__CONCURRENCY", "x"),
    ];
    let config = file.load(&variables).unwrap();
    assert_eq!(config.groups().collect::<Vec<_>>(), ["api", "batch"]);
    let shown = format!("{config:?}");
    assert!(shown.contains("concurrency: 7"), "{shown}");

    // The one in capitals counts, whichever was set first.
    for n in 0..8 {
        let one = [
            ("ADMISSION_groups__api__concurrency", "8"),
            ("ADMISSION_GROUPS__API__CONCURRENCY", "9"),
        ];
        let other = [one[1], one[0]];
        let config = file.load(if n % 2 == 0 { &one } else { &other }).unwrap();
        assert!(
            format!("{config:?}").contains("concurrency: 9"),
            "{config:?}"
        );
    }

    for (variable, value, expected) in [
        (
            "ADMISSION_GROUPS__API__RATE",
            "10",
            "ADMISSION_GROUPS__API__RATE: groups.api.rate: ",
        ),
        (
            "ADMISSION_CLIENTS__TRUSTED_PROXIES",
            "nowhere",
            "ADMISSION_CLIENTS__TRUSTED_PROXIES: clients.trusted_proxies: \"nowhere\" is not a network",
        ),
        (
            "ADMISSION_GROUPS__API__PATH",
            "",
            "ADMISSION_GROUPS__API__PATH: groups.api.path: ",
        ),
        (
            "ADMISSION_STORE__URL",
            "",
            "ADMISSION_STORE__URL: store.url: ",
        ),
    ] {
        let error = file.load(&[(variable, value)]).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
    // What no field is called is told with its variable, and not when the file has it.
    for (variable, expected) in [
        (
            "ADMISSION_GROUPS__API__RAT",
            "ADMISSION_GROUPS__API__RAT: groups.api: unknown field `rat`, expected one of `path`",
        ),
        (
            "ADMISSION_groups__Api__Rat",
            "ADMISSION_groups__Api__Rat: groups.api: unknown field `rat`",
        ),
        (
            "ADMISSION_GROUPS__API__RAT__X",
            "ADMISSION_GROUPS__API__RAT__X: groups.api: unknown field `rat`",
        ),
        (
            "ADMISSION_GRUOPS__API__RATE",
            "ADMISSION_GRUOPS__API__RATE: unknown field `gruops`",
        ),
        (
            "ADMISSION_groups__api__rate",
            "ADMISSION_groups__api__rate: groups.api.rate: \"1 s\" is not a valid quota: expected a count \
                    per",
        ),
        (
            "ADMISSION_GROUPS__A.B__RATE",
            "ADMISSION_GROUPS__A.B__RATE: groups.a.b.rate: \"1 s\" is not a valid quota",
        ),
        (
            "ADMISSION_GROUPS__API.RATE__X",
            "ADMISSION_GROUPS__API.RATE__X: groups.api.rate: unknown field `x`",
        ),
        (
            "ADMISSION_GROUPS__A[0]__RATE",
            "ADMISSION_GROUPS__A[0]__RATE: groups.a[0].rate: \"1 s\" is not a valid quota",
        ),
        (
            "ADMISSION_GROUPS__API_RATE",
            "ADMISSION_GROUPS__API_RATE: groups.api_rate: expected a table: write two underscores for each \
                    dot",
        ),
        (
            "ADMISSION_STORE__URL__X",
            "ADMISSION_STORE__URL__X: store.url: expected text",
        ),
    ] {
        let error = file.load(&[(variable, "1 s")]).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
    let file = File::new("[groups.api]\nrta = '10/s'");
    let variable = ("ADMISSION_GROUPS__API__RATE", "1/s");
    let error = file.load(&[variable]).unwrap_err().to_string();
    let told = in_file(&file, &error);
    assert!(
        told.starts_with("groups.api: unknown field `rta`"),
        "{error}"
    );
}

/// What is told behind the file, the line and the column.
fn in_file<'a>(file: &File, error: &'a str) -> &'a str {
    let told = error.strip_prefix(&*file.path().display().to_string());
    let told = told.unwrap_or_else(|| panic!("{error}"));
    let told = told.trim_start_matches(|c: char| c == ':' || c.is_ascii_digit());
    told.strip_prefix(' ').unwrap_or_else(|| panic!("{error}"))
}

#[test]
fn an_error_names_line_and_column_and_what_is_written() {
    let units = "unknown unit; use s, min, h, day or week, as in `10/s` or `5 per 30s`";
    let count = "expected a whole number such as 10, 1_000 or 1k, per s, min, h, day or week";
    for (text, expected) in [
        (
            "[groups.api]\npath = '/api'\nrate = '10/fortnight'",
            format!("3:8: groups.api.rate: \"10/fortnight\" is not a valid quota: {units}"),
        ),
        (
            "[groups.api]\nrates = { a = '1/s', b = '-5/s' }",
            format!("2:26: groups.api.rates.b: \"-5/s\" is not a valid quota: {count}"),
        ),
        (
            "# ä\ngroups.'a b'.tiers.pro.rate = 5",
            "2:31: groups.a b.tiers.pro.rate: expected text, not 5".to_owned(),
        ),
        (
            "[groups.api]\nconcurrency = 99_999_999_999_999_999_999",
            "2:15: groups.api.concurrency: expected a whole number from 0 to 9223372036854775807, not \
                    99_999_999_999_999_999_999"
                .to_owned(),
        ),
        (
            "[groups.api]\nrate = '5000000000/s'",
            "2:8: groups.api.rate: \"5000000000/s\" is not a valid quota: the count is too large; at most \
                    4294967295, including the burst of a sliding quota"
                .to_owned(),
        ),
        (
            "[clients]\nipv6_prefix = 300",
            "2:15: clients.ipv6_prefix: expected a whole number from 0 to 255, not 300".to_owned(),
        ),
        (
            "[groups.api]\nconcurrency = 'many'",
            "2:15: groups.api.concurrency: expected a whole number from 0 to 9223372036854775807, not \
                    'many'"
                .to_owned(),
        ),
        // What is found later, or is not there.
        (
            "[groups.a]\npath = '/x'\n\n[groups.b]\n  path = ['/x', '/y']",
            "5:10: groups.b.path: group `a` already has this path".to_owned(),
        ),
        (
            "[groups.a]\n[groups.b]\nname = 'a'",
            "3:8: groups.b.name: group `a` already has the name `a`".to_owned(),
        ),
        (
            "\n[store]\nurl = 'redis://127.0.0.1'",
            "2:2: store.secret: a shared store needs `store.secret`: 32 hexadecimal digits, the same in all \
                    replicas"
                .to_owned(),
        ),
        // It is the name that is wrong.
        (
            "[groups.api]\nraet = '1/s'",
            "2:1: groups.api: unknown field `raet`, expected one of".to_owned(),
        ),
        ("[groups.api]\n[group.b]", "2:2: unknown field `group`, expected one of".to_owned()),
        ("[groups.api\n", "1:12: invalid TOML: unclosed table".to_owned()),
    ] {
        let file = File::new(text);
        let error = file.load(&[]).unwrap_err();
        let place = format!("{}:{expected}", file.path().display());
        assert!(error.to_string().starts_with(&place), "{text}: {error}");
        let from_text = Config::from_toml(text).unwrap_err();
        let place = (error.line(), error.column());
        assert_eq!((from_text.line(), from_text.column()), place, "{text}");
    }
    // Without a file there is nothing to open.
    let error = Config::from_toml("[groups.api]\nrate = '10/fortnight'").unwrap_err();
    assert!(
        error.to_string().starts_with("groups.api.rate: "),
        "{error}"
    );
    assert_eq!((error.line(), error.column()), (Some(2), Some(8)));
    let error = Config::from_toml("[groups.api").unwrap_err().to_string();
    assert!(error.starts_with("1:12: invalid TOML: "), "{error}");
}

#[test]
fn a_typing_error_has_a_suggestion() {
    for (text, meant) in [
        ("[groups.api]\nraet = '1/s'", "; did you mean `rate`?"),
        ("[groups.api]\nPath = '/'", "; did you mean `path`?"),
        ("[group.api]", "; did you mean `groups`?"),
        ("[stor]", "; did you mean `store`?"),
        (
            "[groups.api.tiers.pro]\nratess = {}",
            "; did you mean `rates`?",
        ),
    ] {
        let error = Config::from_toml(text).unwrap_err().to_string();
        assert!(error.ends_with(meant), "{error}");
    }
    let error = Config::from_toml("[groups.api]\nburst = 5").unwrap_err();
    assert!(!error.to_string().contains("meant"), "{error}");
}

#[test]
fn names_are_those_that_the_program_can_address() {
    let unnameable = "a name is 1 to 64 bytes of printable ASCII without `,` and `=`";
    let long = "x".repeat(65);
    for name in ["a,b", "a=b", "tier", " a", "a ", "ä", "a\\nb", &long] {
        for (text, field) in [
            (format!("[groups.\"{name}\"]\nconcurrency = 1"), None),
            (
                format!("[groups.api]\nname = \"{name}\""),
                Some("groups.api.name"),
            ),
            (format!("[groups.api.tiers.\"{name}\"]\nrate = '1/s'"), None),
        ] {
            let error = Config::from_toml(&text).unwrap_err();
            assert!(error.to_string().contains(unnameable), "{text}: {error}");
            if let Some(field) = field {
                assert_eq!(error.field(), Some(field));
            }
        }
    }
    for name in ["AI Bridge", "a.b", "tiers", "a/b:c"] {
        Config::from_toml(&format!("[groups.api]\nname = '{name}'\nrate = '1/s'")).unwrap();
    }
}

#[test]
fn a_group_that_is_not_there_has_no_layer() {
    let admission = Admission::new(&Config::from_toml("[groups.api]").unwrap()).unwrap();
    assert!(admission.layer_of("api").is_ok());
    let error = admission.layer_of("apis").unwrap_err();
    assert_eq!(
        error.to_string(),
        "groups.apis: the configuration has no such group"
    );
}
