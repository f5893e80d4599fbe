//! Endpoints and a page that show limits and change them at run time.
//!
//! See [`router`], and [`Recorder`] for the decisions of the last two minutes.

mod activity;
mod auth;
mod builder;
mod changes;
mod explain;
mod explanation;
mod groups;
mod handlers;
mod page;
mod precondition;
mod recorder;
mod replica;
mod resolve;
mod responses;
mod search;
mod sign_in;
mod tokens;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{MethodRouter, delete, get, post, put};
use tower_admission::Limits;

use self::handlers::AdminState;

pub use self::auth::{Auth, IntoOperator, Operator, Role};
pub use self::builder::AdminRouter;
pub use self::groups::{RequestGroup, RequestGroups};
pub use self::recorder::Recorder;
pub use self::resolve::KeyResolution;
pub use self::tokens::{Token, TokenError, Tokens};

/// Endpoints that show limits and change them, and a page that uses the endpoints.
///
/// | request | response |
/// |---|---|
/// | `GET /` | the page, which asks for a token |
/// | `GET /limits?after=..&count=..` | a page of the overrides, by default 1000 and at most 10,000; the `names` of limits and the `tiers` that an override can set; the `total` number of overrides; the `next` page, as its `after` |
/// | `POST /search` with `{"q": ".."}` and optionally `after`, `count` | as `GET /limits`, the overrides with this text in their key, limit, note or author |
/// | `GET /limits/{key}` | the override of the key, with its `ETag`, or 404 |
/// | `PUT /limits/{key}` with `{"limit": "1000/min burst 50"}` and optionally `note`, and `for_seconds` or `end` | sets the override, until it expires; returns the override `before` |
/// | `DELETE /limits/{key}` | deletes the override; returns the override `before`, or 404 |
/// | `GET /changes?count=..` | the last changes of overrides, the newest first, by default 100 and at most 1000: author, origin, the limit before and after |
/// | `GET /usage` | the usage of the limits on all keys together |
/// | `GET /usage/{key}` | the usage of each limit by the key, and the list entry that bans or exempts it (`listed`) |
/// | `POST /keys/resolve` with `{"key": ".."}` or `{"credential": ".."}` | the name of the key, its override, its list entry, and its usage of each limit |
/// | `POST /explain` with `{"key": ".."}` and optionally `tier`, `path`, `method`, `host`, `address` | the list entry that bans or exempts the client (`listed`), the limits of the key with the sources of their numbers, and the verdict on a request `now` |
/// | `POST /cache/clear` | 204; all replicas read the overrides again |
/// | `POST /loss/accept` | 204; all replicas drop the overrides that the store has [lost](Limits::lost) |
/// | `GET /now?seen=..` | the decisions of this replica since the last request, the requests in flight, the most rejected keys, and the status of the store |
/// | `GET /openapi.json` | the description of all endpoints, for programs |
///
/// An override has a `source`: `override` if it was set at run time, `file` if it is in the
/// [configuration](Limits::set_base). An override that was set at run time replaces the one of the configuration, which
/// the response has as `in_file`. Overrides of the configuration cannot be deleted here: the response is 409 with the
/// `code` `set_in_file`.
///
/// Changes accept `If-Match` with the tag of the current override, or `If-None-Match: *` for a key without an override. If
/// the override has changed, the response is 412, with the override of the key (`current`) and the one of the request
/// (`wanted`).
///
/// A key is written as a percent-encoded [`KeyName`](tower_admission::KeyName), and a limit as a
/// [`Limit`](tower_admission::Limit).
///
/// ```
/// use axum::{Router, routing::get};
/// use tower_admission::{Limits, Policy, Quota, RateLimitByTokenLayer};
/// use tower_admission_axum::admin::{self, Recorder, Token};
///
/// # fn app(operator_token: &str) -> Result<Router, Box<dyn std::error::Error>> {
/// let limits = Limits::new();
/// let recorder = Recorder::new();
/// let layer = RateLimitByTokenLayer::new(Policy::new("calls", Quota::per_second(10)))
///     .name("api")
///     .limits(&limits)
///     .observe(recorder.clone());
///
/// let app = Router::new()
///     .route("/api", get(|| async { "hello" }))
///     .layer(layer)
///     // After the layer, so that it does not limit operators.
///     // A service, so that `/admin/` works as well.
///     .nest_service("/admin", admin::router(&limits, &recorder, Token::new(operator_token)?));
/// # Ok(app)
/// # }
/// # app("b5b0ea1ed0924ab5").unwrap();
/// ```
///
/// # Operators
///
/// `auth` recognises operators: [`Tokens`], one [`Token`], or a closure. All other requests get 401. An operator with the
/// role [`Read`](Role::Read) gets 403 for `PUT`, `DELETE`, `POST /cache/clear` and `POST /loss/accept`. The three files of
/// the page contain no data and need no token. The page keeps the token until its tab is closed, and sends it as
/// `Authorization: Bearer`.
///
/// Addresses that send wrong credentials are slowed down, see [`sign_in_failures`](AdminRouter::sign_in_failures).
/// Credentials are expected in `Authorization`; name other headers that `auth` reads with
/// [`credentials_in`](AdminRouter::credentials_in). Failures are logged once per minute and address. The counter
/// `admission_admin_sign_in_failures_total` (feature `metrics`) has the label `outcome`: `wrong`, or `slowed` for
/// responses with 429.
///
/// # What a rejected client sees
///
/// Problem details (RFC 9457):
///
/// - 400 for an invalid body, 413 for a body above 4 KiB (16 KiB if it may contain a credential), 415 for a body of another
///   type than `application/json`.
/// - 401 without credentials, or with wrong ones; `WWW-Authenticate` has `error="invalid_token"` for a wrong bearer
///   token (RFC 6750 section 3).
/// - 403 if the operator may only read.
/// - 404 if the key has no override.
/// - 409 at the [maximum number of overrides](Limits::MAX_OVERRIDES) or of [distinct rates](Limits::MAX_RATES), and for
///   the deletion of an override of the configuration.
/// - 412 if the override has changed since the operator read it.
/// - 422 for an invalid key, limit, number or time, for a limit whose name no limiter has, and for a credential in a URL.
/// - 429 with `Retry-After` after too many wrong credentials from the address.
/// - 503 with `Retry-After` if the store of the overrides failed; `detail` has the reason.
///
/// # Explanations
///
/// `POST /explain` explains a request of cost 1 with this key, from this address, for this path:
///
/// - **Lists decide first**, by the key and by the `address`, including networks and the lists of a configuration. A banned
///   client is rejected whatever its usage. An exempt client passes all limits except the capacity of the service. Limits
///   that the request does not reach have `is_skipped`. The address of the client matters also if its key is a token.
/// - **Without a `path`** the limits of all paths are explained, and `scope` is `all_paths`. No single request passes all
///   of them. So if the service knows the limits of a path, `now` is null unless the client is banned. Otherwise `now` is
///   null if one of several limits rejects.
/// - **The guard against made-up credentials** of a configuration (`bad_credentials_per_ip`) is explained for the
///   `address`. It applies to keys that are no addresses, because such a request has a credential.
/// - **Any key is looked up on the lists** if an [`AccessLayer`](tower_admission::AccessLayer) of these limits has an
///   extractor. For example, a layer with [`ByToken`](tower_admission::ByToken) never looks up `org:acme`, but `org:acme` is
///   explained as banned if it has `deny all`.
/// - **Headers are unknown.** A request that `allow_header` exempts is explained as a request without that header, and a
///   request with a second credential as a request without it.
///
/// `PUT` of a network gets 422 if no service applies the lists of these limits: neither this process nor, with a store, a
/// service that has reported in the last day that it does.
///
/// # Several replicas
///
/// `used` is the count of the store, if one counts, and thus the same from all replicas. `here` is the part of this
/// replica, and `counted_in` says which of them `used` is. `replica` names the process by host and process id. `store`
/// says whether the store decides or its [failure mode](tower_admission::store::FailureMode). The page requests `/now` each
/// second. Behind a load balancer it gets the decisions of all replicas in turn, and adds them up.
///
/// # Deployment
///
/// - Serve the endpoints with TLS, or on an address that only operators reach: a client with the token can deny service to
///   all others.
/// - A closure that reads a cookie needs protection against cross-site request forgery. A bearer token does not.
/// - No response contains a credential: the key of a credential is shown as its fingerprint, `bearer#..`. Proxies log URLs,
///   so a credential in a URL, as in `/limits/bearer:..`, is rejected. Send it in the body of `POST /keys/resolve`, and use
///   the name in the response. The page sends all text of operators in bodies.
/// - Each replica reports its own decisions. Overrides are the same on all replicas if a store keeps them.
pub fn router<S>(limits: &Limits, recorder: &Recorder, auth: impl Auth) -> Router<S>
where
    S: Clone + Send + Sync + 'static,
{
    AdminRouter::new(limits, recorder, auth).build()
}

