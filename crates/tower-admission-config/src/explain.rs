//! Tells the admin endpoints which limits a request passes.

use std::net::IpAddr;

use tower_admission::extract::RequestHead;
use tower_admission::{Key, Limits, NamedQuota, Policy, RateLimiter};
use tower_admission_axum::admin::{RequestGroup, RequestGroups};

use super::admission::Admission;
use super::model::Group;
use super::path::Prefix;
use super::policies::Policies;

/// What of a group is explained.
#[derive(Clone)]
pub(super) struct ExplainedGroup {
    group: RequestGroup,
    exclude: Vec<Prefix>,
}

impl ExplainedGroup {
    pub(super) fn new(
        name: &str,
        settings: &Group,
        policies: &Policies,
        guard: Option<&RateLimiter>,
    ) -> Self {
        let names = |policy: &Option<Policy>| -> Vec<String> {
            let quotas = policy.iter().flat_map(Policy::quotas);
            quotas.map(NamedQuota::name).map(str::to_owned).collect()
        };
        let by_key = names(&policies.by_key);
        // Without a rate by key that by address is the first.
        let place = usize::from(!by_key.is_empty());
        let percent = match settings.dry_run {
            true => 0,
            false => settings.enforce.unwrap_or(100),
        };
        let group = RequestGroup::new(name).enforce(percent);
        let mut group = group.limit(name);
        // Addresses are charged for permits only while they are limited.
        if settings.concurrency_per_ip > 0 {
            group = group.address_limit(name, 1);
        }
        for quota in by_key.iter().filter(|quota| *quota != name) {
            group = group.limit(quota);
        }
        for quota in names(&policies.by_ip) {
            group = group.address_limit(&quota, place);
        }
        if let Some(guard) = guard {
            group = group.guard(guard);
        }
        Self {
            group,
            exclude: settings.exclude.clone(),
        }
    }

    fn of(&self, path: &str) -> RequestGroup {
        let is_excluded = self.exclude.iter().any(|prefix| prefix.excludes(path));
        self.group.clone().excluded(is_excluded)
    }
}

impl RequestGroups for Admission {
    fn groups(&self, head: RequestHead<'_>) -> Vec<RequestGroup> {
        let groups = self.groups();
        let explained = groups.find(None, head).explained.iter();
        explained.map(|group| group.of(head.uri.path())).collect()
    }

    fn address_key(&self, address: IpAddr) -> Key {
        self.admin_state().client_ip.load().key_of(address)
    }

    /// Also those of the file, or none where they are switched off.
    fn lists(&self, _: &Limits) -> Vec<Limits> {
        self.groups().gate().lists.clone()
    }
}
