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
                keys.check_kind(text)?;
                // An address is the same everywhere.
                if let Some(key) = text.parse().ok().filter(|key: &KeyName| key.key().is_ip()) {
                    return Ok(key);
                }
                within(self.timeout, admin.resolve(text)).await
            }
        }
    }

    pub(crate) async fn set(&self, key: &KeyName, own: &Own) -> Result<Changed, Failure> {
        ask!(self, server => server.set(key, own))
    }

    pub(crate) async fn get(&self, key: &KeyName) -> Result<Option<Own>, Failure> {
        ask!(self, server => server.get(key))
    }

    pub(crate) async fn list(&self) -> Result<Vec<Entry>, Failure> {
        ask!(self, server => server.list())
    }

    /// Returns what there was.
    pub(crate) async fn delete(&self, key: &KeyName) -> Result<Option<Own>, Failure> {
        ask!(self, server => server.delete(key))
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
    pub(crate) async fn check(&self, own: &Own) -> Result<(), Failure> {
        match &self.kind {
            Kind::Redis(redis) => within(self.timeout, redis.check(own)).await,
            // The service checks it before it sets it.
            Kind::Admin(_) => Ok(()),
        }
    }

    /// How many limits a service keeps although the store has lost them. The store itself does not know.
    pub(crate) async fn lost(&self) -> Result<u64, Failure> {
        match &self.kind {
            Kind::Redis(_) => Ok(0),
            Kind::Admin(admin) => within(self.timeout, admin.lost()).await,
        }
    }

    pub(crate) async fn accept_loss(&self) -> Result<(), Failure> {
        ask!(self, server => server.accept_loss())
    }

    pub(crate) async fn clear_caches(&self) -> Result<(), Failure> {
        ask!(self, server => server.clear_caches())
    }

    /// Whether it knows which limits a path has.
    pub(crate) fn knows_paths(&self) -> bool {
        matches!(self.kind, Kind::Admin(_))
    }

    /// Whether it has to be told what keys are counted as.
    pub(crate) fn wants_fingerprints(&self) -> bool {
        matches!(self.kind, Kind::Redis(_))
    }
}

async fn within<T>(
    wait: Duration,
    answer: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    timeout(wait, answer).await.unwrap_or_else(|_| {
        let seconds = wait.as_secs();
        Err(Failure::unreachable(format!(
            "no answer within {seconds} s: check that the server runs, or give it more by --timeout"
        )))
    })
}