/// The maximum size of a body that may contain a credential.
const MAX_CREDENTIAL_BODY: usize = 16 * 1024;

type Endpoint = (
    &'static str,
    &'static str,
    Role,
    MethodRouter<Arc<AdminState>>,
);

/// The endpoints for operators, with the required role.
fn endpoints() -> [Endpoint; 14] {
    use Role::{Read, Write};
    // A credential may be as long as a header.
    let [search, resolve, explain] = [
        post(search::search),
        post(resolve::resolve),
        post(explain::explain),
    ]
    .map(|endpoint| endpoint.layer(DefaultBodyLimit::max(MAX_CREDENTIAL_BODY)));
    [
        ("get", "/limits", Read, get(search::list)),
        ("get", "/limits/{key}", Read, get(handlers::limit)),
        ("put", "/limits/{key}", Write, put(handlers::set)),
        ("delete", "/limits/{key}", Write, delete(handlers::unset)),
        ("get", "/changes", Read, get(changes::changes)),
        ("get", "/usage", Read, get(handlers::totals)),
        ("get", "/usage/{key}", Read, get(handlers::usage)),
        ("post", "/search", Read, search),
        ("post", "/keys/resolve", Read, resolve),
        ("post", "/explain", Read, explain),
        ("post", "/cache/clear", Write, post(handlers::clear_caches)),
        ("post", "/loss/accept", Write, post(handlers::accept_loss)),
        ("get", "/now", Read, get(activity::activity)),
        ("get", "/openapi.json", Read, get(handlers::description)),
    ]
}

