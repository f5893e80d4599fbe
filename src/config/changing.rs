//! What a change is compared with.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::kept::Kept;
use super::load::Variables;
use super::model::{Config, Origin, Store};
use super::text::Hidden;

/// What a change is compared with.
pub(super) struct Changing {
    pub(super) store: Store,
    pub(super) kept: Kept,
    /// What was read last of each file, also if it was refused, so that it is told once.
    read: BTreeMap<PathBuf, String>,
    /// What went before the file that was read last.
    variables: Option<Variables>,
}

impl Changing {
    /// From what is running at first.
    pub(super) fn new(config: &Config) -> Self {
        let mut changing = Self {
            store: config.store.clone(),
            kept: Kept::default(),
            read: BTreeMap::new(),
            variables: None,
        };
        changing.note(&config.origin);
        changing
    }

    pub(super) fn note(&mut self, origin: &Origin) {
        if let Some(file) = &origin.file {
            self.read.insert(file.clone(), origin.text.0.clone());
            self.variables = Some(origin.variables.clone());
        }
    }

    /// Whether this is what was read last of a file.
    pub(super) fn has_read(&self, file: &Path, text: &str) -> bool {
        self.read.get(file).is_some_and(|read| read == text)
    }

    /// Notes what is read of a file, with the variables that went before the last one.
    pub(super) fn reads(&mut self, file: &Path, text: String) -> Origin {
        let variables = self.variables.clone();
        let origin = Origin {
            file: Some(file.to_owned()),
            text: Hidden(text),
            variables: variables.unwrap_or_else(Variables::of_process),
        };
        self.note(&origin);
        origin
    }
}
