//! Applies a file whenever it is changed.

use std::path::PathBuf;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::admission::Admission;
use super::error::ConfigError;
use super::load::{Variables, variables};
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
    /// Reads a file every second and, when its text is another, [reloads](Self::reload) it. Each
    /// change is told, with what is wrong if it was refused; one that cannot be read as well, once.
    ///
    /// The text is compared, not a time stamp, so that files which are replaced, as in a
    /// container's mounted configuration, are seen.
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
                        if text != admission.text() {
                            told(admission.apply(&text, &file));
                        }
                    }
                    Err(error) => {
                        let kind = Some(error.kind());
                        if unreadable != kind {
                            unreadable = kind;
                            told(Err(
                                ConfigError::new(error).of(Some(&file), &Variables::default())
                            ));
                        }
                    }
                }
            }
        })))
    }

    fn apply(&self, text: &str, file: &std::path::Path) -> Result<(), ConfigError> {
        match Config::read(text, Some(file), variables()) {
            Ok(config) => self.reload(&config),
            Err(error) => {
                self.refused(text);
                Err(error)
            }
        }
    }
}
