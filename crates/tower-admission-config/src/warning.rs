//! Warnings: settings of a configuration that have no effect.

use std::fmt;

use toml::Value;

use super::error::ConfigError;
use super::model::{Config, Group};
use super::origin::nearest;
use super::overrides::field_of;
use super::path::Prefix;
use super::selectors::GrpcPattern;

/// A setting without effect, or with another effect than it seems to have. A start and a reload log it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigWarning {
    kind: WarningKind,
    error: ConfigError,
    may_be_intended: bool,
}

/// The kind of a [`ConfigWarning`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum WarningKind {
    /// There are no groups, and `allow_empty` is not true.
    NoGroups,
    /// A group selects no requests, and has no `path = "off"`.
    NoPath,
    /// A group has no limit. A limit of 0 causes no warning.
    NoLimit,
    /// An excluded path is outside of the group's paths, or covers all of them.
    Exclude,
    /// A variable makes a group that the file does not have, without a path.
    UnknownGroup,
    /// A variable has single underscores, so it sets nothing.
    UnreadVariable,
    /// The store has settings but no URL.
    NoStore,
    /// A variable overrides a field of the file with another value.
    HiddenByVariable,
    /// An override of `[limits]` names an unknown limit or tier.
    UnknownLimit,
    /// `clients.forwarded_header` is set, but no proxy is trusted.
    NoProxies,
}

/// The kind and the text of a warning.
type KindAndError = (WarningKind, ConfigError);

impl WarningKind {
    /// The kind as a word for programs, such as `no_path`.
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
    /// The kind.
    #[must_use]
    pub fn kind(&self) -> WarningKind {
        self.kind
    }

    /// Whether the setting may be intended: a variable hides a field of the file, or an override of `[limits]` may name a
    /// limit or a tier of the program. Such a warning is logged, but
    /// [`deny_warnings`](super::AdmissionBuilder::deny_warnings) and `config check --strict` do not reject it.
    #[must_use]
    pub fn may_be_intended(&self) -> bool {
        self.may_be_intended
    }

    /// The group without a path. Only the program knows whether it makes a layer for it.
    pub(super) fn group_without_path(&self) -> Option<&str> {
        let is_of_path = matches!(self.kind, WarningKind::NoPath | WarningKind::UnknownGroup);
        self.field().filter(|_| is_of_path)?.strip_prefix("groups.")
    }

    pub(super) fn log(&self) {
        tracing::warn!(warning = %self, "a setting has no effect");
    }

    /// The field, such as `groups.api.exclude`.
    #[must_use]
    pub fn field(&self) -> Option<&str> {
        self.error.field()
    }
}

