//! Percent-encoding (RFC 3986 §2.1).

use std::string::FromUtf8Error;

/// Percent-encodes each byte that `kept` rejects, and every byte above 0x7f.
pub(crate) fn encode(text: &str, kept: impl Fn(u8) -> bool) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii() && kept(byte) {
            encoded.push(byte.into());
        } else {
            let digit = |nibble: u8| char::from(b"0123456789ABCDEF"[usize::from(nibble)]);
            encoded.extend(['%', digit(byte >> 4), digit(byte & 0xf)]);
        }
    }
    encoded
}

/// Decodes percent-encoded text. A percent sign without two digits stays as it is.
pub(super) fn decode(text: &str) -> Result<String, FromUtf8Error> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let (byte, after) = match first {
            b'%' => escaped(after).unwrap_or((first, after)),
            _ => (first, after),
        };
        decoded.push(byte);
        rest = after;
    }
    String::from_utf8(decoded)
}

/// The byte that two digits encode, and the rest of the text.
fn escaped(text: &[u8]) -> Option<(u8, &[u8])> {
    let ([high, low], rest) = text.split_first_chunk()?;
    let digit = |digit: u8| char::from(digit).to_digit(16);
    let byte = digit(*high)? << 4 | digit(*low)?;
    Some((byte as u8, rest))
}

#[cfg(test)]
mod tests {
    use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
    use proptest::prelude::*;

    use super::*;

    fn agrees(text: &str) {
        let ours = encode(text, |byte| byte.is_ascii_alphanumeric());
        let theirs = utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        assert_eq!(ours, theirs);
        assert_eq!(decode(&ours).as_deref(), Ok(text));
        assert_eq!(
            decode(text).ok(),
            percent_decode_str(text).decode_utf8().ok().map(Into::into)
        );
    }

    #[test]
    fn every_byte_agrees_with_another_implementation() {
        for byte in 0..0x80_u8 {
            agrees(&char::from(byte).to_string());
            for other in 0..0x80_u8 {
                agrees(&format!("%{}{}", char::from(byte), char::from(other)));
            }
        }
        for text in ["", "%", "%%41", "%e", "%c3%A4", "%ff", "a%20b", "ä🌉\u{7f}"] {
            agrees(text);
        }
    }

    proptest! {
        #[test]
        fn any_text_agrees_with_another_implementation(text in any::<String>()) {
            agrees(&text);
        }
    }
}
