//! Changes an override, with an author and under a condition.

use std::time::Duration;

use super::entry::{line, time};
use super::state::{LimitsState, OverrideSource};
use super::{LimitChange, Limits, LimitsError, Override};
use crate::key::KeyName;
use crate::limit::Limit;
use crate::sync::lock;

/// A change of one key's override, from [`Limits::edit`].
#[derive(Clone, Debug)]
#[must_use = "nothing changes until `set` or `delete` is called and awaited"]
pub struct LimitEdit<'a> {
    limits: &'a Limits,
    key: &'a KeyName,
    pub(super) attribution: Attribution,
    expected: Option<Option<Override>>,
    lasting: Option<Duration>,
}

/// The author and the origin of a change.
#[derive(Clone, Debug, Default)]
pub(super) struct Attribution {
    pub(super) author: Option<Box<str>>,
    pub(super) origin: Option<Box<str>>,
}

impl<'a> LimitEdit<'a> {
    pub(super) fn new(limits: &'a Limits, key: &'a KeyName) -> Self {
        Self {
            limits,
            key,
            attribution: Attribution::default(),
            expected: None,
            lasting: None,
        }
    }

    /// Sets the author, such as the name of an operator. It is stored with the override and in the
    /// [audit trail](Limits::changes), up to [`Override::MAX_NOTE`] bytes. Default: unknown.
    pub fn author(mut self, author: &str) -> Self {
        self.attribution.author = line(author);
        self
    }

    /// Sets the origin of the change, such as a client address. It is stored in the [audit
    /// trail](Limits::changes). Default: unknown.
    pub fn origin(mut self, origin: &str) -> Self {
        self.attribution.origin = line(origin);
        self
    }

    /// Makes the change only if the current override equals `current`; `None` means that there is
    /// none. Default: unconditional.
    pub fn only_if(mut self, current: Option<&Override>) -> Self {
        self.expected = Some(current.cloned());
        self
    }

    /// Sets how long the override that is [set](Self::set) lasts. It replaces the override's
    /// [end](Override::with_end). The clock of the store determines the end, or that of this
    /// process if there is no store; the caller's clock need not be right. Rounded up to whole
    /// seconds. Default: the end of the override, if it has one.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_admission::{Limit, Limits};
    /// # async fn ban(limits: &Limits) -> Result<(), Box<dyn std::error::Error>> {
    /// let banned: Limit = "deny all".parse()?;
    /// let key = "ip:192.0.2.1".parse()?;
    /// let hour = Duration::from_secs(3600);
    /// limits.edit(&key).author("anna").lasting(hour).set(banned).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn lasting(mut self, time: Duration) -> Self {
        self.lasting = Some(time);
        self
    }

    /// Sets the override, and returns the previous one.
    ///
    /// If the future is dropped before it completes, the override may or may not have been set.
    ///
    /// # Errors
    ///
    /// - [`LimitsError::Changed`]: the override differs from [`only_if`](Self::only_if).
    /// - [`LimitsError::Unreadable`]: the change has a condition, and this version of the crate
    ///   cannot read the override in the store.
    /// - [`LimitsError::TooMany`]: the key is new, and [`MAX_OVERRIDES`](Limits::MAX_OVERRIDES)
    ///   keys have an override.
    /// - [`LimitsError::TooManyRates`]: there would be more than [`MAX_RATES`](Limits::MAX_RATES)
    ///   distinct rates.
    /// - [`LimitsError::Network`]: the key is a network, and the limit is neither `deny all` nor
    ///   `unlimited`.
    /// - [`LimitsError::UnknownTier`]: the limit names a tier that is not [declared](Limits::tier).
    ///   Not checked if this process knows no tiers.
    /// - [`LimitsError::Unavailable`]: a shared store keeps the overrides and is unavailable, or
    ///   did not answer within two seconds, or within the store's deadline if that is longer. The
    ///   override may or may not have been set.
    pub async fn set(self, to: impl Into<Override>) -> Result<Option<Override>, LimitsError> {
        let to = to.into();
        Limits::check_network(self.key, to.limit())?;
        self.limits.read_first().await?;
        self.limits.check_tier(to.limit())?;
        self.warn_of_unknown_names(to.limit());
        let now = self.limits.0.clock.since_epoch();
        let to = to.made(self.attribution.author.as_deref(), now.as_secs());
        let to = match self.lasting {
            Some(time) => to.lasting(time, now),
            None => to,
        };
        self.change(Some(to)).await
    }

    /// Deletes the override, and returns it. An override of the [configuration](Limits::set_base)
    /// stays.
    ///
    /// # Errors
    ///
    /// [`LimitsError::Changed`], [`LimitsError::Unreadable`] and [`LimitsError::Unavailable`], like
    /// [`set`](Self::set).
    pub async fn delete(self) -> Result<Option<Override>, LimitsError> {
        self.limits.read_first().await?;
        self.change(None).await
    }

    /// Warns of names that no limiter has. They are no error: the limiter may be made later, or by
    /// another service that uses the same store.
    fn warn_of_unknown_names(&self, limit: &Limit) {
        let known = self.limits.names();
        let is_unknown = |name: &&str| !known.iter().any(|known| **known == **name);
        let unknown: Vec<_> = limit.names().filter(is_unknown).collect();
        if known.is_empty() || unknown.is_empty() {
            return;
        }
        tracing::warn!(
            key = %self.key,
            unknown = unknown.join(", "),
            known = known.join(", "),
            "an override names limits that no limiter of this process has at the moment; they have no effect here"
        );
    }

    async fn change(self, to: Option<Override>) -> Result<Option<Override>, LimitsError> {
        let limits = self.limits;
        limits.process_ends();
        let (name, others) = limits.names_for(self.key, to.is_some());
        // The change deletes the key's entries under other names, so the previous override may
        // have one of these names.
        let before = lock(&limits.0.state).run_time_override(&self.key.key());
        let expected = self.expected.as_ref();
        if let Some(expected) = expected
            && !others.is_empty()
            && *expected != before
        {
            return Err(LimitsError::changed(before));
        }
        let expected = expected.filter(|_| others.is_empty());
        let change = EntryChange {
            name: &name,
            to,
            attribution: &self.attribution,
            expected,
            lasting: self.lasting,
        };
        let changed = change.make(limits).await?;
        for name in &others {
            let change = EntryChange {
                name,
                to: None,
                attribution: &self.attribution,
                expected: None,
                lasting: None,
            };
            change.make(limits).await?;
        }
        Ok(changed.or(before.filter(|_| !others.is_empty())))
    }
}

