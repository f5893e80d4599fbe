//! Runs the benchmark and reads its counts.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};

use serde_json::Value;

/// Instructions per call, by the name of the path.
pub type Counts = BTreeMap<String, u64>;

/// The number of calls in one benchmark.
const CALLS: u64 = 1000;

pub fn count() -> Result<Counts, String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let bench = Command::new(cargo)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args([
            "bench",
            "--bench",
            "hot_paths",
            "--",
            "--output-format=json",
        ])
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("cargo cannot be run: {error}"))?;
    if !bench.status.success() {
        return Err(format!("the benchmark failed: {}", bench.status));
    }
    // Each benchmark prints one line of JSON.
    let summaries = String::from_utf8_lossy(&bench.stdout);
    let counts: Counts = summaries.lines().map(path).collect::<Result<_, _>>()?;
    if counts.is_empty() {
        return Err("the benchmark counted nothing".into());
    }
    Ok(counts)
}

fn path(summary: &str) -> Result<(String, u64), String> {
    let summary: Value = serde_json::from_str(summary).map_err(|error| error.to_string())?;
    let found = || {
        let name = summary["function_name"].as_str()?;
        let profiles = summary["profiles"].as_array()?;
        let callgrind = profiles
            .iter()
            .find(|profile| profile["tool"] == "Callgrind")?;
        let instructions = &callgrind["data"]["total"]["metrics"]["Ir"]["values"];
        Some((name.to_owned(), instructions["new"].as_u64()? / CALLS))
    };
    found().ok_or_else(|| format!("not a summary as gungraun 0.20 writes it: {summary}"))
}