/// The file with line and column, or the variable; the field; and the problem.
impl fmt::Display for ConfigWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl Config {
    /// The settings without effect. [`Admission`](super::Admission) logs them at start and in a
    /// [reload](super::Admission::reload), and rejects them with
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
        let warning = |may_be_intended| {
            move |(kind, told)| ConfigWarning {
                kind,
                error: self.wrong(told),
                may_be_intended,
            }
        };
        let mut warnings: Vec<_> = found.into_iter().map(warning(false)).collect();
        let (near, others) = self.warnings_of_limits();
        warnings.extend(near.into_iter().map(warning(false)));
        let hidden = self.warnings_of_hidden_fields();
        warnings.extend(others.into_iter().chain(hidden).map(warning(true)));
        warnings
    }

    /// Warnings for failure modes without a store: counting in memory does not fail.
    fn warnings_of_stores(&self) -> Vec<KindAndError> {
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
        let problem = "without `store.url`, limits count in memory, which does not fail";
        let told = fields.map(|field| ConfigError::at(field, problem));
        told.map(|told| (WarningKind::NoStore, told)).collect()
    }

    /// Warnings for unknown limits and tiers in overrides: first the likely typing errors, then the names that the program
    /// may have.
    fn warnings_of_limits(&self) -> (Vec<KindAndError>, Vec<KindAndError>) {
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
                    format!("unknown {sort} `{name}`: did you mean `{meant}`?"),
                    &mut near,
                ),
                None => (
                    format!(
                        "this configuration has no {sort} `{name}`: this has no effect unless the program has one"
                    ),
                    &mut others,
                ),
            };
            let told = self.locate_limit(key, ConfigError::at(field_of(key), problem));
            found.push((WarningKind::UnknownLimit, told));
        }
        (near, others)
    }

    /// Warnings for fields of the file that a variable overrides. No value is shown.
    fn warnings_of_hidden_fields(&self) -> Vec<KindAndError> {
        let file = self.file();
        let hidden = self.origin.variables.hide(&file.0).into_iter();
        let told = hidden.map(|(field, variable)| {
            let problem = format!("the variable {variable} overrides this value");
            let place = self.origin.position_of(&field);
            let told = ConfigError::at(field, problem);
            (
                WarningKind::HiddenByVariable,
                told.in_file(self.origin.file.as_deref()).at_position(place),
            )
        });
        told.collect()
    }

    fn warnings_of_settings(&self) -> Vec<KindAndError> {
        let mut found = Vec::new();
        if let Some(told) = self.no_groups() {
            found.push((WarningKind::NoGroups, told));
        }
        let first_of = |table: &str| self.written.0.get(table)?.as_table()?.keys().next();
        if self.store.url.is_none()
            && let Some(field) = first_of("store")
        {
            let problem = "without `store.url`, limits count in memory, and settings of the store have no effect";
            let told = ConfigError::at(format!("store.{field}"), problem);
            found.push((WarningKind::NoStore, told));
        }
        let clients = self.written.0.get("clients");
        if clients.is_some_and(|clients| clients.get("forwarded_header").is_some())
            && !self.clients.trusts_proxies()
            && self.clients.trusted_hops.is_none()
        {
            let problem = "this header is not read, because no proxy is trusted: list the proxies in \
                    `clients.trusted_proxies`, or set their number in `clients.trusted_hops`";
            let told = ConfigError::at("clients.forwarded_header", problem);
            found.push((WarningKind::NoProxies, told));
        }
        found
    }

    /// Warnings for one group. `in_file` has the groups of the file.
    fn warnings_of_group(&self, group: &str, in_file: &[&str]) -> Vec<KindAndError> {
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
            let problem = "this group has no limit: add a rate or a concurrency, or 0 for off";
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

    fn warnings_of_variables(&self) -> Vec<KindAndError> {
        let tables = Self::tables();
        let is_near = |word: &str| nearest(word, tables.iter().map(String::as_str)).is_some();
        let names_field = |rest: &str| {
            let table = rest.split_once('_').map(|(table, _)| table);
            table.is_some_and(|table| is_near(table) || is_near(rest))
        };
        let unread = self.origin.variables.unread();
        let unread = unread.filter(|(_, rest)| names_field(rest));
        let told = unread.map(|(variable, _)| {
            let problem = "this variable is not read: write two underscores for a dot, as in \
                    `ADMISSION_GROUPS__API__RATE`";
            let told = ConfigError::new(problem).in_variable(variable);
            (WarningKind::UnreadVariable, told)
        });
        told.collect()
    }

    /// The warning for a configuration without groups, leases and sockets. Lists and overrides limit only the keys that they
    /// name. The file may be truncated.
    fn no_groups(&self) -> Option<ConfigError> {
        // An empty table counts as well, such as leases without limits.
        let has_any =
            !self.groups.is_empty() || !self.leases.is_empty() || !self.sockets.is_empty();
        if (has_any || self.is_empty_on_purpose()) && self.check_start().is_ok() {
            return None;
        }
        Some(ConfigError::new(NO_GROUPS))
    }

    /// Checks that a service may start with this configuration. A file without groups may have been emptied, whatever
    /// variables add. A text of the program may have no groups.
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

    /// The first warning as an error.
    pub(super) fn deny_warnings(&self) -> Result<(), ConfigError> {
        let warnings = self.warnings().into_iter();
        let mut warnings = warnings.filter(|warning| !warning.may_be_intended);
        warnings.next().map_or(Ok(()), |first| Err(first.error))
    }

    /// Whether the configuration intends to have no groups.
    pub(super) fn is_empty_on_purpose(&self) -> bool {
        self.groups.is_empty() && self.allow_empty && self.written.has_groups_table()
    }
}

const NO_GROUPS: &str = "there are no groups, so no request is limited: to intend that, write `allow_empty = true` and \
        `groups = {}`";

fn unknown_group(meant: Option<&str>, is_other_case: bool) -> String {
    match meant {
        Some(meant) if is_other_case => format!(
            "the file has the group `{meant}`, but variables reach only lowercase names: this is another \
                    group"
        ),
        Some(meant) => {
            format!("the file has no such group, and this one has no path: did you mean `{meant}`?")
        }
        None => "the file has no such group, and this one has no path: it selects no requests"
            .to_owned(),
    }
}

/// The problem of an excluded path that covers nothing or everything.
fn without_effect(exclude: &Prefix, paths: &[Prefix], grpc: &[GrpcPattern]) -> Option<String> {
    if paths.is_empty() || !grpc.is_empty() {
        // The paths of a program's layer and the methods of gRPC services are unknown here.
        return None;
    }
    if paths.iter().all(|path| exclude.covers_all_of(path)) {
        return Some(format!(
            "`{exclude}` covers all paths of this group, so nothing is limited"
        ));
    }
    let is_outside = !paths.iter().any(|path| path.overlaps(exclude));
    is_outside
        .then(|| format!("`{exclude}` is outside of this group's paths, so nothing is excluded"))
}
