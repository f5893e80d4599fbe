//! The settings of the layer that do not change what is counted.

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

    /// Whether handlers find a [`RateLimitStatus`](super::RateLimitStatus) in the request's extensions. Default: they
    /// do unless headers are off. Costs an allocation or two.
    pub fn status(self, status: bool) -> Self {
        self.with(|settings| settings.status = Some(status))
    }

    /// What a request costs. Default: 1.
    ///
    /// A request of cost 0 is admitted and takes nothing. One that costs more than the burst of a quota is rejected
    /// without `Retry-After`, because it can never fit, and takes nothing.
    pub fn cost(self, cost: impl Fn(RequestHead<'_>) -> u32 + Send + Sync + 'static) -> Self {
        self.with(|settings| settings.cost = Some(Arc::new(cost)))
    }

    /// Lets requests through that this says `true` to; they are not counted and get no headers.
    ///
    /// ```
    /// # use tower_admission::{Quota, RateLimitByTokenLayer};
    /// let layer = RateLimitByTokenLayer::new(Quota::per_second(10))
    ///     .skip(|head| matches!(head.uri.path(), "/health" | "/metrics"));
    /// ```
    pub fn skip(self, skip: impl Fn(RequestHead<'_>) -> bool + Send + Sync + 'static) -> Self {
        self.with(|settings| settings.skip = Some(Arc::new(skip)))
    }

    /// Selects the [tier](crate::Limits::tier) of a request. Default: none, so that the defaults of the policy
    /// apply. A tier that is not declared is none, too, and is logged.
    ///
    /// **Each tier counts apart.** Select it by what the application knows, such as the plan that authentication
    /// found, or the path of a route with a budget of its own; not by a header or a parameter that the client
    /// can choose, since a client that tries all tiers has the numbers of all of them. A tier that is
    /// stored for the key goes before this one.
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

    /// Counts only requests whose response `counts` accepts: only failures, only successes, or
    /// only real calls. Default: every admitted request counts.
    ///
    /// A request is charged before the call, so that requests in flight cannot exceed the limit,
    /// and everything it was charged is refunded when the response does not count. The response's
    /// rate-limit fields have the numbers after the refund. A request without a response counts:
    /// when the client hangs up, and when the inner service fails. Applies to all keys and quotas
    /// of the layer, and to what the handler [charged](super::RateLimitStatus::charge) in addition.
    ///
    /// While many requests are in flight, some may be rejected although none of them counts in the
    /// end: leave room for them in the burst.
    ///
    /// With a [store](Self::store) that answers later, such as Redis, the response waits for two
    /// calls, each bounded by the store's deadline: the refund, and the new numbers. When the
    /// client hangs up while the response waits, the refund may be lost; then the request counts.
    /// It also counts when the store fails at that moment.
    ///
    /// In gRPC the status is the HTTP status, which is 200 for most failures. The code of a call
    /// that fails without a message (trailers-only) is in `response.headers["grpc-status"]`; the
    /// trailers of other calls come too late.
    ///
    /// Failed logins, by address:
    ///
    /// ```
    /// # use tower_admission::{ClientIp, Quota, RateLimitLayer};
    /// let logins = RateLimitLayer::by(ClientIp::peer(), Quota::per_hour(10))
    ///     .count_if(|response| response.status == 401);
    /// ```
    ///
    /// Calls of a paid service, without the answers from a cache:
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
    /// The other requests that do not fit are admitted, and observers get
    /// [`would_reject`](Observer::would_reject) for them. They take nothing from any quota: while
    /// a key is over its limit that is not enforced, the other keys of its requests are not charged either, so
    /// their limits do not bound it.
    ///
    /// The key whose limit rejects decides whether the limit is enforced, so that one client does
    /// not see its requests rejected by chance: at 25, the limit is enforced for a quarter of the
    /// keys. Where the limits of several keys reject, one enforced key is enough. Clients cannot compute which, and replicas with the same [`Secret`](crate::Secret)
    /// agree. A key stays enforced when the percentage rises. Requests that share one key, such as
    /// those of [`Shared`](crate::extract::Shared), are taken in turn instead: at 25, every fourth
    /// rejection is enforced.
    ///
    /// 0 is a [dry run](Self::dry_run). Applies to the [guard](Self::guard_by_ip) as well.
    ///
    /// # Panics
    ///
    /// When `percent` is above 100.
    #[track_caller]
    pub fn enforce(self, percent: u8) -> Self {
        let enforce = Enforcement::new(percent);
        self.with(|settings| settings.enforce = enforce)
    }

    /// Decides and tells observers, but admits every request and adds no rate-limit fields.
    /// Default: off. To try out a limit.
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

    /// What the limiter is called in metrics and logs. Default: nothing.
    pub fn name(self, name: &str) -> Self {
        self.with(|settings| settings.name = name.into())
    }

    /// Sets how rejected requests are answered. Default: [`Negotiated`](crate::respond::Negotiated).
    pub fn respond(self, responder: impl Responder) -> Self {
        self.with(|settings| settings.answers.set_responder(responder))
    }

    /// Reads the rest of a rejected request's body before it sends the rejection, as
    /// [`ConcurrencyLimitLayer::drain_rejected`](crate::ConcurrencyLimitLayer::drain_rejected) does.
    /// Default: off. Call it last, as it returns another layer.
    ///
    /// A permit of a concurrency layer outside of this one is held meanwhile.
    pub fn drain_rejected(self, max_bytes: u64, max_time: Duration) -> DrainRejectedLayer<Self> {
        DrainRejectedLayer::new(self, max_bytes, max_time)
    }

    /// Sets whether a rejection with a `Retry-After` also has `retry-after-ms`, in milliseconds,
    /// rounded up. Default: false.
    ///
    /// Clients of Azure and OpenAI read it first, so that a wait of 100 ms does not become a second.
    /// A responder that sets `Retry-After` itself gets no field beside it.
    pub fn retry_after_ms(self, retry_after_ms: bool) -> Self {
        self.with(|settings| settings.answers.set_retry_after_ms(retry_after_ms))
    }

    /// Adds an observer. Default: none.
    pub fn observe(self, observer: impl Observer) -> Self {
        self.with(|settings| settings.observers.add(observer))
    }

    /// Sets how [observers](Self::observe) find the address of a request's client, for
    /// [`Subject::client_address`](crate::observe::Subject::client_address). Default: the connection's
    /// peer. Behind a proxy, give it what the layer's keys go by. It does not change what is charged.
    pub fn client_ip(self, client_ip: ClientIp) -> Self {
        self.with(|settings| settings.observers.set_client_ip(client_ip))
    }
}