/// A change of one entry.
pub(super) struct EntryChange<'a> {
    pub(super) name: &'a KeyName,
    pub(super) to: Option<Override>,
    pub(super) attribution: &'a Attribution,
    /// The required current entry, if there is a condition.
    pub(super) expected: Option<&'a Option<Override>>,
    /// The duration, if the end in `to` follows this process's clock only.
    pub(super) lasting: Option<Duration>,
}

impl EntryChange<'_> {
    async fn make(self, limits: &Limits) -> Result<Option<Override>, LimitsError> {
        if let Some(replica) = &limits.0.replica {
            self.check_rates(&lock(&limits.0.state))?;
            return replica.change(limits, self).await;
        }
        let mut state = lock(&limits.0.state);
        self.check_rates(&state)?;
        let current = state.get(self.name).cloned();
        if self.expected.is_some_and(|expected| *expected != current) {
            return Err(LimitsError::changed(current));
        }
        let is_new = self.to.is_some() && current.is_none();
        if is_new && state.len() >= Limits::MAX_OVERRIDES {
            return Err(LimitsError::TooMany);
        }
        if is_new
            && state.stored_len() >= Limits::MAX_OVERRIDES
            && let Some(ended) = state.ends.first_ended()
        {
            limits.apply(&mut state, OverrideSource::RunTime, &ended, None);
        }
        let change = self.to_change(current.clone(), limits.0.clock.seconds());
        limits.apply(&mut state, OverrideSource::RunTime, self.name, self.to);
        if let Some(change) = change {
            state.record_change(change.clone());
            drop(state);
            change.report();
        }
        Ok(current)
    }

    fn check_rates(&self, state: &LimitsState) -> Result<(), LimitsError> {
        match &self.to {
            Some(to) if state.has_too_many_rates(self.name, to.limit()) => {
                Err(LimitsError::TooManyRates)
            }
            _ => Ok(()),
        }
    }

    /// The change for the audit trail, unless it deleted nothing.
    pub(super) fn to_change(&self, before: Option<Override>, at: u64) -> Option<LimitChange> {
        (before.is_some() || self.to.is_some()).then(|| LimitChange {
            at: time(at),
            key: Some(self.name.clone()),
            before,
            after: self.to.clone(),
            author: self.attribution.author.clone(),
            origin: self.attribution.origin.clone(),
            has_ended: false,
            is_unreadable: false,
            is_after_unreadable: false,
        })
    }
}
