//! In the core and the crates for Redis and axum, each module uses only modules of the levels above it. Each crate of
//! the workspace depends only on crates above it. The modules of the core that decide do not name `http`.

use std::fs;
use std::path::{Path, PathBuf};

/// The modules of a folder, from the top.
struct Levels {
    folder: &'static str,
    levels: &'static [Level],
}

enum Level {
    /// Modules that do not use each other.
    Apart(&'static [&'static str]),
    /// The files of one subject, which use each other.
    Together(&'static [&'static str]),
}

use Level::{Apart, Together};

const ALL: &[Levels] = &[
    Levels {
        folder: "src",
        levels: &[
            Apart(&["sync"]),
            Apart(&["nesting", "per_thread", "singleton_task"]),
            Apart(&["key"]),
            // Requests and their keys.
            Apart(&["extract"]),
            Apart(&["enforce"]),
            Apart(&["quota"]),
            Apart(&["capacity", "rule"]),
            Apart(&["limit"]),
            Apart(&["policy"]),
            Apart(&["decision"]),
            Apart(&["store"]),
            Apart(&["rejection"]),
            Apart(&["observe"]),
            Apart(&["limits"]),
            Apart(&["limiter"]),
            // The HTTP boundary.
            Apart(&["headers"]),
            Apart(&["respond"]),
            Apart(&["body", "drain"]),
            Apart(&["access"]),
            Apart(&["concurrency", "rate"]),
            Apart(&["provider"]),
            Apart(&["guide"]),
        ],
    },
    Levels {
        folder: "src/store",
        levels: &[
            Apart(&[
                "denials",
                "error",
                "joined_set",
                "lease",
                "overrides",
                "status",
            ]),
            Apart(&["memory"]),
            Apart(&["local_share"]),
        ],
    },
    Levels {
        folder: "src/limits",
        levels: &[
            Apart(&[
                "entry",
                "error",
                "explanation",
                "limit_target",
                "lists",
                "publish",
                "tiers",
            ]),
            Apart(&["change", "list_entry", "unreadable"]),
            Apart(&["reported"]),
            Together(&["base", "edit", "end_schedule", "in_force", "state"]),
            // The copy of the overrides in a store.
            Together(&["delete_ended", "lost", "missing", "reading", "replica"]),
            Apart(&["usage"]),
        ],
    },
    Levels {
        folder: "src/limiter",
        levels: &[
            Apart(&["key_counters", "key_search", "rules", "stall_clock"]),
            Apart(&["shared_limiters"]),
            Apart(&["effect_checks"]),
            Together(&["charged_buckets", "interpret", "joined", "rate", "suspend"]),
            Together(&[
                "concurrency",
                "parking",
                "permit",
                "slot_counter",
                "stalled",
                "wait",
            ]),
            Apart(&["leases"]),
        ],
    },
    Levels {
        folder: "src/limiter/leases",
        levels: &[
            Apart(&["reaper", "share"]),
            Together(&["build", "lease", "limits"]),
        ],
    },
    Levels {
        folder: "crates/tower-admission-redis/src",
        levels: &[
            Apart(&[
                "arguments",
                "detail",
                "health",
                "metrics",
                "patience",
                "script",
                "scripts",
                "sync",
            ]),
            Apart(&["lanes", "names"]),
            // Connections, and calls over them.
            Together(&[
                "attempt",
                "call",
                "call_error",
                "client",
                "connection",
                "context",
                "events",
                "link",
                "node",
                "recent_failures",
                "router",
                "sentinel",
                "slots",
                "supervisor",
                "test_server",
                "tls",
                "url",
            ]),
            // What is counted, and kept.
            Together(&[
                "acquire",
                "answers",
                "decide",
                "descriptions",
                "keeper",
                "leases",
                "named",
                "overrides",
                "ping",
                "rate",
                "takes",
            ]),
            Apart(&["store"]),
        ],
    },
    Levels {
        folder: "crates/tower-admission-axum/src",
        levels: &[Apart(&["endpoint", "ws"]), Apart(&["admin", "sessions"])],
    },
];

/// The first level of the core that may name `http`, and the one above it that does: observers see the request that
/// its keys come from.
const FIRST_WITH_HTTP: &str = "headers";
const OF_REQUESTS: &str = "extract";

/// What each crate may depend on, and whether only with a feature.
const CRATES: &[(&str, &[(&str, Always)])] = &[
    ("tower-admission", &[]),
    ("tower-admission-testkit", &[("tower-admission", true)]),
    ("tower-admission-redis", &[("tower-admission", true)]),
    ("tower-admission-axum", &[("tower-admission", true)]),
    (
        "tower-admission-config",
        &[
            ("tower-admission", true),
            ("tower-admission-redis", false),
            ("tower-admission-axum", false),
        ],
    ),
    (
        "tower-admission-cli",
        &[
            ("tower-admission", true),
            ("tower-admission-redis", true),
            ("tower-admission-config", true),
        ],
    ),
];

