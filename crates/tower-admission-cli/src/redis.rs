//! Changes limits in Redis.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tower_admission::extract::IpNet;
use tower_admission::store::FailureMode;
use tower_admission::{
    KeyName, LimitEdit, LimitUsage, Limits, ListEntry, Override, Secret, SharedLimiters,
};
use tower_admission_redis::RedisStore;

use crate::args::{RequestArgs, ServerArgs};
use crate::changes::Change;
use crate::explanation::{Explanation, ListEntryJson};
use crate::failure::Failure;
use crate::override_json::OverrideJson;
use crate::server::{ChangedLimit, OverrideEntry, SetRequest, concurrent_change};
use crate::store_error::{change_failure, read_failure, store_failure};
use crate::suggest::advice;
use crate::usage::{Usage, UsageReport};

pub(crate) struct Redis {
    store: RedisStore,
    limits: Limits,
    /// Read once per command, and again after a change.
    limiters: Mutex<Option<Arc<SharedLimiters>>>,
    pub(crate) prefix: String,
    has_secret: bool,
    pub(crate) is_unchecked: bool,
    author: String,
    origin: String,
}

impl Redis {
    pub(crate) async fn open(
        url: &str,
        args: &ServerArgs,
        secret: Option<Secret>,
        wait: Duration,
    ) -> Result<Self, Failure> {
        let store = RedisStore::connect(url).map_err(|error| {
            Failure::usage(format!(
                "--redis cannot be used: write it as redis://[user:password@]host[:port][/db] ({})",
                error.detail().unwrap_or_default()
            ))
        })?;
        #[cfg(feature = "tls")]
        let store = crate::certificates::with_certificates(store, args)?;
        let mut store = store
            .prefix(&args.prefix)
            .deadline(wait)
            // A failed read must not look like zero usage.
            .on_failure(FailureMode::Closed);
        if let Some(secret) = secret {
            store = store.secret(secret);
        }
        store.ping().await.map_err(|error| store_failure(&error))?;
        let host = gethostname::gethostname();
        let host = host.to_string_lossy();
        let redis = Self {
            limits: Limits::in_store(&store),
            store,
            limiters: Mutex::default(),
            prefix: args.prefix.clone(),
            has_secret: secret.is_some(),
            is_unchecked: args.unchecked,
            author: args
                .author
                .clone()
                .unwrap_or_else(|| format!("{}@{host}", user())),
            origin: format!("tower-admission on {host}"),
        };
        if redis.has_secret && !redis.is_unchecked {
            redis.check_secret().await?;
        }
        Ok(redis)
    }

    /// With a wrong secret, no key of the services is found.
    async fn check_secret(&self) -> Result<(), Failure> {
        if self.limiters().await?.has_their_secret() == Some(false) {
            return Err(Failure::rejected(format!(
                "the services under the prefix {:?} have another secret: check ADMISSION_SECRET and --prefix \
                    (--unchecked uses it anyway)",
                self.prefix
            )));
        }
        Ok(())
    }

    /// The limiters of the services. Fails if there are none, or if the secret differs.
    pub(crate) async fn services(&self) -> Result<Arc<SharedLimiters>, Failure> {
        let services = self.limiters().await?;
        if self.is_unchecked {
            return Ok(services);
        }
        if services.is_empty() {
            return Err(Failure::rejected(format!(
                "no service has published its limits under the prefix {:?} in the last day: check --prefix, or \
                    ADMISSION_PREFIX (use --unchecked for services that do not run yet)",
                self.prefix
            )));
        }
        Ok(services)
    }

    pub(crate) async fn set(
        &self,
        key: &KeyName,
        to: &SetRequest<'_>,
    ) -> Result<ChangedLimit, Failure> {
        if !to.is_checked {
            self.check(key, to.own).await?;
        }
        let own = to.own.to_override()?;
        let mut edit = self.edit(key);
        if let Some(lasts) = to.lasts {
            edit = edit.lasting(lasts);
        }
        if let Some(shown) = to.only_if {
            edit = edit.only_if(self.current(key, shown).await?.as_ref());
        }
        let before = edit.set(own).await;
        self.forget();
        let before = before.map_err(|error| change_failure(error, key))?;
        let mut set = self.limits.get_override(key);
        if set.is_none() {
            // The limit has ended by the clock of this machine, but the clock of the store decides and may be behind.
            let changes = self.limits.changes(1).await.map_err(read_failure)?;
            let last = changes
                .into_iter()
                .find(|change| change.key.as_ref() == Some(key));
            set = last.and_then(|change| change.after);
        }
        Ok(ChangedLimit {
            own: set.as_ref().map(OverrideJson::from).ok_or_else(|| {
                Failure::rejected("the limit ended or was replaced at the same time")
            })?,
            before: before.as_ref().map(OverrideJson::from),
        })
    }

