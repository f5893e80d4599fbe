//! Allow and deny lists of keys, addresses and networks, decided before all limits.
//!
//! An entry of [`Limits`](crate::Limits) that is `deny all` or `unlimited`, and nothing else, is one of the deny list
//! or of the allow list. An [`AccessLayer`] outside of all other layers applies both. Entries change at run time:
//! by [`Limits::set`](crate::Limits::set), by the admin endpoints, and by the program,
//! `tower-admission limits set ip:203.0.113.0/24 "deny all"`. The module `config` has such a layer built in, and
//! lists in the file as well.
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
//! The most specific one: the [key](AccessLayer::key) of the request, then its
//! [address](AccessLayer::client_ip), then the longest network that the address is in. On a tie deny wins: of two
//! entries for one network in a file and at run time, and of a request with two keys. Of two bans for one network,
//! `Retry-After` names the later end. An entry with any other limit, such as `10/s`, is on no list and does not
//! count here.
//!
//! [`Limits::list_entry`](crate::Limits::list_entry) finds the entry that decides about a client.
//!
//! A ban of an address or a network covers requests with tokens, so a made-up token changes nothing. Only a key that is
//! on the allow list goes before it.
//!
//! Of one key in one [`Limits`](crate::Limits), an override that was set at run time takes the place of one of the
//! [base](crate::Limits::set_base). The `[lists]` of a file are apart from both: an exemption of the same key at run time
//! does not lift a ban of the file.
//!
//! | entry | applies to |
//! |---|---|
//! | `org:acme`, `bearer#..` | requests in which one of the layer's extractors finds this key |
//! | `ip:203.0.113.7`, `ip:2001:db8::7/128` | this address |
//! | `ip:2001:db8::7` | the /64 that this address is in, which is usually one client |
//! | `ip:203.0.113.0/24`, `ip:2001:db8::/32` | this network |
//!
//! An IPv4-mapped IPv6 address (`::ffff:203.0.113.7`) is the IPv4 address. Of NAT64, 6to4 and Teredo, the IPv4 address
//! inside counts for bans next to the IPv6 address, and not for exemptions, because anyone who can send a packet through
//! a relay chooses it. So `unlimited` for such an address, as in `ip:2002:cb00:7107::1`, is an error: it would exempt the
//! IPv4 client.
//!
//! # What a banned client sees
//!
//! `403 Forbidden` with a problem (RFC 9457) of the type `about:blank`, or PERMISSION_DENIED in gRPC, with `Retry-After`
//! if the entry has an [end](crate::Override#the-end). Of its note and its author the client learns nothing. Observers and
//! metrics see a rejection with [`Reason::Banned`](crate::Reason::Banned). A response with this 403 is no answer to
//! credentials for a [`guard_by_ip`](crate::RateLimitLayer::guard_by_ip) further out.
//!
//! # What an exemption is
//!
//! No [`RateLimitLayer`](crate::RateLimitLayer) inside counts the request, its guard included, whatever its keys, and
//! limits [per key](crate::ConcurrencyLimitLayer::per_key) do not count it. It gets no rate-limit fields; a handler's
//! [`RateLimitStatus`](crate::RateLimitStatus) is unlimited. **It still counts in the capacity of the service**
//! ([`ConcurrencyLimitLayer::new`](crate::ConcurrencyLimitLayer::new)), and can be answered 503: capacity protects the
//! service itself, whichever client asks. Use [`skip`](crate::ConcurrencyLimitLayer::skip) for what must not count there, such as
//! health checks. Limits of WebSockets and leases are not exempted: they know a key, and no
//! address or header of a request.
//!
//! In `admission_requests_total` this layer counts an exempt request, unless a layer further out did.
//!
//! To lift the limits of a key alone, name them: `api=unlimited` is no entry of the allow list, so the limits of the
//! request's address still count.
//!
//! The layers inside find a private mark in the request's extensions, which nothing that a client sends can make up.
//! [`is_exempt`] reads it for limiters that are used by hand.
//!
//! # What it costs
//!
//! While no entry is on a list, a look at a counter. Else one look-up for the key, and one for each length of prefix
//! that entries have; no lock and no allocation, but for exempt requests, whose mark is one.

mod exempt;
mod future;
pub(crate) mod gate;
mod layer;
mod service;

pub use self::exempt::is_exempt;
pub use self::future::ResponseFuture;
pub use self::layer::AccessLayer;
pub use self::service::Access;
