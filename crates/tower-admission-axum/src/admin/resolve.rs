//! Finds the key that a text from an operator means: by its name, by a credential, or as the application knows it.

use std::fmt::Display;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use http::StatusCode;
use serde::Serialize;
use tokio::task::JoinHandle;
use tower_admission::provider::is_credential_kind;
use tower_admission::{Key, KeyName};

use super::answer::wrong;
use super::api::{Answer, Api};
use super::explain::written;
use crate::endpoint::{Failed, Object, body, json};

/// How long the application may take, unless configured otherwise.
pub(super) const DEFAULT_DEADLINE: Duration = Duration::from_secs(2);

/// Texts that the application is asked for, in bytes at most, as the name of a key may be.
const LONGEST: usize = 256;

/// Bytes of the application's own error that are shown.
const LONGEST_ERROR: usize = 512;

/// The kinds whose text is a credential, which the application is not asked about.
const CREDENTIALS: [&str; 2] = ["bearer", "api-key"];

/// What an application makes of a name, see [`resolve_by`](super::AdminRouter::resolve_by).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Resolved {
    /// The key of this name.
    Key(KeyName),
    /// The application does not know the name: it is the name of a key, if it can be read as one.
    Unknown,
    /// The application could not find out. The operator reads the text.
    Failed(String),
}

impl From<Option<KeyName>> for Resolved {
    fn from(key: Option<KeyName>) -> Self {
        key.map_or(Self::Unknown, Self::Key)
    }
}

impl<E: Display> From<Result<Option<KeyName>, E>> for Resolved {
    fn from(key: Result<Option<KeyName>, E>) -> Self {
        match key {
            Ok(key) => key.into(),
            Err(error) => Self::Failed(error.to_string()),
        }
    }
}

type Resolving = Pin<Box<dyn Future<Output = Resolved> + Send>>;

/// How keys are found.
pub(super) struct Resolver {
    hook: Option<Box<dyn Fn(String) -> Resolving + Send + Sync>>,
    deadline: Duration,
}

