//! What a configuration has without effect.

use std::fmt;

use toml::Value;

use super::error::ConfigError;
use super::model::{Config, Group};
use super::origin::nearest;
use super::overrides::field_of;
use super::path::Prefix;
use super::selectors::GrpcPattern;

/// Something in a configuration that has no effect, or not the one that it seems to have. It is logged when limits
/// are made and when they change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigWarning {
    kind: WarningKind,
    told: ConfigError,
    may_be_meant: bool,
}

/// What a [`ConfigWarning`] is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum WarningKind {
    /// There is no group, and no `allow_empty = true` that means it.
    NoGroups,
    /// A group has no path, and no `path = "off"` that means it.
    NoPath,
    /// A group has none of the fields that limit. One that is 0 is switched off, and is not warned of.
    NoLimit,
    /// A path that is excluded is outside of the group's, or it is all of the group's.
    Exclude,
    /// A variable makes a group that no file names, and gives it no path.
    UnknownGroup,
    /// A variable sets nothing: it has single underscores.
    UnreadVariable,
    /// Settings of a store, and no URL.
    NoStore,
    /// A variable sets a field that the file sets, too, to another value.
    HiddenByVariable,
    /// An override of `[limits]` names a limit or a tier that the configuration does not have.
    UnknownLimit,
    /// A header of proxies, and none of them is trusted.
    NoProxies,
}

/// A warning's text, and its kind.
type Told = (WarningKind, ConfigError);

impl WarningKind {
    /// In words, for programs: `no_path`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoGroups => "no_groups",
            Self::NoPath => "no_path",
            Self::NoLimit => "no_limit",
            Self::Exclude => "exclude",
            Self::UnknownGroup => "unknown_group",
            Self::UnreadVariable => "unread_variable",
            Self::NoStore => "no_store",
            Self::HiddenByVariable => "hidden_by_variable",
            Self::UnknownLimit => "unknown_limit",
            Self::NoProxies => "no_proxies",
        }
    }
}

impl ConfigWarning {
    /// What it is about.
    #[must_use]
    pub fn kind(&self) -> WarningKind {
        self.kind
    }

    /// Whether it is likely to be meant: a variable hides a field of the file, as variables are made to do, or an override
    /// of `[limits]` may be about a limit or a tier that the program has next to the configuration. It is logged, and
    /// [`deny_warnings`](super::AdmissionBuilder::deny_warnings) and `config check --strict` do not reject it.
    #[must_use]
    pub fn may_be_meant(&self) -> bool {
        self.may_be_meant
    }

    /// The group of which only the program can know whether requests are in it, because it makes a layer for it.
    pub(super) fn group_without_path(&self) -> Option<&str> {
        let is_of_path = matches!(self.kind, WarningKind::NoPath | WarningKind::UnknownGroup);
        self.field().filter(|_| is_of_path)?.strip_prefix("groups.")
    }

    pub(super) fn log(&self) {
        tracing::warn!(warning = %self, "this has no effect");
    }

    /// The field, such as `groups.api.exclude`.
    #[must_use]
    pub fn field(&self) -> Option<&str> {
        self.told.field()
    }
}

/// The file with line and column, or the variable; the field; and what is without effect.
impl fmt::Display for ConfigWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.told.fmt(f)
    }
}

impl Config {
    /// What is written without effect. [`Admission`](super::Admission) logs it at start and when it
    /// [reloads](super::Admission::reload), and rejects it with
    /// [`deny_warnings`](super::AdmissionBuilder::deny_warnings).
    ///
    /// ```
    /// use tower_admission_config::{Config, WarningKind};
    ///
    /// let config = Config::from_toml("[groups.api]\nrate = '10/s'")?;
    /// assert_eq!(config.warnings()[0].kind(), WarningKind::NoPath);
    /// # Ok::<_, tower_admission_config::ConfigError>(())
    /// ```
    #[must_use]
    pub fn warnings(&self) -> Vec<ConfigWarning> {
        let mut found = self.warnings_of_settings();
        let in_file = self.origin.file_values().unwrap_or_default();
        let in_file = in_file.get("groups").and_then(Value::as_table);
        let in_file = in_file.into_iter().flatten();
        let in_file: Vec<_> = in_file.map(|(group, _)| group.as_str()).collect();
        for group in self.groups() {
            found.extend(self.warnings_of_group(group, &in_file));
        }
        found.extend(self.warnings_of_stores());
        found.extend(self.warnings_of_variables());
        let warning = |may_be_meant| {
            move |(kind, told)| ConfigWarning {
                kind,
                told: self.wrong(told),
                may_be_meant,
            }
        };
        let mut warnings: Vec<_> = found.into_iter().map(warning(false)).collect();
        let (near, others) = self.warnings_of_limits();
        warnings.extend(near.into_iter().map(warning(false)));
        let hidden = self.warnings_of_hidden_fields();
        warnings.extend(others.into_iter().chain(hidden).map(warning(true)));
        warnings
    }

