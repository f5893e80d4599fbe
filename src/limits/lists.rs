//! The entries on the allow and deny lists, and the entry that contains an address.

use std::net::IpAddr;
use std::time::Duration;

use super::{KeyOverrides, Limits, LimitsError};
use crate::capacity::Capacity;
use crate::key::{IpNet, Key, KeyName};
use crate::limit::Limit;
use crate::store::overrides::LimiterDescription;
use crate::sync::{AtomicU64, AtomicUsize, Mutex, Ordering, lock};

/// The list of an entry, see [`access`](crate::access).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listing {
    /// The deny list: requests are rejected.
    Denied,
    /// The allow list: requests are exempt from rates and from limits per key.
    Exempt,
}

impl Listing {
    /// The name for programs: `deny` or `allow`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Denied => "deny",
            Self::Exempt => "allow",
        }
    }

    /// The list for a key with this limit.
    pub(super) fn of(limit: &Limit) -> Option<Self> {
        Some(match limit.blanket_capacity()? {
            Capacity::Unlimited => Self::Exempt,
            Capacity::AtMost(_) => Self::Denied,
        })
    }
}

impl Limits {
    /// Whether a key is banned: its override is `deny all` for all limits.
    pub(crate) fn is_banned(&self, key: &Key) -> bool {
        let listing = self.find(key, Listing::of).flatten();
        listing == Some(Listing::Denied)
    }
}

/// An entry of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) listing: Listing,
    /// The key of the entry: a client's key, its address, or a network that contains the address.
    pub(crate) key: Key,
    /// The remaining time, in whole seconds, rounded up.
    pub(crate) ends_in: Option<Duration>,
}

impl Listed {
    /// The prefix length of a network; 0 for another key.
    pub(crate) fn prefix(&self) -> u8 {
        self.key.as_network().map_or(0, |network| network.prefix())
    }
}

/// The prefix lengths of the listed networks, so that an address is looked up once per length. The
/// networks themselves are in the table of all overrides.
#[derive(Default)]
pub(super) struct ListIndex {
    /// The number of all entries.
    len: AtomicUsize,
    /// The number of entries for keys that are not addresses.
    keys: AtomicUsize,
    v4: PrefixLengths,
    v6: PrefixLengths,
    /// Whether services look up requests here: [`BY_ADDRESS`], and [`BY_KEY`] as well.
    applied: AtomicU64,
}

const BY_ADDRESS: u64 = 1;
const BY_KEY: u64 = 2;

/// Prefix lengths from 0 to 128.
#[derive(Default)]
struct PrefixLengths {
    /// One bit for each length.
    used: [AtomicU64; 3],
    /// The number of networks of each length.
    networks: Mutex<Vec<usize>>,
}

