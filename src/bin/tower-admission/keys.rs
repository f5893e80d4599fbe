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
    let hexadecimal = digits.len() == 32 && digits.bytes().all(|b| b.is_ascii_hexdigit());
    let mut bytes = [0; 16];
    for (n, byte) in bytes.iter_mut().enumerate() {
        let digits = digits.get(2 * n..2 * n + 2).filter(|_| hexadecimal);
        let read = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        *byte = read.ok_or_else(|| {
            Failure::usage("the secret is 32 hexadecimal digits: the 16 bytes that services have")
        })?;
    }
    Ok(Secret::new(bytes))
}
