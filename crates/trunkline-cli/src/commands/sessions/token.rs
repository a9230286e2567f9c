//! `trunkline sessions start|verify|refresh`: tokens. They are read from a file, standard input or the environment, since
//! everybody on the host can read a command line.

use serde_json::Value;
use trunkline::sessions::Started;
use trunkline::{Error, Result};

use super::sessions;
use crate::context::Ctx;
use crate::output::Table;
use crate::values;

/// Starts a session; prints its token and its refresh token
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  trunkline sessions start user '{\"userId\":\"u-42\"}'
  trunkline sessions start user - < user.json --output json | jq -r .token > token")]
pub struct Start {
    /// The definition's tag
    tag: String,
    /// The session's data as JSON; `-` reads it from standard input
    #[arg(value_name = "DATA")]
    about: String,
}

/// Says whether a token is good; an invalid one is a result, and no failure
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  trunkline sessions verify user --token-file token
  TRUNKLINE_SESSION=… trunkline sessions verify user")]
pub struct Verify {
    /// The definition's tag
    tag: String,
    /// Where the token stands: a file, or - for standard input [default: the variable TRUNKLINE_SESSION]
    #[arg(long, value_name = "FILE|-")]
    token_file: Option<String>,
}

/// Exchanges a refresh token for the next token; it is good once
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  trunkline sessions refresh user --token-file refresh-token")]
pub struct Refresh {
    /// The definition's tag
    tag: String,
    /// Where the refresh token stands: a file, or - for standard input
    #[arg(long, value_name = "FILE|-", default_value = "-")]
    token_file: String,
}

/// Starts.
pub async fn start(args: Start, ctx: &Ctx) -> Result<()> {
    let text = if args.about == "-" { values::input("data", "-")? } else { args.about.into_bytes() };
    let data: Value = serde_json::from_slice(&text).map_err(|error| {
        let at = format!("line {}, column {}", error.line(), error.column());
        Error::input("data", format!("the data are not valid JSON at {at}")).next("quote them for your shell, or read them from `-`")
    })?;
    let mut sessions = sessions(ctx).await?;
    if let Some(env) = ctx.env_flag() {
        sessions = sessions.env(env);
    }
    show(&sessions.start(&args.tag, data).await?, ctx)
}

/// Verifies.
pub async fn verify(args: Verify, ctx: &Ctx) -> Result<()> {
    let token = match (&args.token_file, std::env::var("TRUNKLINE_SESSION")) {
        (Some(file), _) => read(file)?,
        (None, Ok(token)) => token,
        (None, Err(_)) => {
            return Err(Error::input("token-file", "there is no token")
                .next("name a file with --token-file, `-` for standard input, or set TRUNKLINE_SESSION"));
        }
    };
    let found = sessions(ctx).await?.verify(&args.tag, &token).await?;
    ctx.show(&found, || {
        Table::fields([
            ("valid", found.valid.to_string()),
            ("session", found.session_id.clone().unwrap_or_default()),
            ("expires", found.expires_at.map(|at| at.to_string()).unwrap_or_default()),
            ("data", found.data.as_ref().map(ToString::to_string).unwrap_or_default()),
        ])
    })
}

/// Refreshes.
pub async fn refresh(args: Refresh, ctx: &Ctx) -> Result<()> {
    let token = read(&args.token_file)?;
    show(&sessions(ctx).await?.refresh(&args.tag, &token).await?, ctx)
}

fn show(started: &Started, ctx: &Ctx) -> Result<()> {
    ctx.show(started, || {
        Table::fields([
            ("session", started.session_id.clone()),
            ("token", started.token.clone()),
            ("refresh token", started.refresh_token.clone()),
            ("expires", started.expires_at.to_string()),
        ])
    })
}

/// A token of a file, or of standard input for `-`, without the line break at its end.
fn read(from: &str) -> Result<String> {
    let text = String::from_utf8(values::input("token-file", from)?);
    text.map(|text| text.trim().to_owned()).map_err(|_| Error::input("token-file", "the token is not text"))
}
