//! The `[admin]` table: the tokens of operators.

use std::collections::BTreeMap;

use serde::Deserialize;
use tower_admission::provider::{is_b64token, is_name};

use super::error::ConfigError;
use super::model::{Config, Keywords};
use super::text::{Redacted, optional_text, tables};

/// The shortest token, in bytes, as the admin endpoints have it, which may not be built.
const SHORTEST: usize = 16;

/// The name of the operator of `admin.token`.
const DEFAULT_NAME: &str = "admin";

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Admin {
    #[serde(deserialize_with = "optional_text")]
    token: Option<Redacted>,
    #[serde(deserialize_with = "tables")]
    tokens: BTreeMap<String, Named>,
}

/// The token of an operator with a name.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Named {
    #[serde(deserialize_with = "optional_text")]
    token: Option<Redacted>,
    #[serde(deserialize_with = "optional_text")]
    role: Option<Role>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Read,
    Write,
}

impl Keywords for Role {
    const WORDS: &[(&str, Self)] = &[("read", Self::Read), ("write", Self::Write)];
}

/// One token that was checked.
struct CheckedToken<'a> {
    name: &'a str,
    token: &'a str,
    #[cfg_attr(not(feature = "axum"), expect(dead_code, reason = "no endpoint asks"))]
    role: Role,
}

impl Config {
    /// The names of the operators of the admin API who have a token; `admin` is that of `admin.token`.
    pub fn admin_tokens(&self) -> impl Iterator<Item = &str> {
        let default = self.admin.token.as_ref().map(|_| DEFAULT_NAME);
        default
            .into_iter()
            .chain(self.admin.tokens.keys().map(String::as_str))
    }
}

impl Admin {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        self.checked().map(drop)
    }

    /// All tokens, none of which is another one's.
    fn checked(&self) -> Result<Vec<CheckedToken<'_>>, ConfigError> {
        let mut all = Vec::new();
        if let Some(token) = &self.token {
            all.push(CheckedToken::new(
                DEFAULT_NAME,
                "admin.token",
                token,
                Role::Write,
            )?);
        }
        for (name, named) in &self.tokens {
            let at = |field: &str| format!("admin.tokens.{name}{field}");
            if !is_name(name) {
                let problem = "the name of an operator is 1 to 64 bytes of printable ASCII";
                return Err(ConfigError::at(at(""), problem));
            }
            if name == DEFAULT_NAME && self.token.is_some() {
                let problem = "`admin.token` already is the token of `admin`: remove one of them";
                return Err(ConfigError::at(at(""), problem));
            }
            let Some(role) = named.role else {
                let problem = "set a role: `read` or `write`";
                return Err(ConfigError::at(at(".role"), problem));
            };
            let field = at(".token");
            let Some(token) = &named.token else {
                return Err(ConfigError::at(
                    field,
                    "the token of the operator is missing",
                ));
            };
            let checked = CheckedToken::new(name, &field, token, role)?;
            // A change would be recorded as made by the wrong operator.
            if let Some(other) = all.iter().find(|other| other.token == checked.token) {
                let other = other.name;
                let problem = format!("`{other}` already has this token: use another one");
                return Err(ConfigError::at(field, problem));
            }
            all.push(checked);
        }
        Ok(all)
    }
}

impl<'a> CheckedToken<'a> {
    fn new(
        name: &'a str,
        field: &str,
        token: &'a Redacted,
        role: Role,
    ) -> Result<Self, ConfigError> {
        let token = &*token.0;
        if token.len() < SHORTEST {
            let problem = "a token has at least 16 bytes: `openssl rand -hex 32` makes one";
            return Err(ConfigError::at(field, problem));
        }
        if !is_b64token(token.as_bytes()) {
            let problem = "a token consists of letters, digits and -._~+/, and may end in =";
            return Err(ConfigError::at(field, problem));
        }
        Ok(Self { name, token, role })
    }
}

#[cfg(feature = "axum")]
mod endpoints {
    use super::super::admission::Admission;
    use super::{Admin, Config, ConfigError, Role};
    use tower_admission::Key;
    use tower_admission::extract::{ClientIp, Extracted, KeyExtractor, RequestHead};
    use tower_admission_axum::admin::{self, AdminRouter, Recorder, Token};

    impl Admin {
        /// The tokens as the endpoints know them.
        pub(crate) fn tokens(&self) -> Result<Vec<Token>, ConfigError> {
            let tokens = self.checked()?.into_iter();
            let tokens = tokens.map(|checked| {
                let role = match checked.role {
                    Role::Read => admin::Role::Read,
                    Role::Write => admin::Role::Write,
                };
                let token = Token::named(checked.name, checked.token);
                let token = token.map_err(|error| ConfigError::at("admin", error))?;
                Ok(token.role(role))
            });
            tokens.collect()
        }
    }

    impl Config {
        pub(crate) fn client_ip(&self) -> ClientIp {
            self.clients.ip()
        }
    }

    impl Admission {
        /// The admin endpoints for these limits: with the tokens of `[admin]` and the client addresses of `[clients]`,
        /// which follow each reload, and with the groups for `POST /explain`. Without a token every request gets 401.
        ///
        /// ```
        /// use tower_admission_axum::admin::Recorder;
        /// use tower_admission_config::{Admission, Config};
        ///
        /// let config = Config::from_toml(
        ///     "[admin.tokens.anna]\ntoken = 'b5b0ea1ed0924ab5'\nrole = 'write'",
        /// )?;
        /// let recorder = Recorder::new();
        /// let admission = Admission::builder(&config).observe(recorder.clone()).build()?;
        /// let app: axum::Router = axum::Router::new()
        ///     .nest("/admin", admission.admin(&recorder).build());
        /// # Ok::<_, tower_admission_config::ConfigError>(())
        /// ```
        pub fn admin(&self, recorder: &Recorder) -> AdminRouter {
            AdminRouter::new(self.limits(), recorder, self.admin_state().tokens.clone())
                .client_ip(CurrentClientIp(self.clone()))
                .groups(self.clone())
        }
    }

    /// The address of a client as it is configured now.
    struct CurrentClientIp(Admission);

    impl KeyExtractor for CurrentClientIp {
        fn extract(&self, head: RequestHead<'_>) -> Extracted {
            self.0.admin_state().client_ip.load().extract(head)
        }

        fn client_address(&self, head: RequestHead<'_>) -> Option<Key> {
            self.0.admin_state().client_ip.load().client_address(head)
        }

        fn makes_fingerprints(&self) -> bool {
            false
        }
    }
}

/// What of the admin endpoints follows each reload.
#[cfg(feature = "axum")]
pub(super) struct AdminState {
    pub(super) tokens: tower_admission_axum::admin::Tokens,
    pub(super) client_ip: arc_swap::ArcSwap<tower_admission::extract::ClientIp>,
}

#[cfg(feature = "axum")]
impl AdminState {
    pub(super) fn new(config: &Config) -> Result<Self, ConfigError> {
        Ok(Self {
            tokens: tower_admission_axum::admin::Tokens::new(config.admin.tokens()?),
            client_ip: arc_swap::ArcSwap::from_pointee(config.client_ip()),
        })
    }

    pub(super) fn reload(&self, config: &Config, tokens: Vec<tower_admission_axum::admin::Token>) {
        self.client_ip
            .store(std::sync::Arc::new(config.client_ip()));
        self.tokens.replace(tokens);
    }
}
