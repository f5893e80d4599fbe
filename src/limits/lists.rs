//! Which entries are on the allow and deny lists, and the one of them that an address is in.

use std::net::IpAddr;
use std::time::Duration;

use super::{Limits, LimitsError, Owns};
use crate::capacity::Capacity;
use crate::key::{IpNet, Key, KeyName};
use crate::limit::Limit;
use crate::store::overrides::LimiterDescription;
use crate::sync::{AtomicU64, AtomicUsize, Mutex, Ordering, lock};

/// Which list an entry is on: see [`access`](crate::access).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listing {
    /// The deny list: requests are rejected.
    Denied,
    /// The allow list: requests are exempt from rates and from limits per key.
    Exempt,
}

impl Listing {
    /// A word for programs: `deny` or `allow`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Denied => "deny",
            Self::Exempt => "allow",
        }
    }

    /// That of a key with this limit.
    pub(super) fn of(limit: &Limit) -> Option<Self> {
        Some(match limit.blanket_capacity()? {
            Capacity::Unlimited => Self::Exempt,
            Capacity::AtMost(_) => Self::Denied,
        })
    }
}

impl Limits {
    /// Whether a key is banned: its override is wholly `deny all`.
    pub(crate) fn bans(&self, key: &Key) -> bool {
        let listing = self.find(key, Listing::of).flatten();
        listing == Some(Listing::Denied)
    }
}

/// An entry of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) listing: Listing,
    /// That of the entry: a client's key, its address, or a network that it is in.
    pub(crate) key: Key,
    /// How long it is there, in whole seconds, rounded up.
    pub(crate) ends_in: Option<Duration>,
}

impl Listed {
    /// How long the prefix of a network is; of a key 0.
    pub(crate) fn prefix(&self) -> u8 {
        self.key.as_network().map_or(0, |network| network.prefix())
    }
}

/// Which lengths the prefixes of listed networks have, so that an address is looked up once for each of them. Of
/// each length the networks are in the table of all entries.
#[derive(Default)]
pub(super) struct ListIndex {
    /// Entries of all sorts.
    len: AtomicUsize,
    /// Those of keys that are no addresses.
    keys: AtomicUsize,
    v4: Lengths,
    v6: Lengths,
    /// Whether services look requests up here: [`BY_ADDRESS`], and [`BY_KEY`] as well.
    applied: AtomicU64,
}

const BY_ADDRESS: u64 = 1;
const BY_KEY: u64 = 2;

/// Lengths of prefixes, from 0 to 128.
#[derive(Default)]
struct Lengths {
    /// A bit for each length.
    used: [AtomicU64; 3],
    /// How many networks have a length.
    networks: Mutex<Vec<usize>>,
}

impl ListIndex {
    /// Exchanges an entry for another one, or adds or removes it. Changes are the caller's to keep apart.
    ///
    /// Both count while `exchange` does it, so that a request which finds an entry is not told that there are none.
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

    fn lengths(&self, key: &Key) -> Option<(&Lengths, u8)> {
        let network = key.as_network()?;
        Some((self.of_family(network.address()), network.prefix()))
    }

    fn of_family(&self, address: IpAddr) -> &Lengths {
        match address {
            IpAddr::V4(_) => &self.v4,
            IpAddr::V6(_) => &self.v6,
        }
    }
}

impl Lengths {
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

    /// The lengths, the longest first.
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
    /// Other limits in memory, whose overrides end by the same clock.
    pub(crate) fn beside(&self) -> Self {
        let mut limits = Self::new();
        if let Some(inner) = std::sync::Arc::get_mut(&mut limits.0) {
            inner.set_clock(self.0.clock.clone());
        }
        limits
    }

    /// Whether no entry is on a list: by a look at a counter.
    #[inline]
    pub(crate) fn has_no_lists(&self) -> bool {
        self.0.lists.len.load(Ordering::Relaxed) == 0
    }

    /// Notes that a service looks its requests up on these lists, by their keys as well or by their addresses alone.
    pub(crate) fn apply_lists(&self, by_key: bool) {
        let how = BY_ADDRESS | if by_key { BY_KEY } else { 0 };
        self.0.lists.applied.fetch_or(how, Ordering::Relaxed);
    }

    /// Notes that none does so any more.
    pub(crate) fn apply_no_lists(&self) {
        self.0.lists.applied.store(0, Ordering::Relaxed);
    }

    /// Whether both share their overrides.
    pub(crate) fn is(&self, other: &Self) -> bool {
        std::sync::Arc::ptr_eq(&self.0, &other.0)
    }

    /// Whether a service of this process looks its requests up on these lists.
    pub(crate) fn are_lists_applied(&self) -> bool {
        self.0.lists.applied.load(Ordering::Relaxed) & BY_ADDRESS != 0
    }

    /// Whether a service looks its requests up on these lists: of this process, or with a store any that wrote so down in
    /// the last day. A store that does not answer is no reason to say that there is none.
    pub(crate) async fn are_lists_applied_anywhere(&self) -> bool {
        if let (false, Some(replica)) = (self.are_lists_applied(), &self.0.replica) {
            let published = replica.table.published().await;
            return published.map_or(true, |published| {
                published.contains(&LimiterDescription::Lists)
            });
        }
        self.are_lists_applied()
    }

    /// Whether it does so by the keys of requests as well.
    pub(crate) fn are_lists_applied_to_keys(&self) -> bool {
        self.0.lists.applied.load(Ordering::Relaxed) & BY_KEY != 0
    }

    /// Whether entries on a list are those of other keys than addresses.
    pub(crate) fn lists_keys(&self) -> bool {
        self.0.lists.keys.load(Ordering::Relaxed) > 0
    }

    /// The entry of a key, if it is on a list.
    pub(super) fn listed(&self, key: &Key) -> Option<Listed> {
        self.find_own(key, |own| {
            let now = || self.0.clock.seconds();
            let ends_in = own.entry.end_seconds().map(|end| end.saturating_sub(now()));
            Some(Listed {
                listing: Listing::of(own.entry.limit())?,
                key: *key,
                ends_in: ends_in.map(Duration::from_secs),
            })
        })?
    }

    /// The entry of the longest listed network that an address is in, the address itself being the longest. Of a
    /// network, those count that it is in as a whole.
    ///
    /// Costs a look-up for each length of prefix that an entry has, which are at most 33 or 129.
    pub(super) fn listed_address(&self, address: IpNet) -> Option<Listed> {
        let lengths = self.0.lists.of_family(address.address()).longest_first();
        let mut lengths = lengths.filter(|prefix| *prefix <= address.prefix());
        lengths.find_map(|prefix| {
            let network = IpNet::new(address.address(), prefix).ok()?;
            self.listed(&Key::network(network))
        })
    }

    /// Sets the overrides of a key, or that there are none. Changes are the caller's to keep apart.
    pub(super) fn set_owns(&self, key: &Key, owns: Option<Owns>) {
        // Also one that has ended, as the clock may be set back.
        let is_listed = |owns: &Owns| {
            let mut all = owns.all();
            all.any(|own| Listing::of(own.entry.limit()).is_some())
        };
        let is = owns.as_ref().is_some_and(is_listed).then_some(key);
        let was = self.0.by_key.find(key, is_listed);
        let was = was.unwrap_or_default().then_some(key);
        let by_key = &self.0.by_key;
        (self.0.lists).change(was, is, || by_key.set(key, owns));
    }

    /// Whether an entry is one that a network may have, or an IPv6 address with an IPv4 address inside.
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
