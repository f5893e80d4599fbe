//! Names of keys in Redis, the same in every replica.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use percent_encoding::{AsciiSet, CONTROLS, NON_ALPHANUMERIC, utf8_percent_encode};

use super::sync::lock;
use tower_admission::Key;
use tower_admission::store::LeaseName;
use tower_admission::{NamedQuota, Policy};

/// The characters that select the part of a cluster, and the escape character.
const HASH_TAG: &AsciiSet = &CONTROLS.add(b'{').add(b'}').add(b'%');

/// The names that limiters of one store use.
///
/// The name of a limiter consists of the names of its quotas, with a `~` after sliding ones and a `&` between policies.
/// Buckets and windows store different data, so a quota that changes its algorithm or its policy counts under another
/// name. A second limiter with the same name gets the suffix 2, and so on, in the order of creation: replicas run the
/// same program. Tiers are not part of the name, so a new tier changes no usage.
#[derive(Clone)]
pub(super) struct Names {
    prefix: Arc<str>,
    taken: Arc<Mutex<BTreeSet<String>>>,
}

/// The name of one limiter, reserved until it is dropped or released.
pub(super) struct Name {
    names: Names,
    name: String,
    /// Whether this process reserves it: false for a name of another process, and after a release.
    is_claimed: AtomicBool,
    /// The beginning of all its keys.
    place: String,
}

impl Names {
    pub(super) fn new(prefix: &str) -> Self {
        Self {
            prefix: utf8_percent_encode(prefix, HASH_TAG).to_string().into(),
            taken: Arc::default(),
        }
    }

    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    pub(super) fn claim(&self, policies: &[Policy]) -> Name {
        let of_quota = |quota: &NamedQuota| {
            let name = utf8_percent_encode(quota.name(), NON_ALPHANUMERIC);
            let slides = quota.quota().is_sliding();
            format!("{name}{}", if slides { "~" } else { "" })
        };
        let of_policy = |policy: &Policy| {
            let quotas = policy.quotas().iter().map(of_quota);
            quotas.collect::<Vec<_>>().join("+")
        };
        // Policies are separated, because a Redis key has a part for each quota of one policy.
        let first = policies.iter().map(of_policy).collect::<Vec<_>>().join("&");
        let mut taken = lock(&self.taken);
        let mut name = first.clone();
        let mut n = 1;
        while !taken.insert(name.clone()) {
            n += 1;
            name = format!("{first}*{n}");
        }
        drop(taken);
        let name = self.named(&name);
        name.is_claimed.store(true, Ordering::Relaxed);
        name
    }

    /// The name for a place of a limiter of another process; `None` for another prefix.
    pub(super) fn at(&self, place: &str) -> Option<Name> {
        let begin = format!("{}:rate:", self.prefix);
        Some(self.named(place.strip_prefix(&begin)?))
    }

    fn named(&self, name: &str) -> Name {
        Name {
            place: format!("{}:rate:{name}", self.prefix),
            names: self.clone(),
            name: name.to_owned(),
            is_claimed: AtomicBool::new(false),
        }
    }
}

/// The names of the leases of one limiter. All are in one part of a cluster, so that one script reaches them.
pub(super) struct LeaseNames {
    pub(super) total: String,
    begin: String,
}

impl Names {
    pub(super) fn leases(&self, name: &str) -> LeaseNames {
        let name = utf8_percent_encode(name, NON_ALPHANUMERIC);
        let begin = format!("{{{}:lease:{name}}}:", self.prefix);
        LeaseNames {
            total: format!("{begin}total"),
            begin,
        }
    }
}

impl Names {
    /// The keys of the overrides, the changed names, the version and the audit trail. All are in one part of a cluster.
    pub(super) fn limits(&self) -> [String; 4] {
        let begin = format!("{{{}:limits}}:", self.prefix);
        ["of", "changes", "state", "audit"].map(|name| format!("{begin}{name}"))
    }

