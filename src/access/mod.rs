//! Allow and deny lists of keys, addresses and networks, checked before all limits.
//!
//! An override in [`Limits`](crate::Limits) that is only `deny all` or only `unlimited` is an entry
//! of the deny list or the allow list. An [`AccessLayer`] outside all other layers applies both
//! lists. Entries change at run time: with [`Limits::set`](crate::Limits::set), the admin
//! endpoints, or the program, as in `tower-admission limits set ip:203.0.113.0/24 "deny all"`. A
//! configuration file can have lists too, and applies them without this layer.
//!
//! ```
//! use axum::{Router, routing::get};
//! use tower::ServiceBuilder;
//! use tower_admission::{AccessLayer, ByToken, ConcurrencyLimitLayer, Limit, Limits, Quota};
//! use tower_admission::RateLimitByTokenLayer;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let limits = Limits::new();
//! let layers = ServiceBuilder::new()
//!     // Outermost: a banned client takes no capacity and no quota.
//!     .layer(AccessLayer::new(&limits).key(ByToken::default()))
//!     .layer(ConcurrencyLimitLayer::new(64))
//!     .layer(RateLimitByTokenLayer::new(Quota::per_second(10)).limits(&limits));
//! let app: Router = Router::new().route("/", get(|| async { "hello" })).layer(layers);
//!
//! limits.set(&"ip:203.0.113.0/24".parse()?, Limit::deny_all()).await?;
//! limits.set(&"ip:203.0.113.7".parse()?, Limit::unlimited()).await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Which entry decides
//!
//! The most specific entry: that of the request's [key](AccessLayer::key), then that of its
//! [address](AccessLayer::client_ip), then that of the longest network that contains the address.
//! Deny wins a tie: between two entries for one network in a file and at run time, and between two
//! keys of a request. If two bans of one network have different ends, `Retry-After` names the later
//! one. An entry with any other limit, such as `10/s`, is on no list and is ignored here.
//!
//! [`Limits::list_entry`](crate::Limits::list_entry) finds the entry that decides about a client.
//!
//! A ban of an address or a network also covers requests with tokens, so a made-up token does not
//! help. Only a key on the allow list takes precedence.
//!
//! Within one [`Limits`](crate::Limits), an override that was set at run time replaces an override
//! of the [base](crate::Limits::set_base) for the same key. The `[lists]` of a file are separate
//! from both: an exemption of a key at run time does not lift a ban in the file.
//!
//! | entry | applies to |
//! |---|---|
//! | `org:acme`, `bearer#..` | requests in which one of the layer's extractors finds this key |
//! | `ip:203.0.113.7`, `ip:2001:db8::7/128` | this address |
//! | `ip:2001:db8::7` | the /64 that contains this address, usually one client |
//! | `ip:203.0.113.0/24`, `ip:2001:db8::/32` | this network |
//!
//! An IPv4-mapped IPv6 address (`::ffff:203.0.113.7`) is the IPv4 address. For NAT64, 6to4 and
//! Teredo addresses, bans of the embedded IPv4 address apply as well as bans of the IPv6 address.
//! Exemptions of the embedded address do not apply, because any sender through a relay can choose
//! it. For the same reason `unlimited` for such an address, as in `ip:2002:cb00:7107::1`, is an
//! error: it would exempt the IPv4 client.
//!
//! # What a banned client sees
//!
//! `403 Forbidden` with a problem (RFC 9457) of the type `about:blank`, or PERMISSION_DENIED in
//! gRPC. `Retry-After` is present if the entry has an [end](crate::Override#the-end). The note and
//! the author of the entry are not disclosed. Observers and metrics see a rejection with
//! [`Reason::Banned`](crate::Reason::Banned). An outer
//! [`guard_by_ip`](crate::RateLimitLayer::guard_by_ip) does not take this 403 for an answer to
//! credentials.
//!
//! # What an exemption does
//!
//! No inner [`RateLimitLayer`](crate::RateLimitLayer) counts an exempt request, for any of its keys
//! and including its guard. Limits [per key](crate::ConcurrencyLimitLayer::per_key) do not count it
//! either. It gets no rate-limit fields, and a handler's
//! [`RateLimitStatus`](crate::RateLimitStatus) is unlimited. **It still counts in the capacity of
//! the service** ([`ConcurrencyLimitLayer::new`](crate::ConcurrencyLimitLayer::new)), and can be
//! answered 503: capacity protects the service from every client. Use
//! [`skip`](crate::ConcurrencyLimitLayer::skip) for requests that must not count there, such as
//! health checks. Limits of WebSockets and leases do not exempt, because they see a key but no
//! address or header of a request.
//!
//! In `admission_requests_total` this layer counts an exempt request, unless an outer layer did.
//!
//! To lift only the limits of a key, name them: `api=unlimited` is not an entry of the allow list,
//! so the limits of the request's address still count.
//!
//! Inner layers recognise an exempt request by a private type in its extensions, which a client
//! cannot forge. [`is_exempt`] reads it for limiters that are used without a layer.
//!
//! # Cost
//!
//! While all lists are empty, a request loads a counter. Otherwise it costs one lookup for the key,
//! and one for each prefix length that entries have. There is no lock. Only the mark of an exempt
//! request allocates.

mod exempt;
mod future;
pub(crate) mod gate;
mod layer;
mod service;

pub use self::exempt::is_exempt;
pub use self::future::ResponseFuture;
pub use self::layer::AccessLayer;
pub use self::service::Access;
