//! Why a limit could not be changed.

use std::fmt;
use std::sync::Arc;

use super::{Limits, Override};
use crate::key::IpNet;
use crate::store::{FailureKind, StoreError};

/// Why an override could not be set or deleted.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum LimitsError {
    /// [`Limits::MAX_OVERRIDES`] keys have an override already.
    TooMany,
    /// The overrides would have more than [`Limits::MAX_RATES`] distinct rates.
    TooManyRates,
    /// The override names a tier that is not declared.
    UnknownTier {
        /// The tier that it names.
        tier: Arc<str>,
        /// The tiers that are declared.
        known: Vec<Arc<str>>,
    },
    /// A network takes `deny all` and `unlimited` only, since no request is charged to it.
    Network {
        /// The network.
        network: IpNet,
    },
    /// An address that is written as NAT64, 6to4 or Teredo is not exempted: its key is that of the IPv4 address inside,
    /// which any client of a relay can choose. See [`access`](crate::access).
    Embedded {
        /// The network of the IPv4 address.
        network: IpNet,
    },
    /// The override is not the one that [`LimitEdit::only_if`](super::LimitEdit::only_if) said.
    Changed {
        /// The override as it is.
        current: Option<Box<Override>>,
    },
    /// The store has an override of the key that this version of the crate cannot read, as one of a later version, so
    /// that it is not known whether it is the one that [`LimitEdit::only_if`](super::LimitEdit::only_if) said. A change
    /// without this condition replaces it.
    Unreadable,
    /// The shared store that holds the overrides did not make or read the change.
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
            Self::TooMany => write!(f, "{} keys have an override already", Limits::MAX_OVERRIDES),
            Self::TooManyRates => {
                let most = Limits::MAX_RATES;
                write!(
                    f,
                    "the overrides have {most} distinct rates already: use one of these"
                )
            }
            Self::UnknownTier { tier, known } => {
                write!(
                    f,
                    "there is no tier {tier:?}; there are: {}",
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
                    "this IPv6 address stands for the IPv4 address {address}, which is another client's: to exempt that \
                     one, write ip:{address}"
                )
            }
            Self::Changed { current: Some(own) } => {
                write!(f, "the override was changed meanwhile, to {}", own.limit())
            }
            Self::Changed { current: None } => f.write_str("the override was deleted meanwhile"),
            Self::Unreadable => f.write_str(
                "the store has an override of this key that this version cannot read, so it was not changed",
            ),
            Self::Unavailable(error) => {
                write!(f, "Redis, which keeps the limits, {}", why(error.kind()))
            }
        }
    }
}

/// Why Redis did not change or read limits, without the details, which clients may not see.
fn why(kind: FailureKind) -> &'static str {
    match kind {
        FailureKind::Denied => "denies the credentials or the command: check its user and ACL",
        FailureKind::ReadOnly => "is a read-only replica: check the address of the primary",
        FailureKind::OutOfMemory => "has no memory left: raise maxmemory, or delete keys",
        FailureKind::Busy => "is busy: it loads its data, or runs a script",
        FailureKind::WrongData => "has other data under these names: check the prefix",
        FailureKind::TooOld => "is too old: this crate needs 6.2 or later",
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
