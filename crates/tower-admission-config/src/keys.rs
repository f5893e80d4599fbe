//! Which key a group charges.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::HeaderName;
use tower_admission::extract::{
    ByToken, ClientIp, Extracted, KeyExtractor, RequestHead, Shared, TrustedHeader,
};
use tower_admission::provider::intern_kind;
use tower_admission::{self, Key};

use super::error::ConfigError;
use super::model::{Clients, KeySource};
use super::text::{FromText, shown};

/// The extractor of a group.
#[derive(Clone)]
pub(super) struct GroupKey(Arc<dyn KeyExtractor>);

impl GroupKey {
    pub(super) fn new(extractor: impl KeyExtractor) -> Self {
        Self(Arc::new(extractor))
    }
}

impl KeyExtractor for GroupKey {
    fn extract(&self, head: RequestHead<'_>) -> Extracted {
        self.0.extract(head)
    }

    fn client_address(&self, head: RequestHead<'_>) -> Option<Key> {
        self.0.client_address(head)
    }

    fn credential_headers(&self) -> Vec<HeaderName> {
        self.0.credential_headers()
    }

    fn makes_fingerprints(&self) -> bool {
        self.0.makes_fingerprints()
    }
}

/// The extractors that the application names, in the order in which it does.
#[derive(Default)]
pub(super) struct NamedKeys(Vec<(String, GroupKey)>);

impl NamedKeys {
    pub(super) fn add(&mut self, name: &str, extractor: impl KeyExtractor) {
        self.0.push((name.to_owned(), GroupKey::new(extractor)));
    }

    /// Whether configuration can refer to all of them.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let mut names = BTreeMap::new();
        for (name, _) in &self.0 {
            let problem = if KeySource::read(name) != Ok(KeySource::Named(name.clone())) {
                format!(
                    "is built in, or not a word; the built-in names are {}",
                    built_in()
                )
            } else if names.insert(name, ()).is_some() {
                "occurs twice".to_owned()
            } else {
                continue;
            };
            let name = shown(name);
            let problem = format!("AdmissionBuilder::key_by: the name {name} {problem}");
            return Err(ConfigError::new(problem));
        }
        Ok(())
    }

    /// The extractors.
    pub(super) fn extractors(&self) -> impl Iterator<Item = &GroupKey> {
        self.0.iter().map(|(_, key)| key)
    }

    fn find(&self, name: &str) -> Result<GroupKey, String> {
        let found = self.0.iter().find(|(known, _)| known == name);
        found.map(|(_, key)| key.clone()).ok_or_else(|| {
            let own: Vec<_> = self.0.iter().map(|(name, _)| format!("`{name}`")).collect();
            let own = match &*own {
                [] => "no keys".to_owned(),
                own => own.join(", "),
            };
            let (name, built_in) = (shown(name), built_in());
            format!(
                "{name} is not one of {built_in}; this program names {own} (AdmissionBuilder::key_by)"
            )
        })
    }
}

impl Clients {
    /// How the address of a client is found.
    pub(super) fn ip(&self) -> ClientIp {
        let header = self.forwarded_header.0.clone();
        let ip = match self.trusted_hops {
            Some(hops) => ClientIp::forwarded_hops(hops).header(header),
            None if !self.trusts_proxies() => ClientIp::peer(),
            None => {
                let ip = ClientIp::forwarded_by(self.trusted_proxies.iter().copied());
                let ip = ip.header(header);
                if self.trust_unix_socket {
                    ip.trust_unix_socket()
                } else {
                    ip
                }
            }
        };
        ip.v6_prefix(self.ipv6_prefix.unwrap_or(ClientIp::DEFAULT_V6_PREFIX))
    }

    /// Whether some peers are known to be proxies.
    pub(super) fn trusts_proxies(&self) -> bool {
        self.trust_unix_socket || !self.trusted_proxies.is_empty()
    }

    /// The extractor of a key, which falls back to the client address.
    pub(super) fn key(&self, source: &KeySource, named: &NamedKeys) -> Result<GroupKey, String> {
        let ip = self.ip();
        Ok(match source {
            KeySource::Token => GroupKey::new(ByToken::default().client_ip(ip)),
            KeySource::Bearer => GroupKey::new(ByToken::bearer_only().client_ip(ip)),
            KeySource::ApiKey => GroupKey::new(ByToken::api_key_only().client_ip(ip)),
            KeySource::Ip => GroupKey::new(ip),
            KeySource::Shared => GroupKey::new(Shared),
            KeySource::Header(name) => {
                let proxies = self.trusted_proxies.iter().copied();
                let identity = TrustedHeader::new(name, proxies);
                if self.trust_unix_socket {
                    GroupKey::new(identity.trust_unix_socket().or(ip))
                } else {
                    GroupKey::new(identity.or(ip))
                }
            }
            KeySource::Named(name) => GroupKey::new(named.find(name)?.or(ip)),
        })
    }
}

const BUILT_IN: [(&str, KeySource); 5] = [
    ("token", KeySource::Token),
    ("bearer", KeySource::Bearer),
    ("api-key", KeySource::ApiKey),
    ("ip", KeySource::Ip),
    ("shared", KeySource::Shared),
];

fn built_in() -> String {
    let words = BUILT_IN.map(|(word, _)| format!("`{word}`"));
    format!("{}, `header X-User`", words.join(", "))
}

impl FromText for KeySource {
    fn read(text: &str) -> Result<Self, String> {
        if let Some((_, source)) = BUILT_IN.into_iter().find(|(word, _)| *word == text) {
            return Ok(source);
        }
        if let Some(name) = text.strip_prefix("header ") {
            return identity_header(name.trim()).map(Self::Header);
        }
        let is_word = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        if text.is_empty() || !text.bytes().all(is_word) {
            return Err(format!("{} is not one of {}", shown(text), built_in()));
        }
        Ok(Self::Named(text.to_owned()))
    }
}

/// The name of a header, which is also the kind of the keys that are made from it.
fn identity_header(name: &str) -> Result<&'static str, String> {
    let lower = name.to_ascii_lowercase();
    let is_name = |b: u8| b.is_ascii_alphanumeric() || b"-_".contains(&b);
    if lower.is_empty() || !lower.bytes().all(is_name) {
        return Err(format!(
            "{} is not the name of a header, such as `X-User`",
            shown(name)
        ));
    }
    // Their kinds are those of other keys.
    let is_taken = BUILT_IN.iter().any(|(word, _)| *word == lower);
    if is_taken || ["authorization", "x-api-key", "apikey"].contains(&&*lower) {
        let name = shown(name);
        return Err(format!(
            "{name} cannot hold an identity: for credentials use `bearer` or `api-key`"
        ));
    }
    intern_kind(&lower).map_err(|error| error.to_string())
}
