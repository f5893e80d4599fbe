//! Settings of the layer: waiting, stalled responses, and how rejections are answered.

use std::sync::Arc;
use std::time::Duration;

use super::layer::{ConcurrencyLimitLayer, HoldUntil};
use crate::drain::DrainRejectedLayer;
use crate::enforce::Enforcement;
use crate::extract::{ClientIp, RequestHead};
use crate::limiter::WaitLimits;
use crate::observe::Observer;
use crate::respond::Responder;

impl ConcurrencyLimitLayer {
    /// Lets up to `max_waiting` requests wait for capacity, each for up to `max_time`, first come
    /// first served. Default: no request waits.
    ///
    /// When the wait queue is full a request is rejected at once. A client that goes away leaves the
    /// queue. Keep it short: each waiting request holds a connection and its memory. A request that
    /// waits counts against its [key's limit](Self::per_key).
    ///
    /// # Panics
    ///
    /// A request that has to wait panics outside of a tokio runtime, or in one without time.
    pub fn wait(self, max_waiting: usize, max_time: Duration) -> Self {
        self.with(|shared| {
            shared.wait = Some(WaitLimits {
                max_waiting,
                max_time,
            });
        })
    }

    /// When a request stops counting. Default: when its response body has ended.
    pub fn hold_until(self, hold_until: HoldUntil) -> Self {
        self.with(|shared| shared.hold_until = hold_until)
    }

    /// Reads the rest of a rejected request's body before it sends the rejection. Default: off.
    /// Call it last, as it returns another layer.
    ///
    /// Many clients write the whole body before they read. When a server answers earlier and closes
    /// the connection, such a client sees a connection error in place of the rejection: of
    /// 20 uploads of 4 MiB over HTTP/1, one client saw 0 rejections, and 20 of 20 with this. With
    /// bodies above 64 KiB, HTTP/2 clients are worse off.
    ///
    /// The rejection is sent when the body has ended, when more than `max_bytes` of it came, or after
    /// `max_time`. It is sent at once when the body is empty or is known to exceed `max_bytes`,
    /// when the client asks first (`Expect: 100-continue`), or while
    /// [64 bodies](DrainRejectedLayer::MAX_DRAINING) are being read. A request that is being read holds no
    /// permit, no quota and no task; it costs about 0.25 ms of processor time per MiB. Observers
    /// see the rejection before the body is read.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_admission::ConcurrencyLimitLayer;
    /// let layer = ConcurrencyLimitLayer::new(64)
    ///     .name("Uploads")
    ///     .drain_rejected(16 << 20, Duration::from_secs(10));
    /// ```
    ///
    /// # Panics
    ///
    /// A request whose body is read panics outside of a tokio runtime, or in one without time.
    pub fn drain_rejected(self, max_bytes: u64, max_time: Duration) -> DrainRejectedLayer<Self> {
        DrainRejectedLayer::new(self, max_bytes, max_time)
    }

    /// Sets after what time a response that its client does not read loses its permit to a request
    /// that needs it. Default: [one minute](crate::ConcurrencyLimiter::DEFAULT_RECLAIM_AFTER). `None` or
    /// zero turns it off; then a client that stops reading holds its permit for as long as its connection
    /// lives.
    ///
    /// A response is *stalled* while it has handed over a frame and has not been asked for the next
    /// one. A response that waits for its handler is never stalled, however long that takes: a
    /// server-sent event stream that is silent for minutes keeps its permit. So does a response that
    /// was never asked for a frame, as with hyper before 1.10 when an HTTP/2 client has a window of 0.
    /// Nothing is taken
    /// while there is capacity. When a request finds none, or waits for it, the response that has been
    /// stalled for longest is ended with an error: HTTP/1 cuts the connection off, HTTP/2 resets the
    /// stream. For a [key](Self::per_key) at its limit it is a response of the same key.
    ///
    /// A client is not cut off as long as it reads one frame in this time over HTTP/2, and about
    /// 1.5 MB over HTTP/1, where the buffers of the server and the kernel hide slower reading: 25 KB/s
    /// with the default. A frame that is larger has to be read whole in this time. A smaller send
    /// buffer of the listener (`SO_SNDBUF` 64 KiB) makes that about 0.5 MB.
    ///
    /// The request that needs the permit drops the body of the ended response, so this drop must not
    /// wait for a lock that a caller of the limiter holds.
    ///
    /// A response whose first frame is its last one is never stalled, and costs nothing. Each
    /// further frame costs one look at the clock. What the server has buffered of an ended
    /// response, up to half a megabyte over HTTP/1, stays until its connection ends, so a server
    /// needs a write timeout as well; at most four times the limit, or 256 if that is more, are ended
    /// and not gone. Over HTTP/2 a write timeout ends nothing: see the
    /// [guide](crate::guide::streaming#clients-that-do-not-read).
    pub fn reclaim_after(self, stalled: Option<Duration>) -> Self {
        let stalled = stalled.filter(|stalled| !stalled.is_zero());
        self.described.limiter.set_reclaim_after(stalled);
        self
    }

