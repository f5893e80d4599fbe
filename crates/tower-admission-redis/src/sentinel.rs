//! Finds the master by Sentinel.

use std::sync::Arc;

use tokio::task::JoinSet;

use super::call_error::{CallError, ClientError};
use super::connection::beside;
use super::url::{Address, Login, Target};
use tower_admission::store::FailureKind;

/// The Sentinels of a service, and the login for them.
#[derive(Clone)]
pub(super) struct Sentinels {
    pub(super) addresses: Vec<Address>,
    pub(super) service: Arc<str>,
    pub(super) login: Login,
}

/// The result of a task.
enum Finding {
    /// A Sentinel names a master.
    Named(Address),
    /// The named server confirms that it is the master.
    Confirmed(Address),
}

impl Sentinels {
    /// Calls all Sentinels at once, so that one that hangs delays nothing. Takes the first server that confirms that it
    /// is the master: a Sentinel that is cut off from the others may name a former one.
    pub(super) async fn master(&self, target: &Target) -> Result<Address, CallError> {
        // Ends the tasks when this future is dropped.
        let mut tasks = JoinSet::new();
        for address in &self.addresses {
            let (sentinels, target, address) = (self.clone(), target.clone(), address.clone());
            tasks.spawn(async move {
                let asked = sentinels.ask(&target, &address).await;
                asked.map_err(|error| error.at(&address))
            });
        }
        let mut named = Vec::new();
        let mut failure = CallError::new(FailureKind::Disconnected);
        while let Some(found) = tasks.join_next().await {
            match found {
                Ok(Ok(Finding::Named(address))) if named.contains(&address) => {}
                Ok(Ok(Finding::Named(address))) => {
                    named.push(address.clone());
                    let target = target.clone();
                    tasks.spawn(async move {
                        match target.open(&address).await {
                            Ok(_) => Ok(Finding::Confirmed(address)),
                            Err(error) => Err(error.at(&address)),
                        }
                    });
                }
                Ok(Ok(Finding::Confirmed(address))) => return Ok(address),
                // An error of a server explains more than an unreachable one.
                Ok(Err(error)) if failure.kind() == FailureKind::Disconnected => failure = error,
                Ok(Err(_)) => {}
                Err(error) if error.is_panic() => {
                    return Err(CallError::panicked(error.into_panic()));
                }
                // The runtime is shutting down.
                Err(_) => {}
            }
        }
        Err(failure)
    }

    async fn ask(&self, target: &Target, address: &Address) -> Result<Finding, CallError> {
        let (mut connection, mut driver) = target.open_with(&self.login, address).await?;
        let mut question = redis::cmd("SENTINEL");
        question.arg("GET-MASTER-ADDR-BY-NAME").arg(&*self.service);
        let named = beside(&mut driver, question.query_async(&mut connection)).await;
        let named: Option<(String, u16)> = named.map_err(|error| {
            let error = error.into_failure();
            match error.kind() {
                FailureKind::Unsupported => unusable("it is no Sentinel".to_owned()),
                _ => error,
            }
        })?;
        let Some((host, port)) = named else {
            let words = format!("this Sentinel knows no service {}", self.service);
            return Err(unusable(words));
        };
        Ok(Finding::Named(Address::Tcp(host.into(), port)))
    }
}

fn unusable(words: String) -> CallError {
    CallError::because(FailureKind::Configuration, words)
}
