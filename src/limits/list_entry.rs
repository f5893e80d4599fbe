//! The entry of an allow or deny list that decides about a client.

use std::time::{Duration, SystemTime};

use super::lists::{Listed, Listing};
use super::{LimitSource, Limits};
use crate::key::{IpNet, Key, KeyName};
use crate::sync::lock;

/// The entry of an allow or deny list that decides about a client, before any limit does. See
/// [`access`](crate::access).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ListEntry {
    /// The key of the entry: the client's key, its address, or a network that contains the address.
    pub key: KeyName,
    /// The list of the entry.
    pub listing: Listing,
    /// [`Override`](LimitSource::Override) if it was set at run time, [`Base`](LimitSource::Base) if it is in the
    /// configuration.
    pub source: LimitSource,
    /// The end; `None` for an entry without one.
    pub end: Option<SystemTime>,
    /// The remaining time, in whole seconds, rounded up. It is the `Retry-After` of a banned
    /// client.
    pub ends_in: Option<Duration>,
}

impl Limits {
    /// The entry of these allow and deny lists that decides about a client with this key and, if
    /// known, this address. `None`: the client is on no list, so the limits decide, see
    /// [`explain`](Self::explain).
    ///
    /// Convert a client's address with [`IpNet::from`]. For a wider network, only entries that
    /// contain all of it count. If the key is an address, `address` may be omitted.
    ///
    /// An entry has an effect only in services with an [`AccessLayer`](crate::AccessLayer) for
    /// these limits.
    ///
    /// ```
    /// use tower_admission::{LimitSource, Limit, Limits, Listing};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let limits = Limits::new();
    /// limits.set(&"ip:203.0.113.0/24".parse()?, Limit::deny_all()).await?;
    /// let address: std::net::IpAddr = "203.0.113.7".parse()?;
    /// let entry = limits.list_entry(&"org:acme".parse()?, Some(address.into())).unwrap();
    /// assert_eq!(entry.key.as_str(), "ip:203.0.113.0/24");
    /// assert_eq!((entry.listing, entry.source), (Listing::Denied, LimitSource::Override));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn list_entry(&self, key: &KeyName, address: Option<IpNet>) -> Option<ListEntry> {
        list_entry(std::slice::from_ref(self), Some(&key.key()), address)
    }

    /// A listed entry with its name, source and end.
    fn noted(&self, listed: &Listed) -> Option<ListEntry> {
        let key = self.name_of(&listed.key);
        let is_set = lock(&self.0.state).run_time_override(&listed.key).is_some();
        Some(ListEntry {
            listing: listed.listing,
            source: match is_set {
                true => LimitSource::Override,
                false => LimitSource::Base,
            },
            end: self.get_override(&key)?.end(),
            ends_in: listed.ends_in,
            key,
        })
    }
}

/// The entry of several lists that decides about a client. An entry for the key takes precedence
/// over an entry for the address.
#[must_use]
pub fn list_entry(
    lists: &[Limits],
    key: Option<&Key>,
    address: Option<IpNet>,
) -> Option<ListEntry> {
    let address = address.or_else(|| key?.as_network());
    let key = key.filter(|key| !key.is_ip() && ![Key::SHARED, Key::UNKNOWN].contains(key));
    let of_key = listed_key(lists, key.into_iter().copied());
    let listed = of_key.or_else(|| listed_address(lists, address?))?;
    let mut lists = lists.iter();
    lists.find_map(|list| {
        let found = list.listed(&listed.key)?;
        // Another list may have an entry for this key that does not decide.
        let is_same = (found.listing, found.ends_in) == (listed.listing, listed.ends_in);
        is_same.then(|| list.noted(&found)).flatten()
    })
}

/// The entry for one of the request's keys. If there are several, a denying one takes precedence.
pub(crate) fn listed_key(lists: &[Limits], keys: impl Iterator<Item = Key>) -> Option<Listed> {
    let entries = keys.flat_map(|key| lists.iter().filter_map(move |list| list.listed(&key)));
    decisive(entries, |_| 0)
}

/// The entry that contains a client's address.
pub(crate) fn listed_address(lists: &[Limits], address: IpNet) -> Option<Listed> {
    let address = address.unmapped();
    let in_lists = |address| {
        let entries = lists.iter();
        let entries = entries.filter_map(move |list| list.listed_address(address));
        decisive(entries, Listed::prefix)
    };
    let found = in_lists(address);
    // Any client of a relay can choose the embedded address, so that address can ban but not
    // exempt.
    let inside = address.is_one_address().then(|| address.address());
    let inside = inside.and_then(Key::embedded_v4).map(IpNet::from);
    inside
        .and_then(in_lists)
        .filter(|listed| listed.listing == Listing::Denied)
        .or(found)
}

/// The most specific entry. Of equally specific entries a denying one, and of these the one that
/// ends last.
fn decisive(
    entries: impl Iterator<Item = Listed>,
    specificity: impl Fn(&Listed) -> u8,
) -> Option<Listed> {
    entries.max_by_key(|entry| {
        let is_denied = entry.listing == Listing::Denied;
        (
            specificity(entry),
            is_denied,
            entry.ends_in.unwrap_or(Duration::MAX),
        )
    })
}
