//! Keys as they are given, and the secret that some of them need.

use tower_admission::{KeyName, Secret};

use crate::failure::Failure;

/// Reads keys, once the secret is known.
pub(crate) struct Keys {
    secret: Option<Secret>,
}

impl Keys {
    /// Before any key is made: the secret becomes the process's. Its text is never shown.
    pub(crate) fn new(secret: Option<&str>) -> Result<Self, Failure> {
        let secret = secret.map(str::trim).filter(|secret| !secret.is_empty());
        let secret = secret.map(read).transpose()?;
        if let Some(secret) = secret {
            let installed = secret.install();
            installed.map_err(|error| Failure::usage(error.to_string()))?;
        }
        Ok(Self { secret })
    }

    pub(crate) fn secret(&self) -> Option<Secret> {
        self.secret
    }

    /// Reads a key. A credential becomes its fingerprint, here: it is neither shown nor sent.
    pub(crate) fn read(&self, text: &str) -> Result<KeyName, Failure> {
        let name: KeyName = text
            .parse()
            .map_err(|error| Failure::usage(format!("no key: {error}")))?;
        // It was written as a name and is a fingerprint now.
        let is_credential = separator(text) == Some(':') && separator(name.as_str()) == Some('#');
        if is_credential && self.secret.is_none() {
            return Err(Failure::usage(
                "a key that is a credential needs the services' secret: set ADMISSION_SECRET, or give \
                 its fingerprint as kind#digits",
            ));
        }
        Ok(name)
    }

    /// Whether it is known what the key is counted as.
    pub(crate) fn can_count(&self, name: &KeyName) -> bool {
        let is_readable = separator(name.as_str()) != Some(':') || name.key().is_ip();
        is_readable || self.secret.is_some()
    }
}

/// What stands behind the kind.
fn separator(text: &str) -> Option<char> {
    text.chars().find(|c| matches!(c, ':' | '#'))
}

fn read(digits: &str) -> Result<Secret, Failure> {
    let bytes = bytes(digits).ok_or_else(|| {
        Failure::usage("the secret is 32 hexadecimal digits: the 16 bytes that services have")
    })?;
    Ok(Secret::new(bytes))
}

/// As they are written, from the first to the last.
fn bytes(digits: &str) -> Option<[u8; 16]> {
    // `from_str_radix` would take a sign as well.
    let hexadecimal = digits.len() == 32 && digits.bytes().all(|b| b.is_ascii_hexdigit());
    let number = u128::from_str_radix(digits, 16).ok();
    Some(number.filter(|_| hexadecimal)?.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

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
