//! Overrides in a store that this version of the crate cannot read.

use std::collections::BTreeSet;

use super::Limits;
use super::entry::line;

/// Their names. The gauge `admission_limits_unreadable` has how many there are.
#[derive(Default)]
pub(super) struct Unreadable(BTreeSet<Box<str>>);

impl Unreadable {
    /// Each is logged once, as long as it stays one.
    pub(super) fn add(&mut self, name: &str, why: &str) {
        if self.0.contains(name) || self.0.len() == Limits::MOST {
            return;
        }
        self.0.insert(name.into());
        tracing::warn!(
            key = line(name).as_deref(),
            why,
            "an override in the store cannot be read here: the one that was read before it stays in force, if there was \
             one"
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
