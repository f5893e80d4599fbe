//! The configuration file of the gateway example.

use tower_admission::Quota;
use tower_admission_config::Config;

#[test]
fn the_file_of_the_example_gives_no_warning() {
    let file = include_str!("../../examples/gateway/gateway.toml");
    assert_eq!(Config::from_toml(file).unwrap().warnings(), []);
    // Also with what is commented out.
    let all = file.lines().map(|line| {
        let line = line.strip_prefix("# ").unwrap_or(line);
        let is_field = line.starts_with('[') || line.contains(" = ");
        if is_field { line } else { "" }
    });
    let config = Config::from_toml(&all.collect::<Vec<_>>().join("\n")).unwrap();
    assert!(config.admin_tokens().next().is_some());
    assert_eq!(config.warnings(), []);
}

/// The numbers in the comments of the example.
#[test]
fn the_example_protects_its_table_by_address() {
    let file = include_str!("../../examples/gateway/gateway.toml");
    let quota = |group: &str, field: &str| -> Quota {
        let (_, group) = file.split_once(&format!("[groups.{group}]")).unwrap();
        let (_, value) = group.split_once(&format!("\n{field} = ")).unwrap();
        let daily = value.split_once("daily = ").filter(|_| field == "rates");
        let quoted = daily.map_or(value, |(_, daily)| daily);
        quoted.split('"').nth(1).unwrap().parse().unwrap()
    };
    // Seconds that a key stays in use, and how many requests an address has in that time.
    let fills = |quota: Quota| {
        let period = quota.period().unwrap().as_secs_f64();
        if quota.is_sliding() {
            return period * 16.0 / 15.0;
        }
        period * f64::from(quota.burst_size().unwrap()) / f64::from(quota.count().unwrap())
    };
    let starts = |address: Quota, time: f64| {
        let (count, burst) = (address.count().unwrap(), address.burst_size().unwrap());
        let periods = time / address.period().unwrap().as_secs_f64();
        if address.is_sliding() {
            return f64::from(burst) * periods.ceil();
        }
        f64::from(burst) + f64::from(count) * periods
    };
    for (group, token, keys, per_address, addresses) in [
        ("api", "rate", 1_000_000.0, 300.0, "1,666"),
        ("batch", "rates", 990_000.0, 4_000.0, "123"),
    ] {
        let time = fills(quota(group, token));
        let started = starts(quota(group, "rate_per_ip"), time);
        assert_eq!(started, per_address, "{group}");
        let most = (keys / 2.0 / started) as u32;
        assert_eq!(most.to_string(), addresses.replace(',', ""), "{group}");
        assert!(
            file.contains(&format!("room for {addresses} addresses")),
            "{group}"
        );
    }
}
