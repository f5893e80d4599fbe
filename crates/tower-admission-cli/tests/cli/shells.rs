//! Completions, in each shell on a terminal.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

/// A shell on a terminal, which is that of `script`.
struct Shell {
    _child: Child,
    stdin: ChildStdin,
    stdout: ChildStdout,
    printed: String,
}

impl Shell {
    /// Starts a shell that has the program on its path, and has it load the completions.
    async fn start(shell: &str, load: &str) -> Self {
        let program = std::path::Path::new(env!("CARGO_BIN_EXE_tower-admission"));
        let path = std::env::var("PATH").unwrap();
        let path = format!("{}:{path}", program.parent().unwrap().display());
        let mut child = Command::new("script")
            .args(["-qec", shell, "/dev/null"])
            .env("PATH", path)
            // Prompts and what is drawn around them stay small.
            .env("TERM", "dumb")
            .env("PS1", "$ ")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut shell = Self {
            stdin: child.stdin.take().unwrap(),
            stdout: child.stdout.take().unwrap(),
            _child: child,
            printed: String::new(),
        };
        // The two halves meet in what is printed, and not in what is typed.
        shell.type_in(&format!("{load}; echo load\"\"ed\r")).await;
        shell.until("loaded").await;
        shell
    }

    async fn type_in(&mut self, text: &str) {
        self.stdin.write_all(text.as_bytes()).await.unwrap();
    }

    /// Waits until a text is printed, and forgets what was printed up to there.
    async fn until(&mut self, text: &str) {
        let reading = async {
            loop {
                if let Some(at) = self.printed.find(text) {
                    self.printed.drain(..at + text.len());
                    return;
                }
                let mut bytes = [0; 4096];
                let count = self.stdout.read(&mut bytes).await.unwrap();
                assert!(count > 0, "the shell has ended: {:?}", self.printed);
                self.printed
                    .push_str(&String::from_utf8_lossy(&bytes[..count]));
            }
        };
        let waited = timeout(Duration::from_secs(60), reading).await;
        assert!(waited.is_ok(), "no {text:?} in {:?}", self.printed);
    }

    /// Has it complete a line.
    async fn completes(&mut self, typed: &str, expected: &str) {
        self.type_in(typed).await;
        self.type_in("\t").await;
        self.until(expected).await;
        // Empties the line. An interrupt would also drop what is typed next.
        self.type_in("\u{15}").await;
    }
}

/// In each: a command, one below it, one with a hyphen, an option behind a key, and a value.
async fn all(shell: &str, load: &str) {
    let mut shell = Shell::start(shell, load).await;
    for (typed, expected) in [
        ("tower-admission exp", "explain"),
        ("tower-admission limits exp", "export"),
        ("tower-admission limits acc", "accept-loss"),
        ("tower-admission limits und", "undo"),
        ("tower-admission limits export --fo", "--force"),
        ("tower-admission limits set org:acme --key", "--key-stdin"),
        ("tower-admission limits list --usa", "--usage"),
        ("tower-admission limits list -o js", "json"),
    ] {
        shell.completes(typed, expected).await;
    }
}

#[tokio::test]
async fn bash_completes_on_a_terminal() {
    let load = "source <(tower-admission completions bash)";
    all("bash --norc --noprofile -i", load).await;
}

#[tokio::test]
async fn zsh_completes_on_a_terminal() {
    let load = "autoload -U compinit; compinit -u -D; source <(tower-admission completions zsh)";
    all("zsh -f -i", load).await;
}

#[tokio::test]
async fn fish_completes_on_a_terminal() {
    let load = "tower-admission completions fish | source";
    all("fish --no-config -i", load).await;
}
