//! Errors of changes to overrides.

use std::fmt;
use std::sync::Arc;

use super::{Limits, Override};
use crate::key::IpNet;
use crate::store::{FailureKind, StoreError};

/// The error of a change to an override.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum LimitsError {
    /// [`Limits::MAX_OVERRIDES`] keys have an override.
    TooMany,
    /// The overrides would have more than [`Limits::MAX_RATES`] distinct rates.
    TooManyRates,
    /// The override names a tier that is not declared.
    UnknownTier {
        /// The tier that the override names.
        tier: Arc<str>,
        /// The declared tiers.
        known: Vec<Arc<str>>,
    },
    /// A network accepts only `deny all` and `unlimited`, because no request is charged to it.
    Network {
        /// The network.
        network: IpNet,
    },
    /// An address in NAT64, 6to4 or Teredo form cannot be exempted. Its key is that of the embedded
    /// IPv4 address, which any client of a relay can choose. See [`access`](crate::access).
    Embedded {
        /// The network of the IPv4 address.
        network: IpNet,
    },
    /// The override differs from the condition [`LimitEdit::only_if`](super::LimitEdit::only_if).
    Changed {
        /// The current override.
        current: Option<Box<Override>>,
    },
    /// This version of the crate cannot read the override in the store; a later version may have
    /// written it. So the condition [`LimitEdit::only_if`](super::LimitEdit::only_if) cannot be
    /// checked. A change without a condition replaces the override.
    Unreadable,
    /// The shared store failed to make or read the change.
    Unavailable(StoreError),
}

impl LimitsError {
    pub(super) fn changed(current: Option<Override>) -> Self {
        Self::Changed {
            current: current.map(Box::new),
        }
    }
}

impl fmt::Display for LimitsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooMany => write!(
                f,
                "the maximum of {} overrides is reached: delete one first",
                Limits::MAX_OVERRIDES
            ),
            Self::TooManyRates => {
                let most = Limits::MAX_RATES;
                write!(
                    f,
                    "the maximum of {most} distinct rates is reached: use a rate of another override"
                )
            }
            Self::UnknownTier { tier, known } => {
                write!(
                    f,
                    "unknown tier {tier:?}; declared tiers: {}",
                    known.join(", ")
                )
            }
            Self::Network { network } => write!(
                f,
                "ip:{network} is a network, which takes `deny all` or `unlimited` only"
            ),
            Self::Embedded { network } => {
                let address = network.address();
                write!(
                    f,
                    "this IPv6 address embeds the IPv4 address {address}, which belongs to another client: \
                     to exempt that client, write ip:{address}"
                )
            }
            Self::Changed { current: Some(current) } => {
                write!(f, "the override was changed meanwhile, to {}", current.limit())
            }
            Self::Changed { current: None } => f.write_str("the override was deleted meanwhile"),
            Self::Unreadable => f.write_str(
                "this version cannot read the override of this key in the store, so it was not changed",
            ),
            Self::Unavailable(error) => {
                write!(f, "the store that keeps the overrides {}", why(error.kind()))
            }
        }
    }
}

/// The cause, without details that clients must not see.
fn why(kind: FailureKind) -> &'static str {
    match kind {
        FailureKind::Denied => "denies the credentials or the command: check its user and ACL",
        FailureKind::ReadOnly => "is a read-only replica: check the address of the primary",
        FailureKind::OutOfMemory => "has no memory left: raise maxmemory, or delete keys",
        FailureKind::Busy => "is busy: it loads its data, or runs a script",
        FailureKind::WrongData => "has other data under these names: check the prefix",
        FailureKind::TooOld => "is too old: the service's log has the version that it needs",
        FailureKind::Unsupported => {
            "does not support a command: check that the address is no proxy"
        }
        FailureKind::Timeout => "did not answer in time: the change may have been made",
        FailureKind::Tls => {
            "accepts no TLS connection: check the port, the host name and the certificates"
        }
        _ => "cannot be reached, or rejects the call: the service's log has the cause",
    }
}

impl std::error::Error for LimitsError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::TooMany
            | Self::TooManyRates
            | Self::UnknownTier { .. }
            | Self::Network { .. }
            | Self::Embedded { .. }
            | Self::Changed { .. } => None,
            Self::Unreadable => None,
            Self::Unavailable(error) => Some(error),
        }
    }
}
