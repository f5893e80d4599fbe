//! Parses the members of a List in a structured field (RFC 9651 §4.2.1).

/// A member of a List.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Member<'a> {
    /// The text of an Item that is a String.
    pub(super) name: Option<String>,
    /// The member with its parameters, as written in the field.
    pub(super) text: &'a [u8],
}

/// Parses the members in order. `None` if the field is not a List.
pub(super) fn members(field: &[u8]) -> Option<Vec<Member<'_>>> {
    let mut parser = Parser(field);
    let mut members = Vec::new();
    parser.skip(b" ");
    if parser.0.is_empty() {
        return Some(members);
    }
    loop {
        let rest = parser.0;
        let name = parser.member()?;
        let text = &rest[..rest.len() - parser.0.len()];
        members.push(Member { name, text });
        parser.skip(b" \t");
        if parser.0.is_empty() {
            return Some(members);
        }
        parser.expect(b',')?;
        // A List cannot end with a comma.
        parser.skip(b" \t");
    }
}

/// The unparsed rest of a field. Each method consumes the element that it is named after, and
/// returns `None` if the field is not a List.
struct Parser<'a>(&'a [u8]);

impl<'a> Parser<'a> {
    fn next(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn is_next(&self, byte: u8) -> bool {
        self.0.first() == Some(&byte)
    }

    fn take_if(&mut self, byte: u8) -> bool {
        let is_next = self.is_next(byte);
        if is_next {
            self.0 = &self.0[1..];
        }
        is_next
    }

    fn expect(&mut self, byte: u8) -> Option<()> {
        self.take_if(byte).then_some(())
    }

    fn take_while(&mut self, takes: impl Fn(u8) -> bool) -> &'a [u8] {
        let end = self.0.iter().position(|byte| !takes(*byte));
        let (taken, rest) = self.0.split_at(end.unwrap_or(self.0.len()));
        self.0 = rest;
        taken
    }

    fn skip(&mut self, bytes: &[u8]) {
        self.take_while(|byte| bytes.contains(&byte));
    }

    /// An Item or an Inner List. Returns the name of the [`Member`].
    fn member(&mut self) -> Option<Option<String>> {
        if !self.take_if(b'(') {
            return self.item();
        }
        loop {
            self.skip(b" ");
            if self.take_if(b')') {
                self.parameters()?;
                return Some(None);
            }
            self.item()?;
            if !self.is_next(b' ') && !self.is_next(b')') {
                return None;
            }
        }
    }

    fn item(&mut self) -> Option<Option<String>> {
        let name = self.bare_item()?;
        self.parameters()?;
        Some(name)
    }

    fn parameters(&mut self) -> Option<()> {
        while self.take_if(b';') {
            self.skip(b" ");
            let first = self.next()?;
            if !first.is_ascii_lowercase() && first != b'*' {
                return None;
            }
            self.take_while(|byte| {
                byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-.*".contains(&byte)
            });
            if self.take_if(b'=') {
                self.bare_item()?;
            }
        }
        Some(())
    }

    /// Returns the text of a String, and no text for other types.
    fn bare_item(&mut self) -> Option<Option<String>> {
        match self.0.first()? {
            b'"' => return self.string().map(Some),
            b'-' | b'0'..=b'9' => self.number().map(drop)?,
            b'*' | b'a'..=b'z' | b'A'..=b'Z' => self.token(),
            b':' => self.byte_sequence()?,
            b'?' => self.boolean()?,
            b'@' => self.date()?,
            b'%' => self.display_string()?,
            _ => return None,
        }
        Some(None)
    }

    /// Returns true for an Integer and false for a Decimal.
    fn number(&mut self) -> Option<bool> {
        let digits = |parser: &mut Self| parser.take_while(|byte| byte.is_ascii_digit()).len();
        self.take_if(b'-');
        let whole = digits(self);
        if !self.take_if(b'.') {
            return (1..=15).contains(&whole).then_some(true);
        }
        let fraction = digits(self);
        let is_decimal = (1..=12).contains(&whole) && (1..=3).contains(&fraction);
        is_decimal.then_some(false)
    }

    fn string(&mut self) -> Option<String> {
        self.expect(b'"')?;
        let mut text = String::new();
        loop {
            let char = match self.next()? {
                b'"' => return Some(text),
                b'\\' => self.next().filter(|byte| b"\"\\".contains(byte))?,
                byte @ 0x20..=0x7e => byte,
                _ => return None,
            };
            text.push(char.into());
        }
    }

    /// The caller has checked the first character.
    fn token(&mut self) {
        self.take_while(|byte| {
            byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~:/".contains(&byte)
        });
    }

    fn byte_sequence(&mut self) -> Option<()> {
        self.expect(b':')?;
        let sextets = self.take_while(|byte| byte.is_ascii_alphanumeric() || b"+/".contains(&byte));
        let padding = self.take_while(|byte| byte == b'=').len();
        self.expect(b':')?;
        // Padding is optional. A remainder of one sextet is too short for a byte.
        let most = match sextets.len() % 4 {
            0 => 0,
            2 => 2,
            3 => 1,
            _ => return None,
        };
        (padding <= most).then_some(())
    }

