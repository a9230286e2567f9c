//! What a command prints: a table for people, or JSON for programs. The JSON is the stable one.
//!
//! Data goes to stdout, everything else to stderr. A reader that goes away ends the command quietly ([`is_gone`]).

use std::io::Write;

use comfy_table::{Cell, ColumnConstraint, ContentArrangement, presets};
use serde::Serialize;
use serde_json::Value;
use trunkline::{Code, Error, Result};

/// For whom the output is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    // No help of their own: the long help would give them a paragraph under every command.
    #[default]
    Table,
    Json,
}

const GONE: &str = "output_closed";

/// Whether an error only says that nobody reads the output any more.
pub fn is_gone(error: &Error) -> bool {
    error.detail_str("reason") == Some(GONE)
}

/// Whether whoever read stdout has gone. A pipe says so before anything is written to it.
pub fn reader_is_gone() -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let out = std::io::stdout();
    let mut look = [PollFd::new(&out, PollFlags::empty())];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut look, Some(&at_once)).is_ok() && look[0].revents().contains(PollFlags::ERR)
}

fn unwritten(error: &std::io::Error) -> Error {
    let failed = Error::new(Code::Closed, format!("the output cannot be written: {error}"));
    if error.kind() == std::io::ErrorKind::BrokenPipe { failed.reason(GONE) } else { failed.reason("output_failed") }
}

/// Writes a line to stdout.
pub fn line(text: impl AsRef<str>) -> Result<()> {
    let mut out = anstream::stdout().lock();
    writeln!(out, "{}", text.as_ref()).and_then(|()| out.flush()).map_err(|error| unwritten(&error))
}

/// Writes one JSON object on one line: the form of streams.
pub fn json_line(value: &impl Serialize) -> Result<()> {
    line(serde_json::to_string(value).map_err(|error| unwritten(&error.into()))?)
}

/// Writes one JSON document.
pub fn json(value: &impl Serialize) -> Result<()> {
    line(serde_json::to_string_pretty(value).map_err(|error| unwritten(&error.into()))?)
}

/// Writes a remark for people to stderr. Nobody reading it is no failure.
pub fn note(text: impl AsRef<str>) {
    let _ = writeln!(anstream::stderr(), "{}", text.as_ref());
}

/// Writes an error to stderr: code and message, then what to do next; as JSON one object on one line.
pub fn error(format: Format, error: &Error) {
    let mut err = anstream::stderr();
    let _ = match format {
        Format::Json => writeln!(err, "{}", serde_json::to_string(error).unwrap_or_else(|_| error.to_string())),
        Format::Table => {
            let (bold, end) = (anstyle::AnsiColor::Red.on_default().bold(), anstyle::Reset);
            let first = writeln!(err, "{bold}error[{}]{end}: {}", error.code(), plain(error.message()));
            first.and_then(|()| error.detail_str("next").map_or(Ok(()), |next| writeln!(err, "  next: {}", plain(next))))
        }
    };
}

/// Text that cannot move a terminal's cursor: control characters are written as escapes.
pub fn plain(text: &str) -> String {
    if !text.chars().any(char::is_control) {
        return text.to_owned();
    }
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] }).collect()
}

/// A time as people read it, in UTC.
pub fn time(millis: u64) -> String {
    humantime::format_rfc3339_seconds(std::time::UNIX_EPOCH + std::time::Duration::from_millis(millis)).to_string()
}

/// The same with milliseconds.
pub fn time_ms(millis: u64) -> String {
    humantime::format_rfc3339_millis(std::time::UNIX_EPOCH + std::time::Duration::from_millis(millis)).to_string()
}

/// A number with a comma every three digits.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `1 place`, `2 places`.
pub fn plural(n: usize, one: &str) -> String {
    format!("{} {one}{}", count(n as u64), if n == 1 { "" } else { "s" })
}

/// A JSON value in one cell: texts without quotes, the rest as JSON.
pub fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Fits the terminal, unless it is so narrow that columns would fall apart into letters.
fn fitting() -> comfy_table::Table {
    const LEAST: u16 = 60;
    let mut table = comfy_table::Table::new();
    let narrow = table.width().is_some_and(|width| width < LEAST);
    table.load_preset(presets::NOTHING);
    table.set_content_arrangement(if narrow { ContentArrangement::Disabled } else { ContentArrangement::Dynamic });
    table
}

/// A table for people: headings, rows, and what to say when there are none.
#[derive(Debug)]
pub struct Table {
    table: comfy_table::Table,
    rows: usize,
    empty: String,
}

impl Table {
    /// A table with these headings.
    pub fn new<'a>(headings: impl IntoIterator<Item = &'a str>) -> Self {
        let mut table = fitting();
        table.set_header(headings.into_iter().map(|heading| Cell::new(heading.to_uppercase())));
        Table { table, rows: 0, empty: "nothing to show".into() }
    }

    /// A list of fields and values, for one thing.
    pub fn fields<'a>(fields: impl IntoIterator<Item = (&'a str, String)>) -> Self {
        let mut table = Table { table: fitting(), rows: 0, empty: String::new() };
        for (name, value) in fields {
            table.row([name.to_owned(), value]);
        }
        table
    }

    /// What is said in place of a table without rows: that there is nothing, and the command that changes it.
    #[must_use]
    pub fn or(mut self, empty: impl Into<String>) -> Self {
        self.empty = empty.into();
        self
    }

    /// Adds a row. Control characters are made visible; line breaks stay.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let clean = |text: String| text.split('\n').map(plain).collect::<Vec<_>>().join("\n");
        self.table.add_row(cells.into_iter().map(|text| Cell::new(clean(text))));
        self.rows += 1;
    }

    /// Prints it.
    pub fn print(&self) -> Result<()> {
        if self.rows == 0 {
            note(&self.empty);
            return Ok(());
        }
        let mut table = self.table.clone();
        // The first column names the thing: it must stay in one piece to be copied into the next command.
        if let Some(column) = table.column_mut(0) {
            column.set_constraint(ColumnConstraint::ContentWidth);
        }
        line(table.lines().map(|row| row.trim_end().to_owned()).collect::<Vec<_>>().join("\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        assert_eq!([0, 12, 999, 1_000, 1_234_567].map(count), ["0", "12", "999", "1,000", "1,234,567"]);
    }

    #[test]
    fn nothing_moves_the_cursor() {
        assert_eq!(plain("a\u{1b}[2Jb"), "a\\u{1b}[2Jb");
        assert_eq!(plain("plain ü"), "plain ü");
    }
}
