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
    /// Where files lie, by what they were called at first. A folder may be a link to another one later.
    places: BTreeMap<PathBuf, PathBuf>,
    /// The last text of each file, also if it was rejected, so that it is reported once; and the variables that
    /// went before it.
    read: BTreeMap<PathBuf, (String, Variables)>,
    /// What went before the file that was read last.
    variables: Option<Variables>,
}

impl Changing {
    /// From what is running at first.
    pub(super) fn new(config: &Config) -> Self {
        let mut changing = Self {
            store: config.store.clone(),
            kept: Kept::default(),
            places: BTreeMap::new(),
            read: BTreeMap::new(),
            variables: None,
        };
        changing.note(&config.origin);
        changing
    }

    pub(super) fn note(&mut self, origin: &Origin) {
        if let Some(file) = &origin.file {
            let (text, variables) = (origin.text.0.clone(), origin.variables.clone());
            self.variables = Some(variables.clone());
            let place = self.place(file);
            self.read.insert(place, (text, variables));
        }
    }

    /// Whether this is what was read last of a file.
    pub(super) fn has_read(&mut self, file: &Path, text: &str) -> bool {
        let place = self.place(file);
        let read = self.read.get(&place);
        read.is_some_and(|(read, _)| read == text)
    }

    /// Notes what is read of a file, with the variables that went before it, or before the last one if it is
    /// read for the first time.
    pub(super) fn reads(&mut self, file: &Path, text: String) -> Origin {
        let place = self.place(file);
        let read = self.read.get(&place);
        let variables = read.map(|(_, variables)| variables.clone());
        let variables = variables.or_else(|| self.variables.clone());
        let origin = Origin {
            file: Some(file.to_owned()),
            text: Hidden(text),
            variables: variables.unwrap_or_else(Variables::of_process),
        };
        self.note(&origin);
        origin
    }

    fn place(&mut self, file: &Path) -> PathBuf {
        let place = self.places.entry(file.to_owned());
        place.or_insert_with(|| place_of(file)).clone()
    }
}

/// A file by where it lies, however its folder is written. Itself it may be a link to another one from time to
/// time.
fn place_of(file: &Path) -> PathBuf {
    let place = || {
        let folder = file.parent()?;
        let folder = if folder.as_os_str().is_empty() {
            Path::new(".")
        } else {
            folder
        };
        Some(folder.canonicalize().ok()?.join(file.file_name()?))
    };
    place().unwrap_or_else(|| file.to_owned())
}
