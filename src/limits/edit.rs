//! A change of an override, with who makes it and under what condition.

use std::time::Duration;

use super::entry::{line, time};
use super::state::{Source, State};
use super::{LimitChange, Limits, LimitsError, Override};
use crate::key::KeyName;
use crate::sync::lock;

/// A change of one key's override that is about to be made; from [`Limits::edit`].
#[derive(Clone, Debug)]
#[must_use = "nothing changes until `set` or `delete` is called and awaited"]
pub struct LimitEdit<'a> {
    limits: &'a Limits,
    key: &'a KeyName,
    pub(super) by: By,
    expected: Option<Option<Override>>,
    lasting: Option<Duration>,
}

/// Who makes a change, and from where.
#[derive(Clone, Debug, Default)]
pub(super) struct By {
    pub(super) author: Option<Box<str>>,
    pub(super) origin: Option<Box<str>>,
}

impl<'a> LimitEdit<'a> {
    pub(super) fn new(limits: &'a Limits, key: &'a KeyName) -> Self {
        Self {
            limits,
            key,
            by: By::default(),
            expected: None,
            lasting: None,
        }
    }

    /// Sets who makes the change, such as the name of an operator: kept with the override and in the
    /// [audit trail](Limits::changes), up to [`Override::MAX_NOTE`] bytes. Default: not known.
    pub fn author(mut self, author: &str) -> Self {
        self.by.author = line(author);
        self
    }

    /// Sets from where the change is made, such as a client address: kept in the [audit trail](Limits::changes).
    /// Default: not known.
    pub fn origin(mut self, origin: &str) -> Self {
        self.by.origin = line(origin);
        self
    }

    /// Makes the change only if the override is still this one, or if there is still none. Default: whatever it is.
    pub fn only_if(mut self, current: Option<&Override>) -> Self {
        self.expected = Some(current.cloned());
        self
    }

    /// Sets how long the override that is [set](Self::set) lasts, in place of its [end](Override::with_end): the end is
    /// computed by the clock of the store, or of this process if there is no store. So the clock of the caller need not
    /// be right. Rounded up to whole seconds. Default: the end of the override, if it has one.
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

    /// Sets the override, and returns the one before.
    ///
    /// When the future is dropped before it is ready, the override may have been set or not.
    ///
    /// # Errors
    ///
    /// - [`LimitsError::Changed`] when it is not what [`only_if`](Self::only_if) said.
    /// - [`LimitsError::Unreadable`] when it depends on what the override is, and this version of the crate cannot read
    ///   the one that is in the store.
    /// - [`LimitsError::TooMany`] for a new key when [`MAX_OVERRIDES`](Limits::MAX_OVERRIDES) have one.
    /// - [`LimitsError::TooManyRates`] when there would be more than [`MAX_RATES`](Limits::MAX_RATES) distinct rates.
    /// - [`LimitsError::Network`] when the key is a network, and the limit is anything but `deny all` or `unlimited`.
    /// - [`LimitsError::UnknownTier`] when it names a tier that is not [declared](Limits::tier). Not checked in a
    ///   process that declares none.
    /// - [`LimitsError::Unavailable`] when they are kept in a store that cannot be reached, or
    ///   does not answer within two seconds, or the store's [deadline](crate::store::RedisStore::deadline) if that is
    ///   longer: then it may have been set or not.
    pub async fn set(self, to: impl Into<Override>) -> Result<Option<Override>, LimitsError> {
        let to = to.into();
        Limits::check_network(self.key, to.limit())?;
        self.limits.read_first().await?;
        self.limits.check_tier(to.limit())?;
        let now = self.limits.0.clock.since_epoch();
        let to = to.made(self.by.author.as_deref(), now.as_secs());
        let to = match self.lasting {
            Some(time) => to.lasting(time, now),
            None => to,
        };
        self.change(Some(to)).await
    }

    /// Deletes the override, and returns it. One of the [configuration](Limits::set_base) stays.
    ///
    /// # Errors
    ///
    /// [`LimitsError::Changed`], [`LimitsError::Unreadable`] and [`LimitsError::Unavailable`], as [`set`](Self::set).
    pub async fn delete(self) -> Result<Option<Override>, LimitsError> {
        self.limits.read_first().await?;
        self.change(None).await
    }

    async fn change(self, to: Option<Override>) -> Result<Option<Override>, LimitsError> {
        let limits = self.limits;
        limits.turn_ends();
        let (name, others) = limits.names_for(self.key, to.is_some());
        // What is known of the key under another name is what goes.
        let before = lock(&limits.0.state).own_at_run_time(&self.key.key());
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
            by: &self.by,
            expected,
            lasting: self.lasting,
        };
        let changed = change.make(limits).await?;
        for name in &others {
            let change = EntryChange {
                name,
                to: None,
                by: &self.by,
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
    pub(super) by: &'a By,
    /// What the entry has to be, if that matters.
    pub(super) expected: Option<&'a Option<Override>>,
    /// After what time it ends, if the end in `to` is only this clock's.
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
            && state.kept() >= Limits::MAX_OVERRIDES
            && let Some(ended) = state.ends.first_ended()
        {
            limits.apply(&mut state, Source::RunTime, &ended, None);
        }
        let change = self.made(current.clone(), limits.0.clock.seconds());
        limits.apply(&mut state, Source::RunTime, self.name, self.to);
        if let Some(change) = change {
            state.note(change.clone());
            drop(state);
            change.report();
        }
        Ok(current)
    }

    fn check_rates(&self, state: &State) -> Result<(), LimitsError> {
        match &self.to {
            Some(to) if state.has_too_many_rates(self.name, to.limit()) => {
                Err(LimitsError::TooManyRates)
            }
            _ => Ok(()),
        }
    }

    /// The change for the audit trail, unless it deleted nothing.
    pub(super) fn made(&self, before: Option<Override>, at: u64) -> Option<LimitChange> {
        (before.is_some() || self.to.is_some()).then(|| LimitChange {
            at: time(at),
            key: Some(self.name.clone()),
            before,
            after: self.to.clone(),
            author: self.by.author.clone(),
            origin: self.by.origin.clone(),
            has_ended: false,
            is_unreadable: false,
            is_after_unreadable: false,
        })
    }
}
