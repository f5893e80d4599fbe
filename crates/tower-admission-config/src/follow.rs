//! Applies a file each time it changes.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::admission::Admission;
use super::error::ConfigError;
#[cfg(doc)]
use super::model::Config;

/// The time between two reads of the file.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// The number of reads before a file with a transient error is applied again.
const POLLS_PER_RETRY: u64 = 10;

/// Follows a file until it is dropped.
#[derive(Debug)]
#[must_use = "dropping this handle stops following the file"]
pub struct FollowHandle(Option<JoinHandle<()>>);

impl FollowHandle {
    /// Follows the file for as long as the runtime lives.
    pub fn detach(mut self) {
        self.0 = None;
    }
}

impl Drop for FollowHandle {
    fn drop(&mut self) {
        if let Some(following) = &self.0 {
            following.abort();
        }
    }
}

impl Admission {
    /// Reads a file every second, and [reloads](Self::reload) it when its text changes. Calls `report` with the result of
    /// each reload, and once when the file cannot be read. Results are also logged, and in
    /// [`last_reload`](Self::last_reload).
    ///
    /// The text is compared, not a time stamp, so replaced files are seen as well, such as a mounted configuration of a
    /// container. The text counts as changed if it differs from the last one that was read of this file, here or by the
    /// service itself. A configuration that the service [reloads](Self::reload) from elsewhere stays until the file
    /// changes. A text is applied once two reads in a row are equal, so a file that is empty or half-written for a moment
    /// removes no limits. A change is applied within two seconds.
    ///
    /// A rejected file is not tried again before it changes, with two exceptions, which are tried every ten seconds and
    /// reported when the result changes: the rates of `[limits]` may not fit next to those of overrides that were set at run
    /// time, and an observer may panic during a reload, which may then be applied in part. A file that was rejected
    /// earlier, or by [`reload_file`](Self::reload_file), is not tried again.
    ///
    /// The variables of the last load override the file: those of the environment, or of
    /// [`load_with`](Config::load_with). If the service was not configured from a file, the environment does.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with a timer.
    pub fn follow(
        &self,
        file: impl Into<PathBuf>,
        mut report: impl FnMut(Result<(), ConfigError>) + Send + 'static,
    ) -> FollowHandle {
        self.warn_of_groups();
        let (admission, file) = (self.clone(), file.into());
        FollowHandle(Some(tokio::spawn(async move {
            let (mut before, mut unreadable, mut waiting) = (None, None, None);
            for look in 0_u64.. {
                sleep(POLL_INTERVAL).await;
                let path = file.clone();
                let Ok(read) = run_blocking(move || std::fs::read_to_string(path)).await else {
                    continue;
                };
                let now = read.map_err(|error| (error.kind(), error.to_string()));
                if before.as_ref() != Some(&now) {
                    before = Some(now);
                    continue;
                }
                match now {
                    Ok(text) => {
                        unreadable = None;
                        let is_time = look % POLLS_PER_RETRY == 0;
                        let path = file.clone();
                        let (reloaded, file) = (admission.clone(), file.clone());
                        let error = waiting.clone().filter(|_| is_time);
                        let applied = run_blocking(move || {
                            reloaded.note_readable(&file);
                            match (reloaded.has_read(&file, &text), error) {
                                (false, _) => Some(reloaded.apply(&file, text)),
                                (true, Some(error)) => reloaded.retry(&file, text, &error),
                                (true, None) => None,
                            }
                        });
                        let applied = match applied.await {
                            Ok(applied) => applied,
                            // Report a repeated panic only once.
                            Err(error) if error.is_panic() && waiting != Some(panicked(&path)) => {
                                let error = panicked(&path);
                                catch_panic(|| admission.reloads().note_panicked(&error));
                                Some(Err(error))
                            }
                            Err(_) => None,
                        };
                        if let Some(applied) = applied {
                            waiting = applied.clone().err().filter(ConfigError::is_transient);
                            catch_panic(|| report(applied));
                        }
                    }
                    Err((kind, error)) => {
                        if unreadable != Some(kind) {
                            unreadable = Some(kind);
                            catch_panic(|| report(Err(admission.cannot_read(&file, error))));
                        }
                    }
                }
            }
        })))
    }
}

/// The error of a reload that panicked, for example in an observer. It is tried again, because it may be applied in part.
fn panicked(file: &Path) -> ConfigError {
    let problem = "the reload panicked and may be applied in part; it is tried again";
    ConfigError::new(problem).in_file(Some(file)).transient()
}

/// Runs a job on a thread that may block. A file can have 250,000 overrides.
async fn run_blocking<T: Send + 'static>(
    job: impl FnOnce() -> T + Send + 'static,
) -> Result<T, tokio::task::JoinError> {
    tokio::task::spawn_blocking(job).await
}

/// Catches a panic of a logger, a recorder or a callback, so that the file is still followed.
fn catch_panic(change: impl FnOnce()) {
    let _ = catch_unwind(AssertUnwindSafe(change));
}