    /// Sets the wait in the rejections of a service at capacity and of a key at its limit, in whole
    /// seconds, rounded up; `None` or zero for none.
    ///
    /// Default: [one second](crate::ConcurrencyLimiter::DEFAULT_RETRY_AFTER), as the time until capacity is
    /// free cannot be known.
    pub fn retry_after(self, wait: Option<Duration>) -> Self {
        self.with(|shared| shared.limiter = shared.limiter.clone().retry_after(wait))
    }

    /// Adds a random time of at most `jitter` to the wait of each rejection at capacity (503), so that
    /// clients which are rejected together do not come back together. Default: zero.
    ///
    /// Use several seconds: `Retry-After` has whole ones. A rejection without a
    /// [wait](Self::retry_after) stays without.
    pub fn retry_after_jitter(self, jitter: Duration) -> Self {
        self.with(|shared| shared.limiter = shared.limiter.clone().retry_after_jitter(jitter))
    }

    /// Sets whether a rejection with a `Retry-After` also has `retry-after-ms`; see
    /// [`RateLimitLayer::retry_after_ms`](crate::RateLimitLayer::retry_after_ms). Default: false.
    pub fn retry_after_ms(self, retry_after_ms: bool) -> Self {
        self.with(|shared| shared.answers.set_retry_after_ms(retry_after_ms))
    }

    /// Enforces only `percent` of the rejections, to introduce a limit gradually. Default: 100.
    ///
    /// The other requests above the limit are admitted and not counted, and observers get
    /// [`would_reject`](Observer::would_reject) for them. Over a [per-key](Self::per_key) limit the
    /// key decides whether the limit is enforced, as in
    /// [`RateLimitLayer::enforce`](crate::RateLimitLayer::enforce): a key that is not enforced and is
    /// over its limit is not bounded by the total either. At capacity, requests are taken in turn: at
    /// 25, every fourth rejection is enforced. At every percentage above 0, responses that clients do
    /// not read are [ended](Self::reclaim_after) for requests that need their permits.
    ///
    /// 0 is a [dry run](Self::dry_run).
    ///
    /// # Panics
    ///
    /// When `percent` is above 100.
    #[track_caller]
    pub fn enforce(self, percent: u8) -> Self {
        let enforce = Enforcement::new(percent);
        self.with(|shared| {
            let is_dry_run = enforce.is_dry_run();
            shared.limiter = shared.limiter.clone().spares_stalled(is_dry_run);
            shared.enforce = enforce;
        })
    }

    /// Decides and tells observers, but admits every request. Default: off. To try out a limit.
    ///
    /// No request [waits](Self::wait) then. What is counted is what the limit would have admitted, so
    /// `in_flight` stays within it.
    /// A response that its client does not read is not ended: it goes on and counts no more.
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

    /// Lets requests through that this says `true` to; they are not counted.
    pub fn skip(self, skip: impl Fn(RequestHead<'_>) -> bool + Send + Sync + 'static) -> Self {
        self.with(|shared| shared.skip = Some(Arc::new(skip)))
    }

    /// Selects the [tier](crate::Limits::tier) of a request: how many the request's keys may have in flight, if
    /// the layer's [limits](Self::limits) declare the tier and it names this limiter. Default: none.
    ///
    /// A key has one count in all tiers; the tier selects the number that it is compared with. A tier that is stored
    /// for the key goes before this one. Select it by what the client cannot choose.
    ///
    /// ```
    /// use tower_admission::{ByToken, ConcurrencyLimitLayer, Limits};
    ///
    /// #[derive(Clone)]
    /// struct Plan(String);
    ///
    /// let limits = Limits::new().tier("pro", "jobs=20 concurrent");
    /// let layer = ConcurrencyLimitLayer::new(64)
    ///     .name("jobs")
    ///     .per_key(ByToken::default(), 4)
    ///     .limits(&limits)
    ///     .tier_by(|head| Some(&head.extensions.get::<Plan>()?.0));
    /// ```
    pub fn tier_by(
        self,
        tier: impl for<'a> Fn(RequestHead<'a>) -> Option<&'a str> + Send + Sync + 'static,
    ) -> Self {
        self.with(|shared| shared.tier_by = Some(Arc::new(tier)))
    }

    /// Sets how rejected requests are answered. Default: [`Negotiated`](crate::respond::Negotiated).
    pub fn respond(self, responder: impl Responder) -> Self {
        self.with(|shared| shared.answers.set_responder(responder))
    }

    /// Adds an observer. Default: none.
    pub fn observe(self, observer: impl Observer) -> Self {
        self.with(|shared| {
            shared.observers.add(observer);
            let observers = Arc::new(shared.observers.clone());
            shared.limiter = shared.limiter.clone().observed(observers);
        })
    }

    /// Sets how [observers](Self::observe) find the address of a request's client, for
    /// [`Subject::client_address`](crate::observe::Subject::client_address). Default: the connection's
    /// peer. Behind a proxy, give it what the layer's keys go by. It does not change what is charged.
    pub fn client_ip(self, client_ip: ClientIp) -> Self {
        self.with(|shared| shared.observers.set_client_ip(client_ip))
    }
}
