//! Changes limits through the admin endpoints of a service.

use hyper::{Method, StatusCode};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tower_admission::{KeyName, Limit};

use crate::args::RequestArgs;
use crate::changes::Change;
use crate::explanation::Explanation;
use crate::failure::Failure;
use crate::http::{Answer, Client, Condition};
use crate::override_json::{OverrideAnswer, OverrideJson};
use crate::server::{ChangedLimit, OverrideEntry, SetRequest, concurrent_change};
use crate::usage::UsageReport;

pub(crate) struct Admin(Client);

/// The number of limits per answer.
const PAGE: usize = 1000;

#[derive(Deserialize)]
struct Page {
    limits: Vec<OverrideEntry>,
    next: Option<String>,
}

#[derive(Deserialize)]
struct Set {
    #[serde(flatten)]
    own: OverrideJson,
    before: Option<OverrideAnswer>,
}

#[derive(Deserialize)]
struct Resolved {
    keys: Vec<ResolvedKey>,
}

#[derive(Deserialize)]
struct ResolvedKey {
    key: String,
}

#[derive(Deserialize)]
struct Changes {
    changes: Vec<Change>,
}

impl Admin {
    pub(crate) fn new(url: &str, token: Option<&str>) -> Result<Self, Failure> {
        Ok(Self(Client::new(url, token)?))
    }

    /// Resolves a key. The text may be a credential, so it is sent in a body.
    pub(crate) async fn resolve(&self, text: &str) -> Result<KeyName, Failure> {
        let body = json!({ "key": text });
        let answer = self.0.send(Method::POST, "/keys/resolve", Some(&body));
        let resolved: Resolved = read(answer.await?)?;
        let key = resolved.keys.first().ok_or_else(no_api)?;
        key.key.parse().map_err(|_| no_api())
    }

    pub(crate) async fn set(
        &self,
        key: &KeyName,
        to: &SetRequest<'_>,
    ) -> Result<ChangedLimit, Failure> {
        let own = to.own;
        if key.is_embedded() && own.limit.parse() == Ok(Limit::unlimited()) {
            return Err(Failure::rejected(format!(
                "this IPv6 address contains an IPv4 address, which is another client: to exempt the IPv4 \
                    address, write {key}"
            )));
        }
        let condition = match to.only_if {
            Some(shown) => Some(self.condition(key, shown).await?),
            None => None,
        };
        let mut body = own.to_json();
        if let Some(lasts) = to.lasts {
            // Ends are whole seconds.
            let seconds = lasts.as_secs() + u64::from(lasts.subsec_nanos() > 0);
            body["for_seconds"] = json!(seconds);
        }
        let path = of_key("limits", key);
        let answer = self
            .0
            .send_if(Method::PUT, &path, Some(&body), condition)
            .await?;
        let set: Set = read(checked(key, answer)?)?;
        let has_end = match to.lasts {
            Some(_) => set.own.end.is_some(),
            None => own.end == set.own.end,
        };
        if !has_end || own.note != set.own.note {
            return Err(Failure::rejected(format!(
                "the service is an older version and has set the limit of {key} without its end or note: delete \
                    the limit, or set it with --redis"
            )));
        }
        Ok(ChangedLimit {
            own: set.own,
            before: set.before.map(OverrideJson::from),
        })
    }

    pub(crate) async fn get(&self, key: &KeyName) -> Result<Option<OverrideEntry>, Failure> {
        let path = of_key("limits", key);
        let answer = self.0.send(Method::GET, &path, None);
        found(answer.await?)
    }

    /// The condition that the override of the key equals the one that was shown.
    async fn condition(
        &self,
        key: &KeyName,
        shown: Option<&OverrideJson>,
    ) -> Result<Condition, Failure> {
        let path = of_key("limits", key);
        let answer = self.0.send(Method::GET, &path, None).await?;
        let tag = answer.tag.clone();
        let entry: Option<OverrideEntry> = found(answer)?;
        let at_run_time = entry.as_ref().filter(|entry| !entry.is_from_file());
        let current = at_run_time.map(|entry| &entry.own);
        if current != shown {
            return Err(concurrent_change(key, current));
        }
        match (entry, tag) {
            (None, _) => Ok(Condition::IsNone),
            (Some(_), Some(tag)) => Ok(Condition::Is(tag)),
            (Some(_), None) => Err(no_api()),
        }
    }

    pub(crate) async fn list(&self) -> Result<Vec<OverrideEntry>, Failure> {
        let mut entries = Vec::new();
        let mut after = String::new();
        loop {
            let from = utf8_percent_encode(&after, NON_ALPHANUMERIC);
            let path = match &*after {
                "" => format!("/limits?count={PAGE}"),
                _ => format!("/limits?after={from}&count={PAGE}"),
            };
            let page: Page = read(self.0.send(Method::GET, &path, None).await?)?;
            entries.extend(page.limits);
            match page.next {
                // Otherwise the loop would not end.
                Some(next) if next > after => after = next,
                Some(_) => return Err(no_api()),
                None => return Ok(entries),
            }
        }
    }

