//! The settings of the layer that do not affect what is counted.

use std::sync::Arc;
use std::time::Duration;

use super::layer::RateLimitLayer;
use crate::drain::DrainRejectedLayer;
use crate::enforce::Enforcement;
use crate::extract::{ClientIp, KeyExtractor, RequestHead, ResponseHead};
use crate::headers::RateLimitHeaders;
use crate::observe::Observer;
use crate::respond::Responder;

impl<K: KeyExtractor> RateLimitLayer<K> {
    /// Sets which response fields report the limits. Default: [`RateLimitHeaders::Draft`].
    pub fn headers(self, headers: RateLimitHeaders) -> Self {
        self.with(|settings| settings.dialect = headers)
    }

    /// Sets whether handlers find a [`RateLimitStatus`](super::RateLimitStatus) in the request's
    /// extensions. Default: true, unless headers are off. Costs one or two allocations per request.
    pub fn status(self, status: bool) -> Self {
        self.with(|settings| settings.status = Some(status))
    }

    /// Sets the cost of a request. Default: 1.
    ///
    /// A request of cost 0 is admitted and charged nothing. A request that costs more than the
    /// burst of a quota can never fit: it is rejected without `Retry-After` and charged nothing.
    pub fn cost(self, cost: impl Fn(RequestHead<'_>) -> u32 + Send + Sync + 'static) -> Self {
        self.with(|settings| settings.cost = Some(Arc::new(cost)))
    }

    /// Skips the requests for which `skip` returns true: they are not counted and get no rate-limit
    /// fields.
    ///
    /// ```
    /// # use tower_admission::{Quota, RateLimitByTokenLayer};
    /// let layer = RateLimitByTokenLayer::new(Quota::per_second(10))
    ///     .skip(|head| matches!(head.uri.path(), "/health" | "/metrics"));
    /// ```
    pub fn skip(self, skip: impl Fn(RequestHead<'_>) -> bool + Send + Sync + 'static) -> Self {
        self.with(|settings| settings.skip = Some(Arc::new(skip)))
    }

    /// Selects the [tier](crate::Limits::tier) of a request. Default: none, so the defaults of the
    /// policy apply. The defaults also apply to a tier that is not declared, which is logged.
    ///
    /// **Each tier has its own buckets.** Select the tier by data of the application, such as the
    /// plan that authentication found, or the path of a route with a separate budget. Do not select
    /// it by a header or a parameter that the client chooses: a client that tries all tiers can use
    /// the quotas of all of them together. A tier that is stored for the key takes precedence.
    ///
    /// ```
    /// # use tower_admission::{Policy, Quota, RateLimitByTokenLayer};
    /// #[derive(Clone)]
    /// struct Plan(String);
    ///
    /// let policy = Policy::from(Quota::per_minute(10)).tier("pro", Quota::per_minute(600));
    /// let layer = RateLimitByTokenLayer::new(policy)
    ///     .tier_by(|head| Some(&head.extensions.get::<Plan>()?.0));
    /// ```
    pub fn tier_by(
        self,
        tier: impl for<'a> Fn(RequestHead<'a>) -> Option<&'a str> + Send + Sync + 'static,
    ) -> Self {
        self.with(|settings| settings.tier_by = Some(Arc::new(tier)))
    }

    /// Counts only requests whose response `counts` accepts: only failures, only successes, or only
    /// real calls. Default: every admitted request counts.
    ///
    /// A request is charged before the call, so that requests in flight cannot exceed the limit.
    /// The whole charge is refunded if the response does not count. The rate-limit fields of the
    /// response have the numbers after the refund. A request without a response counts: when the
    /// client disconnects, and when the inner service fails. This applies to all keys and quotas of
    /// the layer, and to additional [charges](super::RateLimitStatus::charge) by the handler.
    ///
    /// While many requests are in flight, some may be rejected although none of them counts in the
    /// end: leave room for them in the burst.
    ///
    /// With a [store](Self::store) that replies later, such as Redis, the response waits for two
    /// calls, each bounded by the store's deadline: the refund, and the new numbers. If the client
    /// disconnects during this wait, the refund may be lost and the request counts. It also counts
    /// if the store fails at that moment.
    ///
    /// In gRPC the HTTP status is 200 for most failures. The code of a call that fails without a
    /// message (trailers-only) is in `response.headers["grpc-status"]`; the trailers of other calls
    /// come too late.
    ///
    /// Failed logins per address:
    ///
    /// ```
    /// # use tower_admission::{ClientIp, Quota, RateLimitLayer};
    /// let logins = RateLimitLayer::by(ClientIp::peer(), Quota::per_hour(10))
    ///     .count_if(|response| response.status == 401);
    /// ```
    ///
    /// Calls of a paid service, except answers from a cache:
    ///
    /// ```
    /// # use tower_admission::{Quota, RateLimitByTokenLayer};
    /// #[derive(Clone)]
    /// struct FromCache; // the handler adds it to the response's extensions
    ///
    /// let layer = RateLimitByTokenLayer::new(Quota::per_day(1000))
    ///     .count_if(|response| response.extensions.get::<FromCache>().is_none());
    /// ```
    pub fn count_if(
        self,
        counts: impl Fn(ResponseHead<'_>) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.with(|settings| settings.count_if = Some(Arc::new(counts)))
    }

    /// Enforces only `percent` of the rejections, to introduce a limit gradually. Default: 100.
    ///
    /// Other requests that do not fit are admitted, and observers get
    /// [`would_reject`](Observer::would_reject) for them. They are charged to no quota. So while a
    /// key exceeds a limit that is not enforced for it, the other keys of its requests are not
    /// charged either, and their limits do not bound it.
    ///
    /// The choice is made per key, so that one client does not see random rejections: at 25, the
    /// limit is enforced for a quarter of the keys. If the limits of several keys reject, one
    /// enforced key is enough. Clients cannot compute the choice, and replicas with the same
    /// [`Secret`](crate::Secret) agree. A key stays enforced when the percentage rises. Requests
    /// that share one key, such as those of [`Shared`](crate::extract::Shared), are enforced in
    /// rotation: at 25, every fourth rejection.
    ///
    /// 0 is a [dry run](Self::dry_run). The setting also applies to the [guard](Self::guard_by_ip).
    ///
    /// # Panics
    ///
    /// Panics when `percent` is above 100.
    #[track_caller]
    pub fn enforce(self, percent: u8) -> Self {
        let enforce = Enforcement::new(percent);
        self.with(|settings| settings.enforce = enforce)
    }

    /// Makes decisions and informs observers, but admits every request and adds no rate-limit
    /// fields. Default: false. Use it to try out a limit.
    ///
    /// `true` is [`enforce(0)`](Self::enforce), `false` is `enforce(100)`: the last of the two
    /// settings applies.
    pub fn dry_run(self, dry_run: bool) -> Self {
        self.enforce(if dry_run {
            Enforcement::DRY_RUN
        } else {
            Enforcement::ALL
        })
    }

    /// Sets the name of the limiter in metrics and logs. Default: empty.
    pub fn name(self, name: &str) -> Self {
        self.with(|settings| settings.name = name.into())
    }

    /// Sets the responder for rejected requests. Default:
    /// [`Negotiated`](crate::respond::Negotiated).
    pub fn respond(self, responder: impl Responder) -> Self {
        self.with(|settings| settings.answers.set_responder(responder))
    }

    /// Reads the rest of a rejected request's body before it sends the rejection, as
    /// [`ConcurrencyLimitLayer::drain_rejected`](crate::ConcurrencyLimitLayer::drain_rejected)
    /// does. Default: off. Call it last, because it returns another layer.
    ///
    /// The request keeps the permit of an outer concurrency layer meanwhile.
    pub fn drain_rejected(self, max_bytes: u64, max_time: Duration) -> DrainRejectedLayer<Self> {
        DrainRejectedLayer::new(self, max_bytes, max_time)
    }

    /// Sets whether a rejection with `Retry-After` also has `retry-after-ms`, in milliseconds,
    /// rounded up. Default: false.
    ///
    /// Clients of Azure and OpenAI read it first, so that they wait 100 ms where `Retry-After`
    /// would say a second. If a responder sets `Retry-After`, the field is not added.
    pub fn retry_after_ms(self, retry_after_ms: bool) -> Self {
        self.with(|settings| settings.answers.set_retry_after_ms(retry_after_ms))
    }

    /// Adds an observer. Default: none.
    pub fn observe(self, observer: impl Observer) -> Self {
        self.with(|settings| settings.observers.add(observer))
    }

    /// Sets how [observers](Self::observe) find the client's address, for
    /// [`Subject::client_address`](crate::observe::Subject::client_address). Default: the peer of
    /// the connection. Behind a proxy, use the same [`ClientIp`] as for the layer's keys. It does
    /// not change the charged keys.
    pub fn client_ip(self, client_ip: ClientIp) -> Self {
        self.with(|settings| settings.observers.set_client_ip(client_ip))
    }
}
