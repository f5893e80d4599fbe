//! The numbers of sets of joined buckets: see [`RateBuckets::join`](super::RateBuckets::join).

/// The place of a limiter stands above these bits.
const SET_BITS: u32 = 16;

/// The number of a set of the limiter at a place.
#[inline]
pub(crate) fn joined_set(place: usize, set: usize) -> usize {
    place << SET_BITS | set
}

/// Splits the number of a joined set: the place of its limiter, and the number of the set there.
#[inline]
#[must_use]
pub fn split_joined_set(joined: usize) -> (usize, usize) {
    (joined >> SET_BITS, joined & ((1 << SET_BITS) - 1))
}
