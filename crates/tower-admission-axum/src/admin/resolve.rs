//! Resolves the text of an operator to a key: a name, a credential, or a name that the application knows.

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

use super::explain::written_address;
use super::handlers::AdminState;
use super::responses::unprocessable;
use crate::endpoint::{EndpointError, EndpointResult, JsonObject, json_response, read_body};

/// The default deadline of the application.
pub(super) const DEFAULT_DEADLINE: Duration = Duration::from_secs(2);

/// The maximum size of a name that the application gets, as for the name of a key.
const MAX_NAME_BYTES: usize = 256;

/// The maximum size of the application's error in a response.
const MAX_ERROR_BYTES: usize = 512;

/// The kinds of keys whose text is a credential. The application does not get them.
const CREDENTIALS: [&str; 2] = ["bearer", "api-key"];

/// The result of [`resolve_by`](super::AdminRouter::resolve_by).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum KeyResolution {
    /// The key of the name.
    Key(KeyName),
    /// The application does not know the name. The endpoints then read it as the name of a key.
    Unknown,
    /// The application failed. The operator sees the text.
    Failed(String),
}

impl From<Option<KeyName>> for KeyResolution {
    fn from(key: Option<KeyName>) -> Self {
        key.map_or(Self::Unknown, Self::Key)
    }
}

impl<E: Display> From<Result<Option<KeyName>, E>> for KeyResolution {
    fn from(key: Result<Option<KeyName>, E>) -> Self {
        match key {
            Ok(key) => key.into(),
            Err(error) => Self::Failed(error.to_string()),
        }
    }
}

type ResolveFuture = Pin<Box<dyn Future<Output = KeyResolution> + Send>>;

/// Resolves texts to keys.
pub(super) struct KeyResolver {
    hook: Option<Box<dyn Fn(String) -> ResolveFuture + Send + Sync>>,
    deadline: Duration,
}

