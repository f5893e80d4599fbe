//! Lua scripts: called by their hash, or by their source if the server does not have them.

use redis::{Cmd, ToRedisArgs};

/// A script and its hash.
pub(super) struct Script {
    source: &'static str,
    sha1: String,
}

impl Script {
    pub(super) fn new(source: &'static str) -> Self {
        Self {
            source,
            sha1: redis::Script::new(source).get_hash().to_owned(),
        }
    }

    pub(super) fn call(&self, keys: &[String], arguments: impl ToRedisArgs) -> Cmd {
        command("EVALSHA", &self.sha1, keys, arguments)
    }

    /// After NOSCRIPT, the source costs one more round trip; loading the script first would cost two.
    pub(super) fn call_with_source(&self, keys: &[String], arguments: impl ToRedisArgs) -> Cmd {
        command("EVAL", self.source, keys, arguments)
    }
}

fn command(name: &str, script: &str, keys: &[String], arguments: impl ToRedisArgs) -> Cmd {
    let mut command = redis::cmd(name);
    command.arg(script).arg(keys.len()).arg(keys).arg(arguments);
    command
}
