//! Output: text for people, JSON for programs.

use std::cell::{Cell, RefCell};
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::Path;

use anstyle::{AnsiColor, Style};
use clap::CommandFactory;
use clap_complete::Shell;
use serde_json::{Value, json};

use crate::args::Cli;
use crate::failure::Failure;
use crate::usage::{Level, UsageReport};

pub(crate) struct Output {
    is_json: bool,
    /// The number of limits that the store has lost and services keep. The output covers only the store.
    lost: Cell<u64>,
    /// The keys of limits in the store that this version cannot read.
    unreadable: RefCell<Vec<Box<str>>>,
    /// Warnings for the JSON of the result.
    warnings: RefCell<Vec<String>>,
}

impl Output {
    pub(crate) fn new(is_json: bool) -> Self {
        Self {
            is_json,
            lost: Cell::new(0),
            unreadable: RefCell::default(),
            warnings: RefCell::default(),
        }
    }

    pub(crate) fn is_json(&self) -> bool {
        self.is_json
    }

    /// Warns that the store has lost limits, and marks all output as incomplete.
    pub(crate) fn lost(&self, lost: u64) {
        self.lost.set(lost);
        if lost > 0 {
            self.warning(&format!(
                "the store has lost up to {}, which services keep and enforce. This output does not include \
                    them. Use --admin to ask a service, and see docs/runbook.md, \"Redis came up empty\"",
                limits(lost)
            ));
        }
    }

    /// Warns of limits in the store that this version cannot read.
    pub(crate) fn unreadable(&self, names: Vec<Box<str>>) {
        if !names.is_empty() {
            self.warning(&format!(
                "{} in the store cannot be read by this version and are not shown: {}. Use the version of the \
                    program that set them",
                limits(names.len() as u64),
                first(&names)
            ));
        }
        self.unreadable.replace(names);
    }

    /// The text for a key without an override.
    pub(crate) fn none(&self) -> &'static str {
        match self.is_incomplete() {
            true => "no override in the store",
            false => "no override",
        }
    }

    /// Whether the output misses limits.
    pub(crate) fn is_incomplete(&self) -> bool {
        self.lost.get() > 0
    }

    fn with_warnings(&self, mut json: Value) -> Value {
        if self.is_incomplete() {
            json["lost_overrides"] = json!(self.lost.get());
        }
        let unreadable = self.unreadable.borrow();
        if !unreadable.is_empty() {
            json["unreadable"] = json!(*unreadable);
        }
        let warnings = self.warnings.borrow();
        // A command may have added them with more details.
        if !warnings.is_empty() && json.get("warnings").is_none() {
            json["warnings"] = json!(*warnings);
        }
        json
    }

    /// Prints the result as text or as JSON.
    pub(crate) fn done(&self, text: &str, json: Value) -> Result<(), Failure> {
        let mut stdout = anstream::stdout();
        let printed = if self.is_json {
            writeln!(stdout, "{}", plain(&self.with_warnings(json)))
        } else {
            writeln!(stdout, "{}", text.trim_end())
        };
        check_printed(printed.and_then(|()| stdout.flush()))
    }

    pub(crate) fn failure(&self, failure: &Failure) {
        let message = clean(failure.message());
        let _ = if self.is_json {
            writeln!(
                anstream::stderr(),
                "{}",
                plain(&self.with_warnings(json!({ "error": message })))
            )
        } else {
            let style = AnsiColor::Red.on_default().bold();
            writeln!(anstream::stderr(), "{style}error{style:#}: {message}")
        };
    }

    /// Prints a warning at once for people. For programs, adds it to the JSON of the result.
    pub(crate) fn warning(&self, message: &str) {
        let message = clean(message);
        if self.is_json {
            self.warnings.borrow_mut().push(message);
            return;
        }
        let style = AnsiColor::Yellow.on_default().bold();
        let _ = writeln!(anstream::stderr(), "{style}warning{style:#}: {message}");
    }

    /// Asks for confirmation on the terminal.
    pub(crate) fn ask(&self, question: &str) -> bool {
        let mut stderr = anstream::stderr();
        let _ = write!(stderr, "{} [y/N] ", clean(question));
        let _ = stderr.flush();
        let mut answer = String::new();
        let read = std::io::stdin().read_line(&mut answer);
        read.is_ok() && matches!(answer.trim(), "y" | "Y" | "yes")
    }

    pub(crate) fn completions(&self, shell: Shell) -> Result<(), Failure> {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Cli::command(), "tower-admission", &mut script);
        // Works around two errors of clap_complete 4.6.
        let (wrong, right) = match shell {
            // Two spellings of the hyphen prevent completion after a command.
            Shell::Bash => ("tower__subcmd__admission", "tower__admission"),
            // No option is completed after a key.
            Shell::Zsh => ("'*::limit ", "'*:limit "),
            _ => return self.raw(&script),
        };
        let script = String::from_utf8_lossy(&script).replace(wrong, right);
        self.raw(script.as_bytes())
    }

    /// Prints the manual page, or writes all pages into a folder.
    pub(crate) fn manual(&self, folder: Option<&Path>) -> Result<(), Failure> {
        let not_written =
            |error| Failure::unprintable(format!("the manual page cannot be written: {error}"));
        let Some(folder) = folder else {
            let mut page = Vec::new();
            let manual = clap_mangen::Man::new(Cli::command());
            manual.render(&mut page).map_err(not_written)?;
            return self.raw(&page);
        };
        clap_mangen::generate_to(Cli::command(), folder).map_err(not_written)
    }

    /// Prints bytes unchanged, for another program.
    pub(crate) fn raw(&self, bytes: &[u8]) -> Result<(), Failure> {
        let mut stdout = std::io::stdout();
        check_printed(stdout.write_all(bytes).and_then(|()| stdout.flush()))
    }
}

