//! The mark of an exempt request, which only this crate can create.

use std::sync::atomic::{AtomicBool, Ordering};

use http::Extensions;

/// The extension of a request that inner layers must exempt.
#[derive(Clone, Copy)]
struct Exempt;

/// Whether any request was ever marked; if not, extensions need no lookup. Not `crate::sync`: a
/// loom atomic cannot be a static.
static ANY: AtomicBool = AtomicBool::new(false);

/// Whether an outer [`AccessLayer`](super::AccessLayer) exempted the request with these extensions.
/// A clone of the extensions is exempt too.
#[inline]
#[must_use]
pub fn is_exempt(extensions: &Extensions) -> bool {
    ANY.load(Ordering::Relaxed) && extensions.get::<Exempt>().is_some()
}

pub(super) fn mark(extensions: &mut Extensions) {
    // `Relaxed` is enough: the marked request itself carries both writes to its readers.
    if !ANY.load(Ordering::Relaxed) {
        ANY.store(true, Ordering::Relaxed);
    }
    extensions.insert(Exempt);
}
