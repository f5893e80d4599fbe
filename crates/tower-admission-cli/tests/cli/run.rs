//! Runs the program.

use std::process::{Output, Stdio};

use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// What the program printed, and how it ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// The program with nothing from the environment, and no terminal.
pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tower-admission"));
    command.stdin(Stdio::null()).kill_on_drop(true);
    for name in [
        "REDIS",
        "REDIS_CA",
        "REDIS_CERTIFICATE",
        "REDIS_KEY",
        "ADMIN",
        "PREFIX",
        "SECRET",
        "TOKEN",
    ] {
        command.env_remove(format!("ADMISSION_{name}"));
    }
    command.env_remove("CLICOLOR_FORCE").env_remove("NO_COLOR");
    command
}

pub(crate) async fn end(mut command: Command) -> Ran {
    ran(command.output().await.unwrap())
}

fn ran(output: Output) -> Ran {
    let ran = Ran {
        code: output.status.code().expect("it ends by itself"),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    };
    assert!(!ran.err.contains("panicked"), "{ran:?}");
    ran
}

/// With something on standard input.
pub(crate) async fn end_with(mut command: Command, stdin: &str) -> Ran {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    // It may end without reading it.
    let _ = input.write_all(stdin.as_bytes()).await;
    drop(input);
    ran(child.wait_with_output().await.unwrap())
}

/// The program on a terminal, which is that of `script`, once it has asked a question.
#[cfg(target_os = "linux")]
pub(crate) struct Asking {
    child: tokio::process::Child,
    printed: String,
}

#[cfg(target_os = "linux")]
pub(crate) async fn ask(words: &str, environment: &[(&str, &str)]) -> Asking {
    use tokio::io::AsyncReadExt;

    let program = env!("CARGO_BIN_EXE_tower-admission");
    let mut child = Command::new("script")
        .args(["-qec", &format!("'{program}' {words}"), "/dev/null"])
        .env_remove("ADMISSION_ADMIN")
        .env("NO_COLOR", "1")
        .envs(environment.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut printed = String::new();
    while !printed.contains("[y/N]") {
        let mut bytes = [0; 1024];
        let count = child.stdout.as_mut().unwrap().read(&mut bytes).await;
        let count = count.unwrap();
        assert!(count > 0, "it has not asked: {printed}");
        printed += &String::from_utf8_lossy(&bytes[..count]);
    }
    Asking { child, printed }
}

#[cfg(target_os = "linux")]
impl Asking {
    /// All that is printed, once the question is answered.
    pub(crate) async fn answer(mut self, answer: &str) -> String {
        let mut stdin = self.child.stdin.take().unwrap();
        stdin.write_all(answer.as_bytes()).await.unwrap();
        let output = self.child.wait_with_output().await.unwrap();
        drop(stdin);
        self.printed + &String::from_utf8_lossy(&output.stdout)
    }
}

impl Ran {
    /// What was printed when all went well.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!((self.code, &*self.err), (0, ""), "{}", self.out);
        self.out.trim_end().to_owned()
    }

    /// The same where it also warned, once or more.
    #[track_caller]
    pub(crate) fn warned(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        assert!(self.err.starts_with("warning: "), "{self:?}");
        self.out.trim_end().to_owned()
    }

    #[track_caller]
    pub(crate) fn json(self) -> Value {
        serde_json::from_str(&self.ok()).unwrap()
    }

    /// The one line that says why it did not, and nothing else.
    #[track_caller]
    pub(crate) fn failed(self, code: i32) -> String {
        assert_eq!((self.code, &*self.out), (code, ""), "{}", self.err);
        assert_eq!(self.err.lines().count(), 1, "{}", self.err);
        let message = self
            .err
            .trim_end()
            .strip_prefix("error: ")
            .unwrap_or(&self.err);
        assert!(!message.starts_with(char::is_uppercase), "{message}");
        message.to_owned()
    }
}