type Always = bool;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The folder of a crate.
fn home(name: &str) -> PathBuf {
    match name {
        "tower-admission" => root().to_owned(),
        _ => root().join("crates").join(name),
    }
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

/// The code of a file, without comments and documentation. Lines keep their numbers.
fn code(text: &str) -> String {
    let lines = text.lines().map(|line| {
        let is_comment = line.trim_start().starts_with("//");
        if is_comment { "" } else { line }
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// A path in code: its line, and its segments from `crate` or `super` on.
#[derive(Debug, PartialEq)]
struct Used {
    line: usize,
    segments: Vec<String>,
}

/// The paths that start with `crate::` or `super::`, with each branch of a `use` tree.
fn uses(code: &str) -> Vec<Used> {
    let mut all = Vec::new();
    let mut at = 0;
    while let Some(found) = ["crate::", "super::"]
        .iter()
        .filter_map(|start| code[at..].find(start))
        .min()
    {
        let start = at + found;
        let before = code[..start].chars().next_back();
        let line = code[..start].matches('\n').count() + 1;
        let mut paths = Vec::new();
        at = start + tree(&code[start..], &[], &mut paths).max("crate::".len());
        if !before.is_some_and(|c| c.is_alphanumeric() || "_$:".contains(c)) {
            all.extend(paths.into_iter().map(|segments| Used { line, segments }));
        }
    }
    all
}

/// Reads one path or use tree, adds its paths, and returns its length.
fn tree(code: &str, parents: &[String], paths: &mut Vec<Vec<String>>) -> usize {
    let mut segments = parents.to_vec();
    let mut at = 0;
    loop {
        let rest = &code[at..];
        if rest.starts_with('{') {
            at += 1;
            loop {
                at += code[at..].len() - code[at..].trim_start_matches([' ', '\n', ',']).len();
                if at >= code.len() || code[at..].starts_with('}') {
                    return (at + 1).min(code.len());
                }
                at += tree(&code[at..], &segments, paths).max(1);
            }
        }
        let end = rest
            .find(|c: char| !c.is_alphanumeric() && c != '_')
            .unwrap_or(rest.len());
        segments.push(rest[..end].to_owned());
        at += end;
        if !code[at..].starts_with("::") {
            paths.push(segments);
            return at;
        }
        at += 2;
    }
}

/// The module that a file is, from the folder on: `store/memory/mod.rs` is `store::memory`.
fn module_of(path: &Path) -> Vec<String> {
    let mut module: Vec<String> = path
        .with_extension("")
        .iter()
        .map(|part| part.to_str().unwrap().to_owned())
        .collect();
    if matches!(
        module.last().map(String::as_str),
        Some("mod" | "lib" | "main")
    ) {
        module.pop();
    }
    module
}

/// Where a used path leads, from the root of the crate, when the module that uses it is `module`.
fn resolved(module: &[String], used: &[String]) -> Vec<String> {
    let ups = used
        .iter()
        .take_while(|segment| *segment == "super")
        .count();
    let rest = used[ups..].iter().filter(|segment| *segment != "crate");
    let base = match ups {
        0 => &[],
        _ => &module[..module.len().saturating_sub(ups)],
    };
    base.iter().chain(rest).cloned().collect()
}

fn level(levels: &Levels, module: &str) -> usize {
    let level = levels.levels.iter().position(|level| match level {
        Apart(modules) | Together(modules) => modules.contains(&module),
    });
    let folder = levels.folder;
    level.unwrap_or_else(|| panic!("module `{module}` of {folder} has no level: add it to ALL"))
}

fn may_use(levels: &Levels, module: &str, target: &str) -> bool {
    let (module, target) = (level(levels, module), level(levels, target));
    target < module || target == module && matches!(levels.levels[module], Together(_))
}

/// The modules of a folder.
fn modules(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let stems = entries.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned());
    // A user of the crate, its root, and tests.
    let modules = stems.filter(|stem| !["mod", "lib", "main", "bin", "tests"].contains(&&**stem));
    modules.collect()
}

/// Adds the uses of modules that are not above the one that uses them, and returns how many uses there are.
fn check(levels: &Levels, wrong: &mut Vec<String>) -> usize {
    let folder = root().join(levels.folder);
    let known = modules(&folder);
    for module in &known {
        level(levels, module);
    }
    for level in levels.levels {
        let (Apart(listed) | Together(listed)) = level;
        for module in *listed {
            assert!(
                known.iter().any(|known| known == module),
                "{} has no module `{module}`: remove it from ALL",
                levels.folder
            );
        }
    }
    // From the root of the crate to the folder.
    let within: Vec<String> = match levels.folder.split_once("src/") {
        Some((_, within)) => within.split('/').map(str::to_owned).collect(),
        None => Vec::new(),
    };
    let mut files = Vec::new();
    sources(&folder, &mut files);
    let mut seen = 0;
    for file in files {
        let inside = module_of(file.strip_prefix(&folder).unwrap());
        let Some(module) = inside.first().filter(|module| known.contains(module)) else {
            continue;
        };
        if inside.last().is_some_and(|last| last == "tests") {
            continue;
        }
        let path = [&within[..], &inside].concat();
        let text = code(&fs::read_to_string(&file).unwrap());
        let mut depth = path.clone();
        for used in uses(&text) {
            // `super` in a module within the file is the file itself.
            depth.clone_from(&path);
            if in_tests(&text, used.line) {
                depth.push("tests".to_owned());
            }
            let leads = resolved(&depth, &used.segments);
            let Some(rest) = leads.strip_prefix(&within[..]) else {
                continue;
            };
            let Some(target) = rest.first().filter(|target| known.contains(target)) else {
                continue;
            };
            seen += 1;
            if target != module && !may_use(levels, module, target) {
                wrong.push(format!(
                    "{}/{}:{}: uses {target}",
                    levels.folder,
                    file.strip_prefix(&folder).unwrap().display(),
                    used.line
                ));
            }
        }
    }
    seen
}

/// Whether a line is in the tests at the end of a file, which are a module of their own.
fn in_tests(text: &str, line: usize) -> bool {
    let tests = text
        .lines()
        .position(|line| line.starts_with("mod ") && line.ends_with('{'));
    tests.is_some_and(|tests| line > tests)
}

#[test]
fn modules_use_only_the_levels_above_them() {
    let mut wrong = Vec::new();
    for levels in ALL {
        let seen = check(levels, &mut wrong);
        assert!(
            seen > 0,
            "{}: no uses found: does this test still read the code?",
            levels.folder
        );
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn modules_that_decide_do_not_name_http() {
    let core = &ALL[0];
    let src = root().join(core.folder);
    let mut files = Vec::new();
    sources(&src, &mut files);
    let mut wrong = Vec::new();
    for file in files {
        let module = module_of(file.strip_prefix(&src).unwrap());
        let Some(module) = module.first().filter(|module| *module != "bin") else {
            continue;
        };
        if module == OF_REQUESTS || level(core, module) >= level(core, FIRST_WITH_HTTP) {
            continue;
        }
        let text = code(&fs::read_to_string(&file).unwrap());
        for (n, line) in text.lines().enumerate() {
            if line.contains("http::") || line.contains("http_body::") {
                wrong.push(format!("{}:{}: names http", file.display(), n + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The dependencies of a crate on crates of the workspace, and whether each is there without a feature.
fn dependencies(manifest: &str) -> Vec<(String, Always)> {
    let mut section = "";
    let mut found = Vec::new();
    for line in manifest.lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']');
        }
        let name = line.split([' ', '=', '.']).next().unwrap();
        if section == "dependencies" && name.starts_with("tower-admission") {
            found.push((name.to_owned(), !line.contains("optional = true")));
        }
    }
    found
}

#[test]
fn crates_depend_only_on_crates_above_them() {
    for (name, allowed) in CRATES {
        let manifest = fs::read_to_string(home(name).join("Cargo.toml")).unwrap();
        for dependency in dependencies(&manifest) {
            let allowed = allowed.iter().any(|(name, always)| {
                (*name, *always) == (&*dependency.0, dependency.1)
                    || (*name == dependency.0 && *always)
            });
            let (on, always) = dependency;
            assert!(
                allowed,
                "{name} must not depend on {on} (without a feature: {always})"
            );
        }
    }
    let folders = modules(&root().join("crates"));
    for folder in folders {
        let listed = CRATES.iter().any(|(name, _)| *name == folder);
        assert!(listed, "crate `{folder}` is not in CRATES");
    }
}

#[test]
fn use_trees_are_read_with_all_their_branches() {
    let code =
        "use crate::{\n    a::{B, c},\n    d,\n};\nuse super::e::F;\nlet g = super::super::h();";
    let paths: Vec<_> = uses(code)
        .into_iter()
        .map(|used| used.segments.join("::"))
        .collect();
    let expected = [
        "crate::a::B",
        "crate::a::c",
        "crate::d",
        "super::e::F",
        "super::super::h",
    ];
    assert_eq!(paths, expected);
}
