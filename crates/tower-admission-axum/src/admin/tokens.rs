//! Bearer tokens of operators, replaceable at run time.

use std::fmt;
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use tower_admission::RequestHead;
use tower_admission::provider::{bearer_token, is_b64token, is_name, siphash128};

use super::auth::{Auth, Operator, Role};

/// The name of an operator whose token has none.
const DEFAULT_NAME: &str = "admin";

/// A bearer token of an operator: `Authorization: Bearer ..` (RFC 6750 §2.1).
///
/// The token is not kept, but its fingerprint, of 128 bits under a secret that each process draws. What a
/// request sends becomes one as well, and of two fingerprints all bits are compared. So how long an answer takes
/// reveals nothing of the token.
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
    /// The shortest token, in bytes: below that it could be guessed.
    pub const SHORTEST: usize = 16;

    /// Admits requests with this token, which should be random: `openssl rand -hex 32` makes one. Its operator is
    /// called `admin`, and may write.
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
        Self::named(DEFAULT_NAME, token)
    }

    /// As [`new`](Self::new), with the name of its operator, which stands in logs and in the record of changes.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new), and [`TokenError::Name`] for a name that is not 1 to 64 bytes of printable ASCII.
    ///
    /// # Panics
    ///
    /// As [`new`](Self::new).
    pub fn named(name: &str, token: impl AsRef<str>) -> Result<Self, TokenError> {
        let token = token.as_ref().as_bytes();
        if !is_name(name) {
            return Err(TokenError::Name);
        }
        if token.len() < Self::SHORTEST {
            return Err(TokenError::Short);
        }
        if !is_b64token(token) {
            return Err(TokenError::Characters);
        }
        Ok(Self {
            operator: Operator::new(name, Role::Write),
            fingerprint: fingerprint(token),
        })
    }

    /// Sets what its operator may do. Default: [`Role::Write`].
    #[must_use]
    pub fn role(self, role: Role) -> Self {
        Self {
            operator: Operator::new(self.operator.name(), role),
            ..self
        }
    }

    fn is(&self, [first, second]: [u64; 2]) -> bool {
        // Of fixed length, and without the secret nobody can make up one that begins like it.
        (first ^ self.fingerprint[0]) | (second ^ self.fingerprint[1]) == 0
    }
}

fn fingerprint(token: &[u8]) -> [u64; 2] {
    static SECRET: OnceLock<[u64; 2]> = OnceLock::new();
    let random = || getrandom::u64().expect("the operating system gives random bytes");
    let secret = SECRET.get_or_init(|| [random(), random()]);
    siphash128::<2, 4>(*secret, token)
}

impl Auth for Token {
    fn operator(&self, head: RequestHead<'_>) -> Option<Operator> {
        let token = bearer_token(head.headers)?;
        let is_it = self.is(fingerprint(token));
        is_it.then(|| self.operator.clone())
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

/// The tokens of several operators, replaceable at run time. An operator may have several. Clones share them.
///
/// Of no tokens it admits nobody.
///
/// ```
/// use tower_admission_axum::admin::{Role, Token, Tokens};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let tokens = Tokens::new([
///     Token::named("anna", "b5b0ea1ed0924ab5")?,
///     Token::named("dashboards", "77b3c7c0f4a94e0a")?.role(Role::Read),
/// ]);
/// // Later, on a clone of it: anna's old token is not accepted any more.
/// tokens.replace([Token::named("anna", "f00dfacec0ffee42")?]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Default)]
pub struct Tokens(Arc<ArcSwap<Vec<Token>>>);

impl Tokens {
    /// These tokens. Of two equal ones the first counts.
    #[must_use]
    pub fn new(tokens: impl IntoIterator<Item = Token>) -> Self {
        let tokens: Vec<_> = tokens.into_iter().collect();
        Self(Arc::new(ArcSwap::from_pointee(tokens)))
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.load().is_empty()
    }

    /// Replaces all of them, from the next request on, and logs at level INFO which were added, changed and removed,
    /// by name.
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
            // An operator may have several tokens, so one that is gone was replaced by one that is new.
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
        let token = tokens.iter().find(|token| token.is(sent))?;
        Some(token.operator.clone())
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.load().iter()).finish()
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
    /// The name of its operator is not 1 to 64 bytes of printable ASCII.
    Name,
}

impl fmt::Display for TokenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Short => "a token has at least 16 bytes: `openssl rand -hex 32` makes one",
            Self::Characters => "a token consists of letters, digits and -._~+/, and may end in =",
            Self::Name => "the name of a token is 1 to 64 bytes of printable ASCII",
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
    fn a_token_admits_itself_and_nothing_else() {
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
    fn a_token_that_could_be_guessed_or_not_be_sent_is_an_error() {
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
        for name in ["", "Zoë", "a\nb"] {
            assert_eq!(Token::named(name, TOKEN).unwrap_err(), TokenError::Name);
        }
    }

    /// What is compared has one length, and differs as a whole where tokens differ in a byte; so there is no
    /// beginning that could be found byte by byte.
    #[test]
    fn a_fingerprint_reveals_nothing_of_a_beginning() {
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