    /// Where a failure mode has no effect, as nothing fails in memory.
    fn warnings_of_stores(&self) -> Vec<Told> {
        if self.store.url.is_some() {
            return Vec::new();
        }
        let tables = ["groups", "leases", "sockets"].into_iter();
        let fields = tables.flat_map(|table| {
            let settings = self.written.0.get(table).and_then(Value::as_table);
            let settings = settings.into_iter().flatten();
            let with_mode = settings.filter(|(_, fields)| fields.get("on_failure").is_some());
            with_mode.map(move |(name, _)| format!("{table}.{name}.on_failure"))
        });
        let problem = "without `store.url` limits are counted in memory, which does not fail";
        let told = fields.map(|field| ConfigError::at(field, problem));
        told.map(|told| (WarningKind::NoStore, told)).collect()
    }

    /// Parts of overrides about limits that are not there, and tiers that are not: those that are likely a typing
    /// error, and those that the program may have.
    fn warnings_of_limits(&self) -> (Vec<Told>, Vec<Told>) {
        let (mut near, mut others) = (Vec::new(), Vec::new());
        let [limits, tiers] = self.limits_named();
        let limits = limits.into_iter().map(|named| ("limit", named));
        let tiers = tiers.into_iter().map(|named| ("tier", named));
        for (sort, (name, key)) in limits.chain(tiers) {
            let known = match sort {
                "limit" => &self.names.limits,
                _ => &self.names.tiers,
            };
            if known.contains(&name) {
                continue;
            }
            let meant = nearest(&name, known.iter().map(String::as_str));
            let (problem, found) = match meant {
                Some(meant) => (
                    format!("there is no {sort} `{name}`: is `{meant}` meant?"),
                    &mut near,
                ),
                None => (
                    format!(
                        "there is no {sort} `{name}` in this configuration, and no effect unless the program has one"
                    ),
                    &mut others,
                ),
            };
            let told = self.place_of_limit(key, ConfigError::at(field_of(key), problem));
            found.push((WarningKind::UnknownLimit, told));
        }
        (near, others)
    }

    /// Fields of the file that a variable sets to something else. No value is shown.
    fn warnings_of_hidden_fields(&self) -> Vec<Told> {
        let file = self.file();
        let hidden = self.origin.variables.hide(&file.0).into_iter();
        let told = hidden.map(|(field, variable)| {
            let problem = format!("the variable {variable} goes before this value");
            let place = self.origin.place_of(&field);
            let told = ConfigError::at(field, problem);
            (
                WarningKind::HiddenByVariable,
                told.in_file(self.origin.file.as_deref()).found_at(place),
            )
        });
        told.collect()
    }

    fn warnings_of_settings(&self) -> Vec<Told> {
        let mut found = Vec::new();
        if let Some(told) = self.no_groups() {
            found.push((WarningKind::NoGroups, told));
        }
        let first_of = |table: &str| self.written.0.get(table)?.as_table()?.keys().next();
        if self.store.url.is_none()
            && let Some(field) = first_of("store")
        {
            let problem = "without `store.url` limits are counted in memory, and no setting of the store has an effect";
            let told = ConfigError::at(format!("store.{field}"), problem);
            found.push((WarningKind::NoStore, told));
        }
        let clients = self.written.0.get("clients");
        if clients.is_some_and(|clients| clients.get("forwarded_header").is_some())
            && !self.clients.trusts_proxies()
            && self.clients.trusted_hops.is_none()
        {
            let problem = "this header is not read, as no proxy is trusted: list the proxies in \
                           `clients.trusted_proxies`, or give their number in `clients.trusted_hops`";
            let told = ConfigError::at("clients.forwarded_header", problem);
            found.push((WarningKind::NoProxies, told));
        }
        found
    }

