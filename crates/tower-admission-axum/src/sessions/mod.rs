//! Endpoints with which workers start, keep alive and end sessions that [`Leases`] count.
//!
//! See [`router`].

mod handlers;
mod responses;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::post;
use tower_admission::{KeyExtractor, Leases};

use self::handlers::SessionsState;
use self::responses::method_not_allowed;
use crate::endpoint::MAX_BODY_BYTES;

/// Three endpoints for the sessions of tenants.
///
/// | request | body | response |
/// |---|---|---|
/// | `POST /session/start` | none, or `{}` | 201 with `session_id`, `ttl_seconds` and `heartbeat_interval_seconds` |
/// | `POST /session/heartbeat` | `{"session_id": ".."}` | 200 with the same members |
/// | `POST /session/end` | `{"session_id": ".."}` | 204 |
///
/// A session holds one slot of its tenant from its start to its end. Without a heartbeat it expires after the
/// [time to live](Leases::ttl) of the leases. Numbers are in seconds, and may be fractions.
///
/// ```
/// use std::time::Duration;
///
/// use axum::Router;
/// use tower_admission::{Key, Leases, RequestHead};
/// use tower_admission_axum::sessions;
///
/// #[derive(Clone)]
/// struct Workspace(String); // an outer authentication layer adds it to the extensions
///
/// let streams = Leases::new().name("streams").per_tenant(10).ttl(Duration::from_secs(60));
/// let app: Router = Router::new().merge(sessions::router(streams, |head: RequestHead<'_>| {
///     let workspace = head.extensions.get::<Workspace>()?;
///     Some(Key::id("workspace", &workspace.0))
/// }));
/// ```
///
/// # Authentication
///
/// `auth` returns the tenant of an authenticated request, and no key for all other requests. Do not use an extractor
/// that accepts unverified tokens, such as [`ByToken`](tower_admission::ByToken): it would admit every client.
///
/// # Responses to rejected requests
///
/// Problem details (RFC 9457):
///
/// - 401 if `auth` returns no tenant.
/// - 403 if the limit of the tenant is `deny all`.
/// - 404 if the tenant has no such session. The response is the same for unknown, ended and expired sessions, and for
///   the sessions of other tenants. A heartbeat starts no session.
/// - 405 with `Allow` for other methods than `POST`.
/// - 413 for a body above 4 KiB, 415 for a body of another type than `application/json`, 400 for any other invalid body.
/// - 429 at a limit. `exceeded` is `tenant` or `total`, `usage` is the number of sessions, and `limit` the maximum.
///   There is no `Retry-After`, because the end of a session is not known in advance.
/// - 503 with `Retry-After` for a heartbeat or an end if the store cannot be reached. A start is then admitted, unless
///   the store [fails closed](tower_admission::store::FailureMode::Closed). A session that starts from a local share
///   is live until the store recovers. The store does not know it, so its next heartbeat gets 404.
///
/// # Deployment
///
/// Several replicas need a [store](Leases::store) that they share. The endpoints do not log, and no response or metric
/// contains a tenant.
pub fn router<S>(leases: Leases, auth: impl KeyExtractor) -> Router<S>
where
    S: Clone + Send + Sync + 'static,
{
    let state = Arc::new(SessionsState {
        leases,
        auth: Box::new(auth),
    });
    Router::new()
        .route("/session/start", post(handlers::start))
        .route("/session/heartbeat", post(handlers::heartbeat))
        .route("/session/end", post(handlers::end))
        .method_not_allowed_fallback(async || method_not_allowed())
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(state)
}
