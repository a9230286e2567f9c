//! Where a value comes from that must not stand on a command line, where every user of the host can read it.

use std::io::{IsTerminal, Read};
use std::path::PathBuf;

use trunkline::secret::Secret;
use trunkline::{Error, Result};

/// More is no secret but a mistake.
const MOST: u64 = 1024 * 1024;

/// Where the value comes from.
#[derive(Debug, clap::Args)]
#[group(id = "value-from", multiple = false)]
pub(super) struct Args {
    /// Takes the value from a file
    #[arg(long, value_name = "FILE")]
    from_file: Option<PathBuf>,
    /// Takes the value from this environment variable
    #[arg(long, value_name = "NAME")]
    from_env: Option<String>,
}

impl Args {
    /// Whether the value is to come from somewhere else than standard input.
    pub(super) fn is_given(&self) -> bool {
        self.from_file.is_some() || self.from_env.is_some()
    }

    /// Reads it. One line break at its end is left out.
    pub(super) fn read(&self) -> Result<Secret> {
        let text = match (&self.from_file, &self.from_env) {
            (Some(path), _) => {
                let unreadable = |error| Error::input("from-file", format!("{} cannot be read: {error}", path.display()));
                text(std::fs::File::open(path).map_err(unreadable)?, "from-file")?
            }
            (None, Some(name)) => std::env::var(name).map_err(|_| {
                Error::input("from-env", format!("the environment variable {name} is not set, or is no text")).next("export it first")
            })?,
            (None, None) if std::io::stdin().is_terminal() => asked()?,
            (None, None) => text(std::io::stdin().lock(), "value")?,
        };
        Ok(Secret::new(without_line_break(&text)))
    }
}

fn text(from: impl Read, field: &str) -> Result<String> {
    let mut text = String::new();
    from.take(MOST).read_to_string(&mut text).map_err(|_| Error::input(field, "the value cannot be read, or is no text"))?;
    Ok(text)
}

fn asked() -> Result<String> {
    let term = console::Term::stderr();
    let read = term.write_str("value (it is not shown): ").and_then(|()| term.read_secure_line());
    read.map_err(|error| Error::input("value", format!("no value could be read: {error}")))
}

fn without_line_break(text: &str) -> &str {
    let text = text.strip_suffix('\n').unwrap_or(text);
    text.strip_suffix('\r').unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_break_at_the_end_is_left_out() {
        for (given, taken) in [("a\n", "a"), ("a\r\n", "a"), ("a\n\n", "a\n"), ("a\nb", "a\nb"), (" a ", " a ")] {
            assert_eq!(without_line_break(given), taken);
        }
    }
}
