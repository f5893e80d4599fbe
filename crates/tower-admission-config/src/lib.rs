//! Limits by route group, from a file and the environment, changed without a restart.
//!
//! ```toml
//! # gateway.toml
//! [groups.api]
//! path = "/api"
//! concurrency = 64
//! rate = "10/s burst 20"
//! exclude = ["/api/status"]
//! ```
//!
//! ```no_run
//! use axum::{Router, routing::post};
//! use tower_admission_config::{Admission, Config};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let admission = Admission::new(&Config::load("gateway.toml")?)?;
//! let app: Router = Router::new()
//!     .route("/api/chat", post(|| async { "hello" }))
//!     .layer(admission.layer());
//! // Applies each later change of the file. Changes and errors are logged.
//! let follow_handle = admission.follow("gateway.toml", |_| {});
//! # Ok(())
//! # }
//! ```
//!
//! # Features
//!
//! | feature | adds |
//! |---|---|
//! | `axum` | operators of the admin endpoints (`Admission::admin`) and limits on WebSockets (`Admission::sockets`) |
//! | `metrics` | metrics of reloads and of tracked keys |
//! | `redis` | `store.url`: one limit for all replicas of a service |
//! | `redis-tls` | connections to Redis over TLS |
//!
//! # The file
//!
//! | field | default | meaning |
//! |---|---|---|
//! | `store.url` | in memory | the URL of the store: `redis://..`, `redis+cluster://..` or `redis+sentinel://..` (feature `redis`); `rediss..` with TLS (feature `redis-tls`) |
//! | `store.tls_ca_file` | the system's CAs | a file of CA certificates in PEM, trusted in place of the system's. Files are read only at start, and by `config check` |
//! | `store.tls_certificate_file` | none | a PEM file with the client certificate and its chain |
//! | `store.tls_key_file` | none | a PEM file with the private key of the client certificate |
//! | `store.tls_server_name` | the host | the name that the server certificates must have |
//! | `store.secret` | none | 32 hexadecimal digits, the same in all replicas. Required with a URL |
//! | `store.prefix` | `admission` | the prefix of all keys in Redis |
//! | `store.deadline` | `25ms` | the longest time for one call to the store |
//! | `store.on_failure` | `open` | the failure mode: `open`, `closed` or `local share` (also `local_share`) |
//! | `store.replicas` | none | the number of replicas. Required for `local share` |
//! | `clients.trusted_proxies` | none | networks of proxies whose `X-Forwarded-For` is trusted, without host bits, see [`ClientIp::forwarded_by`] |
//! | `clients.trust_unix_socket` | false | trusts peers on a Unix socket as well, see [`ClientIp::trust_unix_socket`] |
//! | `clients.trusted_hops` | none | trusts this number of proxies, whatever their addresses, see [`ClientIp::forwarded_hops`] |
//! | `clients.forwarded_header` | `x-forwarded-for` | or `forwarded` (RFC 7239), in any case; or `single X-Real-IP`: a header with one address, see [`ForwardingHeader::single_address`] |
//! | `clients.ipv6_prefix` | 64 | how many leading bits of an IPv6 address identify a client |
//! | `lists.deny` | none | keys, addresses and networks that are answered 403, see [below](#lists) |
//! | `lists.allow` | none | keys, addresses and networks that are exempt from rates and from limits per key |
//! | `lists.enabled` | true | `false` switches off all bans and exemptions, also those that are set at run time |
//! | `lists.allow_header` | none | a header with a value by which a trusted proxy exempts requests: `X-Internal: probe`. Requires `clients.trusted_proxies` or `clients.trust_unix_socket` |
//! | `admin.token` | none | the token of the operator `admin`, who may write, see [`Admission::admin`](Admission#method.admin); at least 16 bytes |
//! | `admin.tokens.<name>.token` | | the token of the operator with this name |
//! | `admin.tokens.<name>.role` | | the role of the operator: `read` or `write` |
//! | `allow_empty` | false | with `groups = {}`: allows a file without groups, and a reload that removes all limits, see [below](#changes) |
//! | `groups.<name>.path` | any | the paths of the group: prefixes in whole segments, one or a list: `/api`, `/users/{id}`, see [below](#groups). `off`: no path selects the group; only [`Admission::layer_of`] or `also` applies it |
//! | `groups.<name>.methods` | all | selects only these methods: `["POST", "PUT"]` |
//! | `groups.<name>.hosts` | all | selects only these hosts: `["api.example.com", "*.example.com"]` |
//! | `groups.<name>.grpc` | none | selects calls of these gRPC methods: `["pkg.Service/Method", "pkg.Service/*", "pkg.*"]`. With `path`, a request needs to match only one of both |
//! | `groups.<name>.also` | none | other groups whose limits also apply, see [below](#several-groups-for-one-request) |
//! | `groups.<name>.name` | the group's | the name that clients read ("`name` is currently at capacity."), and that metrics and [`Limits`](tower_admission::Limits) use, see [below](#names) |
//! | `groups.<name>.concurrency` | 0, off | the requests in flight |
//! | `groups.<name>.concurrency_per_key` | 0, off | the requests in flight per key |
//! | `groups.<name>.concurrency_per_ip` | 0, off | the requests in flight per address, however many keys it uses. Requests that were admitted while this was off do not count |
//! | `groups.<name>.reclaim_after` | `60s` | the time after which a stalled response loses its permit to a request that needs it, see [`reclaim_after`]; or `off`. A response that stalled while this was off keeps its permit |
//! | `groups.<name>.rate` | off | a [`Quota`] with the name of the group: `600/min burst 50` |
//! | `groups.<name>.rates` | none | several quotas that are checked as one: `{ burst = "10/s", daily = "50000/day" }`, with the names `name.burst` and `name.daily` |
//! | `groups.<name>.tiers.<tier>.rate` | | another quota for requests of a [tier](tower_admission::Policy::tier), which the program [selects](AdmissionBuilder::tier_by) |
//! | `groups.<name>.tiers.<tier>.rates` | | several other quotas. A rate that the tier does not name keeps its default; `off` lifts it, and `rate = "off"` lifts all. A rate must be sliding in the group and in the tier, or in neither |
//! | `groups.<name>.rate_per_ip` | off | a quota per address in the same decision, with the name `name.ip` |
//! | `groups.<name>.bad_credentials_per_ip` | off | a quota per address for 401 and 403 answers, see [`guard_by_ip`] |
//! | `groups.<name>.key` | `token` | the key that is charged, see [below](#keys) |
//! | `groups.<name>.cost` | the program's, else `one` | the cost of a request: `one`, or a cost that the program [names](AdmissionBuilder::cost_by) |
//! | `groups.<name>.exclude` | none | paths that are not limited, with all paths below them, see [below](#paths) |
//! | `groups.<name>.headers` | `draft` | the rate-limit fields: `draft`, `draft-6`, `legacy`, `legacy-epoch` or `off`, see [`RateLimitHeaders`] |
//! | `groups.<name>.retry_after_ms` | false | adds `retry-after-ms`, in milliseconds, next to `Retry-After` |
//! | `groups.<name>.on_failure` | the store's | the failure mode of this group |
//! | `groups.<name>.count` | all | charges only requests with these response statuses, see [`count_if`]: `4xx`; `401, 403`; `!2xx` for all others. Several parts: any part without a `!`, and no part with one: `4xx, !404` |
//! | `groups.<name>.dry_run` | false | decides and informs observers, but admits every request |
//! | `groups.<name>.enforce` | 100 | the percentage of keys for which the limits are enforced, see [`enforce`]. Not together with `dry_run = true` |
//! | `groups.<name>.enabled` | true | `false` switches off the limits of the group, but not those of `also`, see [below](#switches) |
//! | `leases.<name>.per_tenant` | 0, off | the leases per tenant, see [`Admission::leases`] |
//! | `leases.<name>.total` | 0, off | the leases in total |
//! | `leases.<name>.ttl` | `60s` | how long a lease lives without a heartbeat |
//! | `sockets.<name>.connections` | 0, off | the open WebSockets, see [`Admission::sockets`](Admission#method.sockets) (feature `axum`) |
//! | `sockets.<name>.connections_per_key` | 0, off | the open WebSockets per key |
//! | `sockets.<name>.messages` | off | a quota for the messages of each connection: `100/min` |
//! | `sockets.<name>.messages_per_key` | off | a quota for the messages of a key over all its connections |
//! | `leases.<name>.on_failure`, `sockets.<name>.on_failure` | the store's | the failure mode of these limits. `closed` often suits connections where `open` suits requests |
//! | `leases.<name>.enabled`, `sockets.<name>.enabled` | true | `false` switches off these limits |
//! | `limits."<key>"` | none | overrides per key, under those that are set at run time: `"org:acme" = "1000/min"`, or a table as in [`LimitsTable`]. `tower-admission limits export` writes them |
//! | `enabled` | true | `false` switches off all limits of the file, see [below](#switches). The variable is `ADMISSION_ENABLED` |
//!
//! # Groups
//!
//! A request is in at most one group: the most specific group that selects it, whatever the order in the file. A group
//! without `path`, `methods`, `hosts` and `grpc` selects nothing. Use it with [`Admission::layer_of`] or `also`.
//!
//! 1. **The host** decides first: an exact name before a `*.` pattern, a longer `*.` before a shorter one, and any of these
//!    before groups without `hosts`. `*.example.com` matches all hosts below `example.com`, at any depth, but not
//!    `example.com`.
//! 2. **Then the path** decides, segment by segment from the left: a text before a gRPC package, a gRPC package before a
//!    `{parameter}`, a `{parameter}` before `{*rest}`, and all of them before a path that ends there. So the longest
//!    prefix wins. A group without a path comes last.
//! 3. **Then the method** decides: a group that names it before one that does not. `GET` includes `HEAD`, as in axum,
//!    unless a group of the same path names `HEAD`.
//!
//! Two groups that are equal in all three are an error.
//!
//! **A path is a prefix**, also with parameters: `/users/{id}` matches `/users/7`, `/users/7/` and `/users/7/orders`, but
//! not `/users`. `{id}` matches one segment that is not empty. `{*rest}` matches all remaining segments, at least one:
//! `/files/{*rest}` does not match `/files`. The names of parameters have no meaning.
//!
//! **gRPC methods are paths** with two segments, `/package.Service/Method`. The `content-type` of a request does not
//! matter, because servers also answer gRPC calls with another one. `pkg.*` includes the packages below `pkg`.
//!
//! **Hosts are compared** without the port and in any case. The host comes from `:authority`, from a URI in absolute form,
//! or from `Host`; no other header is read. A request that names several hosts (two `Host` headers, or one that differs
//! from the URI) counts as a request for each of them, because servers differ in which one they use. It is in the
//! strictest of the groups, as an ambiguous path is [below](#paths). Four hosts are compared; a request with more can be
//! for any host. A client can send any host. If neither a proxy nor your router restricts the hosts, add a group without
//! `hosts` for the others.
//!
//! # Several groups for one request
//!
//! ```toml
//! [groups.global]
//! concurrency = 500
//! rate_per_ip = "100/s"
//!
//! [groups.api]
//! path = "/api"
//! rate = "10/s"
//! also = ["global"]
//! ```
//!
//! A request to `/api` is under the limits of `api`, then of `global`, then of the groups that `global` names in its
//! `also`: at most 4 groups. Each group has one limit, which all groups that name it share. An unknown group, a repeated
//! group and a cycle are errors.
//!
//! - **Rates are one decision**: a request that does not fit all of them is charged to none. Rate-limit fields report all.
//! - **Permits are acquired in order**, and released together. If one is missing, the earlier ones are released.
//! - **A rejection names the group** whose limit rejects, in its answer, in logs and in metrics. An admitted request counts
//!   for its own group.
//! - **A named group keeps its own settings**: its `key`, `tiers`, `count`, `dry_run` and `enforce`,
//!   `bad_credentials_per_ip`, and the paths that its `exclude` removes. So `dry_run = true` tries out a `global` limit
//!   while the limits of `api` are enforced.
//! - **The request's own group decides the rest**: `headers`, `retry_after_ms` and `cost`. A path that its `exclude` covers
//!   is under none of the groups.
//! - **`on_failure` must be the same** in all these groups that have rates, because one decision covers them.
//!
//! # Names
//!
//! Overrides per key name groups, rates and tiers, as in `api=20/s, tier=pro`. So the `name` of a group, with a dot and
//! the name of a rate where it has `rates`, and the name of a tier must be 1 to 64 bytes of printable ASCII without `,`
//! and `=`, with no space at the ends, and not `tier`.
//!
//! # Keys
//!
//! Each key except `ip` and `shared` falls back to the client address of `[clients]` when the key is absent or unusable.
//!
//! | `key` | charges |
//! |---|---|
//! | `token` | the bearer token, else `X-Api-Key`, as [`ByToken::default`](tower_admission::ByToken) |
//! | `bearer` | the bearer token; ignores `X-Api-Key`: [`ByToken::bearer_only`](tower_admission::ByToken::bearer_only) |
//! | `api-key` | `X-Api-Key`; ignores `Authorization`: [`ByToken::api_key_only`](tower_admission::ByToken::api_key_only) |
//! | `ip` | the client address |
//! | `shared` | one key for all requests |
//! | `header X-User` | the identity that a trusted proxy writes into this header: [`TrustedHeader`](tower_admission::TrustedHeader). Requires `clients.trusted_proxies` or `clients.trust_unix_socket` |
//! | any other word | the key that the program adds under this name: [`AdmissionBuilder::key_by`] |
//!
//! # Lists
//!
//! ```toml
//! [lists]
//! deny = ["ip:203.0.113.0/24", "bearer#5f0e9a3c1d2b4a6978877665544332ff", "org:acme"]
//! allow = ["ip:203.0.113.7", "ip:2001:db8::/32"]
//! allow_header = "X-Internal: probe"
//! ```
//!
//! An entry is a [`KeyName`](tower_admission::KeyName), optionally with an end in RFC 3339:
//! `"ip:203.0.113.7 until 2026-12-01T00:00:00Z"`. A ban with an end answers with `Retry-After`. The lists apply to all
//! requests that pass the layer: also to requests of no group, on `exclude`d paths, and in a dry run. Entries of
//! [`Admission::limits`] that change at run time apply as well: see [`access`](tower_admission::access) for which entry
//! decides, and what an exemption is. Each request is looked up by its bearer token, by `X-Api-Key`, by all keys that the
//! program [names](AdmissionBuilder::key_by), and by the headers that groups use as `header X-User`. A reload applies
//! changed lists at once and logs the added and removed entries. In metrics, the limiter is `lists`.
//!
//! Errors: a key that is in one list twice, and the keys `shared` and `unknown`, by which no request is looked up. If a key
//! is in both lists, the ban decides. Write keys of a header in lowercase, as `x-user:eve`; another spelling is an error,
//! also in `[limits]`.
//!
//! # Paths
//!
//! Paths are compared as the client sent them, in whole segments. A path is *ambiguous* if it has a `.` or `..` segment,
//! plain or percent-encoded once (`%2e`, `..%2f`, `..%5c`, `..\`, `..;x`), or an empty segment before its end (`//api`):
//! servers differ in how they resolve it. An ambiguous request is limited as follows:
//!
//! - `exclude` never covers it.
//! - **With dot segments** it is in the strictest group that it may reach: of the groups whose paths consist of segments
//!   that the request has, in any order and decoded. A server can drop, decode and split segments but adds none, so these
//!   groups include each group that any server may choose. A path with more than 128 segments may reach all groups.
//! - **With only empty segments** it is in the stricter of two groups: that of the path as sent, and that of the path
//!   without the empty segments.
//! - The strictest group limits both rate and concurrency; then comes one that limits one of them, then one that enforces
//!   limits for a share of the keys (`enforce`), then one that rejects nothing, such as in a dry run.
//!   `bad_credentials_per_ip` counts as a rate, and the limits of groups in `also` count as well. Of equally strict groups,
//!   the group of the decoded and resolved path (RFC 3986 §5.2.4) wins, then that of the path as sent, then the first by
//!   its name in the file.
//! - It counts in one group only, although a router may send it to a route of another group. So limit the same kinds of
//!   things in all groups with routes that accept any path below them.
//!
//! With `path = "/api"` and `exclude = "/api/status"`, these paths are limited: `/api/status/../chat`,
//! `/static/%2e%2e/api/chat`, `/api/../health`, `/api//status`.
//!
//! # Switches
//!
//! `enabled = false` is for incidents: the limits that it covers reject nothing. Rates, concurrency, leases, connections
//! and messages are unlimited, **also for keys with an override and for tiers**, both from the file and set at run time. An
//! override for one limit, such as `api=deny all`, is off as well. Overrides can still be set and imported.
//!
//! **Counting goes on for** requests in flight, connections and leases. Rates and messages are not charged, and responses
//! have no rate-limit fields. With a store, requests and connections of that time count only in their replica: after limits
//! are on again, other replicas do not see connections from that time until they close. `concurrency_per_ip` does not
//! count requests of that time.
//!
//! **Earlier usage stays**, with two exceptions: `bad_credentials_per_ip` starts again, so blocked addresses can guess
//! again; and if one file switches off more than 64 groups with rates, all but the last 64 start again.
//!
//! **Bans are not limits, and stay**: the entries of `[lists]`, and keys with `deny all` or `unlimited` as a whole at run
//! time. A key with `deny all` also gets no lease and opens no WebSocket; its open connections can send.
//! `lists.enabled = false`, or `ADMISSION_LISTS__ENABLED=false`, switches off the bans of requests. The `deny all` of a key
//! then is a limit like any other, in groups that limit; leases and WebSockets still reject it.
//!
//! **A running service reads the switch from its file.** The variable `ADMISSION_ENABLED` is read only at start, so it
//! needs a restart, and `ADMISSION_ENABLED=true` hides `enabled = false` of the file. Each start and each reload log the
//! switched-off tables with level WARN. The gauge `admission_limits_enabled` is 0 while the whole file is switched off.
//!
//! # Limits that are off
//!
//! [`AdmissionBuilder::build`] logs one line for each group with limits that are off (0 or absent), as a `tracing` event of
//! level INFO: `these limits are off group="api" off="concurrency, rate_per_ip"`.
//!
//! # The environment
//!
//! A variable can set each field, and takes precedence over the file. Its name is `ADMISSION_` and the path of the field in
//! capitals, with two underscores for a dot: `ADMISSION_GROUPS__API__RATE="20/s"`,
//! `ADMISSION_CLIENTS__TRUSTED_PROXIES="10.0.0.0/8, 192.168.0.0/16"`. So variables reach only groups, rates and tiers with
//! lowercase names. Variables without two underscores are not read, except `ADMISSION_ENABLED`: `enabled` is the only
//! top-level field that a variable sets. The environment is read only at start.
//!
//! A variable is text, and is read as the type of its field: a token is read unchanged, a number is digits, and a boolean is
//! `true` or `false`. Nothing else is converted: in the file, `1.9` and `true` are not whole numbers, and `17` is not text.
//! (A date is text in RFC 3339.)
//!
//! # Errors
//!
//! An unknown field, an invalid quota or network, two groups that select the same requests, and two groups or quotas with
//! one name are errors at start. An error has the file with line and column, or the variable; the field; the invalid text;
//! and the fix: `gateway.toml:3:8: groups.api.rate: "10/fortnight" is not a valid quota: units are ..`. The text is left
//! out where it may be a secret.
//!
//! # Warnings
//!
//! [`Config::warnings`] lists settings without effect. A start and each reload log them as `tracing` events of level WARN,
//! and `tower-admission config check` prints them. [`AdmissionBuilder::deny_warnings`] and `config check --strict` make
//! them errors.
//!
//! - There are no groups, leases and sockets, so the file limits only the keys of `[lists]` and `[limits]`. Write
//!   `groups = {}` and `allow_empty = true` to intend that.
//! - A group selects no requests: it has no `path`, `methods`, `hosts` and `grpc`, and no group names it in `also`. The
//!   program may still use it with [`Admission::layer_of`], which no configuration shows: write `path = "off"` to intend
//!   that. So this warning is logged when [`Admission::layer`] or [`Admission::follow`] is called, and not for groups that
//!   have a layer by then.
//! - A group has no limit. A limit of 0 or `off` is only [logged](#limits-that-are-off).
//! - A path in `exclude` is outside of its group's paths, or covers all of them.
//! - A variable makes a group that the file does not have and that selects no requests; or a group that differs from one of
//!   the file only in case, as `ADMISSION_GROUPS__UPPER__RATE` differs from `[groups.Upper]`.
//! - A variable has single underscores: `ADMISSION_GROUPS_API_RATE`.
//! - `store` has settings, such as a secret, but no URL; or an `on_failure` has no store.
//! - An override of `[limits]` names an unknown limit, as `apii=10/s`, or an unknown tier, as `tier=prro`. Requests of that
//!   key then have the defaults.
//! - A variable hides a field of the file with another value. A reload logs a change of such a field.
//! - `clients.forwarded_header` is set, but no proxy is trusted.
//!
//! Two warnings [may be intended](ConfigWarning::may_be_intended), and are never errors: a hidden field, and an unknown
//! name that resembles no known one, because the program may have limits and tiers of its own.
//!
//! Variables that Kubernetes makes for a service `admission-store`, such as `ADMISSION_STORE_SERVICE_HOST`, cause no
//! warning.
//!
//! # Changes
//!
//! [`Admission::reload`] and [`Admission::follow`] apply a changed file as a whole or not at all. If the file is invalid,
//! the running limits stay. A followed file is applied once two reads in a row, one second apart, are equal; so a file
//! that is empty or half-written for a moment changes nothing.
//!
//! A change removes no limits by accident. These are errors:
//!
//! - A change from some groups to none, unless `allow_empty = true` and `groups = {}` are written. Files are compared with
//!   files: variables do not hide that a file was emptied.
//! - In a file: a group, a `[leases.<name>]` or a `[sockets.<name>]` that had limits and has none, not even 0; and a group
//!   that selects nothing any more, unless `path = "off"`.
//! - In a file: a missing `[limits]`, `[lists]`, `[leases]` or `[sockets]` that had entries. Write an empty table to intend
//!   that. `[limits]` without any of its entries also requires `allow_empty = true`, because its header can be the last
//!   line of a truncated file. `deny = []` removes all bans, and `trusted_proxies = []` all proxies.
//! - A start with a file that has none of these tables and no groups, whatever variables add. At start there is no earlier
//!   file to compare with. A file that is truncated before its first group or within a group causes a
//!   [warning](#warnings): [`AdmissionBuilder::deny_warnings`] makes it an error, and `tower-admission config check
//!   --strict` finds it beforehand.
//!
//! These truncations are not found: a cut between two entries of `[limits]`, a cut number (`enforce = 100` to
//! `enforce = 1`), and at start a cut between two groups.
//!
//! - Added, removed and changed settings are logged, group by group, with fields and values; for `store` and `admin`
//!   without values.
//! - [`Admission::last_reload`] returns the result of the last reload, also of a followed file. The metrics
//!   `admission_config_last_reload_successful` and `admission_config_last_reload_success_timestamp_seconds` have it as well
//!   (feature `metrics`).
//!
//! Requests in flight are not affected, and usage stays: a lowered bucket counts as used what it had used, up to its new
//! size, if it counts in memory. A group is identified by its `name`, not by the key of its table. Its rates continue while
//! they keep their names, those of the tiers included, and each stays [sliding](tower_admission::Quota::sliding) or not. A
//! tier that is added, changed or removed changes nothing for requests of other tiers, unless the group had 16 other tiers
//! before. Rates also continue after they were off, or after their group was absent, unless a rate of the same name was
//! used with others in between; the last 64 are kept for this. Any other rate is new and starts unused in memory, as does
//! the `concurrency` of a group that was absent. The usage of `bad_credentials_per_ip` stays until it is switched off, its
//! algorithm changes or its group is removed. The usage of a group that others name stays when they start or stop to name
//! it. `store` and the `on_failure` of a group cannot change while the service runs. Changed `admin` tokens apply from the
//! next request.
//!
//! [`ClientIp::forwarded_by`]: tower_admission::ClientIp::forwarded_by
//! [`ClientIp::forwarded_hops`]: tower_admission::ClientIp::forwarded_hops
//! [`ClientIp::trust_unix_socket`]: tower_admission::ClientIp::trust_unix_socket
//! [`ForwardingHeader::single_address`]: tower_admission::extract::ForwardingHeader::single_address
//! [`Quota`]: tower_admission::Quota
//! [`RateLimitHeaders`]: tower_admission::RateLimitHeaders
//! [`guard_by_ip`]: tower_admission::RateLimitLayer::guard_by_ip
//! [`count_if`]: tower_admission::RateLimitLayer::count_if
//! [`enforce`]: tower_admission::RateLimitLayer::enforce
//! [`reclaim_after`]: tower_admission::ConcurrencyLimitLayer::reclaim_after

#![cfg_attr(docsrs, feature(doc_cfg))]

mod admin;
mod admission;
mod also;
mod ambiguous;
mod builder;
mod check;
mod costs;
mod document;
mod error;
#[cfg(feature = "metrics")]
mod evictions;
#[cfg(feature = "axum")]
mod explain;
mod fields;
mod follow;
mod group;
mod key_checks;
mod keys;
mod last_reload;
mod layer;
mod leases;
mod lists;
mod load;
mod model;
mod names;
mod origin;
mod overrides;
mod path;
mod policies;
mod reload;
mod reload_state;
mod retired;
mod routes;
mod selectors;
mod sockets;
mod status_filter;
mod stores;
mod strictness;
mod switches;
mod sync;
mod text;
mod time;
mod variables;
mod warning;

pub use self::admission::Admission;
pub use self::builder::AdmissionBuilder;
pub use self::error::ConfigError;
pub use self::follow::FollowHandle;
pub use self::last_reload::LastReload;
pub use self::layer::{AdmissionLayer, AdmissionService};
pub use self::model::Config;
pub use self::overrides::LimitsTable;
pub use self::warning::{ConfigWarning, WarningKind};

/// The README's code compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
