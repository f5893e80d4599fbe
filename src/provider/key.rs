//! What other crates read of a [`Key`].

use crate::key::{IpNet, Key};

/// For the admin endpoints: the address of a key, and an order of keys.
pub trait KeyInternals {
    /// The addresses that an address or a network stands for.
    fn as_network(&self) -> Option<IpNet>;

    /// The network that this key is, if no request can be charged to it.
    fn uncharged_network(&self) -> Option<IpNet>;

    /// The 128 bits of the key. They cannot be predicted outside the process.
    fn bits(&self) -> u128;
}

impl KeyInternals for Key {
    fn as_network(&self) -> Option<IpNet> {
        self.as_network()
    }

    fn uncharged_network(&self) -> Option<IpNet> {
        self.uncharged_network()
    }

    fn bits(&self) -> u128 {
        self.bits()
    }
}
