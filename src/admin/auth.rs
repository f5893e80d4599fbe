//! Who may look at limits and change them.

use std::fmt;

use crate::extract::{RequestHead, bearer};
use crate::key::siphash128;

/// Says who may look at limits and change them: a [`Token`], or a closure of the application's.
///
/// ```
/// use tower_admission::{Limits, RequestHead};
/// use tower_admission::admin::{self, Recorder};
///
/// #[derive(Clone)]
/// struct User { is_operator: bool } // put into the extensions by authentication, further out
///
/// let operators = |head: RequestHead<'_>| {
///     head.extensions.get::<User>().is_some_and(|user| user.is_operator)
/// };
/// let router: axum::Router = admin::router(&Limits::new(), &Recorder::new(), operators);
/// ```
#[diagnostic::on_unimplemented(
    note = "use `tower_admission::admin::Token`, or a closure `|head: RequestHead<'_>| -> bool`"
)]
pub trait Auth: Send + Sync + 'static {
    /// Whether the request may be served.
    fn admits(&self, head: RequestHead<'_>) -> bool;
}

impl<F> Auth for F
where
    F: Fn(RequestHead<'_>) -> bool + Send + Sync + 'static,
{
    fn admits(&self, head: RequestHead<'_>) -> bool {
        self(head)
    }
}

/// A bearer token that operators send: `Authorization: Bearer ..` (RFC 6750 §2.1).
///
/// The token is not kept, but its fingerprint, of 128 bits under a secret that is drawn for it. What a
/// request sends becomes one as well, and of two fingerprints all bits are compared. So how long an answer takes
/// tells nothing of the token.
///
/// ```
/// use tower_admission::admin::Token;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let from_environment = "b5b0ea1ed0924ab5";
/// let token = Token::new(from_environment)?;
/// assert!(Token::new("").is_err());
/// # Ok(())
/// # }
/// ```
pub struct Token {
    secret: [u64; 2],
    fingerprint: [u64; 2],
}

impl Token {
    /// The shortest token, in bytes: below that it could be guessed.
    pub const SHORTEST: usize = 16;

    /// Admits requests with this token, which should be random:
    /// `openssl rand -hex 32` makes one.
    ///
    /// # Errors
    ///
    /// - [`TokenError::Short`] below [`SHORTEST`](Self::SHORTEST), so also when a setting is empty.
    /// - [`TokenError::Characters`] when it could not be sent.
    ///
    /// # Panics
    ///
    /// When the operating system has no randomness to give.
    pub fn new(token: impl AsRef<str>) -> Result<Self, TokenError> {
        let token = token.as_ref().as_bytes();
        if token.len() < Self::SHORTEST {
            return Err(TokenError::Short);
        }
        if !bearer::is_b64token(token) {
            return Err(TokenError::Characters);
        }
        let random = || getrandom::u64().expect("the operating system gives random bytes");
        let secret = [random(), random()];
        Ok(Self {
            fingerprint: fingerprint(secret, token),
            secret,
        })
    }

    fn is(&self, token: &[u8]) -> bool {
        // Of fixed length, and without a secret nobody can make up one that begins like it.
        let [first, second] = fingerprint(self.secret, token);
        (first ^ self.fingerprint[0]) | (second ^ self.fingerprint[1]) == 0
    }
}

fn fingerprint(secret: [u64; 2], token: &[u8]) -> [u64; 2] {
    siphash128::<2, 4>(secret, token)
}

impl Auth for Token {
    fn admits(&self, head: RequestHead<'_>) -> bool {
        bearer::token(head.headers).is_some_and(|token| self.is(token))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// Why a text cannot be a [`Token`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TokenError {
    /// It has fewer than 16 bytes.
    Short,
    /// There is something in it that a bearer token cannot have (RFC 6750 §2.1): it consists of letters, digits
    /// and `-._~+/`, and may end in `=`.
    Characters,
}

impl fmt::Display for TokenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Short => "a token has at least 16 bytes",
            Self::Characters => "a token consists of letters, digits and -._~+/, and may end in =",
        })
    }
}

impl std::error::Error for TokenError {}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    const TOKEN: &str = "0123456789abcdef";

    fn admits(token: &Token, authorization: &str) -> bool {
        let request = Request::builder().header("authorization", authorization);
        let request = request.body(()).unwrap();
        token.admits(RequestHead::from(&request))
    }

    #[test]
    fn admits_what_it_is_and_nothing_else() {
        let token = Token::new(TOKEN).unwrap();
        assert!(admits(&token, &format!("Bearer {TOKEN}")));
        assert!(admits(&token, &format!("bearer  {TOKEN}")));
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
            assert!(!admits(&token, other), "{other:?}");
        }
    }

    #[test]
    fn what_could_be_guessed_or_not_be_sent_is_refused() {
        for (text, error) in [
            ("", TokenError::Short),
            ("0123456789abcde", TokenError::Short),
            ("                ", TokenError::Characters),
            ("0123456789abcdef\n", TokenError::Characters),
            ("correct horse battery", TokenError::Characters),
            ("================", TokenError::Characters),
        ] {
            assert_eq!(Token::new(text).unwrap_err(), error, "{text:?}");
        }
    }

    /// What is compared has one length, and differs as a whole where tokens differ in a byte; so there is no
    /// beginning that could be found byte by byte.
    #[test]
    fn a_fingerprint_tells_nothing_of_a_beginning() {
        let token = Token::new(TOKEN).unwrap();
        let mut differing = 0;
        for at in 0..TOKEN.len() {
            let mut near = TOKEN.as_bytes().to_vec();
            near[at] ^= 1;
            let [first, second] = fingerprint(token.secret, &near);
            differing += (first ^ token.fingerprint[0]).count_ones();
            differing += (second ^ token.fingerprint[1]).count_ones();
        }
        // 16 times 64, give or take eight standard deviations of 22.6.
        assert!((843..=1205).contains(&differing), "{differing}");
        // And in two processes one token is two fingerprints.
        let again = Token::new(TOKEN).unwrap();
        assert_ne!(token.fingerprint, again.fingerprint);
        assert_eq!(format!("{token:?}"), "Token(..)");
    }
}