    fn edit<'a>(&'a self, key: &'a KeyName) -> LimitEdit<'a> {
        let edit = self.limits.edit(key).author(&self.author);
        edit.origin(&self.origin)
    }

    /// The override of a key, if it equals the one that was shown.
    async fn current(
        &self,
        key: &KeyName,
        shown: Option<&OverrideJson>,
    ) -> Result<Option<Override>, Failure> {
        self.limits.refresh().await.map_err(read_failure)?;
        let current = self.limits.get_override(key);
        let own = current.as_ref().map(OverrideJson::from);
        if own.as_ref() != shown {
            return Err(concurrent_change(key, own.as_ref()));
        }
        Ok(current)
    }

    pub(crate) async fn get(&self, key: &KeyName) -> Result<Option<OverrideEntry>, Failure> {
        self.limits.refresh().await.map_err(read_failure)?;
        let own = self.limits.get_override(key);
        if own.is_none() {
            // Check the prefix: under a wrong one there are never limits.
            self.services().await?;
        }
        Ok(own.map(|own| entry(key, &own)))
    }

    pub(crate) async fn list(&self) -> Result<Vec<OverrideEntry>, Failure> {
        self.limits.refresh().await.map_err(read_failure)?;
        let entries = self.limits.list_after(None, usize::MAX);
        if entries.is_empty() {
            // Check the prefix: under a wrong one there are never limits.
            self.services().await?;
        }
        let entries = entries.iter().map(|(key, own)| entry(key, own));
        Ok(entries.collect())
    }

    pub(crate) async fn delete(&self, key: &KeyName, shown: &OverrideJson) -> Result<(), Failure> {
        let current = self.current(key, Some(shown)).await?;
        let deleted = self.edit(key).only_if(current.as_ref()).delete().await;
        self.forget();
        deleted
            .map_err(|error| change_failure(error, key))
            .map(drop)
    }

    /// Whether no service has lists, so that an address is only the key of its requests.
    pub(crate) async fn has_no_lists(&self) -> bool {
        let limiters = self.limiters().await;
        limiters.is_ok_and(|limiters| !limiters.is_empty() && !limiters.has_lists())
    }

    pub(crate) async fn lost(&self) -> Result<u64, Failure> {
        Ok(self.limiters().await?.lost_overrides())
    }

    /// The limits that this version cannot read, among those of this command.
    pub(crate) fn unreadable(&self) -> Vec<Box<str>> {
        self.limits.unreadable()
    }

    pub(crate) async fn usage(&self, key: Option<&KeyName>) -> Result<UsageReport, Failure> {
        let limiters = self.services().await?;
        let found = match key {
            Some(key) => limiters.usage(key).await,
            None => limiters.totals().await,
        };
        let usage = found.map_err(read_failure)?;
        let usage = usage.into_iter().map(|usage| Usage {
            is_override: key.map(|_| usage.is_override),
            default: limiters.default_limit(&usage),
            ..shown(usage)
        });
        Ok(UsageReport {
            limit: key.and_then(|key| self.limits.get(key).map(|limit| limit.to_string())),
            listed: key
                .and_then(|key| self.listed(&limiters, key, None))
                .as_ref()
                .map(ListEntryJson::from),
            usage: usage.collect(),
            replica: None,
            store: None,
        })
    }

