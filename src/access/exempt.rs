//! The mark of an exempt request, which only this crate can make.

use std::sync::atomic::{AtomicBool, Ordering};

use http::Extensions;

/// In the extensions of a request that inner layers exempt.
#[derive(Clone, Copy)]
struct Exempt;

/// Whether any request was ever marked, so that others need no look into their extensions. A static, which loom's
/// atomics cannot be.
static ANY: AtomicBool = AtomicBool::new(false);

/// Whether an [`AccessLayer`](super::AccessLayer) further out exempted the request that has these extensions. A copy of
/// the extensions is exempt, too.
#[inline]
#[must_use]
pub fn is_exempt(extensions: &Extensions) -> bool {
    ANY.load(Ordering::Relaxed) && extensions.get::<Exempt>().is_some()
}

pub(super) fn mark(extensions: &mut Extensions) {
    // The request that is marked carries both to wherever it is looked at.
    if !ANY.load(Ordering::Relaxed) {
        ANY.store(true, Ordering::Relaxed);
    }
    extensions.insert(Exempt);
}