/// Aborts the task of the application when its result is no longer needed.
struct AbortOnDrop(JoinHandle<KeyResolution>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Default for KeyResolver {
    fn default() -> Self {
        Self {
            hook: None,
            deadline: DEFAULT_DEADLINE,
        }
    }
}

impl KeyResolver {
    pub(super) fn set_hook<F, R>(&mut self, hook: impl Fn(String) -> F + Send + Sync + 'static)
    where
        F: Future<Output = R> + Send + 'static,
        R: Into<KeyResolution>,
    {
        self.hook = Some(Box::new(move |name| {
            let resolving = hook(name);
            Box::pin(async move { resolving.await.into() })
        }));
    }

    pub(super) fn set_deadline(&mut self, deadline: Duration) {
        self.deadline = deadline;
    }

    /// The key of a text.
    async fn key(self: &Arc<Self>, text: &str) -> Result<KeyName, EndpointError> {
        let text = text.trim();
        let parsed = text.parse::<KeyName>();
        if self.hook.is_none()
            || text.len() > MAX_NAME_BYTES
            || is_reserved_name(text, parsed.is_ok())
        {
            return parsed.map_err(|error| unprocessable(format!("{error}.")));
        }
        match self.ask(text).await? {
            KeyResolution::Key(key) => Ok(key),
            KeyResolution::Unknown => parsed.map_err(|error| {
                unprocessable(format!(
                    "The application does not know this name, and {error}."
                ))
            }),
            KeyResolution::Failed(mut error) => {
                tracing::error!(error, "the application failed to resolve the name of a key");
                if let Some((end, _)) = error.char_indices().find(|(at, _)| *at >= MAX_ERROR_BYTES)
                {
                    error.truncate(end);
                }
                let detail = format!("The application failed to resolve the key: {error}");
                Err(EndpointError::new(StatusCode::SERVICE_UNAVAILABLE, detail))
            }
        }
    }

    /// Runs the application's function in its own task, so that a panic or a blocking call affects only this response.
    async fn ask(self: &Arc<Self>, name: &str) -> Result<KeyResolution, EndpointError> {
        let (resolver, name) = (self.clone(), name.to_owned());
        let mut task = AbortOnDrop(tokio::spawn(async move {
            match &resolver.hook {
                Some(hook) => hook(name).await,
                None => KeyResolution::Unknown,
            }
        }));
        match tokio::time::timeout(self.deadline, &mut task.0).await {
            Ok(Ok(resolved)) => Ok(resolved),
            Ok(Err(_)) => {
                tracing::error!("the application panicked while it resolved the name of a key");
                let detail = "The application panicked while it resolved the key.";
                Err(EndpointError::new(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    detail,
                ))
            }
            Err(_) => {
                let deadline = self.deadline;
                tracing::error!(
                    ?deadline,
                    "the application did not resolve the name of a key in time"
                );
                let detail =
                    format!("The application did not resolve the key within {deadline:?}.");
                Err(EndpointError::new(StatusCode::SERVICE_UNAVAILABLE, detail))
            }
        }
    }
}

/// Whether a text can only be a key of this crate, or may contain a credential.
fn is_reserved_name(text: &str, is_key: bool) -> bool {
    let Some(at) = text.find([':', '#']) else {
        return is_key || has_credential(text);
    };
    // A typing error in the kind must not send a credential to the application, which may log it.
    let kind = text[..at].trim();
    let is_kind = is_credential_kind(kind) || kind.eq_ignore_ascii_case("ip");
    is_kind || has_credential(text) || is_key && text[at..].starts_with('#')
}

/// Whether a text may contain a credential: `bearer:..`, or a copied header. A fingerprint is no credential.
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

/// The key of a credential with its kind, or of a copied header. A credential may be longer than the name of a key.
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

/// Rejects a text from a URL that contains a credential, because proxies log URLs.
pub(super) fn reject_credential(text: &str) -> Result<&str, EndpointError> {
    if has_credential(text) {
        return Err(unprocessable(
            "The URL seems to contain a credential, and URLs are logged. Send the credential to POST /keys/resolve, and \
             use the name in the response.",
        ));
    }
    Ok(text)
}

impl AdminState {
    /// The key of a text in a path.
    pub(super) async fn key(&self, text: &str) -> Result<KeyName, EndpointError> {
        self.resolver.key(reject_credential(text)?).await
    }

    /// The key of a text in a body, which may be a credential of any length.
    pub(super) async fn key_or_credential(&self, text: &str) -> Result<KeyName, EndpointError> {
        match credential(text) {
            Some(key) => Ok(key),
            None => self.resolver.key(text).await,
        }
    }
}

/// Reads optional string members of a JSON object without other members.
pub(super) fn string_members<const N: usize>(
    body: &[u8],
    names: [&str; N],
) -> Result<[Option<String>; N], EndpointError> {
    let bad = |detail: String| EndpointError::new(StatusCode::BAD_REQUEST, detail);
    let object: Option<JsonObject> = serde_json::from_slice(body).ok();
    let mut object = object.ok_or_else(|| bad("The body is not a JSON object.".to_owned()))?;
    let mut string_members = [const { None }; N];
    for (text, name) in string_members.iter_mut().zip(names) {
        *text = match object.remove(name) {
            None | Some(serde_json::Value::Null) => None,
            Some(serde_json::Value::String(text)) => Some(text),
            Some(_) => return Err(bad(format!("`{name}` is not a string."))),
        };
    }
    // The message does not echo the unknown names, which may be misplaced credentials.
    if !object.is_empty() {
        let names = names.join("`, `");
        return Err(bad(format!(
            "The body has unknown members. The members are `{names}`."
        )));
    }
    Ok(string_members)
}

#[derive(Serialize)]
struct ResolvedKeys {
    keys: Vec<serde_json::Value>,
}

pub(super) async fn resolve(
    State(state): State<Arc<AdminState>>,
    request: Request,
) -> EndpointResult {
    let body = read_body(request).await?;
    let [key, credential] = string_members(&body, ["key", "credential"])?;
    let client = key.as_deref().and_then(written_address);
    let keys = match (key, credential) {
        (Some(key), None) => vec![state.key_or_credential(&key).await?],
        (None, Some(credential)) => keys_of_credential(&credential)?,
        _ => {
            let detail = "The body must have either a `key` or a `credential`.";
            return Err(EndpointError::new(StatusCode::BAD_REQUEST, detail));
        }
    };
    let mut usages = Vec::new();
    for key in &keys {
        usages.push(state.usage_of(key, client).await);
    }
    Ok(json_response(
        StatusCode::OK,
        &ResolvedKeys { keys: usages },
    ))
}

/// The possible keys of a credential, one for each header that may contain it.
fn keys_of_credential(credential: &str) -> Result<Vec<KeyName>, EndpointError> {
    let credential = credential.trim();
    let (scheme, rest) = credential.split_once(' ').unwrap_or((credential, ""));
    let (kinds, credential) = match scheme.eq_ignore_ascii_case("bearer") {
        true => (&CREDENTIALS[..1], rest.trim()),
        false => (&CREDENTIALS[..], credential),
    };
    if credential.is_empty() {
        return Err(unprocessable("The credential is empty."));
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
    fn the_application_does_not_get_credentials_and_addresses() {
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
            assert_eq!(is_reserved_name(text, is_key), is_ours, "{text}");
        }
    }

    #[test]
    fn a_credential_in_a_body_may_be_long() {
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
