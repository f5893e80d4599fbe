//! Endpoints and a page to look at limits and to change them, while they are in use.
//!
//! See [`router`], and [`Recorder`] for what it shows of the last two minutes.

mod answer;
mod api;
mod auth;
mod builder;
mod changes;
mod condition;
mod explain;
mod explanation;
mod groups;
mod list;
mod now;
mod page;
mod recorder;
mod replica;
mod resolve;
mod sign_in;
mod tokens;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{MethodRouter, delete, get, post, put};
use tower_admission::Limits;

use self::api::Api;

pub use self::auth::{Auth, IntoOperator, Operator, Role};
pub use self::builder::AdminRouter;
pub use self::groups::{RequestGroup, RequestGroups};
pub use self::recorder::Recorder;
pub use self::resolve::Resolved;
pub use self::tokens::{Token, TokenError, Tokens};

/// Endpoints that show and change limits, and a page that uses them.
///
/// | request | answer |
/// |---|---|
/// | `GET /` | the page, which asks for a token |
/// | `GET /limits?after=..&count=..` | the limits of single keys, 1000 unless told otherwise and at most 10,000; the `names` of limits and the `tiers` that they can be about, the `total` of entries, and the `after` of the next page, `next` |
/// | `POST /search` with `{"q": ".."}` and perhaps `after`, `count` | as `GET /limits`, those with this text in their key, limit, note or author |
/// | `GET /limits/{key}` | the limit of the key, with its `ETag`, or 404 |
/// | `PUT /limits/{key}` with `{"limit": "1000/min burst 50"}` and perhaps `note`, and `for_seconds` or `end` | sets it, until it ends; with the override `before` |
/// | `DELETE /limits/{key}` | deletes it; with the override `before`, or 404 |
/// | `GET /changes?count=..` | the last changes of limits, the newest first: who made them, from where, the limit before and after; 100 unless told otherwise and at most 1000 |
/// | `GET /usage` | how far the limits on all keys together are used up |
/// | `GET /usage/{key}` | how far the key has used up each limit, and the list entry that it is banned or exempt by (`listed`) |
/// | `POST /keys/resolve` with `{"key": ".."}` or `{"credential": ".."}` | the name of the key, its limit, the list entry that it is banned or exempt by, and how far it has used up each limit |
/// | `POST /explain` with `{"key": ".."}` and perhaps `tier`, `path`, `method`, `host`, `address` | the list entry that the client is banned or exempt by (`listed`), which limits apply to the key, where their numbers come from, and what a request would get `now` |
/// | `POST /cache/clear` | 204; all replicas read their limits again |
/// | `POST /loss/accept` | 204; all replicas drop the limits that the store has [lost](Limits::lost) |
/// | `GET /now?seen=..` | the decisions of the replica that answers since it was last asked, what is in flight, the keys rejected most, and whether the store decides |
/// | `GET /openapi.json` | a description of all this, for programs |
///
/// Each limit of a key has a `source`: `override` for one that was set at run time, `file` for one of the
/// [configuration](Limits::set_base). An override applies in place of the configuration's limit for the same key, which
/// its answer shows as `in_file`. A limit of the configuration is not deleted here: 409 with the `code` `set_in_file`.
///
/// Changes take `If-Match` with the tag of the limit that they are made for, or `If-None-Match: *` for a key that has
/// none. If another operator was faster, the answer is 412, with the limit that the key has (`current`) and the one it
/// was to have (`wanted`).
///
/// A key is written as a [`KeyName`](tower_admission::KeyName), percent-encoded, and a limit as a
/// [`Limit`](tower_admission::Limit).
///
/// ```
/// use axum::{Router, routing::get};
/// use tower_admission_axum::admin::{self, Recorder, Token};
/// use tower_admission::{Limits, Policy, Quota, RateLimitByTokenLayer};
///
/// # fn app(token_of_operators: &str) -> Result<Router, Box<dyn std::error::Error>> {
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
///     // After the layer, so that who repairs a limit is not held up by it.
///     // A service, so that it is at `/admin/` as well.
///     .nest_service("/admin", admin::router(&limits, &recorder, Token::new(token_of_operators)?));
/// # Ok(app)
/// # }
/// # app("b5b0ea1ed0924ab5").unwrap();
/// ```
///
/// # Operators
///
/// `auth` recognises them: [`Tokens`], one [`Token`] or a closure of the application's. All other requests get 401.
/// (Other paths are the application's fallback, and a wrong method gets 405.) An operator with the role
/// [`Read`](Role::Read) gets 403 from `PUT`, `DELETE`, `POST /cache/clear` and `POST /loss/accept`. The page's three
/// files hold no data and need no token. The page keeps the token until its tab is closed, and sends it as
/// `Authorization: Bearer`.
///
/// An address that keeps sending wrong credentials is slowed down, see
/// [`sign_in_failures`](AdminRouter::sign_in_failures). Credentials are looked for in `Authorization`; name other headers
/// that `auth` reads with [`credentials_in`](AdminRouter::credentials_in). Failures are logged once a minute for each address, and
/// counted in `admission_admin_sign_in_failures_total` (feature `metrics`), whose label `outcome` is `wrong`, or
/// `slowed` for those that were answered 429.
///
/// # What a refused client sees
///
/// Problem details (RFC 9457):
///
/// - 400 for a body that is not as described above, 413 for one of over 4 KiB (16 KiB where it may hold a credential),
///   415 for one that is not `application/json`.
/// - 401 without credentials, or with wrong ones; `WWW-Authenticate` has `error="invalid_token"` for a wrong bearer
///   token (RFC 6750 section 3).
/// - 403 when the operator may only read.
/// - 404 when a key has no limit of its own.
/// - 409 when [as many keys as can](Limits::MAX_OVERRIDES) have a limit of their own, when there would be more than
///   [`MAX_RATES`](Limits::MAX_RATES) distinct rates, and for the deletion of a limit of the configuration.
/// - 412 when a limit has changed since the operator read it.
/// - 429 with `Retry-After` when too many wrong credentials came from the address.
/// - 422 for a wrong key, limit, number or time, for a limit with a name that no limiter has, and for a credential in a
///   URL.
/// - 503 with `Retry-After` when the store that keeps the limits failed; `detail` has the reason.
///
/// # What is explained
///
/// `POST /explain` answers what a request of cost 1 with this key, from this address, for this path would get:
///
/// - **Lists decide first**, by the key and by the `address`, with networks and the lists of a file. A banned client is
///   rejected whatever its limits have left. An exempt one passes all limits but the capacity of the service; limits
///   that it does not get to have `is_skipped`. The address of the client matters also where its key is a token.
/// - **Without a `path`** the limits of all paths are explained, and `scope` is `all_paths`. No single request passes all
///   of these, so `now` is null if the service knows which limits a path has, unless the client is banned. If it does not,
///   `now` is null where one of several limits rejects.
/// - **The guard against made-up credentials** of a configuration (`bad_credentials_per_ip`) is explained for the
///   `address`. It counts for keys that are no addresses: such a request has a credential.
/// - **Any key is looked up on the lists** if an [`AccessLayer`](tower_admission::AccessLayer) of these limits has an extractor. A
///   layer whose extractor is [`ByToken`](tower_admission::ByToken) finds no request by `org:acme`, though `org:acme = deny all` is
///   explained as `banned`.
/// - **Headers are not known.** A request that `allow_header` exempts is explained as one without the header, and a
///   request with a second credential as one without it.
///
/// `PUT` of a network is answered 422 where no service is known to look requests up on the lists of these limits: the
/// process itself, or with a store any that wrote so down in the last day.
///
/// # Several replicas
///
/// `used` is what the store counts, where one does, and so the same from all replicas; `here` is what the replica that
/// answers holds of it, and `counted_in` says which of the two `used` is. `replica` names the process by host and pid, and
/// `store` says whether the store decides or its [failure mode](tower_admission::store::FailureMode) does. The page asks `/now`
/// each second. Behind a load balancer it hears of all replicas in turn and adds up what they decided.
///
/// # Deployment
///
/// - Serve it behind TLS, or on an address that only operators reach: a client with the token can deny service to all
///   others.
/// - A closure that reads a cookie needs the application's protection against forged requests. A bearer token needs
///   none.
/// - No answer holds a credential: a key that is one is shown by its fingerprint, `bearer#..`. URLs are logged by
///   proxies, so a credential in a URL, as in `/limits/bearer:..`, is rejected. Send it to `POST /keys/resolve`, in the
///   body, and use the name in its answer. The page sends all text that an operator types in bodies.
/// - Each replica reports its own decisions, with its name. Limits are the same on all replicas when they are kept in a
///   store.
pub fn router<S>(limits: &Limits, recorder: &Recorder, auth: impl Auth) -> Router<S>
where
    S: Clone + Send + Sync + 'static,
{
    AdminRouter::new(limits, recorder, auth).build()
}