    pub(crate) async fn explain(
        &self,
        key: &KeyName,
        request: &RequestArgs,
    ) -> Result<Explanation, Failure> {
        if request.path.is_some() {
            return Err(Failure::usage(
                "only a service knows the limits of a path: use --admin",
            ));
        }
        let limiters = self.services().await?;
        if request.address.is_some() && !limiters.has_lists() {
            return Err(Failure::rejected(
                "no service has allow and deny lists for these limits, and only a service knows the limits of \
                    an address: use --admin",
            ));
        }
        let address = request.address.as_deref().map(network).transpose()?;
        let written = request.written.as_deref();
        let address = address.or_else(|| network(written?).ok());
        if let Some(tier) = request.tier.as_deref() {
            let known = limiters.tiers().iter().map(|tier| &**tier);
            if !self.is_unchecked && !known.clone().any(|known| known == tier) {
                let advice = advice(tier, known);
                return Err(Failure::rejected(format!("unknown tier {tier:?}{advice}")));
            }
        }
        let explained = limiters.explain(key, request.tier.as_deref()).await;
        let own = self.limits.get(key).map(|limit| limit.to_string());
        let listed = self.listed(&limiters, key, address);
        let explained = explained.map_err(read_failure)?;
        let mut explained = Explanation::new(key, own, &explained, listed.as_ref());
        explained.address = request.address.clone();
        // A list entry of the key precedes one of its address.
        let may_be_listed = limiters.has_lists() && !self.limits.is_empty();
        if may_be_listed && listed.is_none() && address.is_none() && !key.key().is_ip() {
            explained.address_limits.push("lists".to_owned());
        }
        explained.not_known = Some(NOT_KNOWN.to_owned());
        Ok(explained)
    }

    /// The list entry in Redis that decides about a key, if a service has lists.
    fn listed(
        &self,
        limiters: &SharedLimiters,
        key: &KeyName,
        address: Option<IpNet>,
    ) -> Option<ListEntry> {
        let has_lists = limiters.has_lists();
        has_lists.then(|| self.limits.list_entry(key, address))?
    }

    pub(crate) async fn changes(&self, count: u16) -> Result<Vec<Change>, Failure> {
        let changes = self.limits.changes(count.into()).await;
        let changes = changes.map_err(read_failure)?;
        if changes.is_empty() {
            self.services().await?;
        }
        Ok(changes.iter().map(Change::from).collect())
    }

    pub(crate) async fn accept_loss(&self) -> Result<(), Failure> {
        self.services().await?;
        let (author, origin) = (Some(&*self.author), Some(&*self.origin));
        let accepted = self.limits.accept_loss_by(author, origin).await;
        accepted.map_err(read_failure)
    }

    pub(crate) async fn clear_caches(&self) -> Result<(), Failure> {
        self.services().await?;
        self.limits.clear_caches().await.map_err(read_failure)
    }

    async fn limiters(&self) -> Result<Arc<SharedLimiters>, Failure> {
        let known = self.known().clone();
        if let Some(known) = known {
            return Ok(known);
        }
        self.limits.refresh().await.map_err(read_failure)?;
        let read = SharedLimiters::read(&self.limits, &self.store).await;
        let read = Arc::new(read.map_err(read_failure)?);
        *self.known() = Some(read.clone());
        Ok(read)
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Option<Arc<SharedLimiters>>> {
        self.limiters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget(&self) {
        *self.known() = None;
    }
}

/// What only services know.
const NOT_KNOWN: &str = "[lists], [limits] and guards in the files of the services";

/// Reads the address of a client, or a network.
fn network(text: &str) -> Result<IpNet, Failure> {
    let text = text.trim().trim_start_matches("ip:").trim();
    let address = text.parse().map(|ip: IpAddr| IpNet::from(ip));
    address.or_else(|_| text.parse()).map_err(|error| {
        Failure::usage(format!(
            "the address is neither an IP address nor a network: {error}"
        ))
    })
}

/// The user of this program, from the environment.
fn user() -> String {
    let names = ["USER", "LOGNAME", "USERNAME"];
    let user = names.iter().find_map(|name| std::env::var(name).ok());
    user.filter(|user| !user.is_empty())
        .unwrap_or_else(|| "unknown".to_owned())
}

fn entry(key: &KeyName, own: &Override) -> OverrideEntry {
    OverrideEntry {
        key: key.to_string(),
        own: OverrideJson::from(own),
        source: None,
        in_file: None,
    }
}

fn shown(usage: LimitUsage) -> Usage {
    Usage {
        name: usage.name.to_string(),
        tier: usage.tier.as_deref().map(str::to_owned),
        sort: usage.sort.to_owned(),
        used: usage.used,
        here: usage.here,
        counted_in: Some(usage.counted_in.as_str().to_owned()),
        limit: usage.limit,
        is_override: None,
        default: None,
    }
}