    fn boolean(&mut self) -> Option<()> {
        self.expect(b'?')?;
        matches!(self.next()?, b'0' | b'1').then_some(())
    }

    fn date(&mut self) -> Option<()> {
        self.expect(b'@')?;
        self.number()?.then_some(())
    }

    fn display_string(&mut self) -> Option<()> {
        self.expect(b'%')?;
        self.expect(b'"')?;
        let mut text = Vec::new();
        loop {
            text.push(match self.next()? {
                b'"' => return String::from_utf8(text).ok().map(drop),
                b'%' => self.hexadecimal()? << 4 | self.hexadecimal()?,
                byte @ 0x20..=0x7e => byte,
                _ => return None,
            });
        }
    }

    /// A hexadecimal digit, which must be lower case in a Display String.
    fn hexadecimal(&mut self) -> Option<u8> {
        let digit = self.next().filter(|byte| !byte.is_ascii_uppercase())?;
        let value = char::from(digit).to_digit(16)?;
        u8::try_from(value).ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sfv::{BareItem, List, ListEntry};

    use super::*;

    /// The names of the members according to another implementation.
    fn names(list: &List) -> Vec<Option<&str>> {
        let name = |entry| match entry {
            &ListEntry::Item(sfv::Item {
                bare_item: BareItem::String(ref name),
                ..
            }) => Some(name.as_str()),
            _ => None,
        };
        list.iter().map(name).collect()
    }

    fn parse(field: &[u8]) -> Option<List> {
        sfv::Parser::new(field).parse().ok()
    }

    fn agrees(field: &[u8]) -> Result<(), TestCaseError> {
        let shown = field.escape_ascii();
        let theirs = parse(field);
        let ours = members(field);
        prop_assert_eq!(ours.is_some(), theirs.is_some(), "{}", shown);
        let (Some(ours), Some(theirs)) = (ours, theirs) else {
            return Ok(());
        };
        let ours_named: Vec<_> = ours.iter().map(|member| member.name.as_deref()).collect();
        prop_assert_eq!(ours_named, names(&theirs), "{}", shown);
        // Each member parses alone to the same member.
        for (member, theirs) in ours.iter().zip(&theirs) {
            let alone = parse(member.text).unwrap_or_default();
            prop_assert_eq!(&alone[..], std::slice::from_ref(theirs), "{}", shown);
        }
        Ok(())
    }

    #[test]
    fn every_pair_of_bytes_agrees_with_another_implementation() {
        for (before, after) in [
            ("", ""),
            ("\"", "\""),
            ("%\"", "\""),
            ("%\"%e2%82%", "\""),
            (":", ":"),
            (":ab", ":"),
            ("a;", ""),
            ("a;b=", ""),
            ("(a", "b)"),
            ("1", "1"),
            ("a", "b"),
            ("\"a\"", "\"a\""),
        ] {
            for first in 0..=255 {
                for second in 0..=255 {
                    let field = [before.as_bytes(), &[first, second], after.as_bytes()].concat();
                    agrees(&field).unwrap();
                }
            }
        }
    }

    #[test]
    fn the_limits_of_numbers_agree_with_another_implementation() {
        for sign in ["", "-", "@", "@-", "--"] {
            for whole in 0..18 {
                let whole = "9".repeat(whole);
                agrees(format!("{sign}{whole}").as_bytes()).unwrap();
                for fraction in 0..5 {
                    let fraction = "9".repeat(fraction);
                    agrees(format!("{sign}{whole}.{fraction}").as_bytes()).unwrap();
                }
            }
        }
    }

    fn part() -> impl Strategy<Value = Vec<u8>> {
        let known = [
            "\"a\"",
            "\"\\\"\\\\\"",
            "tok/en:*",
            "*",
            "-1",
            "1.5",
            "1.",
            ":YWI=:",
            ":YWI:",
            ":Y:",
            "?1",
            "?2",
            "@1",
            "@1.5",
            "%\"%c3%a4\"",
            "%\"%C3\"",
            "%\"%c3\"",
            "(",
            ")",
            "(a \"b\";c=1)",
            ";",
            ";a",
            "; a=?0",
            ";a=\"x\"",
            ";A",
            "=",
            ",",
            ", ",
            " ,\t",
            " ",
            "\t",
            "\"",
            "\\",
            "%",
        ];
        prop_oneof![
            9 => prop::sample::select(known.to_vec()).prop_map(|part| part.as_bytes().to_vec()),
            1 => any::<u8>().prop_map(|byte| vec![byte]),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]
        #[test]
        fn any_field_agrees_with_another_implementation(
            parts in prop::collection::vec(part(), 0..8),
        ) {
            agrees(&parts.concat())?;
        }
    }
}
