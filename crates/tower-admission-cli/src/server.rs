//! The server with the limits: Redis, or a service with admin endpoints.

use std::future::Future;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use tower_admission::KeyName;

use crate::admin::Admin;
use crate::args::{RequestArgs, ServerArgs, ServerUrl};
use crate::changes::Change;
use crate::explanation::Explanation;
use crate::failure::Failure;
use crate::keys::Keys;
use crate::override_json::OverrideJson;
use crate::redis::Redis;
use crate::usage::UsageReport;

pub(crate) struct Server {
    kind: Kind,
    timeout: Duration,
}

enum Kind {
    Redis(Box<Redis>),
    Admin(Admin),
}

/// A limit that was set, and the one before.
pub(crate) struct ChangedLimit {
    pub(crate) own: OverrideJson,
    pub(crate) before: Option<OverrideJson>,
}

/// A key with its override.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct OverrideEntry {
    pub(crate) key: String,
    #[serde(flatten)]
    pub(crate) own: OverrideJson,
    /// `override` if it was set at run time, `file` if it comes from the configuration of a service. `None` from services of
    /// older versions, and from Redis, which has only overrides that were set at run time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) source: Option<String>,
    /// The override of the configuration under the one that was set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) in_file: Option<OverrideJson>,
}

impl OverrideEntry {
    /// Whether it comes from the configuration of a service. Only that file can change it.
    pub(crate) fn is_from_file(&self) -> bool {
        self.source.as_deref() == Some("file")
    }

    /// The source, for people.
    pub(crate) fn origin(&self) -> &'static str {
        match self.is_from_file() {
            true => "from the file",
            false => "override",
        }
    }
}

/// A request to set a limit.
pub(crate) struct SetRequest<'a> {
    pub(crate) own: &'a OverrideJson,
    /// The duration of the limit, by the clock of the server.
    pub(crate) lasts: Option<Duration>,
    /// The limit that the key must have. Default: any.
    pub(crate) only_if: Option<Option<&'a OverrideJson>>,
    /// Whether its effect was [checked](Server::check) already.
    pub(crate) is_checked: bool,
}

impl<'a> SetRequest<'a> {
    pub(crate) fn new(own: &'a OverrideJson) -> Self {
        Self {
            own,
            lasts: None,
            only_if: None,
            is_checked: false,
        }
    }
}

/// The failure of a change when the limit of the key was changed concurrently.
pub(crate) fn concurrent_change(key: &KeyName, current: Option<&OverrideJson>) -> Failure {
    let current = current.map_or("none".to_owned(), OverrideJson::brief);
    Failure::rejected(format!(
        "the limit of {key} was changed by someone else, to {current}: nothing was changed now, see \
            `limits changes`"
    ))
}

/// Calls a method of the server within the timeout.
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
        url: &ServerUrl,
        args: &ServerArgs,
        keys: &Keys,
    ) -> Result<Self, Failure> {
        let wait = Duration::from_secs(args.timeout);
        let kind = match url {
            ServerUrl::Redis(url) => {
                let redis = Redis::open(url, args, keys.secret(), wait);
                Kind::Redis(Box::new(within(wait, redis).await?))
            }
            ServerUrl::Admin(_) if args.author.is_some() => {
                return Err(Failure::usage(
                    "--as works only with --redis: with --admin the author is the name of the token",
                ));
            }
            ServerUrl::Admin(url) => Kind::Admin(Admin::new(url, args.token.as_deref())?),
        };
        Ok(Self {
            kind,
            timeout: wait,
        })
    }

    /// Reads a key. A service uses its own secret, and may resolve names of its application.
    pub(crate) async fn key(&self, text: &str, keys: &Keys) -> Result<KeyName, Failure> {
        match &self.kind {
            Kind::Redis(_) => keys.read(text),
            Kind::Admin(admin) => {
                let text = keys.check(text)?;
                // Addresses need no service.
                if let Some(key) = text.parse().ok().filter(|key: &KeyName| key.key().is_ip()) {
                    return Ok(key);
                }
                within(self.timeout, admin.resolve(&text)).await
            }
        }
    }

    pub(crate) async fn set(
        &self,
        key: &KeyName,
        to: SetRequest<'_>,
    ) -> Result<ChangedLimit, Failure> {
        let set = ask!(self, server => server.set(key, &to));
        set.map_err(Failure::of_a_change)
    }

    pub(crate) async fn get(&self, key: &KeyName) -> Result<Option<OverrideEntry>, Failure> {
        ask!(self, server => server.get(key))
    }

    pub(crate) async fn list(&self) -> Result<Vec<OverrideEntry>, Failure> {
        ask!(self, server => server.list())
    }

    /// Deletes a limit if it is what was shown of it.
    pub(crate) async fn delete(&self, key: &KeyName, shown: &OverrideJson) -> Result<(), Failure> {
        let deleted = ask!(self, server => server.delete(key, shown));
        deleted.map_err(Failure::of_a_change)
    }

    pub(crate) async fn usage(&self, key: Option<&KeyName>) -> Result<UsageReport, Failure> {
        ask!(self, server => server.usage(key))
    }

    pub(crate) async fn explain(
        &self,
        key: &KeyName,
        request: &RequestArgs,
    ) -> Result<Explanation, Failure> {
        ask!(self, server => server.explain(key, request))
    }

    /// The last changes, the newest first.
    pub(crate) async fn changes(&self, count: u16) -> Result<Vec<Change>, Failure> {
        ask!(self, server => server.changes(count))
    }

    /// Rejects an override that changes nothing.
    pub(crate) async fn check(&self, key: &KeyName, own: &OverrideJson) -> Result<(), Failure> {
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
        Err(Failure::rejected(format!(
            "the limit of {key} in the store cannot be read by this version, but services may enforce it: \
                use the version of the program that set it, or replace it with `limits set`"
        )))
    }

    pub(crate) fn is_unreadable(&self, key: &KeyName) -> bool {
        self.unreadable().iter().any(|name| **name == *key.as_str())
    }

    /// The limits in the store that this version cannot read. A service logs these itself.
    pub(crate) fn unreadable(&self) -> Vec<Box<str>> {
        match &self.kind {
            Kind::Redis(redis) => redis.unreadable(),
            Kind::Admin(_) => Vec::new(),
        }
    }

    pub(crate) async fn accept_loss(&self) -> Result<(), Failure> {
        let accepted = ask!(self, server => server.accept_loss());
        accepted.map_err(Failure::of_a_change)
    }

    pub(crate) async fn clear_caches(&self) -> Result<(), Failure> {
        ask!(self, server => server.clear_caches())
    }

    /// Whether the server is the store, which does not know the files and the memory of services.
    pub(crate) fn is_store(&self) -> bool {
        matches!(self.kind, Kind::Redis(_))
    }

    /// Whether the server needs fingerprints of keys.
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
            "no answer within {seconds} s: check that the server runs, or raise --timeout"
        )))
    })
}