    /// The key of the descriptions of limiters, next to the overrides.
    pub(super) fn limiters(&self) -> String {
        format!("{{{}:limits}}:limiters", self.prefix)
    }
}

impl LeaseNames {
    /// The Redis key for the leases of one key at an index among the keys of a lease. Each index counts separately: an
    /// address that stands for a missing token counts apart from an address that is limited itself.
    pub(super) fn of_key(&self, place: usize, key: &Key) -> String {
        match place {
            0 => text(&self.begin, "of:", key),
            place => text(&self.begin, &format!("of{}:", place + 1), key),
        }
    }

    /// The Redis key that exists after a holder has released the lease of this name.
    pub(super) fn released(&self, called: &str, holder: u64) -> String {
        format!("{}left:{holder}:{called}", self.begin)
    }

    /// The Redis keys of a named lease (the total, the tenant's leases and the holder), and its name in them.
    pub(super) fn named(&self, name: &LeaseName) -> ([String; 3], String) {
        let of_tenant = self.of_key(0, &name.tenant);
        let called = text(&text("", "", &name.tenant), ":", &name.id);
        let holder = format!("{}by:{called}", self.begin);
        ([self.total.clone(), of_tenant, holder], called)
    }
}

impl Name {
    /// The beginning of all keys of the limiter.
    pub(super) fn place(&self) -> &str {
        &self.place
    }

    /// The beginning of the keys of one policy. Two policies that charge the same key have different ones.
    pub(super) fn begin(&self, policy: usize) -> String {
        self.begin_with(policy, self.place.clone())
    }

    /// The same in a tier. The name marks its windows, because a quota that is off by default is a bucket or a window
    /// only in a tier.
    pub(super) fn begin_in(&self, policy: usize, tier: &str, quotas: &Policy) -> String {
        let tier = utf8_percent_encode(tier, NON_ALPHANUMERIC);
        let mut begin = format!("{}@{tier}", self.place);
        for (at, quota) in quotas.quotas().iter().enumerate() {
            if quota.quota().is_sliding() {
                let _ = write!(begin, "~{}", at + 1);
            }
        }
        self.begin_with(policy, begin)
    }

    fn begin_with(&self, policy: usize, mut begin: String) -> String {
        if policy > 0 {
            let _ = write!(begin, "/{}", policy + 1);
        }
        begin.push(':');
        begin
    }

    /// The Redis key for the buckets of a key.
    pub(super) fn key(begin: &str, key: &Key) -> String {
        text(begin, "", key)
    }
}

fn text(begin: &str, part: &str, key: &Key) -> String {
    let length = begin.len() + part.len() + key.kind().len() + 48;
    let mut text = String::with_capacity(length);
    text.push_str(begin);
    text.push_str(part);
    // The program chooses the kind. It is escaped, because braces would select the part of a cluster.
    let _ = write!(
        text,
        "{}:",
        utf8_percent_encode(key.kind(), NON_ALPHANUMERIC)
    );
    key.write_text(&mut text);
    text
}

