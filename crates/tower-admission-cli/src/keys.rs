//! Reads keys, and installs the secret that keys of credentials need.

use std::io::{IsTerminal, Write as _};

use tower_admission::{Key, KeyName, KeyNameError, Secret};

use crate::failure::Failure;
use crate::suggest::nearest;

/// The kinds of credentials.
const CREDENTIALS: [&str; 2] = ["bearer", "api-key"];

/// Reads keys after the secret is installed.
pub(crate) struct Keys {
    secret: Option<Secret>,
    takes_any_kind: bool,
}

impl Keys {
    /// Installs the secret. Call it before a key is made. The secret is never shown.
    pub(crate) fn new(secret: Option<&str>, takes_any_kind: bool) -> Result<Self, Failure> {
        let secret = secret.map(str::trim).filter(|secret| !secret.is_empty());
        let secret = secret.map(read).transpose()?;
        if let Some(secret) = secret {
            let installed = secret.install();
            installed.map_err(|error| Failure::usage(error.to_string()))?;
        }
        Ok(Self {
            secret,
            takes_any_kind,
        })
    }

    pub(crate) fn secret(&self) -> Option<Secret> {
        self.secret
    }

    /// Rejects a misspelled kind: the text after it may be a credential, which must not be stored as a name.
    fn check_kind(&self, text: &str) -> Result<(), Failure> {
        let Some((kind, _)) = text.trim().split_once([':', '#']) else {
            return Ok(());
        };
        let is_known = kind == "ip" || CREDENTIALS.contains(&kind);
        let meant = match kind.to_ascii_lowercase().as_str() {
            "ip" | "ipv4" | "ipv6" => Some("ip"),
            "x-api-key" | "x-apikey" => Some("api-key"),
            "authorization"
            | "proxy-authorization"
            | "auth"
            | "token"
            | "jwt"
            | "basic"
            | "cookie" => Some("bearer"),
            "key" => Some("api-key"),
            _ => nearest(kind, CREDENTIALS),
        };
        match meant {
            Some(meant) if !is_known && !self.takes_any_kind => Err(Failure::usage(format!(
                "invalid key: unknown kind {kind:?}: did you mean {meant:?}? (--unchecked accepts other kinds)"
            ))),
            _ => Ok(()),
        }
    }

    /// Checks the text of a key, so that a misspelled kind does not store a credential as a name.
    pub(crate) fn check(&self, text: &str) -> Result<String, Failure> {
        let key = as_key(text)?;
        self.check_kind(&key)?;
        Ok(key)
    }

    /// Reads a key. A credential becomes a fingerprint here, and is neither shown nor sent.
    pub(crate) fn read(&self, text: &str) -> Result<KeyName, Failure> {
        let text = &*self.check(text)?;
        match credential(text) {
            Some(_) if self.secret.is_none() => Err(Failure::usage(
                "the key of a credential needs the secret of the services: set ADMISSION_SECRET, or write the \
                    fingerprint as kind#digits",
            )),
            // A credential may be longer than the name of a key.
            Some((kind, credential)) => Ok(Key::new(kind, credential.as_bytes()).into()),
            None => text.parse().map_err(invalid_key),
        }
    }

    /// Whether the fingerprint of the key is known.
    pub(crate) fn can_count(&self, name: &KeyName) -> bool {
        let is_readable = separator(name.as_str()) != Some(':') || name.key().is_ip();
        is_readable || self.secret.is_some()
    }
}

pub(crate) fn invalid_key(error: KeyNameError) -> Failure {
    Failure::usage(format!("invalid key: {error}"))
}

/// A kind and a credential.
fn credential(text: &str) -> Option<(&'static str, &str)> {
    let (kind, credential) = text.trim().split_once(':')?;
    let kind = CREDENTIALS.into_iter().find(|known| *known == kind)?;
    let credential = credential.trim();
    (!credential.is_empty()).then_some((kind, credential))
}

/// Reads a key from standard input, which keeps it out of arguments and of the shell history.
pub(crate) fn from_stdin() -> Result<String, Failure> {
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        let mut stderr = std::io::stderr();
        let _ = write!(stderr, "Key: ");
        let _ = stderr.flush();
    }
    let mut line = String::new();
    let read = stdin.read_line(&mut line);
    read.map_err(|error| Failure::usage(format!("standard input cannot be read: {error}")))?;
    match line.trim() {
        "" => Err(Failure::usage(
            "standard input has invalid key: write one, such as bearer:<token>",
        )),
        key => Ok(key.to_owned()),
    }
}

