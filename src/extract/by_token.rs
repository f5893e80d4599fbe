//! Bearer token, else API key, else client address.

use super::{ApiKey, ClientIp, KeyExtractor, RequestHead, bearer};
use crate::key::Key;

/// Charges the bearer token, else the `X-Api-Key`, else the client's address.
///
/// ```
/// use tower_admission::extract::{ByToken, ClientIp};
///
/// let direct = ByToken::default();
/// let behind_a_proxy =
///     ByToken::default().client_ip(ClientIp::forwarded_by(["10.0.0.0/8".parse().unwrap()]));
/// ```
#[derive(Clone, Debug, Default)]
pub struct ByToken {
    api_key: ApiKey,
    client_ip: ClientIp,
}

impl ByToken {
    /// Takes the API key from another header. Default: `X-Api-Key`.
    #[must_use]
    pub fn api_key(mut self, api_key: ApiKey) -> Self {
        self.api_key = api_key;
        self
    }

    /// How the client's address is found. Default: [`ClientIp::peer`].
    #[must_use]
    pub fn client_ip(mut self, client_ip: ClientIp) -> Self {
        self.client_ip = client_ip;
        self
    }
}

impl KeyExtractor for ByToken {
    #[inline]
    fn extract(&self, head: RequestHead<'_>) -> Option<Key> {
        match bearer::key(head.headers) {
            None => self.without_bearer(head),
            key => key,
        }
    }
}

impl ByToken {
    // Apart, so that a head is not copied for a request with a bearer token.
    #[inline(never)]
    fn without_bearer(&self, head: RequestHead<'_>) -> Option<Key> {
        self.api_key
            .extract(head)
            .or_else(|| self.client_ip.extract(head))
    }
}