    /// What has no effect in a group, of which the file may have others.
    fn warnings_of_group(&self, group: &str, in_file: &[&str]) -> Vec<Told> {
        let field = format!("groups.{group}");
        let is_also = |other: &Group| other.also.iter().any(|name| name == group);
        let has_path = self.written.has_selectors(group) || self.groups.values().any(is_also);
        let meant = nearest(group, in_file.iter().copied());
        let is_other_case = meant.is_some_and(|meant| meant.eq_ignore_ascii_case(group));
        if !in_file.contains(&group) && (!has_path || is_other_case) {
            let told = ConfigError::at(field, unknown_group(meant, is_other_case));
            return vec![(WarningKind::UnknownGroup, told)];
        }
        let mut found = Vec::new();
        if !has_path {
            let problem = "this group selects no requests (by `path`, `methods`, `hosts` or `grpc`), and no group \
                           names it in `also`; if the program makes a layer for it (`Admission::layer_of`), \
                           write `path = \"off\"`";
            found.push((WarningKind::NoPath, ConfigError::at(&*field, problem)));
        }
        if !self.written.has_limits(group) {
            let problem =
                "this group has no limit: give it a rate or a concurrency, were it 0 for off";
            found.push((WarningKind::NoLimit, ConfigError::at(&*field, problem)));
        }
        let settings = &self.groups[group];
        let problems = settings.exclude.iter();
        let problems =
            problems.filter_map(|exclude| without_effect(exclude, &settings.path, &settings.grpc));
        let told = problems.map(|problem| ConfigError::at(format!("{field}.exclude"), problem));
        found.extend(told.map(|told| (WarningKind::Exclude, told)));
        found
    }

    fn warnings_of_variables(&self) -> Vec<Told> {
        let tables = Self::tables();
        let is_near = |word: &str| nearest(word, tables.iter().map(String::as_str)).is_some();
        let names_field = |rest: &str| {
            let table = rest.split_once('_').map(|(table, _)| table);
            table.is_some_and(|table| is_near(table) || is_near(rest))
        };
        let unread = self.origin.variables.unread();
        let unread = unread.filter(|(_, rest)| names_field(rest));
        let told = unread.map(|(variable, _)| {
            let problem = "this variable is not read: two underscores stand for a dot, as in \
                           `ADMISSION_GROUPS__API__RATE`";
            let told = ConfigError::new(problem).in_variable(variable);
            (WarningKind::UnreadVariable, told)
        });
        told.collect()
    }

    /// The warning of a configuration in which nothing limits requests, leases or sockets. Lists and overrides alone
    /// limit only the keys that they name. The file may have been cut.
    fn no_groups(&self) -> Option<ConfigError> {
        // A table that is empty counts, such as leases that are only counted.
        let has_any =
            !self.groups.is_empty() || !self.leases.is_empty() || !self.sockets.is_empty();
        if (has_any || self.is_empty_on_purpose()) && self.check_start().is_ok() {
            return None;
        }
        Some(ConfigError::new(NO_GROUPS))
    }

    /// Whether a service may start with this. The text of a program may be without groups, but a file may have been
    /// emptied, whatever variables add to it.
    pub(super) fn check_start(&self) -> Result<(), ConfigError> {
        let file = self.file();
        let has_any = ["groups", "leases", "sockets"]
            .iter()
            .any(|table| !file.names_in(table).is_empty())
            || ["limits", "lists"]
                .iter()
                .any(|table| file.has_entries(table));
        let is_meant = self.allow_empty && file.has_groups_table();
        if self.origin.file.is_none() || has_any || is_meant {
            return Ok(());
        }
        Err(ConfigError::new(NO_GROUPS))
    }

    /// What is without effect, as an error.
    pub(super) fn deny_warnings(&self) -> Result<(), ConfigError> {
        let warnings = self.warnings().into_iter();
        let mut warnings = warnings.filter(|warning| !warning.may_be_meant);
        warnings.next().map_or(Ok(()), |first| Err(first.told))
    }

    /// Whether it says that it has no groups.
    pub(super) fn is_empty_on_purpose(&self) -> bool {
        self.groups.is_empty() && self.allow_empty && self.written.has_groups_table()
    }
}

const NO_GROUPS: &str = "there are no groups, so no request is limited: if that is meant, write `allow_empty = true` and \
                         `groups = {}`";

fn unknown_group(meant: Option<&str>, is_other_case: bool) -> String {
    match meant {
        Some(meant) if is_other_case => format!(
            "the file calls it `{meant}`, and variables reach only what is written in lowercase: this is another group"
        ),
        Some(meant) => format!(
            "no group of the file is called so, and this one has no path: is `{meant}` meant?"
        ),
        None => "no group of the file is called so, and this one has no path: no request is in it"
            .to_owned(),
    }
}

/// Why a path that is excluded changes nothing, or everything.
fn without_effect(exclude: &Prefix, paths: &[Prefix], grpc: &[GrpcPattern]) -> Option<String> {
    if paths.is_empty() || !grpc.is_empty() {
        // What the layer of the program sees is not known here, nor what methods gRPC services have.
        return None;
    }
    if paths.iter().all(|path| exclude.covers_all_of(path)) {
        return Some(format!(
            "`{exclude}` is all of this group, so nothing of it is limited"
        ));
    }
    let is_outside = !paths.iter().any(|path| path.overlaps(exclude));
    is_outside
        .then(|| format!("`{exclude}` is outside of this group's paths, so nothing is excluded"))
}
