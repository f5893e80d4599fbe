//! An API key in a dedicated header.

use http::HeaderName;

use super::head::{Field, single};
use super::{Extracted, KeyExtractor, RequestHead};
use crate::key::Key;

/// Charges the value of a header. Default: `X-Api-Key`.
///
/// A header that is empty or repeated is [unusable](Extracted::Unusable).
///
/// ```
/// use tower_admission::{Quota, RateLimitLayer};
/// use tower_admission::extract::ApiKey;
///
/// let layer = RateLimitLayer::by(ApiKey::header("x-client-token"), Quota::per_second(10));
/// ```
#[derive(Clone, Debug)]
pub struct ApiKey(HeaderName);

impl ApiKey {
    /// Reads the API key from the header `name`.
    ///
    /// # Panics
    ///
    /// Panics when `name` is not a valid header name in lower case.
    #[must_use]
    pub fn header(name: &'static str) -> Self {
        Self(HeaderName::from_static(name))
    }
}

/// `X-Api-Key`.
impl Default for ApiKey {
    fn default() -> Self {
        Self::header("x-api-key")
    }
}

impl KeyExtractor for ApiKey {
    #[inline]
    fn extract(&self, head: RequestHead<'_>) -> Extracted {
        match single(head.headers, &self.0).map(<[u8]>::trim_ascii) {
            Field::Absent => Extracted::Absent,
            Field::Once(value) if !value.is_empty() => Extracted::Key(Key::new("api-key", value)),
            Field::Once(_) | Field::Repeated => Extracted::Unusable,
        }
    }

    fn credential_headers(&self) -> Vec<HeaderName> {
        vec![self.0.clone()]
    }
}
