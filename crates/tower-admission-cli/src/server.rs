//! Where limits are kept: Redis, or a service that has them.

use std::future::Future;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use tower_admission::KeyName;

use crate::admin::Admin;
use crate::args::{Place, RequestArgs, ServerArgs};
use crate::changes::Change;
use crate::explained::Explained;
use crate::failure::Failure;
use crate::keys::Keys;
use crate::own::Own;
use crate::redis::Redis;
use crate::usage::Report;

pub(crate) struct Server {
    kind: Kind,
    timeout: Duration,
}

enum Kind {
    Redis(Box<Redis>),
    Admin(Admin),
}

/// A limit that was set: as the server has it, and what was there before.
pub(crate) struct Changed {
    pub(crate) own: Own,
    pub(crate) before: Option<Own>,
}

/// One key that has a limit of its own.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) key: String,
    #[serde(flatten)]
    pub(crate) own: Own,
    /// `override` when it was set at run time, `file` when it is of a service's configuration; services of older versions
    /// do not say, and Redis has those that were set at run time alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) source: Option<String>,
    /// What the configuration has for the key, under what was set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) in_file: Option<Own>,
}

impl Entry {
    /// Whether it is of the configuration of a service, where nothing but that file changes it.
    pub(crate) fn is_of_file(&self) -> bool {
        self.source.as_deref() == Some("file")
    }

    /// Where it is from, for people.
    pub(crate) fn origin(&self) -> &'static str {
        match self.is_of_file() {
            true => "of the file",
            false => "its own",
        }
    }
}

/// A limit that is to be set.
pub(crate) struct Wanted<'a> {
    pub(crate) own: &'a Own,
    /// How long it lasts, by the clock of the server.
    pub(crate) lasts: Option<Duration>,
    /// What the key has to have; by default whatever it has.
    pub(crate) only_if: Option<Option<&'a Own>>,
    /// Whether its effect was [checked](Server::check).
    pub(crate) is_checked: bool,
}

impl<'a> Wanted<'a> {
    pub(crate) fn new(own: &'a Own) -> Self {
        Self {
            own,
            lasts: None,
            only_if: None,
            is_checked: false,
        }
    }
}

/// The limit of a key is not what was shown of it.
pub(crate) fn changed_meanwhile(key: &KeyName, current: Option<&Own>) -> Failure {
    let current = current.map_or("none".to_owned(), Own::brief);
    Failure::refused(format!(
        "the limit of {key} was changed meanwhile, to {current}: nothing was changed now, see `limits changes`"
    ))
}

/// Calls the same of the server, within the time for it.
macro_rules! ask {
    ($self:ident, $server:ident => $answer:expr) => {
        match &$self.kind {
            Kind::Redis($server) => within($self.timeout, $answer).await,
            Kind::Admin($server) => within($self.timeout, $answer).await,
        }
    };
}

impl Server {
    pub(crate) async fn open(
        place: &Place,
        args: &ServerArgs,
        keys: &Keys,
    ) -> Result<Self, Failure> {
        let wait = Duration::from_secs(args.timeout);
        let kind = match place {
            Place::Redis(url) => {
                let redis = Redis::open(url, args, keys.secret(), wait);
                Kind::Redis(Box::new(within(wait, redis).await?))
            }
            Place::Admin(_) if args.author.is_some() => {
                return Err(Failure::usage(
                    "--as is for --redis: with --admin the author is the name of the token",
                ));
            }
            Place::Admin(url) => Kind::Admin(Admin::new(url, args.token.as_deref())?),
        };
        Ok(Self {
            kind,
            timeout: wait,
        })
    }

    /// The key that a text means. A service knows its own secret, and the names that its application has for keys.
    pub(crate) async fn key(&self, text: &str, keys: &Keys) -> Result<KeyName, Failure> {
        match &self.kind {
            Kind::Redis(_) => keys.read(text),
            Kind::Admin(admin) => {
                let text = keys.check(text)?;
                // An address is the same everywhere.
                if let Some(key) = text.parse().ok().filter(|key: &KeyName| key.key().is_ip()) {
                    return Ok(key);
                }
                within(self.timeout, admin.resolve(&text)).await
            }
        }
    }