type Page = (&'static str, &'static str, MethodRouter<Arc<AdminState>>);

/// The files of the page, which need no operator.
fn pages() -> [Page; 3] {
    [
        ("get", "/", get(page::html)),
        ("get", "/admin.css", get(page::css)),
        ("get", "/admin.js", get(page::js)),
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_description_has_all_endpoints_and_no_others() {
        let description: serde_json::Value = serde_json::from_str(handlers::DESCRIPTION).unwrap();
        let described: BTreeSet<_> = description["paths"]
            .as_object()
            .unwrap()
            .iter()
            .flat_map(|(path, item)| {
                let item = item.as_object().unwrap().keys();
                let methods = item.filter(|name| !["parameters", "summary"].contains(&&***name));
                methods.map(|method| (method.clone(), path.clone()))
            })
            .collect();
        let (endpoints, files) = (endpoints(), pages());
        let endpoints = endpoints
            .iter()
            .map(|(method, path, role, _)| (method, path, Some(*role)));
        let files = files.iter().map(|(method, path, _)| (method, path, None));
        let routes: Vec<_> = endpoints.chain(files).collect();
        let routed = routes
            .iter()
            .map(|(method, path, _)| ((**method).to_owned(), (**path).to_owned()));
        assert_eq!(described, routed.collect());
        for (method, path, role) in routes {
            let responses = &description["paths"][path][method]["responses"];
            // A token with the role `read` may be rejected, and each address may be slowed down.
            let has = |status: &str| responses.get(status).is_some();
            assert_eq!(has("403"), role == Some(Role::Write), "{method} {path}");
            assert_eq!(has("429"), role.is_some(), "{method} {path}");
        }
        // Only the page needs no credentials.
        for (method, path) in &described {
            let operation = &description["paths"][path][method];
            let is_page = pages().iter().any(|(_, page, _)| page == path);
            let is_open = operation["security"] == serde_json::json!([]);
            assert_eq!(is_open, is_page, "{method} {path}");
            let needs_credentials = operation["responses"].get("401").is_some();
            assert_eq!(needs_credentials, !is_page, "{method} {path}");
        }
    }

    #[test]
    fn all_references_of_the_description_resolve() {
        let description: serde_json::Value = serde_json::from_str(handlers::DESCRIPTION).unwrap();
        let mut seen = 0;
        for reference in handlers::DESCRIPTION.split("\"$ref\": \"#").skip(1) {
            let pointer = reference.split('"').next().unwrap();
            assert!(description.pointer(pointer).is_some(), "{pointer}");
            seen += 1;
        }
        assert!(seen > 20, "{seen}");
    }
}
