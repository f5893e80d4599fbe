//! The layer: which lists apply, and how requests are found on them.

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

/// Rejects requests of a deny list, and exempts those of an allow list from the limits inside.
///
/// See the [module](super) for what lists are, which entry decides, and what a banned client sees.
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
/// Put it outside of all other layers of this crate. Addresses are those of the connection's peer unless
/// [`client_ip`](Self::client_ip) says which proxies to trust: behind a proxy, a ban of one client would otherwise never
/// match. Keep the endpoints by which lists are changed outside of the layer, so that a ban cannot lock you out.
#[derive(Clone, Debug)]
#[must_use = "a layer does nothing until it is added to a service"]
pub struct AccessLayer {
    gate: Arc<Gate>,
}

impl AccessLayer {
    /// Applies the entries of these limits that are `deny all` or `unlimited`, as they are at the time of a request.
    pub fn new(limits: &Limits) -> Self {
        Self {
            gate: Arc::new(Gate::new(limits)),
        }
    }

    fn with(mut self, change: impl FnOnce(&mut Gate)) -> Self {
        change(Arc::make_mut(&mut self.gate));
        self
    }

    /// Sets how the client address is found. Default: [`ClientIp::peer`]. Its
    /// [`v6_prefix`](ClientIp::v6_prefix) does not matter here: entries have prefixes of their own.
    pub fn client_ip(self, client_ip: ClientIp) -> Self {
        self.with(|gate| gate.set_client_ip(client_ip))
    }

    /// Looks up the key that this extractor finds as well; of a second call both. Default: addresses alone.
    ///
    /// A key on the allow list exempts its request even from a banned network, so extract what a client cannot make
    /// up: a token, or an identity that was verified. An address that the extractor falls back to is not looked at.
    pub fn key(self, key: impl KeyExtractor) -> Self {
        self.with(|gate| gate.keys.push(Arc::new(key)))
    }

    /// Exempts requests in which a trusted proxy wrote exactly this value into a header. Default: none. The last call
    /// counts.
    ///
    /// From any other peer the header is ignored, which is logged once. A ban goes before it. The proxy has to remove
    /// the header that a client sends.
    pub fn allow_header(self, header: TrustedHeader, value: &str) -> Self {
        let allow = AllowHeader::new(header, value);
        self.with(|gate| gate.allow_header = Some(Arc::new(allow)))
    }

    /// What the layer is called in metrics and logs. Default: nothing.
    pub fn name(self, name: &str) -> Self {
        self.with(|gate| gate.name = name.into())
    }

    /// Sets how banned requests are answered. Default: [`Negotiated`](crate::respond::Negotiated).
    pub fn respond(self, responder: impl Responder) -> Self {
        self.with(|gate| gate.answers.set_responder(responder))
    }

    /// Adds an observer, which sees bans as rejections, and [exemptions](Observer::exempted). Requests on no list it
    /// does not see. Default: none.
    pub fn observe(self, observer: impl Observer) -> Self {
        self.with(|gate| gate.observe(observer))
    }

    /// Reads the rest of a banned request's body before it sends the rejection, as
    /// [`ConcurrencyLimitLayer::drain_rejected`](crate::ConcurrencyLimitLayer::drain_rejected) does.
    /// Default: off. Call it last, as it returns another layer.
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
