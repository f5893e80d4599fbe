//! Bearer tokens of operators, replaceable at run time.

use std::fmt;
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use tower_admission::RequestHead;
use tower_admission::provider::{bearer_token, is_b64token, is_name, siphash128};

use super::auth::{Auth, Operator, Role};

/// The name of an operator whose token has no name.
const DEFAULT_NAME: &str = "admin";

/// A bearer token of an operator: `Authorization: Bearer ..` (RFC 6750 §2.1).
///
/// Only a fingerprint of the token is kept: 128 bits, under a random secret of the process. The token of a request is
/// fingerprinted too, and all bits of the fingerprints are compared. So the response time reveals nothing about the token.
///
/// ```
/// use tower_admission_axum::admin::{Role, Token};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let from_environment = "b5b0ea1ed0924ab5";
/// let token = Token::named("anna", from_environment)?.role(Role::Read);
/// assert!(Token::new("").is_err());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    operator: Operator,
    fingerprint: [u64; 2],
}

impl Token {
    /// The minimum length of a token in bytes. A shorter token could be guessed.
    pub const MIN_BYTES: usize = 16;

    /// A token whose operator has the name `admin` and the role [`Role::Write`]. Use a random token: `openssl rand -hex 32`
    /// makes one.
    ///
    /// # Errors
    ///
    /// - [`TokenError::TooShort`] below [`MIN_BYTES`](Self::MIN_BYTES), for example for an empty setting.
    /// - [`TokenError::InvalidCharacters`] if a header cannot contain the token.
    ///
    /// # Panics
    ///
    /// If the operating system provides no random bytes.
    pub fn new(token: impl AsRef<str>) -> Result<Self, TokenError> {
        Self::named(DEFAULT_NAME, token)
    }

    /// Like [`new`](Self::new), with the name of the operator. Logs and the audit trail contain the name.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new), and [`TokenError::InvalidName`] for a name that is not 1 to 64 bytes of printable ASCII.
    ///
    /// # Panics
    ///
    /// As [`new`](Self::new).
    pub fn named(name: &str, token: impl AsRef<str>) -> Result<Self, TokenError> {
        let token = token.as_ref().as_bytes();
        if !is_name(name) {
            return Err(TokenError::InvalidName);
        }
        if token.len() < Self::MIN_BYTES {
            return Err(TokenError::TooShort);
        }
        if !is_b64token(token) {
            return Err(TokenError::InvalidCharacters);
        }
        Ok(Self {
            operator: Operator::new(name, Role::Write),
            fingerprint: fingerprint(token),
        })
    }

    /// Sets the role of the operator. Default: [`Role::Write`].
    #[must_use]
    pub fn role(self, role: Role) -> Self {
        Self {
            operator: Operator::new(self.operator.name(), role),
            ..self
        }
    }

    fn matches(&self, [first, second]: [u64; 2]) -> bool {
        // Fixed length. Without the secret of the process no client can choose a fingerprint.
        (first ^ self.fingerprint[0]) | (second ^ self.fingerprint[1]) == 0
    }
}

fn fingerprint(token: &[u8]) -> [u64; 2] {
    static SECRET: OnceLock<[u64; 2]> = OnceLock::new();
    let random = || getrandom::u64().expect("the operating system provides random bytes");
    let secret = SECRET.get_or_init(|| [random(), random()]);
    siphash128::<2, 4>(*secret, token)
}

impl Auth for Token {
    fn operator(&self, head: RequestHead<'_>) -> Option<Operator> {
        let token = bearer_token(head.headers)?;
        let is_match = self.matches(fingerprint(token));
        is_match.then(|| self.operator.clone())
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("name", &self.operator.name())
            .field("role", &self.operator.role())
            .finish_non_exhaustive()
    }
}

/// The tokens of several operators, replaceable at run time. Clones share them. An operator may have several tokens.
///
/// Without tokens all requests are rejected.
///
/// ```
/// use tower_admission_axum::admin::{Role, Token, Tokens};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let tokens = Tokens::new([
///     Token::named("anna", "b5b0ea1ed0924ab5")?,
///     Token::named("dashboards", "77b3c7c0f4a94e0a")?.role(Role::Read),
/// ]);
/// // Later, on a clone: the old token of anna is no longer accepted.
/// tokens.replace([Token::named("anna", "f00dfacec0ffee42")?]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Default)]
pub struct Tokens(Arc<ArcSwap<Vec<Token>>>);

impl Tokens {
    /// These tokens. Of equal tokens the first counts.
    #[must_use]
    pub fn new(tokens: impl IntoIterator<Item = Token>) -> Self {
        let tokens: Vec<_> = tokens.into_iter().collect();
        Self(Arc::new(ArcSwap::from_pointee(tokens)))
    }

    /// Whether there are no tokens.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.load().is_empty()
    }

    /// Replaces all tokens, from the next request on. Logs the names of added, changed and removed tokens at level INFO.
    pub fn replace(&self, tokens: impl IntoIterator<Item = Token>) {
        let tokens: Vec<_> = tokens.into_iter().collect();
        let before = self.0.swap(Arc::new(tokens.clone()));
        let is_one = |one: &Token, other: &Token| {
            one.fingerprint == other.fingerprint && one.operator.name() == other.operator.name()
        };
        let gone = before.iter();
        let gone = gone.filter(|was| !tokens.iter().any(|token| is_one(was, token)));
        let mut gone: Vec<_> = gone.collect();
        for token in &tokens {
            let (name, role) = (token.operator.name(), token.operator.role().as_str());
            if let Some(was) = before.iter().find(|was| is_one(was, token)) {
                if was != token {
                    tracing::info!(name, role, "the role of an admin token was changed");
                }
                continue;
            }
            // An operator may have several tokens. A removed and a new token of one operator are a change.
            match gone.iter().position(|was| was.operator.name() == name) {
                Some(at) => {
                    gone.swap_remove(at);
                    tracing::info!(name, role, "an admin token was changed");
                }
                None => tracing::info!(name, role, "an admin token was added"),
            }
        }
        for token in gone {
            tracing::info!(name = token.operator.name(), "an admin token was removed");
        }
    }
}

