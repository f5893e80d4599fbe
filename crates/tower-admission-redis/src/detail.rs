//! The message of an error of the client library, without text that a request may have sent.

use std::sync::Arc;

use redis::{ErrorKind, RedisError, ServerErrorKind};

/// The maximum length of a message, in bytes. The message of Redis's protected mode is longer, and repeats itself.
const LONGEST: usize = 300;

/// Words that a message may quote. Any other quotation may be a key, an argument or a password: a server that does not
/// know a command repeats its arguments.
const QUOTABLE: &[&str] = &[
    // Commands that this crate, its scripts or the client library send.
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
    "llen",
    "lpush",
    "lrange",
    "ltrim",
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
    "zrange",
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

/// The message of the server, the operating system or the client library.
pub(super) fn of(error: &RedisError) -> Arc<str> {
    match error.kind() {
        ErrorKind::Server(
            ServerErrorKind::Moved | ServerErrorKind::Ask | ServerErrorKind::CrossSlot,
        ) => format!(
            "{}: this server is part of a cluster: use redis+cluster://",
            of_server(error)
        )
        .into(),
        _ if error
            .detail()
            .is_some_and(|words| words.contains("cluster support disabled")) =>
        {
            format!("{}: use redis://", of_server(error)).into()
        }
        ErrorKind::Server(_) | ErrorKind::Extension => of_server(error).into(),
        // These errors repeat the answer.
        ErrorKind::Parse => "the answer cannot be read".into(),
        ErrorKind::UnexpectedReturnType => "the answer is of another type".into(),
        kind => {
            // The client library adds its kind after the first words. The kind of failure replaces it.
            let words = error.to_string().replacen(&format!(" - {kind:?}"), "", 1);
            match std::error::Error::source(error) {
                // Messages of the operating system or of TLS are about addresses and certificates.
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

/// Cuts the message before the first quotation that may come from a request. The rest is dropped, too: a quotation may
/// contain a quotation mark, so its end is unknown.
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

/// One line of limited length.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn server(line: &str) -> String {
        let answer = redis::parse_redis_value(format!("-{line}\r\n").as_bytes()).unwrap();
        of(&answer.extract_error().unwrap_err()).as_ref().to_owned()
    }

    #[test]
    fn a_message_ends_before_a_quotation_of_a_request() {
        for (line, shown) in [
            // Redis 7, 6 and 5; the first answer comes from a Sentinel.
            (
                "ERR unknown command 'EVALSHA', with args beginning with: 'f00d' '1' \
                 'admission:rate:calls:user#alice' ",
                "ERR unknown command 'EVALSHA', with args beginning with: …",
            ),
            (
                "ERR unknown command `EVALSHA`, with args beginning with: `f00d`, `1`, `secret`, ",
                "ERR unknown command `EVALSHA`, with args beginning with: …",
            ),
            (
                "ERR unknown command 'HELLO', with args beginning with: '3' 'AUTH' 'gateway' \
                 'secret' ",
                "ERR unknown command 'HELLO', with args beginning with: …",
            ),
            ("ERR unknown command 'secret'", "ERR unknown command …"),
            (
                "NOPERM User gateway has no permissions to run the 'cluster|slots' command",
                "NOPERM User gateway has no permissions to run the 'cluster|slots' command",
            ),
            (
                "NOPERM User gateway has no permissions to access the 'secret' key",
                "NOPERM User gateway has no permissions to access the …",
            ),
            // A quotation that ends early.
            (
                "ERR no such thing: 'get' 'no' ' secret'",
                "ERR no such thing: 'get' 'no' …",
            ),
            ("ERR no end: \"secret", "ERR no end: …"),
            (
                "READONLY You can't write against a read only replica.",
                "READONLY You can't write against a read only replica.",
            ),
            ("ERR", "ERR"),
            ("WHAT", "WHAT"),
        ] {
            assert_eq!(server(line), shown);
        }
    }

    #[test]
    fn an_answer_of_another_type_is_not_repeated() {
        let text = redis::Value::BulkString(b"secret".to_vec());
        let error = redis::from_redis_value::<u64>(text).unwrap_err();
        assert_eq!(&*of(&error.into()), "the answer cannot be read");
    }

    #[test]
    fn a_message_of_the_client_library_loses_its_kind() {
        let error = RedisError::from((ErrorKind::AuthenticationFailed, "no entry"));
        assert_eq!(&*of(&error), "no entry");
        let error = RedisError::from((ErrorKind::Io, "no entry", "for 'secret'".to_owned()));
        assert_eq!(&*of(&error), "no entry: for …");
    }

    #[test]
    fn a_long_message_becomes_one_short_line() {
        let long = bounded(&format!("one\r\ntwo{}\n", "…".repeat(1000)));
        assert!(long.starts_with("one  two…"));
        assert!(long.len() <= LONGEST + '…'.len_utf8());
        assert_eq!(bounded("short\n"), "short");
    }

    #[test]
    fn a_message_may_quote_commands_of_scripts() {
        for script in [
            include_str!("scripts/take.lua"),
            include_str!("scripts/acquire.lua"),
            include_str!("scripts/heartbeat.lua"),
            include_str!("scripts/limits_set.lua"),
            include_str!("scripts/limits_audit.lua"),
            include_str!("scripts/limits_epoch.lua"),
            include_str!("scripts/limits_page.lua"),
            include_str!("scripts/limits_changes.lua"),
            include_str!("scripts/limiters_publish.lua"),
            include_str!("scripts/limiters_published.lua"),
        ] {
            let mut calls = script.split("call('").skip(1).peekable();
            assert!(calls.peek().is_some(), "does this test still read scripts?");
            for call in calls {
                let command = call.split_once('\'').unwrap().0;
                assert!(is_quotable(command), "{command}");
            }
        }
    }
}