    pub(crate) async fn set(&self, key: &KeyName, to: Wanted<'_>) -> Result<Changed, Failure> {
        let set = ask!(self, server => server.set(key, &to));
        set.map_err(Failure::of_change)
    }

    pub(crate) async fn get(&self, key: &KeyName) -> Result<Option<Entry>, Failure> {
        ask!(self, server => server.get(key))
    }

    pub(crate) async fn list(&self) -> Result<Vec<Entry>, Failure> {
        ask!(self, server => server.list())
    }

    /// Deletes a limit if it is what was shown of it.
    pub(crate) async fn delete(&self, key: &KeyName, shown: &Own) -> Result<(), Failure> {
        let deleted = ask!(self, server => server.delete(key, shown));
        deleted.map_err(Failure::of_change)
    }

    pub(crate) async fn usage(&self, key: Option<&KeyName>) -> Result<Report, Failure> {
        ask!(self, server => server.usage(key))
    }

    pub(crate) async fn explain(
        &self,
        key: &KeyName,
        request: &RequestArgs,
    ) -> Result<Explained, Failure> {
        ask!(self, server => server.explain(key, request))
    }

    /// The last changes, the newest first.
    pub(crate) async fn changes(&self, count: u16) -> Result<Vec<Change>, Failure> {
        ask!(self, server => server.changes(count))
    }

    /// Rejects an override that changes nothing.
    pub(crate) async fn check(&self, key: &KeyName, own: &Own) -> Result<(), Failure> {
        match &self.kind {
            Kind::Redis(redis) => within(self.timeout, redis.check(key, own)).await,
            // The service checks it before it sets it.
            Kind::Admin(_) => Ok(()),
        }
    }

    /// Whether no request is looked up on lists, as far as that is known.
    pub(crate) async fn has_no_lists(&self) -> bool {
        match &self.kind {
            Kind::Redis(redis) => {
                let known = within(self.timeout, async { Ok(redis.has_no_lists().await) });
                known.await.unwrap_or(false)
            }
            // The service rejects what has no effect.
            Kind::Admin(_) => false,
        }
    }

    /// How many limits services keep at most although the store has lost them.
    pub(crate) async fn lost(&self) -> Result<u64, Failure> {
        ask!(self, server => server.lost())
    }

    /// Rejects a key whose limit in the store cannot be read by this version, which is not to look like none.
    pub(crate) fn check_readable(&self, key: &KeyName) -> Result<(), Failure> {
        if !self.is_unreadable(key) {
            return Ok(());
        }
        Err(Failure::refused(format!(
            "the limit of {key} in the store cannot be read by this version, and services may go by it: use the program \
             of the version that has set it, or set another one in its place by `limits set`"
        )))
    }

    pub(crate) fn is_unreadable(&self, key: &KeyName) -> bool {
        self.unreadable().iter().any(|name| **name == *key.as_str())
    }

    /// Limits in the store that this version cannot read. A service logs its own.
    pub(crate) fn unreadable(&self) -> Vec<Box<str>> {
        match &self.kind {
            Kind::Redis(redis) => redis.unreadable(),
            Kind::Admin(_) => Vec::new(),
        }
    }

    pub(crate) async fn accept_loss(&self) -> Result<(), Failure> {
        let accepted = ask!(self, server => server.accept_loss());
        accepted.map_err(Failure::of_change)
    }

    pub(crate) async fn clear_caches(&self) -> Result<(), Failure> {
        ask!(self, server => server.clear_caches())
    }

    /// Whether it is the store, which does not know what services keep and what their files have.
    pub(crate) fn is_store(&self) -> bool {
        matches!(self.kind, Kind::Redis(_))
    }

    /// Whether it has to be told what keys are counted as.
    pub(crate) fn wants_fingerprints(&self) -> bool {
        self.is_store()
    }
}

async fn within<T>(
    wait: Duration,
    answer: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    timeout(wait, answer).await.unwrap_or_else(|_| {
        let seconds = wait.as_secs();
        Err(Failure::unanswered(format!(
            "no answer within {seconds} s: check that the server runs, or give it more by --timeout"
        )))
    })
}
