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

use super::api::{self, Api};
use super::groups::RequestGroups;
use super::resolve::{Resolved, Resolver};
use super::sign_in::SignIns;
use super::{Auth, Recorder, endpoints, pages};
use crate::endpoint::MAX_BODY;

/// Builds what [`router`](super::router) returns, with more settings.
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
    sign_ins: SignIns,
    resolver: Resolver,
    groups: Option<Box<dyn RequestGroups>>,
}

impl AdminRouter {
    /// The endpoints for these limits, for operators that `auth` recognises.
    pub fn new(limits: &Limits, recorder: &Recorder, auth: impl Auth) -> Self {
        Self {
            limits: limits.clone(),
            recorder: recorder.clone(),
            sign_ins: SignIns::new(auth),
            resolver: Resolver::default(),
            groups: None,
        }
    }

    /// Sets how the address of an operator is found, which the record of changes holds and which is charged for failed
    /// sign-ins. Default: [`ClientIp::peer`](tower_admission::ClientIp::peer). Behind a proxy that is the proxy's address, so one
    /// client that fails there slows down all operators: set it.
    pub fn client_ip(mut self, client_ip: impl KeyExtractor) -> Self {
        self.sign_ins.set_client_ip(client_ip);
        self
    }

    /// Sets how many requests with wrong credentials, in `Authorization` or in
    /// [another header](Self::credentials_in), an address may send; after that its requests with
    /// credentials get 429, right ones as well. Other addresses are not affected. An address whose requests are slowed
    /// down is not locked out: it has another try when `Retry-After` says so.
    ///
    /// Counted in memory, for up to 16,384 addresses, per replica. Where the address is not known, nothing is slowed
    /// down, as one client could lock out all operators. Default: 10 a minute. [`Quota::off`] switches it off.
    pub fn sign_in_failures(mut self, quota: Quota) -> Self {
        self.sign_ins.set_failures(quota);
        self
    }

    /// Adds a header in which `auth` looks for credentials, such as `Cookie` or `X-Admin-Key`. A request that has it and
    /// is rejected counts as one with wrong credentials, see [`sign_in_failures`](Self::sign_in_failures). Default:
    /// `Authorization` alone.
    ///
    /// A browser sends its cookies with each request, so with `Cookie` the requests of an expired session count as well.
    /// An operator that authentication further out has put into the extensions needs no header here.
    pub fn credentials_in(mut self, header: HeaderName) -> Self {
        self.sign_ins.add_credentials(header);
        self
    }

    /// Sets how the application resolves the name of a key: its customers by name or id. Each endpoint asks it, for keys
    /// in paths and in bodies.
    ///
    /// It is asked about all names but addresses, credentials, fingerprints, `shared` and `unknown`, and returns
    /// `Option<KeyName>`, or a `Result` of one whose error the operator reads. A name that it does not know is the name of
    /// a key, as `org:acme`. A panic is answered with 500, and a failure or a missed [deadline](Self::resolve_within) with
    /// 503; the work is dropped then, and when the operator hangs up. Default: none.
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
        R: Into<Resolved>,
    {
        self.resolver.set_hook(resolve);
        self
    }

    /// Sets how long [`resolve_by`](Self::resolve_by) may take. Default: 2 s.
    pub fn resolve_within(mut self, deadline: Duration) -> Self {
        self.resolver.set_deadline(deadline);
        self
    }

    /// Sets how `POST /explain` finds the limits that a request for a `path` passes. Default: it explains all limits, and
    /// takes no `path`. `Admission::admin` of the crate `tower-admission-config` sets it.
    /// The guard against made-up credentials of a layer that is made by hand is not explained.
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

    /// The router.
    pub fn build<S>(self) -> Router<S>
    where
        S: Clone + Send + Sync + 'static,
    {
        let api = Arc::new(Api {
            limits: self.limits,
            recorder: self.recorder,
            sign_ins: self.sign_ins,
            resolver: Arc::new(self.resolver),
            groups: self.groups,
        });
        let closed = endpoints()
            .into_iter()
            .fold(Router::new(), |router, (_, path, role, endpoint)| {
                // Last, so that it is asked first.
                let admit = from_fn_with_state((api.clone(), role), api::admit);
                router.route(path, endpoint.route_layer(admit))
            })
            .layer(DefaultBodyLimit::max(MAX_BODY));
        let open = pages()
            .into_iter()
            .fold(Router::new(), |router, (_, path, file)| {
                router.route(path, file)
            });
        closed.merge(open).with_state(api)
    }
}

impl fmt::Debug for AdminRouter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdminRouter")
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}