impl ListIndex {
    /// Replaces, adds or removes an entry. The caller serializes changes.
    ///
    /// Both entries count while `exchange` runs, so that a request that finds an entry is never
    /// told that the lists are empty.
    pub(super) fn change(&self, was: Option<&Key>, is: Option<&Key>, exchange: impl FnOnce()) {
        if let Some(key) = is {
            self.len.fetch_add(1, Ordering::Relaxed);
            match self.lengths(key) {
                Some((lengths, prefix)) => lengths.add(prefix),
                None => _ = self.keys.fetch_add(1, Ordering::Relaxed),
            }
        }
        exchange();
        if let Some(key) = was {
            match self.lengths(key) {
                Some((lengths, prefix)) => lengths.remove(prefix),
                None => _ = self.keys.fetch_sub(1, Ordering::Relaxed),
            }
            self.len.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn lengths(&self, key: &Key) -> Option<(&PrefixLengths, u8)> {
        let network = key.as_network()?;
        Some((self.of_family(network.address()), network.prefix()))
    }

    fn of_family(&self, address: IpAddr) -> &PrefixLengths {
        match address {
            IpAddr::V4(_) => &self.v4,
            IpAddr::V6(_) => &self.v6,
        }
    }
}

impl PrefixLengths {
    fn add(&self, prefix: u8) {
        let mut networks = lock(&self.networks);
        let place = usize::from(prefix);
        if networks.len() <= place {
            networks.resize(place + 1, 0);
        }
        networks[place] += 1;
        self.used[place / 64].fetch_or(1 << (place % 64), Ordering::Relaxed);
    }

    fn remove(&self, prefix: u8) {
        let mut networks = lock(&self.networks);
        let place = usize::from(prefix);
        if let Some(networks) = networks.get_mut(place) {
            *networks -= 1;
            if *networks == 0 {
                self.used[place / 64].fetch_and(!(1 << (place % 64)), Ordering::Relaxed);
            }
        }
    }

    /// The lengths in use, the longest first.
    fn longest_first(&self) -> impl Iterator<Item = u8> {
        let words = (0..self.used.len()).rev();
        words.flat_map(|word| {
            let mut left = self.used[word].load(Ordering::Relaxed);
            std::iter::from_fn(move || {
                let bit = left.checked_ilog2()?;
                left &= !(1 << bit);
                // At most 128.
                Some((word * 64) as u8 + bit as u8)
            })
        })
    }
}

impl Limits {
    /// Creates other limits in memory with the same clock.
    pub(crate) fn beside(&self) -> Self {
        let mut limits = Self::new();
        if let Some(inner) = std::sync::Arc::get_mut(&mut limits.0) {
            inner.set_clock(self.0.clock.clone());
        }
        limits
    }

    /// Whether no entry is on a list: reads one counter.
    #[inline]
    pub(crate) fn has_no_lists(&self) -> bool {
        self.0.lists.len.load(Ordering::Relaxed) == 0
    }

    /// Records that a service looks up its requests on these lists, by address, and also by key if
    /// `by_key` is set.
    pub(crate) fn apply_lists(&self, by_key: bool) {
        let how = BY_ADDRESS | if by_key { BY_KEY } else { 0 };
        self.0.lists.applied.fetch_or(how, Ordering::Relaxed);
    }

    /// Records that no service does so any more.
    pub(crate) fn apply_no_lists(&self) {
        self.0.lists.applied.store(0, Ordering::Relaxed);
    }

    /// Whether both values share their overrides.
    pub(crate) fn is(&self, other: &Self) -> bool {
        std::sync::Arc::ptr_eq(&self.0, &other.0)
    }

    /// Whether a service of this process looks up its requests on these lists.
    pub(crate) fn are_lists_applied(&self) -> bool {
        self.0.lists.applied.load(Ordering::Relaxed) & BY_ADDRESS != 0
    }

    /// Whether any service looks up its requests on these lists: one of this process or, with a
    /// store, one that published so in the last day. If the store does not answer, assumes that one
    /// does.
    pub(crate) async fn are_lists_applied_anywhere(&self) -> bool {
        if let (false, Some(replica)) = (self.are_lists_applied(), &self.0.replica) {
            let published = replica.table.published().await;
            return published.map_or(true, |published| {
                published.contains(&LimiterDescription::Lists)
            });
        }
        self.are_lists_applied()
    }

    /// Whether a service looks up its requests by key as well.
    pub(crate) fn are_lists_applied_to_keys(&self) -> bool {
        self.0.lists.applied.load(Ordering::Relaxed) & BY_KEY != 0
    }

    /// Whether any listed key is not an address.
    pub(crate) fn lists_keys(&self) -> bool {
        self.0.lists.keys.load(Ordering::Relaxed) > 0
    }

    /// The entry of a key, if it is on a list.
    pub(super) fn listed(&self, key: &Key) -> Option<Listed> {
        self.find_override(key, |key_override| {
            let now = || self.0.clock.seconds();
            let ends_in = key_override
                .entry
                .end_seconds()
                .map(|end| end.saturating_sub(now()));
            Some(Listed {
                listing: Listing::of(key_override.entry.limit())?,
                key: *key,
                ends_in: ends_in.map(Duration::from_secs),
            })
        })?
    }

    /// The entry of the longest listed network that contains an address; the address itself is the
    /// longest. For a network, only entries that contain all of it count.
    ///
    /// Costs one lookup for each prefix length in use, at most 33 or 129.
    pub(super) fn listed_address(&self, address: IpNet) -> Option<Listed> {
        let lengths = self.0.lists.of_family(address.address()).longest_first();
        let mut lengths = lengths.filter(|prefix| *prefix <= address.prefix());
        lengths.find_map(|prefix| {
            let network = IpNet::new(address.address(), prefix).ok()?;
            self.listed(&Key::network(network))
        })
    }

    /// Sets or removes the overrides of a key. The caller serializes changes.
    pub(super) fn set_overrides_of(&self, key: &Key, overrides: Option<KeyOverrides>) {
        // Also an ended override, because the clock may be set back.
        let is_listed = |overrides: &KeyOverrides| {
            let mut all = overrides.all();
            all.any(|key_override| Listing::of(key_override.entry.limit()).is_some())
        };
        let is = overrides.as_ref().is_some_and(is_listed).then_some(key);
        let was = self.0.by_key.find(key, is_listed);
        let was = was.unwrap_or_default().then_some(key);
        let by_key = &self.0.by_key;
        (self.0.lists).change(was, is, || by_key.set(key, overrides));
    }

    /// Checks that a limit is allowed for a network, or for an IPv6 address that embeds an IPv4
    /// address.
    pub(crate) fn check_network(name: &KeyName, limit: &Limit) -> Result<(), LimitsError> {
        let embedded = name.key().as_network().filter(|_| name.is_embedded());
        if let Some(network) = embedded
            && Listing::of(limit) == Some(Listing::Exempt)
        {
            return Err(LimitsError::Embedded { network });
        }
        match name.key().uncharged_network() {
            Some(network) if Listing::of(limit).is_none() => Err(LimitsError::Network { network }),
            _ => Ok(()),
        }
    }
}
