//! Overrides in a store that this version of the crate cannot read.

use std::collections::BTreeSet;

use super::Limits;
use super::entry::line;
use crate::key::{KeyName, is_credential_kind};
use crate::sync::lock;

/// The names of unreadable overrides. The gauge `admission_limits_unreadable` has their number.
#[derive(Default)]
pub(super) struct UnreadableOverrides(BTreeSet<Box<str>>);

impl Limits {
    /// The names of overrides in the store that this version of the crate cannot read. For each,
    /// the last version that was read stays in force. Each is logged once, and the gauge
    /// `admission_limits_unreadable` has their number. In a name that may contain a credential,
    /// from an earlier version, `...` replaces it.
    #[must_use]
    pub fn unreadable(&self) -> Vec<Box<str>> {
        let state = lock(&self.0.state);
        state.unreadable.names().map(redacted_name).collect()
    }
}

/// A name without a credential. Names of keys have fingerprints instead.
fn redacted_name(name: &str) -> Box<str> {
    if let Ok(key) = name.parse::<KeyName>() {
        return key.as_str().into();
    }
    match name.split_once(':') {
        Some((kind, _)) if is_credential_kind(kind) => format!("{kind}:...").into(),
        _ => name.into(),
    }
}

impl UnreadableOverrides {
    /// Adds a name, and logs it unless it is in the set.
    pub(super) fn add(&mut self, name: &str, why: &str) {
        if self.0.contains(name) || self.0.len() == Limits::MAX_OVERRIDES {
            return;
        }
        self.0.insert(name.into());
        tracing::warn!(
            key = line(&redacted_name(name)).as_deref(),
            why,
            "this version cannot read an override in the store; its last readable value stays in force, \
             if there was one"
        );
        self.report();
    }

    pub(super) fn remove(&mut self, name: &str) {
        if self.0.remove(name) {
            self.report();
        }
    }

    pub(super) fn retain(&mut self, is_there: impl Fn(&str) -> bool) {
        self.0.retain(|name| is_there(name));
        self.report();
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|name| &**name)
    }

    fn report(&self) {
        #[cfg(feature = "metrics")]
        #[allow(clippy::cast_precision_loss)]
        metrics::gauge!("admission_limits_unreadable").set(self.0.len() as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_in_a_name_is_not_shown() {
        for (name, seen) in [
            ("token:s3cret", "token:..."),
            ("JWT:s3cret", "JWT:..."),
            ("org", "org"),
            ("org:acme", "org:acme"),
        ] {
            assert_eq!(&*redacted_name(name), seen);
        }
        let fingerprint = "bearer#ad31cf84c678148d8b6a871e308250c6";
        assert_eq!(&*redacted_name(fingerprint), fingerprint);
        assert!(!redacted_name("bearer:s3cret").contains("s3cret"));
    }
}
