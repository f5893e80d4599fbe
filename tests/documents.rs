//! The README and the guide read well on a code host, on a registry page and in rustdoc.

use std::fs;
use std::path::Path;

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The targets of inline links and images.
fn links(text: &str) -> impl Iterator<Item = &str> {
    let targets = text.split("](").skip(1);
    targets.map(|rest| rest.split(')').next().unwrap())
}

#[test]
fn the_readme_has_at_most_700_words() {
    let words = read("README.md").split_whitespace().count();
    assert!(words <= 700, "{words} words: move something into the guide");
}

#[test]
fn the_readme_has_no_lines_that_only_rustdoc_hides() {
    let readme = read("README.md");
    let blocks = readme.split("\n```").skip(1).step_by(2);
    let snippets: Vec<_> = blocks.filter(|block| block.starts_with("rust")).collect();
    assert!(!snippets.is_empty());
    for snippet in snippets {
        let hidden = snippet
            .lines()
            .find(|line| line.trim_start().starts_with("# "));
        assert_eq!(hidden, None);
    }
}

#[test]
fn the_links_of_the_readme_lead_to_sites_and_files() {
    let readme = read("README.md");
    let mut seen = 0;
    for link in links(&readme) {
        seen += 1;
        let exists = || Path::new(env!("CARGO_MANIFEST_DIR")).join(link).exists();
        assert!(link.starts_with("https://") || exists(), "{link}");
    }
    assert!(seen > 20, "only {seen} links found");
}

#[test]
fn each_file_of_the_guide_is_a_chapter_and_is_linked_by_the_readme() {
    let (guide, readme) = (read("src/guide.rs"), read("README.md"));
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/guide");
    let mut chapters = 0;
    for file in fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let chapter = path.file_stem().unwrap().to_str().unwrap();
        chapters += 1;
        for expected in [
            format!("include_str!(\"../docs/guide/{chapter}.md\")"),
            format!("pub mod {chapter} {{}}"),
            format!("//! | [`{chapter}`] |"),
        ] {
            assert!(guide.contains(&expected), "src/guide.rs: {expected}");
        }
        let link = format!("/guide/{chapter}/)");
        assert!(readme.contains(&link), "README.md: {link}");
    }
    assert_eq!(chapters, 15);
}

/// The crates in a manifest's list of types that the public API may name, without crates of the workspace.
fn visible_dependencies(manifest: &str) -> Vec<String> {
    let (_, list) = manifest.split_once("allowed_external_types = [").unwrap();
    let (list, _) = list.split_once(']').unwrap();
    let types = list.split('"').skip(1).step_by(2);
    let crates = types.map(|path| path.split("::").next().unwrap());
    let others = crates.filter(|name| !name.starts_with("tower_admission"));
    // The traits of serde are defined in its core.
    let names = others.map(|name| name.replace("serde_core", "serde").replace('_', "-"));
    names.collect()
}

#[test]
fn the_policy_lists_the_dependencies_that_public_signatures_may_name() {
    let policy = read("docs/policy.md");
    let crates = ["", "-axum", "-config", "-redis", "-testkit"];
    for name in crates.map(|suffix| format!("tower-admission{suffix}")) {
        let manifest = match &*name {
            "tower-admission" => read("Cargo.toml"),
            _ => read(&format!("crates/{name}/Cargo.toml")),
        };
        let visible = visible_dependencies(&manifest);
        let quoted: Vec<_> = visible.iter().map(|name| format!("`{name}`")).collect();
        let list = match quoted.is_empty() {
            true => "none".to_owned(),
            false => quoted.join(", "),
        };
        let row = format!("| `{name}` | {list} |");
        assert!(policy.contains(&row), "docs/policy.md: {row}");
    }
}