/// The most bytes of a body that may hold a credential.
const MAX_CREDENTIAL_BODY: usize = 16 * 1024;

type Endpoint = (&'static str, &'static str, Role, MethodRouter<Arc<Api>>);

/// What is only for operators, with the role that they need.
fn endpoints() -> [Endpoint; 14] {
    use Role::{Read, Write};
    // A credential may be as long as the header that it is sent in.
    let [search, resolve, explain] = [
        post(list::search),
        post(resolve::resolve),
        post(explain::explain),
    ]
    .map(|endpoint| endpoint.layer(DefaultBodyLimit::max(MAX_CREDENTIAL_BODY)));
    [
        ("get", "/limits", Read, get(list::list)),
        ("get", "/limits/{key}", Read, get(api::limit)),
        ("put", "/limits/{key}", Write, put(api::set)),
        ("delete", "/limits/{key}", Write, delete(api::unset)),
        ("get", "/changes", Read, get(changes::changes)),
        ("get", "/usage", Read, get(api::totals)),
        ("get", "/usage/{key}", Read, get(api::usage)),
        ("post", "/search", Read, search),
        ("post", "/keys/resolve", Read, resolve),
        ("post", "/explain", Read, explain),
        ("post", "/cache/clear", Write, post(api::clear_caches)),
        ("post", "/loss/accept", Write, post(api::accept_loss)),
        ("get", "/now", Read, get(now::now)),
        ("get", "/openapi.json", Read, get(api::description)),
    ]
}

