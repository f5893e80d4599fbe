//! What an error of the client's says, without what a request may have put into it.

use std::sync::Arc;

use redis::{ErrorKind, RedisError, ServerErrorKind};

/// The longest cause, in bytes. What Redis says in its protected mode is longer, and repeats itself.
const LONGEST: usize = 300;

/// What a server may quote. Anything else in quotes may be a key, an argument or a password: a
/// server that does not know a command repeats its arguments.
const QUOTABLE: &[&str] = &[
    // Commands that this crate sends, or its scripts or the client.
    "asking",
    "auth",
    "client",
    "client|setinfo",
    "client|setname",
    "cluster",
    "cluster|slots",
    "del",
    "eval",
    "evalsha",
    "expire",
    "get",
    "hdel",
    "hello",
    "hget",
    "hgetall",
    "hincrby",
    "hlen",
    "hscan",
    "hset",
    "info",
    "pexpire",
    "ping",
    "pttl",
    "role",
    "select",
    "set",
    "time",
    "zadd",
    "zcard",
    "zcount",
    "zpopmin",
    "zrangebyscore",
    "zrem",
    "zremrangebyscore",
    "zscore",
    // Settings that errors name.
    "maxmemory",
    "no",
    "replica-serve-stale-data",
    "stop-writes-on-bgsave-error",
];

/// The cause in the words of the server, the operating system or the client.
pub(super) fn of(error: &RedisError) -> Arc<str> {
    match error.kind() {
        ErrorKind::Server(
            ServerErrorKind::Moved | ServerErrorKind::Ask | ServerErrorKind::CrossSlot,
        ) => format!(
            "{}: this server is part of a cluster: use redis+cluster://",
            of_server(error)
        )
        .into(),
        ErrorKind::Server(_) | ErrorKind::Extension => of_server(error).into(),
        // These repeat the answer.
        ErrorKind::Parse => "the answer cannot be read".into(),
        ErrorKind::UnexpectedReturnType => "the answer is of another type".into(),
        kind => {
            // The client writes the kind after its first words; the kind of failure says it.
            let words = error.to_string().replacen(&format!(" - {kind:?}"), "", 1);
            match std::error::Error::source(error) {
                // Of the operating system or of TLS: about addresses and certificates.
                Some(_) => bounded(&words).into(),
                None => bounded(&unquoted(&words)).into(),
            }
        }
    }
}

fn of_server(error: &RedisError) -> String {
    let code = error.code().unwrap_or("ERR");
    match error.detail() {
        Some(detail) => bounded(&format!("{code} {}", unquoted(detail))),
        None => code.to_owned(),
    }
}

/// The words up to the first quotation that may be of a request. Not only without it: it may hold
/// a quotation mark itself, so nothing says where it ends.
fn unquoted(words: &str) -> String {
    let mut from = 0;
    while let Some(at) = words[from..].find(['\'', '`', '"']) {
        let begin = from + at + 1;
        let before = words[..begin - 1].chars().next_back();
        from = begin;
        // An apostrophe.
        if before.is_some_and(char::is_alphanumeric) {
            continue;
        }
        let mark = &words[begin - 1..begin];
        let quoted = words[begin..].split_once(mark).map(|(quoted, _)| quoted);
        match quoted {
            Some(quoted) if is_quotable(quoted) => from += quoted.len() + 1,
            _ => return format!("{}…", &words[..begin - 1]),
        }
    }
    words.to_owned()
}

fn is_quotable(word: &str) -> bool {
    QUOTABLE
        .iter()
        .any(|known| word.eq_ignore_ascii_case(known))
}

/// One line that is not too long.
pub(super) fn bounded(words: &str) -> String {
    let mut line = String::new();
    for char in words.trim_end().chars() {
        if line.len() + char.len_utf8() > LONGEST {
            line.push('…');
            break;
        }
        line.push(if char.is_control() { ' ' } else { char });
    }
    line
}
