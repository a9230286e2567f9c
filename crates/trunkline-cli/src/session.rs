//! `--session` of produce and consume: a token, which is better read from a file or the environment than written down.

use trunkline::{Error, Result, Session};

use crate::values;

/// The flags.
#[derive(Debug, clap::Args)]
pub struct SessionArgs {
    /// Who it is for: a token as `sessions start` gives it. Everybody on the host can read a command line: use --session-file or
    /// the variable
    #[arg(long, value_name = "TAG:TOKEN", env = "TRUNKLINE_SESSION", hide_env_values = true)]
    session: Option<String>,
    /// The same, from a file, or - for standard input; wins over TRUNKLINE_SESSION
    #[arg(long, value_name = "FILE|-")]
    session_file: Option<String>,
}

impl SessionArgs {
    /// The session, if one is given.
    ///
    /// # Errors
    /// `INPUT_INVALID` if the file cannot be read.
    pub fn read(&self) -> Result<Option<Session>> {
        let text = match &self.session_file {
            Some(file) => String::from_utf8(values::input("session-file", file)?)
                .map_err(|_| Error::input("session-file", "the token is not text"))?
                .trim()
                .to_owned(),
            None => self.session.clone().unwrap_or_default(),
        };
        Ok((!text.is_empty()).then(|| Session::from(text)))
    }
}
