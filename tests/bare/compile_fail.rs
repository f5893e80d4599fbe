//! Common mistakes do not compile, and the compiler's message names the fix.

use std::process::Command;

/// The messages change from one version to the next, so they are compared on this one only.
const RUST: &str = "rustc 1.95.";

#[test]
fn messages_of_common_mistakes_name_the_fix() {
    let version = Command::new("rustc").arg("--version").output().unwrap();
    let version = String::from_utf8(version.stdout).unwrap();
    if !version.starts_with(RUST) {
        // As in `scripts/test`: a workflow does not pass without this check.
        let is_strict = std::env::var("TEST_STRICT").is_ok_and(|strict| strict != "0");
        assert!(
            !is_strict,
            "the messages are those of {RUST}*, this is {version}"
        );
        println!("skipped: the messages are those of {RUST}*, this is {version}");
        return;
    }
    trybuild::TestCases::new().compile_fail("compile_fail/*.rs");
}