/// Turns a copied header into the key of its token. A header without a token is not shown.
fn as_key(text: &str) -> Result<String, Failure> {
    let text = text.trim();
    let header = text.split_once(':');
    let header = header.map(|(name, value)| (name.trim_end().to_ascii_lowercase(), value.trim()));
    let (is_header, value) = match &header {
        Some((name, value)) if name == "x-api-key" => return Ok(format!("api-key:{value}")),
        Some((name, value)) if matches!(&**name, "authorization" | "proxy-authorization") => {
            (true, *value)
        }
        _ => (false, text),
    };
    let (scheme, credential) = value.split_once(char::is_whitespace).unwrap_or((value, ""));
    match scheme.to_ascii_lowercase().as_str() {
        "bearer" if !credential.is_empty() => Ok(format!("bearer:{}", credential.trim())),
        "basic" | "digest" | "negotiate" => Err(not_bearer()),
        _ if is_header => Err(not_bearer()),
        _ => Ok(text.to_owned()),
    }
}

fn not_bearer() -> Failure {
    Failure::usage(
        "invalid key: the key of an Authorization header is the token after Bearer: write \
            bearer:<token>",
    )
}

/// The text after the kind.
fn separator(text: &str) -> Option<char> {
    text.chars().find(|c| matches!(c, ':' | '#'))
}

fn read(digits: &str) -> Result<Secret, Failure> {
    let bytes = bytes(digits).ok_or_else(|| {
        Failure::usage("the secret is 32 hexadecimal digits, the same 16 bytes as in the services")
    })?;
    Ok(Secret::new(bytes))
}

/// Reads 32 hexadecimal digits as bytes, in order.
fn bytes(digits: &str) -> Option<[u8; 16]> {
    // `from_str_radix` accepts a sign as well.
    let hexadecimal = digits.len() == 32 && digits.bytes().all(|b| b.is_ascii_hexdigit());
    let number = u128::from_str_radix(digits, 16).ok();
    Some(number.filter(|_| hexadecimal)?.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_that_is_a_slip_is_rejected_with_the_right_one_and_without_the_name() {
        let keys = |takes_any_kind| Keys {
            secret: None,
            takes_any_kind,
        };
        for (text, meant) in [
            ("barer:hunter2", "bearer"),
            ("Bearer:hunter2", "bearer"),
            ("api_key:hunter2", "api-key"),
            ("x-apikey:hunter2", "api-key"),
            ("token:hunter2", "bearer"),
            ("JWT:hunter2", "bearer"),
            ("basic:hunter2", "bearer"),
            ("Cookie:hunter2", "bearer"),
            ("key:hunter2", "api-key"),
            ("ipv4:192.0.2.1", "ip"),
        ] {
            let error = keys(false).read(text).unwrap_err();
            assert!(error.message().contains(meant), "{}", error.message());
            assert!(!error.message().contains("hunter2"));
        }
        for text in ["org:acme", "id:7", "vip:7", "user:a", "bearer#x", "shared"] {
            assert!(keys(false).check_kind(text).is_ok(), "{text}");
        }
        assert!(keys(true).check_kind("barer:x").is_ok());
    }

    #[test]
    fn a_copied_header_is_a_key() {
        for (text, key) in [
            ("bearer:abc\n", "bearer:abc"),
            (" Bearer  abc ", "bearer:abc"),
            ("Authorization: Bearer abc", "bearer:abc"),
            ("authorization:bearer abc", "bearer:abc"),
            ("AUTHORIZATION : BEARER\tabc", "bearer:abc"),
            ("Proxy-Authorization: Bearer abc", "bearer:abc"),
            ("X-API-Key: abc", "api-key:abc"),
            ("x-api-key:abc", "api-key:abc"),
            ("org:acme", "org:acme"),
            ("Acme Inc.: Berlin", "Acme Inc.: Berlin"),
            ("\n", ""),
        ] {
            assert_eq!(as_key(text).unwrap(), key);
        }
        for text in [
            "Authorization: Basic aHVudGVyMg==",
            "authorization:basic hunter2",
            "Basic hunter2",
            "Authorization: hunter2",
            "Authorization:",
        ] {
            let message = as_key(text).unwrap_err();
            assert!(message.message().contains("write bearer:<token>"));
            assert!(!message.message().contains("hunter2"));
        }
    }

    #[test]
    fn a_secret_is_its_bytes_in_order() {
        let written = "000102030405060708090a0b0c0d0eFf";
        let [first, second, .., last] = bytes(written).unwrap();
        assert_eq!([first, second, last], [0, 1, 255]);
        for junk in ["", "00", &"0".repeat(33), &format!("+{}", "0".repeat(31))] {
            assert_eq!(bytes(junk), None, "{junk}");
        }
    }
}
