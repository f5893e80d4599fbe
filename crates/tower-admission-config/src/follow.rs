//! Applies a file whenever it is changed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::admission::Admission;
use super::error::ConfigError;
#[cfg(doc)]
use super::model::Config;

/// How often the file is looked at.
const EVERY: Duration = Duration::from_secs(1);

/// After how many looks a file is applied again that was rejected for what is not in it.
const RETRY_AFTER: u64 = 10;

/// A file is followed until this is dropped.
#[derive(Debug)]
#[must_use = "a file is followed until this is dropped"]
pub struct Following(Option<JoinHandle<()>>);

impl Following {
    /// Follows for as long as the runtime lives.
    pub fn detach(mut self) {
        self.0 = None;
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        if let Some(following) = &self.0 {
            following.abort();
        }
    }
}

impl Admission {
    /// Reads a file every second and, when its text is another, [reloads](Self::reload) it.
    /// Reports each change, and what is wrong with one that is rejected. Reports once that the file cannot be read.
    /// All of that is logged, and in [`last_reload`](Self::last_reload), too.
    ///
    /// The text is compared, not a time stamp, so that files which are replaced, as in a
    /// container's mounted configuration, are seen. It is another when it is not what was read of this
    /// file last, be it here or by the service itself: what the service [reloads](Self::reload) from
    /// elsewhere stays until the file changes. What is read has to be the same twice in a row before it
    /// counts, so that a file which is empty or half-written for a moment takes no limits away; a
    /// change is applied within two seconds.
    ///
    /// A file that this rejected is not tried again before it changes, with one exception: there may be no room for the
    /// rates of its `[limits]` next to those of overrides that were set at run time. Such a file is tried every ten
    /// seconds, and reported again when the outcome is another. So is a reload in which an observer panics, as a part
    /// of it may be in force. A file that was rejected before, or by [`reload_file`](Self::reload_file), is not tried
    /// again.
    ///
    /// What went before the file when it was loaded, the environment or the variables of
    /// [`load_with`](Config::load_with), goes before it still; before the first file of a service that
    /// was configured otherwise, the environment.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with time.
    pub fn follow(
        &self,
        file: impl Into<PathBuf>,
        mut told: impl FnMut(Result<(), ConfigError>) + Send + 'static,
    ) -> Following {
        self.warn_of_groups();
        let (admission, file) = (self.clone(), file.into());
        Following(Some(tokio::spawn(async move {
            let (mut before, mut unreadable, mut waiting) = (None, None, None);
            for look in 0_u64.. {
                sleep(EVERY).await;
                let path = file.clone();
                let Ok(read) = unblocked(move || std::fs::read_to_string(path)).await else {
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
                        let is_time = look % RETRY_AFTER == 0;
                        let path = file.clone();
                        let (reloaded, file) = (admission.clone(), file.clone());
                        let error = waiting.clone().filter(|_| is_time);
                        let applied = unblocked(move || {
                            reloaded.note_readable(&file);
                            match (reloaded.has_read(&file, &text), error) {
                                (false, _) => Some(reloaded.apply(&file, text)),
                                (true, Some(error)) => reloaded.retry(&file, text, &error),
                                (true, None) => None,
                            }
                        });
                        let applied = match applied.await {
                            Ok(applied) => applied,
                            // Of what panics all the time each attempt would be the same.
                            Err(error) if error.is_panic() && waiting != Some(panicked(&path)) => {
                                let error = panicked(&path);
                                outlive(|| admission.reloads().note_panicked(&error));
                                Some(Err(error))
                            }
                            Err(_) => None,
                        };
                        if let Some(applied) = applied {
                            waiting = applied.clone().err().filter(ConfigError::may_pass);
                            outlive(|| told(applied));
                        }
                    }
                    Err((kind, error)) => {
                        if unreadable != Some(kind) {
                            unreadable = Some(kind);
                            outlive(|| told(Err(admission.cannot_read(&file, error))));
                        }
                    }
                }
            }
        })))
    }
}

/// A reload that panicked, as an observer can. A part of it may be in force, so it is tried again.
fn panicked(file: &Path) -> ConfigError {
    let problem = "the reload panicked, and a part of it may be in force; it is tried again";
    ConfigError::new(problem)
        .in_file(Some(file))
        .that_may_pass()
}

/// Runs what blocks on a thread that may, as it may be long: a file can have 250,000 overrides.
async fn unblocked<T: Send + 'static>(
    job: impl FnOnce() -> T + Send + 'static,
) -> Result<T, tokio::task::JoinError> {
    tokio::task::spawn_blocking(job).await
}

/// Follows the file on whatever becomes of a change: what logs it, counts it or is told of it may panic.
fn outlive(change: impl FnOnce()) {
    let _ = catch_unwind(AssertUnwindSafe(change));
}