/// A number of limits, as text.
pub(crate) fn limits(count: u64) -> String {
    match count {
        1 => "1 limit".to_owned(),
        count => format!("{count} limits"),
    }
}

/// The first items of a list.
pub(crate) fn first<T: AsRef<str>>(all: &[T]) -> String {
    const SHOWN: usize = 5;

    let mut shown: Vec<_> = all.iter().take(SHOWN).map(AsRef::as_ref).collect();
    let more = format!("and {} more", all.len().saturating_sub(SHOWN));
    if all.len() > SHOWN {
        shown.push(&more);
    }
    shown.join(", ")
}

/// Ignores a closed pipe. Another write error is a failure.
fn check_printed(printed: io::Result<()>) -> Result<(), Failure> {
    match printed {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::unprintable(
            format!("the result cannot be printed: {error}"),
        )),
        _ => Ok(()),
    }
}

/// JSON that cannot control a terminal. `serde_json` escapes fewer characters.
fn plain(json: &Value) -> String {
    let mut text = String::new();
    for char in json.to_string().chars() {
        if is_unsafe_char(char) {
            // All these characters fit in 16 bits.
            let _ = write!(text, "\\u{:04x}", char as u32);
        } else {
            text.push(char);
        }
    }
    text
}

/// Whether a character can control a terminal or change how text looks.
fn is_unsafe_char(char: char) -> bool {
    let is_invisible = matches!(char,
        '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
    char.is_control() || is_invisible
}

/// The maximum width of a column. Longer cells overflow.
pub(crate) const MAX_WIDTH: usize = 64;

/// Removes characters that can control a terminal.
pub(crate) fn clean(text: &str) -> String {
    let clean = |c: char| if is_unsafe_char(c) { ' ' } else { c };
    text.chars().map(clean).collect()
}

/// Formats rows as columns, two spaces apart.
pub(crate) fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let rows: Vec<_> = rows
        .iter()
        .map(|row| row.each_ref().map(|cell| clean(cell)))
        .collect();
    let mut widths = [0; N];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count().min(MAX_WIDTH));
        }
    }
    let mut text = String::new();
    for row in &rows {
        for (cell, width) in row.iter().zip(widths) {
            // Writing to a string does not fail.
            let _ = write!(text, "{cell:width$}  ");
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

/// Formats usage as a table, coloured by level.
pub(crate) fn table(report: &UsageReport) -> String {
    let usages = &report.usage;
    let number = |number: Option<String>| number.unwrap_or_else(|| "-".to_owned());
    let heads = ["NAME", "SORT", "USED", "LIMIT", "PERCENT"].map(str::to_owned);
    let rows: Vec<_> = usages
        .iter()
        .map(|usage| {
            let percent = usage.percent().map(|percent| format!("{percent}%"));
            [
                Some(usage.title())
                    .filter(|title| !title.is_empty())
                    .unwrap_or_else(|| "-".to_owned()),
                clean(&usage.sort),
                usage.used.to_string(),
                number(usage.limit.map(|limit| limit.to_string())),
                number(percent),
            ]
        })
        .collect();
    let mut widths = heads.each_ref().map(|head| head.len());
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count().min(MAX_WIDTH));
        }
    }
    let mut text = String::new();
    line(&mut text, &heads, widths, Style::new());
    text.push('\n');
    for (row, usage) in rows.iter().zip(usages) {
        line(&mut text, row, widths, style(usage.level()));
        if usage.level() == Level::Full {
            text.push_str("  at the limit");
        }
        if usage.is_override == Some(true) {
            text.push_str("  override");
        }
        if let Some(counted) = report.counted(usage) {
            let _ = write!(text, "  {counted}");
        }
        text.push('\n');
    }
    text
}

fn line(text: &mut String, cells: &[String; 5], widths: [usize; 5], style: Style) {
    let [name, sort, used, limit, percent] = cells;
    let [w0, w1, w2, w3, w4] = widths;
    // Writing to a string does not fail.
    let _ = write!(
        text,
        "{name:w0$}  {sort:w1$}  {style}{used:>w2$}  {limit:>w3$}  {percent:>w4$}{style:#}"
    );
}

pub(crate) fn style(level: Level) -> Style {
    match level {
        Level::Low => Style::new(),
        Level::High => AnsiColor::Yellow.on_default(),
        Level::Highest | Level::Full => AnsiColor::Red.on_default(),
    }
}
