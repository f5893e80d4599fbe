//! Bearer token, else API key, else client address.

use http::HeaderName;

use super::{ApiKey, ClientIp, Extracted, KeyExtractor, RequestHead, bearer};
use crate::key::Key;

/// Charges the bearer token, the API key, or the client address.
///
/// # Which one to choose
///
/// Charge only the credential that the application checks. A client can add any other header to a
/// request, and choose a new key with it each time.
///
/// | the application accepts | use |
/// |---|---|
/// | bearer tokens only | [`ByToken::bearer_only`] |
/// | API keys only | [`ByToken::api_key_only`] |
/// | either | [`ByToken::default`] |
///
/// Better than all three is the *verified* identity: an authentication layer outside the limiter
/// adds the user to the request's extensions, and the limiter charges the user. A client cannot
/// make that up.
///
/// ```
/// use tower_admission::{ClientIp, Key, KeyExtractor, Quota, RateLimitLayer, RequestHead};
///
/// #[derive(Clone)]
/// struct User { id: String } // the authentication layer adds it to the extensions
///
/// let verified_user = |head: RequestHead<'_>| {
///     head.extensions.get::<User>().map(|user| Key::id("user", &user.id))
/// };
/// let layer = RateLimitLayer::by(verified_user.or(ClientIp::peer()), Quota::per_second(10));
/// ```
///
/// These extractors do not verify credentials. If the limiter runs before authentication, add a
/// limit per address to the same decision with [`and_by`](crate::RateLimitLayer::and_by).
///
/// # What is charged
///
/// | `Authorization` | `X-Api-Key` | `default` charges |
/// |---|---|---|
/// | one bearer token | | the token |
/// | absent | one key | the API key |
/// | absent | absent | the address |
/// | absent | empty or repeated | the address |
/// | anything else | | the address |
///
/// "Anything else" is a repeated header, another scheme, a malformed token, or several tokens. Such
/// a request is charged to its address; `X-Api-Key` is ignored.
///
/// ```
/// use tower_admission::extract::{ByToken, ClientIp};
///
/// let direct = ByToken::default();
/// let behind_a_proxy =
///     ByToken::bearer_only().client_ip(ClientIp::forwarded_by(["10.0.0.0/8".parse().unwrap()]));
/// ```
#[derive(Clone, Debug, Default)]
pub struct ByToken {
    credential: Credential,
    api_key: ApiKey,
    client_ip: ClientIp,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Credential {
    #[default]
    Either,
    Bearer,
    ApiKey,
}

impl ByToken {
    /// Charges the bearer token, else the client address. Ignores `X-Api-Key`.
    #[must_use]
    pub fn bearer_only() -> Self {
        Self {
            credential: Credential::Bearer,
            ..Self::default()
        }
    }

    /// Charges the API key, else the client address. Ignores `Authorization`.
    #[must_use]
    pub fn api_key_only() -> Self {
        Self {
            credential: Credential::ApiKey,
            ..Self::default()
        }
    }

    /// Sets the header of the API key. Default: `X-Api-Key`.
    #[must_use]
    pub fn api_key(mut self, api_key: ApiKey) -> Self {
        self.api_key = api_key;
        self
    }

    /// Sets how the client address is found. Default: [`ClientIp::peer`].
    #[must_use]
    pub fn client_ip(mut self, client_ip: ClientIp) -> Self {
        self.client_ip = client_ip;
        self
    }

    /// Whether a bearer token is charged first.
    pub(super) fn takes_bearer(&self) -> bool {
        self.credential != Credential::ApiKey
    }

    // A separate function, so that the head is not copied for a request with a bearer token.
    #[inline(never)]
    fn without_bearer(&self, bearer: Extracted, head: RequestHead<'_>) -> Extracted {
        let credential = match bearer {
            Extracted::Absent if self.credential != Credential::Bearer => {
                self.api_key.extract(head)
            }
            bearer => bearer,
        };
        match credential {
            Extracted::Absent => self.client_ip.extract(head),
            credential => credential.or_address(|| self.client_address(head)),
        }
    }
}

impl KeyExtractor for ByToken {
    #[inline]
    fn extract(&self, head: RequestHead<'_>) -> Extracted {
        let bearer = match self.credential {
            Credential::Either | Credential::Bearer => bearer::key(head.headers),
            Credential::ApiKey => Extracted::Absent,
        };
        match bearer {
            Extracted::Key(_) => bearer,
            missing => self.without_bearer(missing, head),
        }
    }

    fn client_address(&self, head: RequestHead<'_>) -> Option<Key> {
        self.client_ip.client_address(head)
    }

    fn credential_headers(&self) -> Vec<HeaderName> {
        match self.credential {
            Credential::Bearer => Vec::new(),
            Credential::Either | Credential::ApiKey => self.api_key.credential_headers(),
        }
    }
}
