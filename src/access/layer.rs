//! The layer: the lists that apply, and how to look up requests on them.

use std::sync::Arc;
use std::time::Duration;

use tower_layer::Layer;

use super::gate::{AllowHeader, Gate};
use super::service::Access;
use crate::drain::DrainRejectedLayer;
use crate::extract::{ClientIp, KeyExtractor, TrustedHeader};
use crate::limits::Limits;
use crate::observe::Observer;
use crate::respond::Responder;

/// Rejects requests on a deny list, and exempts requests on an allow list from the inner limits.
///
/// The [module](super) describes the lists, which entry decides, and what a banned client sees.
///
/// ```
/// use tower_admission::{AccessLayer, ByToken, ClientIp, Limits};
/// use tower_admission::extract::{IpNet, TrustedHeader};
///
/// let limits = Limits::new();
/// let proxies: [IpNet; 1] = ["10.0.0.0/8".parse().unwrap()];
/// let layer = AccessLayer::new(&limits)
///     .client_ip(ClientIp::forwarded_by(proxies))
///     .key(ByToken::default())
///     .allow_header(TrustedHeader::new("x-internal", proxies), "probe");
/// ```
///
/// # Deployment
///
/// Put it outside all other layers of this crate. The client address is the peer of the connection.
/// Behind a proxy, set the trusted proxies with [`client_ip`](Self::client_ip); otherwise a ban of
/// one client never matches. Keep the endpoints that change lists outside the layer, so that a ban
/// cannot lock you out.
#[derive(Clone, Debug)]
#[must_use = "a layer does nothing until it is added to a service"]
pub struct AccessLayer {
    gate: Arc<Gate>,
}

impl AccessLayer {
    /// Applies the entries of `limits` that are `deny all` or `unlimited`. Changes of `limits`
    /// apply to the next request.
    pub fn new(limits: &Limits) -> Self {
        Self {
            gate: Arc::new(Gate::new(limits)),
        }
    }

    fn with(mut self, change: impl FnOnce(&mut Gate)) -> Self {
        change(Arc::make_mut(&mut self.gate));
        self
    }

    /// Sets how to find the client address. Default: [`ClientIp::peer`]. Its
    /// [`v6_prefix`](ClientIp::v6_prefix) is ignored, because each entry has its own prefix.
    pub fn client_ip(self, client_ip: ClientIp) -> Self {
        self.with(|gate| gate.set_client_ip(client_ip))
    }

    /// Adds an extractor whose keys are looked up too. Default: only addresses are looked up.
    ///
    /// A key on the allow list exempts its request even from a banned network. Extract a key that a
    /// client cannot make up: a token, or a verified identity. An address that the extractor falls
    /// back to is ignored.
    pub fn key(self, key: impl KeyExtractor) -> Self {
        self.with(|gate| gate.keys.push(Arc::new(key)))
    }

    /// Exempts requests in which a trusted proxy wrote exactly this value into a header. Default:
    /// none. The last call applies.
    ///
    /// From any other peer the header is ignored, which is logged once. A ban takes precedence. The
    /// proxy must remove a header that the client sends.
    pub fn allow_header(self, header: TrustedHeader, value: &str) -> Self {
        let allow = AllowHeader::new(header, value);
        self.with(|gate| gate.allow_header = Some(Arc::new(allow)))
    }

    /// Sets the name in metrics and logs. Default: empty.
    pub fn name(self, name: &str) -> Self {
        self.with(|gate| gate.name = name.into())
    }

    /// Sets the responder for banned requests. Default: [`Negotiated`](crate::respond::Negotiated).
    pub fn respond(self, responder: impl Responder) -> Self {
        self.with(|gate| gate.answers.set_responder(responder))
    }

    /// Adds an observer. It sees bans as rejections, and [exemptions](Observer::exempted), but not
    /// the other requests. Default: none.
    pub fn observe(self, observer: impl Observer) -> Self {
        self.with(|gate| gate.observe(observer))
    }

    /// Reads the rest of a banned request's body before it sends the rejection, as
    /// [`ConcurrencyLimitLayer::drain_rejected`](crate::ConcurrencyLimitLayer::drain_rejected)
    /// does. Default: off. Call it last, because it returns another layer.
    pub fn drain_rejected(self, max_bytes: u64, max_time: Duration) -> DrainRejectedLayer<Self> {
        DrainRejectedLayer::new(self, max_bytes, max_time)
    }
}

impl<S> Layer<S> for AccessLayer {
    type Service = Access<S>;

    fn layer(&self, inner: S) -> Access<S> {
        self.gate.apply();
        self.gate.tell_attached();
        Access::new(inner, self.gate.clone())
    }
}
