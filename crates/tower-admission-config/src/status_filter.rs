//! Which responses count, by their status.

use std::ops::RangeInclusive;

use super::text::{FromText, shown};

/// One part of a `count`: `401`, `4xx`, or with a `!` everything else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum StatusFilter {
    Of(RangeInclusive<u16>),
    NotOf(RangeInclusive<u16>),
}

impl StatusFilter {
    /// Whether a status is one of these: of any part without a `!`, if there are such parts, and
    /// of no part with one.
    pub(super) fn contain(parts: &[Self], status: u16) -> bool {
        let mut of = parts.iter().filter_map(|part| match part {
            Self::Of(range) => Some(range.contains(&status)),
            Self::NotOf(_) => None,
        });
        let is_excluded = parts.iter().any(|part| match part {
            Self::NotOf(range) => range.contains(&status),
            Self::Of(_) => false,
        });
        // The first of them is asked apart, as without any all statuses are right.
        !is_excluded && of.next().is_none_or(|first| first || of.any(|is_in| is_in))
    }
}

impl FromText for StatusFilter {
    fn read(text: &str) -> Result<Self, String> {
        let (part, is_negated) = match text.strip_prefix('!') {
            Some(part) => (part, true),
            None => (text, false),
        };
        let range = match part.as_bytes() {
            [class @ b'1'..=b'9', b'x', b'x'] => {
                let first = u16::from(class - b'0') * 100;
                Some(first..=first + 99)
            }
            [b'1'..=b'9', b'0'..=b'9', b'0'..=b'9'] => part.parse().ok().map(|one| one..=one),
            _ => None,
        };
        match range {
            Some(range) if is_negated => Ok(Self::NotOf(range)),
            Some(range) => Ok(Self::Of(range)),
            None => Err(format!(
                "{} is not a status: use \"401\", \"4xx\" or \"!2xx\"",
                shown(text)
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contain(text: &str, status: u16) -> bool {
        let parts = text
            .split(", ")
            .map(|part| StatusFilter::read(part).unwrap());
        StatusFilter::contain(&parts.collect::<Vec<_>>(), status)
    }

    #[test]
    fn statuses_are_alone_or_in_classes() {
        for (text, within, without) in [
            ("401", &[401][..], &[400, 402, 200][..]),
            ("4xx", &[400, 401, 499], &[399, 500, 200]),
            ("401, 403", &[401, 403], &[402, 200]),
            ("!2xx", &[100, 199, 300, 404, 999], &[200, 299]),
            ("!2xx, !304", &[301, 500], &[204, 304]),
            ("4xx, 5xx, !404", &[400, 503], &[404, 200]),
            ("!404, 4xx", &[400], &[404, 200]),
        ] {
            assert!(within.iter().all(|status| contain(text, *status)), "{text}");
            assert!(
                !without.iter().any(|status| contain(text, *status)),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_no_status_is_an_error() {
        for text in [
            "", "!", "4x", "4XX", "40", "4010", "0xx", "099", "!!2xx", "2xx!", "+401", "ok",
            "400-499",
        ] {
            let error = StatusFilter::read(text).unwrap_err();
            assert!(
                error.contains("use \"401\", \"4xx\" or \"!2xx\""),
                "{error}"
            );
        }
    }
}
