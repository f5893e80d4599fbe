//! Each level of the crate uses only levels above it, and those that decide do not name `http`.

use std::fs;
use std::path::{Path, PathBuf};

/// From the top; modules of one line do not use each other.
const LEVELS: &[&[&str]] = &[
    &["sync"],
    &["nesting", "per_thread", "singleton_task"],
    &["key"],
    // Requests and their keys.
    &["extract"],
    &["enforce"],
    &["quota"],
    &["capacity", "rule"],
    &["limit"],
    &["policy"],
    &["decision"],
    &["store"],
    &["rejection"],
    &["observe"],
    &["limits"],
    &["limiter"],
    // The HTTP boundary.
    &["headers"],
    &["respond"],
    &["body", "drain"],
    &["access"],
    &["concurrency", "rate"],
    &["provider"],
    &["endpoint"],
    &["admin", "sessions", "ws"],
    &["guide"],
];

const FIRST_WITH_HTTP: &str = "headers";

/// Names `http` further up: observers see the request that its keys come from.
const OF_REQUESTS: &str = "extract";

fn level(module: &str) -> usize {
    let level = LEVELS.iter().position(|level| level.contains(&module));
    level.unwrap_or_else(|| panic!("module `{module}` has no level: add it to LEVELS"))
}

fn sources(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// The code of a file, without comments and without the text of strings that look like paths.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = text.lines().enumerate();
    lines.filter(|(_, line)| !line.trim_start().starts_with("//"))
}

/// What follows each `crate::` in a line.
fn uses(line: &str) -> impl Iterator<Item = &str> {
    line.split("crate::").skip(1).map(|rest| {
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_');
        &rest[..end.unwrap_or(rest.len())]
    })
}

#[test]
fn levels_use_only_what_is_above_them() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    let (mut seen, mut wrong) = (0, Vec::new());
    for file in files {
        let path = file.strip_prefix(&src).unwrap();
        let module = path
            .iter()
            .next()
            .unwrap()
            .to_str()
            .unwrap()
            .trim_end_matches(".rs");
        if module == "lib" {
            continue;
        }
        for (number, line) in code(&fs::read_to_string(&file).unwrap()) {
            for used in uses(line) {
                seen += 1;
                if used != module && level(used) >= level(module) {
                    wrong.push(format!("{}:{}: uses {used}", path.display(), number + 1));
                }
            }
            let names_http = line.contains("http::") || line.contains("http_body::");
            let decides = level(module) < level(FIRST_WITH_HTTP) && module != OF_REQUESTS;
            if names_http && decides {
                wrong.push(format!("{}:{}: names http", path.display(), number + 1));
            }
        }
    }
    assert!(
        seen > 50,
        "only {seen} uses found: does this test still read the code?"
    );
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
