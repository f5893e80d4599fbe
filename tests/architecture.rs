//! The map is true: each file and each test that the documents for contributors name exists.

use std::fs;
use std::path::{Path, PathBuf};

const DOCUMENTS: [&str; 4] = [
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "RELEASING.md",
    "SECURITY.md",
];

/// Folders whose files the documents name.
const FOLDERS: [&str; 9] = [
    "src/",
    "crates/",
    "tests/",
    "examples/",
    "docs/",
    "benches/",
    "fuzz/",
    "dashboards/",
    "scripts/",
];

/// A published package has no other crates, so it cannot check the map.
fn is_package() -> bool {
    !root().join("crates").exists()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What stands between backquotes, and where links lead.
fn names(text: &str) -> impl Iterator<Item = &str> {
    let code = text.split('`').skip(1).step_by(2);
    let links = text.split("](").skip(1);
    code.chain(links.filter_map(|link| link.split(')').next()))
}

#[test]
fn a_named_file_exists() {
    if is_package() {
        return;
    }
    let mut seen = 0;
    for document in DOCUMENTS {
        let text = fs::read_to_string(root().join(document)).unwrap();
        for name in names(&text) {
            let path = name.split("::").next().unwrap_or_default();
            let is_path = FOLDERS.iter().any(|folder| path.starts_with(folder));
            if is_path && !path.contains([' ', '*']) {
                seen += 1;
                assert!(root().join(path).exists(), "{document} names {path}");
            }
        }
    }
    assert!(
        seen > 50,
        "only {seen} paths found: does this test still read the documents?"
    );
}

/// Within its traces the map names files by the end of their path.
#[test]
fn a_file_that_is_named_by_its_end_exists() {
    if is_package() {
        return;
    }
    let mut files = Vec::new();
    for folder in ["src", "crates"] {
        list(&root().join(folder), &mut files);
    }
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let ends = names(&text).filter(|name| name.ends_with(".rs") || name.ends_with(".lua"));
    for end in ends.filter(|end| !FOLDERS.iter().any(|folder| end.starts_with(folder))) {
        let is_there = files.iter().any(|file| file.ends_with(end));
        assert!(is_there, "ARCHITECTURE.md names {end}");
    }
}

fn list(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            list(&path, files);
        } else {
            files.push(path);
        }
    }
}

#[test]
fn a_named_test_exists() {
    if is_package() {
        return;
    }

    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let tests = names(&text).filter_map(|name| name.split_once(".rs::"));
    let mut seen = 0;
    for (file, test) in tests {
        seen += 1;
        let code = fs::read_to_string(root().join(format!("{file}.rs"))).unwrap();
        assert!(
            code.contains(&format!("fn {test}(")),
            "ARCHITECTURE.md names the test {test} of {file}.rs"
        );
    }
    assert!(
        seen > 20,
        "only {seen} tests found: does this test still read the table?"
    );
}

#[test]
fn each_decision_is_in_the_index() {
    let folder = root().join("docs/decisions");
    let index = fs::read_to_string(folder.join("README.md")).unwrap();
    for entry in fs::read_dir(folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(
            name == "README.md" || index.contains(&format!("({name})")),
            "{name} is not in docs/decisions/README.md"
        );
    }
}