impl Name {
    /// Releases the name for the next limiter.
    pub(super) fn release(&self) {
        if self.is_claimed.swap(false, Ordering::Relaxed) {
            lock(&self.names.taken).remove(&self.name);
        }
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tower_admission::Quota;

    #[test]
    fn limiters_have_different_names_that_can_be_reused() {
        let names = Names::new("app");
        let policy = [Policy::new("per day", Quota::per_day(1))];
        let one = names.claim(&policy);
        let two = names.claim(&policy);
        let address = Key::ip([192, 0, 2, 1].into());
        let key = |name: &Name, policy| Name::key(&name.begin(policy), &address);
        assert_eq!(key(&one, 0), "app:rate:per%20day:ip:192.0.2.1");
        assert_eq!(key(&two, 0), "app:rate:per%20day*2:ip:192.0.2.1");
        let both = names.claim(&[policy[0].clone(), Quota::per_hour(1).into()]);
        assert_eq!(
            [0, 1].map(|policy| key(&both, policy)),
            [
                "app:rate:per%20day&default:ip:192.0.2.1",
                "app:rate:per%20day&default/2:ip:192.0.2.1"
            ]
        );
        assert_eq!(
            [0, 1].map(|policy| both.begin_in(policy, "a b", &Quota::per_hour(1).into())),
            [
                "app:rate:per%20day&default@a%20b:",
                "app:rate:per%20day&default@a%20b/2:"
            ]
        );
        let windows = Policy::from(Quota::per_day(1)).and("w", Quota::per_day(1).sliding());
        assert_eq!(
            one.begin_in(0, "~2", &windows),
            "app:rate:per%20day@%7E2~2:"
        );
        let window = names.claim(&[Policy::new("per day", Quota::per_day(1).sliding())]);
        assert_eq!(key(&window, 0), "app:rate:per%20day~:ip:192.0.2.1");
        // A look-up by place reserves nothing.
        let two_there = names.at("app:rate:per%20day*2").unwrap();
        assert_eq!(key(&two_there, 0), key(&two, 0));
        assert_eq!(two.place(), two_there.place());
        drop(two_there);
        let three = names.claim(&policy);
        assert_eq!(three.place(), "app:rate:per%20day*3");
        assert!(names.at("other:rate:per%20day").is_none());
        one.release();
        let again = names.claim(&policy);
        assert_eq!(key(&again, 0), "app:rate:per%20day:ip:192.0.2.1");
        // A drop after a release releases nothing.
        drop(one);
        let four = names.claim(&policy);
        assert_eq!(four.place(), "app:rate:per%20day*4");
    }

    #[test]
    fn a_tier_does_not_change_the_name() {
        let names = Names::new("app");
        let policy = Policy::from(Quota::per_day(1));
        let name = names.claim(std::slice::from_ref(&policy));
        name.release();
        let tiered = names.claim(&[policy.tier("pro", Quota::per_day(2))]);
        assert_eq!(name.place(), tiered.place());
    }

    #[test]
    fn a_prefix_does_not_select_the_part_of_a_cluster() {
        let address = Key::ip([192, 0, 2, 1].into());
        for (prefix, escaped) in [
            ("app:eu-1", "app:eu-1"),
            ("}", "%7D"),
            ("{x}", "%7Bx%7D"),
            ("%7D", "%257D"),
        ] {
            let names = Names::new(prefix);
            let leases = names.leases("jobs");
            let tag = format!("{{{escaped}:lease:jobs}}:");
            assert_eq!(leases.total, format!("{tag}total"));
            let of_key = |place| leases.of_key(place, &address);
            assert_eq!(of_key(0), format!("{tag}of:ip:192.0.2.1"));
            assert_eq!(of_key(1), format!("{tag}of2:ip:192.0.2.1"));
            let name = names.claim(&[Policy::new("calls", Quota::per_day(1))]);
            let expected = format!("{escaped}:rate:calls:ip:192.0.2.1");
            assert_eq!(Name::key(&name.begin(0), &address), expected);
        }
    }

    #[test]
    fn leases_with_different_names_have_different_keys() {
        let leases = Names::new("app").leases("jobs");
        let keys = [Key::UNKNOWN, Key::SHARED, Key::ip([192, 0, 2, 1].into())];
        let mut seen = BTreeSet::new();
        for tenant in keys {
            for id in keys {
                let (_, called) = leases.named(&LeaseName::new(tenant, id));
                assert!(seen.insert(called.clone()), "{called}");
            }
        }
    }

    #[test]
    fn a_redis_key_contains_no_credential() {
        let name = Names::new("app").claim(&[Quota::per_day(1).into()]);
        let key = Name::key(&name.begin(0), &Key::new("bearer", b"{hunter2}"));
        assert!(!key.contains("hunter2") && !key.contains('{'), "{key}");
    }
}
