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
//! use tower_admission::observe::Observer;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let admission = Admission::new(&Config::load("gateway.toml")?)?;
//! let app: Router = Router::new()
//!     .route("/api/chat", post(|| async { "hello" }))
//!     .layer(admission.layer());
//! // From now on a changed file is applied. What changes, or why nothing does, is logged.
//! let following = admission.follow("gateway.toml", |_| {});
//! # Ok(())
//! # }
//! ```
//!
//! # The file
//!
//! | field | default | |
//! |---|---|---|
//! | `store.url` | in memory | `redis://..`, `redis+cluster://..` or `redis+sentinel://..`, as [`RedisStore::connect`] takes it (feature `redis`); `rediss..` with TLS (feature `redis-tls`) |
//! | `store.tls_ca_file` | the system's CAs | a file of CA certificates in PEM, which are trusted in place of the system's. Files are read at start only, and by `config check` |
//! | `store.tls_certificate_file` | none | a file with the certificate that is shown to Redis, and its chain, in PEM |
//! | `store.tls_key_file` | | a file with its private key in PEM |
//! | `store.tls_server_name` | the host | the name that the certificates of the servers have to be for |
//! | `store.secret` | | 32 hexadecimal digits, the same in all replicas; needed with a URL |
//! | `store.prefix` | `admission` | what keys in Redis begin with |
//! | `store.deadline` | `25ms` | how long a call may take |
//! | `store.on_failure` | `open` | `open`, `closed` or `local share` (or `local_share`) |
//! | `store.replicas` | | how many there are; needed for `local share` |
//! | `clients.trusted_proxies` | none | networks whose `X-Forwarded-For` is believed, with no bits behind the prefix, see [`ClientIp::forwarded_by`] |
//! | `clients.trust_unix_socket` | false | believe peers on a Unix socket as well, see [`ClientIp::trust_unix_socket`] |
//! | `clients.trusted_hops` | none | or believe this number of proxies, wherever they are, see [`ClientIp::forwarded_hops`] |
//! | `clients.forwarded_header` | `x-forwarded-for` | or `forwarded` (RFC 7239), in any case, or `single X-Real-IP`: a header with one address, see [`ForwardingHeader::single_address`] |
//! | `clients.ipv6_prefix` | 64 | how much of an IPv6 address counts |
//! | `lists.deny` | none | keys, addresses and networks that are answered 403, see [below](#lists) |
//! | `lists.allow` | none | keys, addresses and networks that are exempt from rates and from limits per key |
//! | `lists.enabled` | true | `false` switches off all bans and exemptions, also those that are set at run time |
//! | `lists.allow_header` | none | a header and a value by which a trusted proxy exempts requests: `X-Internal: probe`. Needs `clients.trusted_proxies` or `clients.trust_unix_socket` |
//! | `admin.token` | | the token of an operator of the admin endpoints who is called `admin` and may write, see [`Admission::admin`](Admission#method.admin); at least 16 bytes |
//! | `admin.tokens.<name>.token` | | the token of an operator of this name |
//! | `admin.tokens.<name>.role` | | what the operator may do: `read` or `write` |
//! | `allow_empty` | false | with `groups = {}`: the file means to have no groups, and a reload may take all limits away, see [below](#changes) |
//! | `groups.<name>.path` | any | requests whose path begins with it, in whole segments, or with one of a list: `/api`, `/users/{id}`, see [below](#groups). `off`: only a layer that the program makes for the group ([`Admission::layer_of`]) puts requests in it, or `also` |
//! | `groups.<name>.methods` | all | only requests with these methods: `["POST", "PUT"]` |
//! | `groups.<name>.hosts` | all | only requests to these hosts: `["api.example.com", "*.example.com"]` |
//! | `groups.<name>.grpc` | none | calls of these gRPC methods: `["pkg.Service/Method", "pkg.Service/*", "pkg.*"]`; next to `path`, requests that fit either |
//! | `groups.<name>.also` | none | groups whose limits its requests are under as well, see [below](#several-groups-for-one-request) |
//! | `groups.<name>.name` | the group's | what clients read: "`name` is currently at capacity."; what metrics and [`Limits`](tower_admission::Limits) call it, see [below](#names) |
//! | `groups.<name>.concurrency` | 0, off | how many may be in flight |
//! | `groups.<name>.concurrency_per_key` | 0, off | and of each key |
//! | `groups.<name>.concurrency_per_ip` | 0, off | and of each address, however many keys it uses; requests that were admitted while it is off do not count in it |
//! | `groups.<name>.reclaim_after` | `60s` | after what time a response that its client does not read loses its permit to a request that needs it, see [`reclaim_after`]; or `off`. A response that stalled while it was off keeps its permit |
//! | `groups.<name>.rate` | off | a [`Quota`], called as the group is: `600/min burst 50` |
//! | `groups.<name>.rates` | none | or several, as one: `{ burst = "10/s", daily = "50000/day" }`, called `name.burst` and `name.daily` |
//! | `groups.<name>.tiers.<tier>.rate` | | another quota for requests of a [tier](tower_admission::Policy::tier), which the program [says](AdmissionBuilder::tier_by) |
//! | `groups.<name>.tiers.<tier>.rates` | | or several; a rate that the tier does not name keeps its default, and `off` lifts it: `rate = "off"` all of them. A rate that the group has as well is sliding in both or in none |
//! | `groups.<name>.rate_per_ip` | off | a quota for the address in the same decision, called `name.ip` |
//! | `groups.<name>.bad_credentials_per_ip` | off | a quota of 401 and 403 answers for each address, see [`guard_by_ip`] |
//! | `groups.<name>.key` | `token` | which key is charged, see [below](#keys) |
//! | `groups.<name>.cost` | the program's, else `one` | what a request costs: `one`, or a cost that the program [names](AdmissionBuilder::cost_by) |
//! | `groups.<name>.exclude` | none | paths that are not limited, with the paths below them, see [below](#paths) |
//! | `groups.<name>.headers` | `draft` | or `draft-6`, `legacy`, `legacy-epoch`, `off`: see [`RateLimitHeaders`] |
//! | `groups.<name>.retry_after_ms` | false | whether rejections have `retry-after-ms`, in milliseconds, next to `Retry-After` |
//! | `groups.<name>.on_failure` | the store's | what becomes of this group's requests when the store is away |
//! | `groups.<name>.count` | all | count only requests that are answered so, see [`count_if`]: `4xx`, `401, 403`, or all others with `!2xx`; of several parts any without a `!`, and none with one: `4xx, !404` |
//! | `groups.<name>.dry_run` | false | decide, tell observers, and admit every request |
//! | `groups.<name>.enforce` | 100 | the percentage of keys for which the group's limits are enforced, see [`enforce`]; not next to `dry_run = true` |
//! | `groups.<name>.enabled` | true | `false` switches off the limits of the group, but not those of `also`, see [below](#switches) |
//! | `leases.<name>.per_tenant` | 0, off | how much work of a tenant may run at a time, see [`Admission::leases`] |
//! | `leases.<name>.total` | 0, off | and in all |
//! | `leases.<name>.ttl` | `60s` | how long work counts without a heartbeat |
//! | `sockets.<name>.connections` | 0, off | how many WebSockets there may be, see [`Admission::sockets`] (feature `ws`) |
//! | `sockets.<name>.connections_per_key` | 0, off | and of each key |
//! | `sockets.<name>.messages` | off | a quota for the messages of each connection: `100/min` |
//! | `sockets.<name>.messages_per_key` | off | and of each key over all its connections |
//! | `leases.<name>.on_failure`, `sockets.<name>.on_failure` | the store's | what becomes of them when the store is away. Connections are often worth `closed` where requests are `open` |
//! | `leases.<name>.enabled`, `sockets.<name>.enabled` | true | `false` switches off their limits |
//! | `limits."<key>"` | none | overrides under those that are set at run time: `"org:acme" = "1000/min"`, or a table as [`LimitsTable`] has it. `tower-admission limits export` writes them |
//! | `enabled` | true | `false` switches off all limits of the file, see [below](#switches). The variable is `ADMISSION_ENABLED` |
//!
//! # Groups
//!
//! A request is in at most one group: the most specific of those that select it, whatever their order in the file.
//! A group that has none of `path`, `methods`, `hosts` and `grpc` selects nothing; it is for
//! [`Admission::layer_of`] and for `also`.
//!
//! 1. **The host** decides first: a name before a `*.`, a longer `*.` before a shorter one, and these before groups
//!    without `hosts`. `*.example.com` are all hosts below `example.com`, at any depth, and not `example.com` itself.
//! 2. **Then the path**, segment by segment from the left: a text before a gRPC package, that before a `{parameter}`, that before
//!    `{*rest}`, and all of them before a path that has ended. So of prefixes the longest decides. A group
//!    without a path comes last.
//! 3. **Then the method**: a group that names it before one that does not. `GET` is also `HEAD`, as in axum, unless
//!    a group of the same path names `HEAD`.
//!
//! Two groups that are equal in all three are an error.
//!
//! **A path is a prefix**, also with parameters: `/users/{id}` is `/users/7`, `/users/7/` and `/users/7/orders`, and not
//! `/users`. `{id}` stands for one segment that is not empty, and `{*rest}` for all that is left, which is not empty: `/files/{*rest}`
//! is not `/files`. Names of parameters mean nothing.
//!
//! **Methods of gRPC are paths** with two segments, `/package.Service/Method`. Whether a request says that it is gRPC
//! does not matter: servers answer also where `content-type` says otherwise. `pkg.*` includes the packages below `pkg`.
//!
//! **A host is compared** without its port and in any case. It is that of `:authority`, of a URI in absolute form, or of
//! `Host`; no other header is read. A request that names several hosts (two `Host` headers, or one that differs from
//! the URI) is a request for each of them, as servers differ in which they take. It is in the group that limits
//! both rate and concurrency before one that limits only one of them, and that before one that rejects nothing, as an ambiguous path
//! [below](#paths). Four names are looked at: a request with more of them may be for any host. A client can send any host: unless a proxy or your router answers only for
//! those in the file, have a group without `hosts` for the others.
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
//! A request to `/api` is under the limits of `api`, then of `global`, then of the groups that `global` names in its `also`: at most
//! 4 groups. Each group has one limit, which all that name it share. An unknown group, one that is there
//! twice, and a circle are errors.
//!
//! - **Rates are one decision**: a request that does not fit all of them takes nothing from any. Rate-limit fields
//!   report all.
//! - **Permits are taken in order**, and given back together. If one is missing, those before it are given back.
//! - **A rejection names the group** whose limit rejects, in its answer, in logs and in metrics. An admitted request is
//!   counted for its own group.
//! - **The limits of a named group stay as they are there**: its `key`, `tiers`, `count`, `dry_run` and `enforce`,
//!   `bad_credentials_per_ip`, and what its `exclude` takes out of its rates and permits. So `dry_run = true` tries out a `global`
//!   limit while those of `api` are enforced.
//! - **What is done with a request is up to its own group**: `headers`, `retry_after_ms`, `cost`; and what its
//!   `exclude` covers is under none of the groups.
//! - **`on_failure` has to be the same** in those of these groups that have rates, since one decision is about them.
//!
//! # Names
//!
//! Limits of single keys name groups, rates and tiers, as in `api=20/s, tier=pro`. So a group's `name`, with a dot and
//! a rate's behind it where it has `rates`, and a tier's name have 1 to 64 bytes of printable ASCII without `,` and
//! `=`, with no space at their ends, and are not `tier`. Any other is an error.
//!
//! # Keys
//!
//! Each key but `ip` and `shared` falls back to the client address of `[clients]` when it is absent or
//! unusable.
//!
//! | `key` | charges |
//! |---|---|
//! | `token` | the bearer token, else `X-Api-Key`, as [`ByToken::default`](tower_admission::ByToken) |
//! | `bearer` | the bearer token, and ignores `X-Api-Key`: [`ByToken::bearer_only`](tower_admission::ByToken::bearer_only) |
//! | `api-key` | `X-Api-Key`, and ignores `Authorization`: [`ByToken::api_key_only`](tower_admission::ByToken::api_key_only) |
//! | `ip` | the client address |
//! | `shared` | one key for all requests |
//! | `header X-User` | the identity that a trusted proxy wrote into this header: [`TrustedHeader`](tower_admission::TrustedHeader). Needs `clients.trusted_proxies` or `clients.trust_unix_socket` |
//! | any other word | the key that the program names so: [`AdmissionBuilder::key_by`] |
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
//! An entry is a [`KeyName`](tower_admission::KeyName), and optionally an end in RFC 3339:
//! `"ip:203.0.113.7 until 2026-12-01T00:00:00Z"`. A ban with an end answers with `Retry-After`. The lists apply to all requests that pass the layer, also of no group, on
//! `exclude`d paths and in a dry run, next to the entries of [`Admission::limits`] that change at run time: see
//! [`access`](tower_admission::access) for which entry decides, and what an exemption is. Keys are looked up by the bearer token,
//! by `X-Api-Key`, by all keys that the program [names](AdmissionBuilder::key_by), and by the headers that groups have
//! as `header X-User`. A reload applies changed lists at once and logs what was added and removed. In metrics they are
//! the limiter `lists`.
//!
//! A key that is in one list twice is an error, and so are `shared` and `unknown`, by which no request is looked up. Of a
//! key in both lists the ban counts. Keys of a header are named in lowercase, as `x-user:eve`; another spelling is an
//! error, also in `[limits]`.
//!
//! # Paths
//!
//! A path is compared as the client wrote it, in whole segments. A path is *ambiguous* if it has a `.` or `..`
//! segment, plain or percent-encoded once (`%2e`, `..%2f`, `..%5c`, `..\`, `..;x`), or an empty segment before its end
//! (`//api`): servers differ in which path they take it for. Such a request counts as limited:
//!
//! - `exclude` never covers it.
//! - **With dot segments** it is in the strictest group that it may reach: of the groups whose paths have only segments
//!   that occur in it, in any order and decoded. A server can drop, decode and split segments, but it adds none, so
//!   each group that any server may take it for is among these. With more than 128 segments it may reach all groups.
//! - **With empty segments alone** it is in the stricter of two groups: that of the path as written, and that of the path
//!   without them.
//! - The strictest group is one that limits both rate and concurrency, then one that limits only one of them, then one
//!   that does so for a share of the keys (`enforce`), then one that rejects nothing, as in a dry run. `bad_credentials_per_ip` counts as a rate, and the limits of groups in
//!   `also` count as well. Of equals it is the group of the decoded path with its dot segments resolved (RFC 3986
//!   §5.2.4), then that of the path as written, then the first one by its name in the file.
//! - It counts in one group only, though a router may send it to a route of another one. So limit the same sorts
//!   of things in all groups with routes that accept any path below them.
//!
//! With `path = "/api"` and `exclude = "/api/status"`, these are limited: `/api/status/../chat`,
//! `/static/%2e%2e/api/chat`, `/api/../health`, `/api//status`.
//!
//! # Switches
//!
//! `enabled = false` is for incidents: what it covers rejects nothing. Its rates, concurrency, leases, connections and
//! messages are unlimited, **also for keys with an override and for tiers**, whether they are of the file or were set at
//! run time. A part such as `api=deny all` is a limit as well. Overrides can still be set and imported.
//!
//! **What is counted meanwhile**: requests in flight, connections and leases. Rates and messages are not charged, and
//! responses have no rate-limit fields. With a store, requests and connections of that time are counted in their replica
//! alone: once limits are on again, other replicas do not see connections that were opened meanwhile, for as long as
//! these live. `concurrency_per_ip` does not count requests of that time.
//!
//! **What was used before stays used**, with two exceptions: `bad_credentials_per_ip` starts anew, so addresses that were
//! blocked can guess again; and of more than 64 groups with rates that are switched off in one file, all but the last 64
//! start anew.
//!
//! **Bans are no limits, and stay**: the entries of `[lists]`, and keys that are wholly `deny all` or `unlimited` at run
//! time. A key that is wholly `deny all` also gets no lease and opens no WebSocket; its connections that are there can
//! send. `lists.enabled = false`, or `ADMISSION_LISTS__ENABLED=false`, switches off the bans of requests. A key's
//! `deny all` then is a limit as any other, in groups that limit; leases and WebSockets go on to reject it.
//!
//! **A running service takes the switch from its file.** The variable `ADMISSION_ENABLED` is read at start only, so it
//! needs a restart, and `ADMISSION_ENABLED=true` hides `enabled = false` of the file. What is switched off is logged as
//! WARN at start and in each reload. The gauge `admission_limits_enabled` is 0 while the whole file is switched off.
//!
//! # Limits that are off
//!
//! [`AdmissionBuilder::build`] logs one line for each group that has limits which are off (0, or not there),
//! as `tracing` event of level INFO: `these limits are off group="api" off="concurrency, rate_per_ip"`.
//!
//! # The environment
//!
//! Each field can be set, and goes before the file, as `ADMISSION_` and its path in capitals, with two
//! underscores for a dot: `ADMISSION_GROUPS__API__RATE="20/s"`,
//! `ADMISSION_CLIENTS__TRUSTED_PROXIES="10.0.0.0/8, 192.168.0.0/16"`. So names of groups,
//! rates and tiers that the environment is to reach are lowercase. Variables without two underscores are not read,
//! except `ADMISSION_ENABLED`: it is the only field at the top that a variable sets. The environment is read at start
//! only.
//!
//! A variable is text, which is read as its field is: a token is as it stands there, a number is digits, and
//! a boolean is `true` or `false`. Nothing else is made of what is written: in the file
//! `1.9` and `true` are no whole numbers, and `17` is no text. (A date is: it is read as its text in RFC 3339.)
//!
//! # What is wrong is told at start
//!
//! An unknown field, a quota that is none, a network that is none, two groups that select the same, two groups or
//! quotas of one name: loading is an error that names the file with line and column, or the variable; the field; what is
//! written there; and what would be right: `gateway.toml:3:8: groups.api.rate: "10/fortnight" is no quota: units are ..`.
//! What is written there is not told where it may be a secret.
//!
//! # What has no effect is warned of
//!
//! [`Config::warnings`] lists it. It is logged when limits are made and on reload, as `tracing` events of level WARN,
//! and `tower-admission config check` prints it. With [`AdmissionBuilder::deny_warnings`] and `config check --strict` it
//! is an error.
//!
//! - There are no groups, leases and sockets, so nothing limits other keys than those of `[lists]` and `[limits]`.
//!   `groups = {}` with `allow_empty = true` means it.
//! - A group selects no requests: it has none of `path`, `methods`, `hosts` and `grpc`, and no group has it in `also`.
//!   The program may put requests in it all the same, by [`Admission::layer_of`], which no
//!   configuration shows: `path = "off"` means it. So this is not logged before [`Admission::layer`] or
//!   [`Admission::follow`] is called, and not of groups that have a layer then.
//! - A group has no limit. One that is 0 or `off` is switched off, and only [logged](#limits-that-are-off).
//! - A path of `exclude` is outside of its group's paths, or it is all of them.
//! - A variable makes a group that the file does not name, and that selects no requests; or one that differs from a group
//!   of the file in case alone, as `ADMISSION_GROUPS__UPPER__RATE` does from `[groups.Upper]`.
//! - A variable has single underscores: `ADMISSION_GROUPS_API_RATE`.
//! - `store` has settings, such as a secret, and no URL; or there is an `on_failure` without one.
//! - An override of `[limits]` has a part about a limit that the configuration does not have, as `apii=10/s`, or a tier
//!   that it does not have, as `tier=prro`. Requests of that key have the defaults then.
//! - A variable hides a field of the file that has another value. In a reload, a change of such a field is logged.
//! - `clients.forwarded_header` is given, and no proxy is trusted.
//!
//! Two of these [may be meant](ConfigWarning::may_be_meant), and are never errors: a hidden field, and the name of a limit
//! or a tier that is like no other one, as the program may have limits and tiers of its own.
//!
//! Variables that Kubernetes makes of a service called `admission-store`, such as `ADMISSION_STORE_SERVICE_HOST`, are not
//! warned of.
//!
//! # Changes
//!
//! [`Admission::reload`] and [`Admission::follow`] apply a changed file whole or not at all: with a bad
//! file what is running goes on. A file that is followed counts once it is the same twice in a row, a second
//! apart, so one that is empty or half-written for a moment changes nothing.
//!
//! A change takes no limits away by accident:
//!
//! - From some groups to none is an error, unless `allow_empty = true` and `groups = {}` are written. Files are compared
//!   with files: what variables set does not hide that a file was emptied.
//! - In a file, so is a group, a `[leases.<name>]` or a `[sockets.<name>]` that had limits and has none any more, not even as
//!   0; and a group that selects nothing any more, if that is not `path = "off"`.
//! - So is a file without `[limits]`, `[lists]`, `[leases]` or `[sockets]` that had entries there: an empty table
//!   means it. `[limits]` with none of its entries left needs `allow_empty = true` as well, as its header can be the last
//!   line of a file that was cut. `deny = []` means that there are no bans any more, and `trusted_proxies = []` that there are no proxies.
//! - A service does not start with a file that has none of these tables and no groups, whatever variables add. At start
//!   there is nothing to compare the file with. A file that is cut before its first group or within a group is
//!   [warned of](#what-has-no-effect-is-warned-of): [`AdmissionBuilder::deny_warnings`] makes that an error, and
//!   `tower-admission config check --strict` finds it before.
//! - Not found are a cut between two entries of `[limits]`, a number that was cut (`enforce = 100` to `enforce = 1`), and
//!   at start a cut between two groups.
//! - What appears, disappears and changes is logged, group by group, with fields and values; of `store` and
//!   `admin` without the values.
//! - [`Admission::last_reload`] says how the last one went, also of a file that is followed, and so do the metrics
//!   `admission_config_last_reload_successful` and `admission_config_last_reload_success_timestamp_seconds` (feature
//!   `metrics`).
//!
//! Requests in flight are not touched, and what is used stays used: of a bucket that is lowered as much as it
//! holds then, where it is counted in memory. A group is known by its `name`, whatever it
//! is called in the file. Its rates go on for as long as they have the same names, those of the
//! tiers included, and each is [sliding](tower_admission::Quota::sliding), or is not, as before; a tier that is added, changed or
//! taken out changes nothing for requests of the others, unless a group had 16 other tiers before. They also go on when they were off for a while, or
//! their group was gone, unless a rate of one of these names was used with others meanwhile; the last 64 are kept
//! for this. Any other rate is a new one, and in memory begins with nothing used, and so does the `concurrency` of
//! a group that was gone. What addresses used of `bad_credentials_per_ip` stays used until that is switched off, or changed
//! to sliding or back, or its group is gone. So does what is used of a group that others name, when they begin or cease
//! to. The `store` and a group's `on_failure` are those of the start. Changed `admin` tokens count from the next request
//! on.
//!
//! [`ClientIp::forwarded_by`]: tower_admission::ClientIp::forwarded_by
//! [`ClientIp::forwarded_hops`]: tower_admission::ClientIp::forwarded_hops
//! [`ClientIp::trust_unix_socket`]: tower_admission::ClientIp::trust_unix_socket
//! [`ForwardingHeader::single_address`]: tower_admission::extract::ForwardingHeader::single_address
//! [`RedisStore::connect`]: tower_admission_redis::RedisStore::connect
//! [`Quota`]: tower_admission::Quota
//! [`RateLimitHeaders`]: tower_admission::RateLimitHeaders
//! [`guard_by_ip`]: tower_admission::RateLimitLayer::guard_by_ip
//! [`count_if`]: tower_admission::RateLimitLayer::count_if
//! [`enforce`]: tower_admission::RateLimitLayer::enforce
//! [`reclaim_after`]: tower_admission::ConcurrencyLimitLayer::reclaim_after

mod admin;
mod admission;
mod also;
mod ambiguous;
mod builder;
mod changing;
mod check;
mod cost;
mod document;
mod entries;
mod error;
#[cfg(feature = "metrics")]
mod evictions;
#[cfg(feature = "axum")]
mod explain;
mod follow;
mod group;
mod kept;
mod key;
mod layer;
mod leases;
mod lists;
mod load;
mod model;
mod names;
mod off;
mod origin;
mod overrides;
mod path;
mod policies;
mod reload;
mod reloaded;
mod routes;
mod selectors;
mod sockets;
mod sorts;
mod statuses;
mod stores;
mod sync;
mod text;
mod time;
mod variables;
mod warning;
mod written;

pub use self::admission::Admission;
pub use self::builder::AdmissionBuilder;
pub use self::error::ConfigError;
pub use self::follow::Following;
pub use self::layer::{AdmissionLayer, AdmissionService};
pub use self::model::Config;
pub use self::overrides::LimitsTable;
pub use self::reloaded::LastReload;
pub use self::warning::{ConfigWarning, WarningKind};

/// The README's code compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