impl Auth for Tokens {
    fn operator(&self, head: RequestHead<'_>) -> Option<Operator> {
        let sent = fingerprint(bearer_token(head.headers)?);
        let tokens = self.0.load();
        let token = tokens.iter().find(|token| token.matches(sent))?;
        Some(token.operator.clone())
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.load().iter()).finish()
    }
}

/// An invalid [`Token`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TokenError {
    /// The token has fewer than 16 bytes.
    TooShort,
    /// The token has a character that a bearer token cannot have (RFC 6750 §2.1). It may have letters, digits and
    /// `-._~+/`, and end in `=`.
    InvalidCharacters,
    /// The name of the operator is not 1 to 64 bytes of printable ASCII.
    InvalidName,
}

impl fmt::Display for TokenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooShort => "the token is shorter than 16 bytes; make one with `openssl rand -hex 32`",
            Self::InvalidCharacters => "the token has an invalid character; use letters, digits and -._~+/, with = only at the end",
            Self::InvalidName => "the name of the token is invalid; use 1 to 64 bytes of printable ASCII",
        })
    }
}

impl std::error::Error for TokenError {}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    const TOKEN: &str = "0123456789abcdef";

    fn operator(auth: &impl Auth, authorization: &str) -> Option<Operator> {
        let request = Request::builder().header("authorization", authorization);
        let request = request.body(()).unwrap();
        auth.operator(RequestHead::from(&request))
    }

    #[test]
    fn a_token_authenticates_only_itself() {
        let token = Token::new(TOKEN).unwrap();
        let admin = Operator::new("admin", Role::Write);
        assert_eq!(operator(&token, &format!("Bearer {TOKEN}")), Some(admin));
        assert!(operator(&token, &format!("bearer  {TOKEN}")).is_some());
        let tokens = Tokens::new([token.clone()]);
        for other in [
            "",
            "Bearer",
            "Bearer ",
            TOKEN,
            "Basic 0123456789abcdef",
            "Bearer 0123456789abcde",
            "Bearer 0123456789abcdef0",
            "Bearer 0123456789ABCDEF",
            "Bearer 1123456789abcdef",
            "Bearer 0123456789abcdef 0123456789abcdef",
        ] {
            assert_eq!(operator(&token, other), None, "{other:?}");
            assert_eq!(operator(&tokens, other), None, "{other:?}");
        }
    }

    #[test]
    fn each_token_has_its_operator_until_it_is_replaced() {
        let other = "fedcba9876543210";
        let anna = Token::named("anna", TOKEN).unwrap();
        let ben = Token::named("ben", other).unwrap().role(Role::Read);
        let tokens = Tokens::new([anna, ben]);
        let of = |token: &str| {
            let operator = operator(&tokens, &format!("Bearer {token}"))?;
            Some((operator.name().to_owned(), operator.role()))
        };
        assert_eq!(of(TOKEN), Some(("anna".to_owned(), Role::Write)));
        assert_eq!(of(other), Some(("ben".to_owned(), Role::Read)));
        let shared = tokens.clone();
        shared.replace([Token::named("anna", other).unwrap()]);
        assert_eq!(of(TOKEN), None);
        assert_eq!(of(other), Some(("anna".to_owned(), Role::Write)));
        shared.replace([]);
        assert_eq!((of(other), tokens.is_empty()), (None, true));
        assert_eq!(of(""), None);
    }

    #[test]
    fn a_short_token_and_an_invalid_character_are_errors() {
        for (text, error) in [
            ("", TokenError::TooShort),
            ("0123456789abcde", TokenError::TooShort),
            ("                ", TokenError::InvalidCharacters),
            ("0123456789abcdef\n", TokenError::InvalidCharacters),
            ("correct horse battery", TokenError::InvalidCharacters),
            ("================", TokenError::InvalidCharacters),
        ] {
            assert_eq!(Token::new(text).unwrap_err(), error, "{text:?}");
        }
        for name in ["", "Zoë", "a\nb"] {
            assert_eq!(
                Token::named(name, TOKEN).unwrap_err(),
                TokenError::InvalidName
            );
        }
    }

    /// Fingerprints have a fixed length, and differ in half of their bits if tokens differ in one byte. So a client cannot
    /// find a token byte by byte.
    #[test]
    fn a_fingerprint_reveals_no_prefix_of_a_token() {
        let token = Token::new(TOKEN).unwrap();
        let mut differing = 0;
        for at in 0..TOKEN.len() {
            let mut near = TOKEN.as_bytes().to_vec();
            near[at] ^= 1;
            let [first, second] = fingerprint(&near);
            differing += (first ^ token.fingerprint[0]).count_ones();
            differing += (second ^ token.fingerprint[1]).count_ones();
        }
        // 16 times 64, give or take eight standard deviations of 22.6.
        assert!((843..=1205).contains(&differing), "{differing}");
        let shown = format!("{:?}", Tokens::new([token]));
        assert_eq!(shown, "[Token { name: \"admin\", role: Write, .. }]");
    }
}