type Page = (&'static str, &'static str, MethodRouter<Arc<Api>>);

/// What is for everybody, and the same for all.
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
    fn everything_is_described_and_nothing_else() {
        let description: serde_json::Value = serde_json::from_str(api::DESCRIPTION).unwrap();
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
            // A token that may only read is rejected, and an address with many wrong ones is slowed down.
            let has = |status: &str| responses.get(status).is_some();
            assert_eq!(has("403"), role == Some(Role::Write), "{method} {path}");
            assert_eq!(has("429"), role.is_some(), "{method} {path}");
        }
        // Only the page is open.
        for (method, path) in &described {
            let operation = &description["paths"][path][method];
            let is_page = pages().iter().any(|(_, page, _)| page == path);
            let is_open = operation["security"] == serde_json::json!([]);
            assert_eq!(is_open, is_page, "{method} {path}");
            let is_refused = operation["responses"].get("401").is_some();
            assert_eq!(is_refused, !is_page, "{method} {path}");
        }
    }

    #[test]
    fn what_the_description_refers_to_is_there() {
        let description: serde_json::Value = serde_json::from_str(api::DESCRIPTION).unwrap();
        let mut seen = 0;
        for reference in api::DESCRIPTION.split("\"$ref\": \"#").skip(1) {
            let pointer = reference.split('"').next().unwrap();
            assert!(description.pointer(pointer).is_some(), "{pointer}");
            seen += 1;
        }
        assert!(seen > 20, "{seen}");
    }
}
