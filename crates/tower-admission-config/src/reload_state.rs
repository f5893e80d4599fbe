//! The state that a reload is compared with.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tower_admission::provider::KnownNames;

use super::fields::ConfigFields;
use super::model::{Config, Store};
use super::origin::Origin;
use super::overrides::LimitsTable;
use super::retired::RetiredLimiters;
use super::text::Redacted;
use super::variables::Variables;
use super::warning::ConfigWarning;

/// What a change is compared with.
pub(super) struct ReloadState {
    pub(super) store: Store,
    pub(super) written: ConfigFields,
    /// The fields of the file alone.
    pub(super) file: ConfigFields,
    pub(super) retired: RetiredLimiters,
    /// The overrides of the file.
    pub(super) base: LimitsTable,
    /// For operators, while something is switched off.
    pub(super) switched_off: Option<Arc<KnownNames>>,
    /// Where files lie, by what they were called at first. A folder may be a link to another one later.
    places: BTreeMap<PathBuf, PathBuf>,
    /// The last text of each file, also if it was rejected, so that it is reported once; and the variables that
    /// went before it.
    read: BTreeMap<PathBuf, (String, Variables)>,
    /// What went before the file that was read last.
    variables: Option<Variables>,
    /// Groups that the program has made a layer of.
    layers: BTreeSet<String>,
    /// Warnings of groups without a path, until it is known which of them have a layer.
    held_back: Vec<ConfigWarning>,
}

impl ReloadState {
    /// From what is running at first.
    pub(super) fn new(config: &Config) -> Self {
        let mut changing = Self {
            store: config.store.clone(),
            written: config.written.clone(),
            file: config.file(),
            retired: RetiredLimiters::default(),
            base: LimitsTable::default(),
            switched_off: None,
            places: BTreeMap::new(),
            read: BTreeMap::new(),
            variables: None,
            layers: BTreeSet::new(),
            held_back: Vec::new(),
        };
        changing.note(&config.origin);
        changing
    }

    /// Logs what is without effect at first. A program may make layers of groups without a path afterwards.
    pub(super) fn warn_at_start(&mut self, config: &Config) {
        let warnings = config.warnings().into_iter();
        let (held_back, told): (Vec<_>, Vec<_>) =
            warnings.partition(|warning| warning.group_without_path().is_some());
        told.iter().for_each(ConfigWarning::log);
        self.held_back = held_back;
    }

    /// Logs what is without effect, now that all layers are made.
    pub(super) fn warn(&mut self, config: &Config) {
        self.held_back = config.warnings();
        self.warn_of_groups();
    }

    /// Logs which groups have neither a path nor a layer, once.
    pub(super) fn warn_of_groups(&mut self) {
        for warning in std::mem::take(&mut self.held_back) {
            let group = warning.group_without_path();
            if group.is_none_or(|group| !self.layers.contains(group)) {
                warning.log();
            }
        }
    }

    pub(super) fn note_layer(&mut self, group: &str) {
        self.layers.insert(group.to_owned());
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
            text: Redacted(text),
            variables: variables.unwrap_or_else(Variables::of_process),
        };
        self.note(&origin);
        origin
    }

    pub(super) fn place(&mut self, file: &Path) -> PathBuf {
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
