//! The settings of the layer: the wait queue, stalled responses, and answers.

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
    /// Lets up to `max_waiting` requests wait for capacity, each for up to `max_time`, in order of
    /// arrival. Default: no request waits.
    ///
    /// If the wait queue is full, a request is rejected at once. A client that disconnects leaves
    /// the queue. Keep the queue short: each waiting request holds a connection and its memory. A
    /// waiting request counts against its [key's limit](Self::per_key).
    ///
    /// # Panics
    ///
    /// A request that has to wait panics outside a tokio runtime with a time driver.
    pub fn wait(self, max_waiting: usize, max_time: Duration) -> Self {
        self.with(|shared| {
            shared.wait = Some(WaitLimits {
                max_waiting,
                max_time,
            });
        })
    }

    /// Sets when a request stops counting. Default: when its response body has ended.
    pub fn hold_until(self, hold_until: HoldUntil) -> Self {
        self.with(|shared| shared.hold_until = hold_until)
    }

    /// Reads the rest of a rejected request's body before it sends the rejection. Default: off.
    /// Call it last, because it returns another layer.
    ///
    /// Many clients write the whole body before they read. When a server answers earlier and closes
    /// the connection, such a client sees a connection error in place of the rejection: of 20
    /// uploads of 4 MiB over HTTP/1, one client saw 0 rejections, and 20 of 20 with this setting.
    /// With bodies above 64 KiB, HTTP/2 clients are affected more.
    ///
    /// The rejection is sent when the body has ended, when it exceeds `max_bytes`, or after
    /// `max_time`. It is sent at once when the body is empty or is known to exceed `max_bytes`,
    /// when the client asks first (`Expect: 100-continue`), or while [64
    /// bodies](DrainRejectedLayer::MAX_DRAINING) are being read. A request that is being read holds
    /// no permit, no quota and no task. It costs about 0.25 ms of processor time per MiB. Observers
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
    /// A request whose body is read panics outside a tokio runtime with a time driver.
    pub fn drain_rejected(self, max_bytes: u64, max_time: Duration) -> DrainRejectedLayer<Self> {
        DrainRejectedLayer::new(self, max_bytes, max_time)
    }

    /// Sets the time after which a response that its client does not read loses its permit to a
    /// request that needs it. Default: [one
    /// minute](crate::ConcurrencyLimiter::DEFAULT_RECLAIM_AFTER). `None` or zero turns it off; then
    /// a client that stops reading holds its permit for as long as its connection lives.
    ///
    /// A response is *stalled* after it returned a frame, until the server polls it for the next
    /// one. A response that waits for its handler is never stalled: a server-sent event stream that
    /// is silent for minutes keeps its permit. So does a response that was never polled for a
    /// frame, as with hyper before 1.10 when an HTTP/2 client has a window of 0. No permit is taken
    /// while there is capacity. When a request finds no capacity, or waits for it, the response
    /// that has been stalled for longest is ended with an error: HTTP/1 closes the connection,
    /// HTTP/2 resets the stream. For a [key](Self::per_key) at its limit it is a response of the
    /// same key.
    ///
    /// A client keeps its response if it reads one frame within this time over HTTP/2, and about
    /// 1.5 MB over HTTP/1, where the buffers of the server and the kernel hide slower reading: 25
    /// KB/s with the default. A larger frame must be read completely within this time. A smaller
    /// send buffer of the listener (`SO_SNDBUF` 64 KiB) reduces this to about 0.5 MB.
    ///
    /// The request that needs the permit drops the body of the ended response. This drop must not
    /// wait for a lock that a caller of the limiter holds.
    ///
    /// A response whose first frame is its last one is never stalled, and costs nothing. Each
    /// further frame costs one read of the clock. Data of an ended response that the server has
    /// buffered, up to half a megabyte over HTTP/1, stays until its connection ends, so a server
    /// needs a write timeout as well. At most four times the limit, or 256 if that is more, are
    /// ended but still connected. Over HTTP/2 a write timeout ends nothing: see the
    /// [guide](crate::guide::streaming#clients-that-do-not-read).
    pub fn reclaim_after(self, stalled: Option<Duration>) -> Self {
        let stalled = stalled.filter(|stalled| !stalled.is_zero());
        self.configuration.limiter.set_reclaim_after(stalled);
        self
    }

    /// Sets the `Retry-After` of rejections at capacity and of keys at their limit, in whole
    /// seconds, rounded up. `None` or zero sends no `Retry-After`.
    ///
    /// Default: [one second](crate::ConcurrencyLimiter::DEFAULT_RETRY_AFTER), because the time
    /// until capacity is free is unknown.
    pub fn retry_after(self, wait: Option<Duration>) -> Self {
        self.with(|shared| shared.limiter = shared.limiter.clone().retry_after(wait))
    }

    /// Adds a random time of at most `jitter` to the `Retry-After` of each rejection at capacity
    /// (503), so that clients rejected together do not retry together. Default: zero.
    ///
    /// Use several seconds, because `Retry-After` is in whole seconds. Has no effect without a
    /// [`retry_after`](Self::retry_after).
    pub fn retry_after_jitter(self, jitter: Duration) -> Self {
        self.with(|shared| shared.limiter = shared.limiter.clone().retry_after_jitter(jitter))
    }

    /// Sets whether a rejection with `Retry-After` also has `retry-after-ms`; see
    /// [`RateLimitLayer::retry_after_ms`](crate::RateLimitLayer::retry_after_ms). Default: false.
    pub fn retry_after_ms(self, retry_after_ms: bool) -> Self {
        self.with(|shared| shared.answers.set_retry_after_ms(retry_after_ms))
    }

    /// Enforces only `percent` of the rejections, to introduce a limit gradually. Default: 100.
    ///
    /// Other requests above the limit are admitted and not counted, and observers get
    /// [`would_reject`](Observer::would_reject) for them. Above a [per-key](Self::per_key) limit
    /// the choice is made per key, as in
    /// [`RateLimitLayer::enforce`](crate::RateLimitLayer::enforce): the total does not bound a key
    /// either that exceeds its limit and is not enforced. At capacity, requests are enforced in
    /// rotation: at 25, every fourth rejection. At every percentage above 0, stalled responses are
    /// [ended](Self::reclaim_after) for requests that need their permits.
    ///
    /// 0 is a [dry run](Self::dry_run).
    ///
    /// # Panics
    ///
    /// Panics when `percent` is above 100.
    #[track_caller]
    pub fn enforce(self, percent: u8) -> Self {
        let enforce = Enforcement::new(percent);
        self.with(|shared| {
            let is_dry_run = enforce.is_dry_run();
            shared.limiter = shared.limiter.clone().spares_stalled(is_dry_run);
            shared.enforce = enforce;
        })
    }

    /// Makes decisions and informs observers, but admits every request. Default: false. Use it to
    /// try out a limit.
    ///
    /// No request [waits](Self::wait) on a dry run. Only requests that the limit would have
    /// admitted are counted, so `in_flight` stays within the limit. A response that its client does
    /// not read is not ended: it continues and no longer counts.
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

    /// Skips the requests for which `skip` returns true: they are not counted.
    pub fn skip(self, skip: impl Fn(RequestHead<'_>) -> bool + Send + Sync + 'static) -> Self {
        self.with(|shared| shared.skip = Some(Arc::new(skip)))
    }

    /// Selects the [tier](crate::Limits::tier) of a request. A tier sets how many requests each key
    /// may have in flight, if the layer's [limits](Self::limits) declare the tier and it names this
    /// limiter. Default: none.
    ///
    /// A key has one count in all tiers; the tier selects the limit to compare it with. A tier that
    /// is stored for the key takes precedence. Select the tier by data that the client cannot
    /// choose.
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

    /// Sets the responder for rejected requests. Default:
    /// [`Negotiated`](crate::respond::Negotiated).
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

    /// Sets how [observers](Self::observe) find the client's address, for
    /// [`Subject::client_address`](crate::observe::Subject::client_address). Default: the peer of
    /// the connection. Behind a proxy, use the same [`ClientIp`] as for the layer's keys. It does
    /// not change the charged keys.
    pub fn client_ip(self, client_ip: ClientIp) -> Self {
        self.with(|shared| shared.observers.set_client_ip(client_ip))
    }
}
