//! Reads and writes the checked-in instruction counts.

use std::fmt::Write;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::counts::Counts;

fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("baseline.txt")
}

/// Lines of `name count`; `#` starts a comment.
pub fn read() -> Result<Counts, String> {
    let text = fs::read_to_string(path()).map_err(|error| format!("baseline.txt: {error}"))?;
    let lines = text
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty());
    lines
        .map(|line| {
            let (name, count) = line.split_once(' ')?;
            Some((name.to_owned(), count.trim().parse().ok()?))
        })
        .collect::<Option<_>>()
        .ok_or_else(|| "baseline.txt: every line must be `name count`".into())
}

pub fn write(counts: &Counts) -> Result<(), String> {
    let mut text = format!(
        "# Instructions of one call, the trivial service's own included, by Callgrind.\n\
         # They depend on the toolchain, the C library and what the processor offers, so compare\n\
         # on one kind of machine and update the file when that changes: this is of\n\
         # {}.\n",
        compiler()
    );
    for (name, count) in counts {
        let _ = writeln!(text, "{name} {count}");
    }
    fs::write(path(), text).map_err(|error| format!("baseline.txt: {error}"))
}

/// The version of the compiler, and the target.
fn compiler() -> String {
    let version = Command::new("rustc")
        .arg("--version")
        .arg("--verbose")
        .output();
    let text = version.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let text = text.unwrap_or_default();
    let field = |name| text.lines().find_map(|line| line.strip_prefix(name));
    match (field("release: "), field("host: ")) {
        (Some(release), Some(host)) => format!("rustc {release}, {host}"),
        _ => "an unknown compiler".into(),
    }
}