/// Ends the application's work when nobody waits for it any more.
struct AbortOnDrop(JoinHandle<Resolved>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Default for Resolver {
    fn default() -> Self {
        Self {
            hook: None,
            deadline: DEFAULT_DEADLINE,
        }
    }
}

impl Resolver {
    pub(super) fn set_hook<F, R>(&mut self, hook: impl Fn(String) -> F + Send + Sync + 'static)
    where
        F: Future<Output = R> + Send + 'static,
        R: Into<Resolved>,
    {
        self.hook = Some(Box::new(move |name| {
            let resolving = hook(name);
            Box::pin(async move { resolving.await.into() })
        }));
    }

    pub(super) fn set_deadline(&mut self, deadline: Duration) {
        self.deadline = deadline;
    }

    /// The key that a text means.
    async fn key(self: &Arc<Self>, text: &str) -> Result<KeyName, Failed> {
        let text = text.trim();
        let parsed = text.parse::<KeyName>();
        if self.hook.is_none() || text.len() > LONGEST || is_for_this_crate(text, parsed.is_ok()) {
            return parsed.map_err(|error| wrong(format!("{error}.")));
        }
        match self.ask(text).await? {
            Resolved::Key(key) => Ok(key),
            Resolved::Unknown => parsed
                .map_err(|error| wrong(format!("The application knows no such key, and {error}."))),
            Resolved::Failed(mut error) => {
                tracing::error!(error, "the application could not resolve the name of a key");
                if let Some((end, _)) = error.char_indices().find(|(at, _)| *at >= LONGEST_ERROR) {
                    error.truncate(end);
                }
                let detail = format!("The application could not resolve the key: {error}");
                Err(Failed::new(StatusCode::SERVICE_UNAVAILABLE, detail))
            }
        }
    }

    /// Asks the application, in a task of its own: so neither a panic nor what blocks ends more than this answer.
    async fn ask(self: &Arc<Self>, name: &str) -> Result<Resolved, Failed> {
        let (resolver, name) = (self.clone(), name.to_owned());
        let mut task = AbortOnDrop(tokio::spawn(async move {
            match &resolver.hook {
                Some(hook) => hook(name).await,
                None => Resolved::Unknown,
            }
        }));
        match tokio::time::timeout(self.deadline, &mut task.0).await {
            Ok(Ok(resolved)) => Ok(resolved),
            Ok(Err(_)) => {
                tracing::error!("the application panicked while it resolved the name of a key");
                let detail = "The application panicked while it resolved the key.";
                Err(Failed::new(StatusCode::INTERNAL_SERVER_ERROR, detail))
            }
            Err(_) => {
                let deadline = self.deadline;
                tracing::error!(
                    ?deadline,
                    "the application did not resolve the name of a key in time"
                );
                let detail =
                    format!("The application did not resolve the key within {deadline:?}.");
                Err(Failed::new(StatusCode::SERVICE_UNAVAILABLE, detail))
            }
        }
    }
}

/// Whether a text can only mean a key of this crate, or may have a credential in it.
fn is_for_this_crate(text: &str, is_key: bool) -> bool {
    let Some(at) = text.find([':', '#']) else {
        return is_key || has_credential(text);
    };
    // A slip in a kind does not make a credential a name that the application may log.
    let kind = text[..at].trim();
    let is_kind = is_credential_kind(kind) || kind.eq_ignore_ascii_case("ip");
    is_kind || has_credential(text) || is_key && text[at..].starts_with('#')
}

/// Whether a text looks as if there were a credential in it: `bearer:..`, or a copied header. Fingerprints have none.
pub(super) fn has_credential(text: &str) -> bool {
    let text = text.trim();
    let mut words = text.split_whitespace();
    let has_scheme = words
        .next()
        .is_some_and(|word| word.eq_ignore_ascii_case("bearer"));
    if has_scheme && words.next().is_some() {
        return true;
    }
    let parts = text.split_once(':');
    parts.is_some_and(|(kind, rest)| is_credential_kind(kind) && !rest.trim().is_empty())
}

/// The key of a credential that is written with its kind, or as the header that it is sent in. It may be longer than
/// the name of a key.
pub(super) fn credential(text: &str) -> Option<KeyName> {
    let is = |word: &str, known: &str| word.trim().eq_ignore_ascii_case(known);
    let text = match text.trim().split_once(':') {
        Some((header, value)) if is(header, "authorization") => value.trim(),
        _ => text.trim(),
    };
    let (kind, credential) = match text.split_once(char::is_whitespace) {
        Some((scheme, token)) if is(scheme, "bearer") => (CREDENTIALS[0], token),
        _ => {
            let (kind, credential) = text.split_once(':')?;
            let kind = if is(kind, "x-api-key") {
                "api-key"
            } else {
                kind
            };
            let known = CREDENTIALS.into_iter().find(|known| is(kind, known))?;
            (known, credential)
        }
    };
    let credential = credential.trim();
    (!credential.is_empty()).then(|| Key::new(kind, credential.as_bytes()).into())
}

/// A text from a URL that may be the name of a key. One with a credential in it is rejected, so that no program goes on
/// to send what proxies log.
pub(super) fn without_credential(text: &str) -> Result<&str, Failed> {
    if has_credential(text) {
        return Err(wrong(
            "This looks like a credential, and URLs are logged. Send it to POST /keys/resolve, and use the name in the \
             answer.",
        ));
    }
    Ok(text)
}

impl Api {
    /// The key that a text in a path means.
    pub(super) async fn key(&self, text: &str) -> Result<KeyName, Failed> {
        self.resolver.key(without_credential(text)?).await
    }

    /// The key that a text in a body means, which may hold a credential of any length.
    pub(super) async fn key_or_credential(&self, text: &str) -> Result<KeyName, Failed> {
        match credential(text) {
            Some(key) => Ok(key),
            None => self.resolver.key(text).await,
        }
    }
}

/// The texts in a JSON object that has no others.
pub(super) fn texts<const N: usize>(
    body: &[u8],
    names: [&str; N],
) -> Result<[Option<String>; N], Failed> {
    let bad = |detail: String| Failed::new(StatusCode::BAD_REQUEST, detail);
    let object: Option<Object> = serde_json::from_slice(body).ok();
    let mut object = object.ok_or_else(|| bad("The body is not a JSON object.".to_owned()))?;
    let mut texts = [const { None }; N];
    for (text, name) in texts.iter_mut().zip(names) {
        *text = match object.remove(name) {
            None | Some(serde_json::Value::Null) => None,
            Some(serde_json::Value::String(text)) => Some(text),
            Some(_) => return Err(bad(format!("`{name}` is not a text."))),
        };
    }
    // Not the name itself, as a client may have sent a credential in the wrong place.
    if !object.is_empty() {
        let names = names.join("`, `");
        return Err(bad(format!("The body has other members than `{names}`.")));
    }
    Ok(texts)
}

#[derive(Serialize)]
struct ResolvedKeys {
    keys: Vec<serde_json::Value>,
}

pub(super) async fn resolve(State(api): State<Arc<Api>>, request: Request) -> Answer {
    let body = body(request).await?;
    let [key, credential] = texts(&body, ["key", "credential"])?;
    let client = key.as_deref().and_then(written);
    let keys = match (key, credential) {
        (Some(key), None) => vec![api.key_or_credential(&key).await?],
        (None, Some(credential)) => of_credential(&credential)?,
        _ => {
            let detail = "The body has either a `key` or a `credential`.";
            return Err(Failed::new(StatusCode::BAD_REQUEST, detail));
        }
    };
    let mut usages = Vec::new();
    for key in &keys {
        usages.push(api.usage_of(key, client).await);
    }
    Ok(json(StatusCode::OK, &ResolvedKeys { keys: usages }))
}

/// The keys that a credential may be charged as: it does not show in which header it is sent.
fn of_credential(credential: &str) -> Result<Vec<KeyName>, Failed> {
    let credential = credential.trim();
    let (scheme, rest) = credential.split_once(' ').unwrap_or((credential, ""));
    let (kinds, credential) = match scheme.eq_ignore_ascii_case("bearer") {
        true => (&CREDENTIALS[..1], rest.trim()),
        false => (&CREDENTIALS[..], credential),
    };
    if credential.is_empty() {
        return Err(wrong("The credential is empty."));
    }
    let keys = kinds
        .iter()
        .map(|kind| Key::new(kind, credential.as_bytes()).into());
    Ok(keys.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_application_is_not_asked_about_credentials_and_addresses() {
        for (text, is_ours) in [
            ("bearer:sk-123", true),
            ("api-key:", true),
            ("ip:192.0.2.1", true),
            ("ip:nowhere", true),
            ("bearer#00000000000000000000000000000000", true),
            ("org#00000000000000000000000000000000", true),
            ("shared", true),
            ("unknown", true),
            ("Bearer:sk-123", true),
            ("bearer sk-123", true),
            ("X-Api-Key: sk-123", true),
            ("Authorization: Bearer sk-123", true),
            ("token:sk-123", true),
            ("Basic: dTpw", true),
            ("jwt: ey.ey.x", true),
            ("org:acme", false),
            ("Acme Inc.", false),
            ("42", false),
            ("Team #1", false),
            ("c#", false),
        ] {
            let is_key = text.parse::<KeyName>().is_ok();
            assert_eq!(is_for_this_crate(text, is_key), is_ours, "{text}");
        }
    }

    #[test]
    fn a_long_credential_is_a_key_in_a_body() {
        let token = "x".repeat(8_000);
        let key = credential(&format!(" bearer: {token} ")).unwrap();
        assert_eq!(key.key(), Key::new("bearer", token.as_bytes()));
        let [token, short] = ["bearer", "api-key"].map(|kind| Key::new(kind, b"abc").into());
        for text in ["api-key:abc", "X-Api-Key: abc", "API-Key:abc"] {
            assert_eq!(credential(text).as_ref(), Some(&short), "{text}");
        }
        for text in [
            "bearer:abc",
            "Bearer: abc",
            "bearer  abc",
            "Authorization: Bearer abc",
            "authorization:bearer\tabc",
        ] {
            assert_eq!(credential(text).as_ref(), Some(&token), "{text}");
            assert!(has_credential(text), "{text}");
        }
        for text in [
            "bearer:",
            "bearer ",
            "Authorization:",
            "Authorization: Basic abc",
            "bearer#12",
            "org:acme",
            "acme",
            "",
        ] {
            assert_eq!(credential(text), None, "{text}");
        }
    }
}
