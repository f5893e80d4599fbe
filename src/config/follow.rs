//! Applies a file whenever it is changed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::admission::Admission;
use super::error::ConfigError;
use super::model::Config;

/// How often the file is looked at.
const EVERY: Duration = Duration::from_secs(1);

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
    /// Reads a file every second and, when it is another text than it was at the start and two times in a
    /// row, [reloads](Self::reload) it: one that is being written is not seen half-way. Each change is
    /// told, with what is wrong if it was refused; one that cannot be read as well, once.
    ///
    /// The text is compared, not a time stamp, so that files which are replaced, as in a
    /// container's mounted configuration, are seen. The variables are those of the start.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with time.
    pub fn follow(
        &self,
        file: impl Into<PathBuf>,
        mut told: impl FnMut(Result<(), ConfigError>) + Send + 'static,
    ) -> Following {
        let (admission, file) = (self.clone(), file.into());
        Following(Some(tokio::spawn(async move {
            let mut tell = |told_of| {
                // Whatever becomes of that, the file is followed.
                let _ = catch_unwind(AssertUnwindSafe(|| told(told_of)));
            };
            let mut seen = admission.origin().text.0.clone();
            let mut next = None;
            let mut unreadable = None;
            loop {
                sleep(EVERY).await;
                let path = file.clone();
                // On a thread that may block.
                let read = tokio::task::spawn_blocking(move || std::fs::read_to_string(path));
                let Ok(read) = read.await else {
                    continue;
                };
                match read {
                    Ok(text) => {
                        unreadable = None;
                        if text == seen {
                            next = None;
                        } else if next.as_ref() == Some(&text) {
                            next = None;
                            tell(admission.apply(&text, &file));
                            seen = text;
                        } else {
                            next = Some(text);
                        }
                    }
                    Err(error) => {
                        let kind = Some(error.kind());
                        if unreadable != kind {
                            unreadable = kind;
                            tell(Err(ConfigError::new(error).in_file(&file)));
                        }
                    }
                }
            }
        })))
    }

    fn apply(&self, text: &str, file: &Path) -> Result<(), ConfigError> {
        let variables = self.origin().variables.iter();
        let variables = variables.map(|(name, value)| (name.clone(), value.0.clone()));
        self.reload(&Config::read(text, Some(file), variables)?)
    }
}
