//! Endpoints by which workers elsewhere start, keep alive and end sessions that [`Leases`] count.
//!
//! See [`router`].

mod answer;
mod api;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::post;
use tower_admission::{KeyExtractor, Leases};

use self::answer::not_a_post;
use self::api::Api;
use crate::endpoint::MAX_BODY;

/// Three endpoints for sessions of a service's tenants.
///
/// | request | with | answer |
/// |---|---|---|
/// | `POST /session/start` | no body, or `{}` | 201 with `session_id`, `ttl_seconds` and `heartbeat_interval_seconds` |
/// | `POST /session/heartbeat` | `{"session_id": ".."}` | 200 with the same |
/// | `POST /session/end` | `{"session_id": ".."}` | 204 |
///
/// A session holds one of its tenant's slots from its start to its end, or until it was not
/// heard of for the leases' [time to live](Leases::ttl). Numbers are seconds, and may be fractions.
///
/// ```
/// use std::time::Duration;
/// use axum::Router;
/// use tower_admission::{Key, Leases, RequestHead};
/// use tower_admission_axum::sessions;
///
/// #[derive(Clone)]
/// struct Workspace(String); // put into the extensions by authentication, further out
///
/// let streams = Leases::new().name("streams").per_tenant(10).ttl(Duration::from_secs(60));
/// let app: Router = Router::new().merge(sessions::router(streams, |head: RequestHead<'_>| {
///     let workspace = head.extensions.get::<Workspace>()?;
///     Some(Key::id("workspace", &workspace.0))
/// }));
/// ```
///
/// # Who a tenant is
///
/// `auth` is the application's own: it gets the request's head and returns the tenant of who is
/// allowed in, and nothing for who is not. An extractor that believes anybody, such as
/// [`ByToken`](tower_admission::ByToken), would let anybody in.
///
/// # What a refused client sees
///
/// Problem details (RFC 9457), whose status is also that of the response, and never a 200:
///
/// - 401 when `auth` names no tenant.
/// - 404 when the tenant has no such session: it never was, has ended, has expired, or is another
///   tenant's, all alike. A heartbeat starts nothing, and a second end finds nothing.
/// - 403 when the tenant's own limit is `deny all`.
/// - 429 at a limit. `exceeded` is `tenant` or `total`, `usage` is how many sessions there are and
///   `limit` how many there may be. When one ends cannot be known, so there is no `Retry-After`.
/// - 503 with `Retry-After` when the store cannot be reached. (A start is admitted then, unless the
///   store [fails closed](tower_admission::store::FailureMode::Closed). What was started from a local share is
///   live meanwhile; when the store is back it does not know it, which is a 404 to its next heartbeat.)
/// - 405 with `Allow` for another method than `POST`.
/// - 413, 415 or 400 for a body of over 4 KiB, of another type than `application/json`, or that is
///   not what is said above.
///
/// # Deployment
///
/// Several replicas need a [store](Leases::store) that they share. Nothing here blocks or
/// logs, and no answer or metric holds a tenant.
pub fn router<S>(leases: Leases, auth: impl KeyExtractor) -> Router<S>
where
    S: Clone + Send + Sync + 'static,
{
    let api = Arc::new(Api {
        leases,
        auth: Box::new(auth),
    });
    Router::new()
        .route("/session/start", post(api::start))
        .route("/session/heartbeat", post(api::heartbeat))
        .route("/session/end", post(api::end))
        .method_not_allowed_fallback(async || not_a_post())
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(api)
}
