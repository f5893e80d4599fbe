//! Minimal JSON output for problem details.

use std::fmt::{self, Display, Write};

/// A value that always writes the same JSON.
pub(super) trait ToJson {
    fn write<W: Write>(&self, json: &mut Json<'_, W>);

    /// Returns the JSON in one allocation of the exact length.
    ///
    /// It is written twice, first to count: a growing string is reallocated, and converting a
    /// string with spare capacity to [`Bytes`](bytes::Bytes) needs another allocation.
    fn to_json(&self) -> String {
        let mut length = Length(0);
        self.write(&mut Json(&mut length));
        let mut text = String::with_capacity(length.0);
        self.write(&mut Json(&mut text));
        text
    }
}

struct Length(usize);

impl Write for Length {
    #[inline]
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0 += text.len();
        Ok(())
    }
}

/// Writes JSON to a destination that cannot fail.
pub(super) struct Json<'a, W>(&'a mut W);

impl<W: Write> Json<'_, W> {
    /// Writes text that is valid JSON or needs no escapes.
    #[inline]
    pub(super) fn raw(&mut self, json: &str) {
        let _ = self.0.write_str(json);
    }

    pub(super) fn number(&mut self, number: u64) {
        self.raw(itoa::Buffer::new().format(number));
    }

    /// Writes a string with its quotes.
    pub(super) fn string(&mut self, text: &str) {
        self.raw("\"");
        self.escaped(text);
        self.raw("\"");
    }

    /// Writes the inside of a string.
    pub(super) fn display(&mut self, text: &impl Display) {
        let _ = write!(Escaped(self), "{text}");
    }

    /// Writes the inside of a string. RFC 8259 §7 requires quotes, backslashes and control
    /// characters to be escaped.
    #[inline]
    fn escaped(&mut self, text: &str) {
        // Branch-free, because names rarely need escapes.
        let needs_escapes = text
            .bytes()
            .fold(false, |needs, byte| needs | needs_escape(byte));
        if needs_escapes {
            self.escaped_bytewise(text);
        } else {
            self.raw(text);
        }
    }

    #[cold]
    fn escaped_bytewise(&mut self, text: &str) {
        let mut written = 0;
        for (at, byte) in text.bytes().enumerate() {
            if !needs_escape(byte) {
                continue;
            }
            // A byte below 0x80 is a whole character, so this is a character boundary.
            self.raw(&text[written..at]);
            match byte {
                b'"' => self.raw("\\\""),
                b'\\' => self.raw("\\\\"),
                b'\n' => self.raw("\\n"),
                b'\r' => self.raw("\\r"),
                b'\t' => self.raw("\\t"),
                control => {
                    let _ = write!(self.0, "\\u{control:04x}");
                }
            }
            written = at + 1;
        }
        self.raw(&text[written..]);
    }
}

#[inline]
fn needs_escape(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

struct Escaped<'a, 'b, W>(&'a mut Json<'b, W>);

impl<W: Write> Write for Escaped<'_, '_, W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.escaped(text);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    struct Text<'a>(&'a str);

    impl ToJson for Text<'_> {
        fn write<W: Write>(&self, json: &mut Json<'_, W>) {
            json.string(self.0);
        }
    }

    struct Displayed<'a>(&'a str);

    impl ToJson for Displayed<'_> {
        fn write<W: Write>(&self, json: &mut Json<'_, W>) {
            json.raw("\"");
            json.display(&self.0);
            json.raw("\"");
        }
    }

    struct Number(u64);

    impl ToJson for Number {
        fn write<W: Write>(&self, json: &mut Json<'_, W>) {
            json.number(self.0);
        }
    }

    fn is_read_back(text: &str) {
        let string = Text(text).to_json();
        assert_eq!(string.capacity(), string.len());
        assert_eq!(serde_json::from_str::<String>(&string).unwrap(), text);
        assert_eq!(Displayed(text).to_json(), string);
    }

    #[test]
    fn every_character_reads_back() {
        for char in '\0'..=char::MAX {
            is_read_back(char.encode_utf8(&mut [0; 4]));
        }
        is_read_back("");
        is_read_back(&"\u{1}\"x\\ä".repeat(100_000));
    }

    #[test]
    fn every_number_reads_back() {
        for number in [0, 9, 10, u64::MAX] {
            let json = Number(number).to_json();
            assert_eq!(serde_json::from_str::<u64>(&json).unwrap(), number);
        }
    }

    proptest! {
        #[test]
        fn any_text_reads_back(text in any::<String>()) {
            is_read_back(&text);
        }
    }
}
