//! Builds the router of the admin endpoints.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::from_fn_with_state;
use http::HeaderName;
use tower_admission::{KeyExtractor, Limits, Quota};

use super::groups::RequestGroups;
use super::handlers::{self, AdminState};
use super::resolve::{KeyResolution, KeyResolver};
use super::sign_in::SignInGuard;
use super::{Auth, Recorder, endpoints, pages};
use crate::endpoint::MAX_BODY_BYTES;

/// Builds the router of [`router`](super::router), with further settings.
///
/// ```
/// use tower_admission_axum::admin::{AdminRouter, Recorder, Token};
/// use tower_admission::{ClientIp, Limits};
///
/// # fn app(token: &str) -> Result<axum::Router, Box<dyn std::error::Error>> {
/// let admin: axum::Router = AdminRouter::new(&Limits::new(), &Recorder::new(), Token::new(token)?)
///     .client_ip(ClientIp::forwarded_by(["10.0.0.0/8".parse()?]))
///     .build();
/// # Ok(admin)
/// # }
/// ```
#[must_use = "a builder makes nothing until `build` is called"]
pub struct AdminRouter {
    limits: Limits,
    recorder: Recorder,
    sign_in_guard: SignInGuard,
    resolver: KeyResolver,
    groups: Option<Box<dyn RequestGroups>>,
}

impl AdminRouter {
    /// The endpoints for these limits. `auth` recognises the operators.
    pub fn new(limits: &Limits, recorder: &Recorder, auth: impl Auth) -> Self {
        Self {
            limits: limits.clone(),
            recorder: recorder.clone(),
            sign_in_guard: SignInGuard::new(auth),
            resolver: KeyResolver::default(),
            groups: None,
        }
    }

    /// Sets the extractor of the operator's address. The audit trail records the address, and failed sign-ins are charged
    /// to it. Default: [`ClientIp::peer`](tower_admission::ClientIp::peer). Set it behind a proxy: otherwise all operators
    /// share the address of the proxy, and one client with wrong credentials slows them all down.
    pub fn client_ip(mut self, client_ip: impl KeyExtractor) -> Self {
        self.sign_in_guard.set_client_ip(client_ip);
        self
    }

    /// Sets how many requests with wrong credentials an address may send, in `Authorization` or in
    /// [another header](Self::credentials_in). Above this quota all its requests with credentials get 429 until
    /// `Retry-After`, also with the right credentials. Other addresses are not affected. Default: 10 per minute.
    /// [`Quota::off`] turns the quota off.
    ///
    /// Each replica counts in memory, for up to 16,384 addresses. A request without a known address is not counted, because
    /// one client could then lock out all operators.
    pub fn sign_in_failures(mut self, quota: Quota) -> Self {
        self.sign_in_guard.set_failure_quota(quota);
        self
    }

    /// Adds a header in which `auth` looks for credentials, such as `Cookie` or `X-Admin-Key`. A rejected request with this
    /// header counts as a request with wrong credentials, see [`sign_in_failures`](Self::sign_in_failures). Default:
    /// `Authorization` only.
    ///
    /// A browser sends cookies with each request, so with `Cookie` the requests of an expired session count too. No header
    /// is needed here if an outer authentication layer adds the operator to the extensions.
    pub fn credentials_in(mut self, header: HeaderName) -> Self {
        self.sign_in_guard.add_credentials(header);
        self
    }

    /// Sets how the application resolves names of keys, for example names or ids of customers. All endpoints use it, for keys
    /// in paths and in bodies. Default: none.
    ///
    /// The function gets all names except addresses, credentials, fingerprints, `shared` and `unknown`. It returns an
    /// `Option<KeyName>`, or a `Result` of one; the operator sees the error. `None` means that the name is the name of a
    /// key, such as `org:acme`. The response to a panic is 500. The response to an error or a missed
    /// [deadline](Self::resolve_within) is 503. The future is dropped at the deadline and when the operator disconnects.
    ///
    /// ```
    /// use tower_admission_axum::admin::{AdminRouter, Recorder, Token};
    /// use tower_admission::{KeyName, Limits};
    ///
    /// # async fn id_of(name: &str) -> Result<Option<u64>, std::io::Error> { Ok(None) }
    /// # fn app(token: &str) -> Result<axum::Router, Box<dyn std::error::Error>> {
    /// let admin = AdminRouter::new(&Limits::new(), &Recorder::new(), Token::new(token)?)
    ///     .resolve_by(|name: String| async move {
    ///         let id = id_of(&name).await?; // SELECT id FROM organisations WHERE ..
    ///         let key = id.and_then(|id| KeyName::id("org", &id.to_string()).ok());
    ///         Ok::<_, std::io::Error>(key)
    ///     });
    /// # Ok(admin.build())
    /// # }
    /// ```
    pub fn resolve_by<F, R>(mut self, resolve: impl Fn(String) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = R> + Send + 'static,
        R: Into<KeyResolution>,
    {
        self.resolver.set_hook(resolve);
        self
    }

    /// Sets the deadline of [`resolve_by`](Self::resolve_by). Default: 2 s.
    pub fn resolve_within(mut self, deadline: Duration) -> Self {
        self.resolver.set_deadline(deadline);
        self
    }

    /// Sets how `POST /explain` finds the limits of a request for a `path`. Default: it explains all limits, and rejects a
    /// `path`. `Admission::admin` of the crate `tower-admission-config` sets it.
    ///
    /// The guard against made-up credentials is explained only for layers of a configuration.
    ///
    /// ```
    /// use tower_admission::RequestHead;
    /// use tower_admission_axum::admin::RequestGroup;
    ///
    /// let groups = |head: RequestHead<'_>| {
    ///     let group = RequestGroup::new("api").limit("calls").address_limit("per address", 1);
    ///     if head.uri.path().starts_with("/api") { vec![group] } else { Vec::new() }
    /// };
    /// ```
    pub fn groups(mut self, groups: impl RequestGroups) -> Self {
        self.groups = Some(Box::new(groups));
        self
    }

    /// Builds the router.
    pub fn build<S>(self) -> Router<S>
    where
        S: Clone + Send + Sync + 'static,
    {
        let state = Arc::new(AdminState {
            limits: self.limits,
            recorder: self.recorder,
            sign_in_guard: self.sign_in_guard,
            resolver: Arc::new(self.resolver),
            groups: self.groups,
        });
        let closed = endpoints()
            .into_iter()
            .fold(Router::new(), |router, (_, path, role, endpoint)| {
                // The last layer is the outermost, so it runs first.
                let admit = from_fn_with_state((state.clone(), role), handlers::authorize);
                router.route(path, endpoint.route_layer(admit))
            })
            .layer(DefaultBodyLimit::max(MAX_BODY_BYTES));
        let open = pages()
            .into_iter()
            .fold(Router::new(), |router, (_, path, file)| {
                router.route(path, file)
            });
        closed.merge(open).with_state(state)
    }
}

impl fmt::Debug for AdminRouter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdminRouter")
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}