    pub(crate) async fn delete(&self, key: &KeyName, shown: &OverrideJson) -> Result<(), Failure> {
        let condition = self.condition(key, Some(shown)).await?;
        let path = of_key("limits", key);
        let answer = self.0.send_if(Method::DELETE, &path, None, Some(condition));
        let deleted: Option<Value> = found(checked(key, answer.await?)?)?;
        match deleted {
            Some(_) => Ok(()),
            None => Err(concurrent_change(key, None)),
        }
    }

    pub(crate) async fn usage(&self, key: Option<&KeyName>) -> Result<UsageReport, Failure> {
        let path = match key {
            Some(key) => of_key("usage", key),
            None => "/usage".to_owned(),
        };
        read(self.0.send(Method::GET, &path, None).await?)
    }

    pub(crate) async fn explain(
        &self,
        key: &KeyName,
        request: &RequestArgs,
    ) -> Result<Explanation, Failure> {
        let key = request.written.as_deref().unwrap_or(key.as_str());
        let mut body = json!({ "key": key });
        for (name, value) in [
            ("tier", &request.tier),
            ("path", &request.path),
            ("method", &request.method),
            ("host", &request.host),
            ("address", &request.address),
        ] {
            if let Some(value) = value {
                body[name] = json!(value);
            }
        }
        read(self.0.send(Method::POST, "/explain", Some(&body)).await?)
    }

    pub(crate) async fn changes(&self, count: u16) -> Result<Vec<Change>, Failure> {
        let path = format!("/changes?count={count}");
        let changes: Changes = read(self.0.send(Method::GET, &path, None).await?)?;
        Ok(changes.changes)
    }

    pub(crate) async fn clear_caches(&self) -> Result<(), Failure> {
        self.post_nothing("/cache/clear").await
    }

    pub(crate) async fn lost(&self) -> Result<u64, Failure> {
        let now: NowAnswer = read(self.0.send(Method::GET, "/now", None).await?)?;
        Ok(now.lost_overrides)
    }

    pub(crate) async fn accept_loss(&self) -> Result<(), Failure> {
        self.post_nothing("/loss/accept").await
    }

    async fn post_nothing(&self, path: &str) -> Result<(), Failure> {
        let answer = self.0.send(Method::POST, path, None).await?;
        succeeded(&answer)?;
        // A server without admin endpoints answers differently.
        if answer.status == StatusCode::NO_CONTENT {
            Ok(())
        } else {
            Err(no_api())
        }
    }
}

/// The state that an import needs.
#[derive(serde::Deserialize)]
struct NowAnswer {
    lost_overrides: u64,
}

/// Fails if the answer reports a concurrent change.
fn checked(key: &KeyName, answer: Answer) -> Result<Answer, Failure> {
    if answer.status != StatusCode::PRECONDITION_FAILED {
        return Ok(answer);
    }
    let current: Option<OverrideAnswer> =
        serde_json::from_value(answer.body["current"].clone()).ok();
    Err(concurrent_change(
        key,
        current.map(OverrideJson::from).as_ref(),
    ))
}

fn of_key(what: &str, key: &KeyName) -> String {
    let key = utf8_percent_encode(key.as_str(), NON_ALPHANUMERIC);
    format!("/{what}/{key}")
}

/// `None` if the answer is 404.
fn found<T: DeserializeOwned>(answer: Answer) -> Result<Option<T>, Failure> {
    // A 404 of another server says nothing about the key.
    if answer.status == StatusCode::NOT_FOUND && answer.is_problem {
        return Ok(None);
    }
    read(answer).map(Some)
}

fn read<T: DeserializeOwned>(answer: Answer) -> Result<T, Failure> {
    succeeded(&answer)?;
    serde_json::from_value(answer.body).map_err(|_| no_api())
}

fn succeeded(answer: &Answer) -> Result<(), Failure> {
    let status = answer.status;
    let detail = answer.body["detail"].as_str();
    if status.is_success() {
        return Ok(());
    }
    if status == StatusCode::UNAUTHORIZED {
        let refused = "the admin endpoints reject the token: check --token or ADMISSION_TOKEN";
        return Err(Failure::rejected(refused));
    }
    if status == StatusCode::FORBIDDEN {
        let said = detail.map_or(String::new(), |detail| format!(" ({detail})"));
        let refused = format!("the token may not write: use one with the role `write`{said}");
        return Err(Failure::rejected(refused));
    }
    let said = detail.map_or_else(|| status.to_string(), str::to_owned);
    if status.is_server_error() {
        let failed = format!(
            "the service cannot do this now: {said}: try again, or see the log of the service"
        );
        return Err(Failure::unanswered(failed));
    }
    if status.is_client_error() && answer.is_problem {
        return Err(Failure::single_limit(format!(
            "the service rejects this: {said}"
        )));
    }
    Err(no_api())
}

fn no_api() -> Failure {
    Failure::unreachable("this URL has no admin endpoints: check the path of --admin")
}
