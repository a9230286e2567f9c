//! `trunkline audit`: who did what.

use trunkline::audit::{AuditFilter, AuditRow};
use trunkline::message::Millis;
use trunkline::{Error, Result};

use crate::context::Ctx;
use crate::output::{self, Table};
use crate::values;

/// Who did what: every change, and every read of payloads
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    List(ListArgs),
    /// Says whether a row was changed, removed or moved; ends with 5 if so
    #[command(after_help = "Example:\n  trunkline audit verify")]
    Verify,
}

/// Lists rows, newest first
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  trunkline audit list --from 1d\n  trunkline audit list --call secrets.rotate --output json")]
struct ListArgs {
    /// Done by: key:ID, or local:USER@HOST
    #[arg(long)]
    actor: Option<String>,
    /// This call, for example topics.create
    #[arg(long)]
    call: Option<String>,
    /// With this text in what it was done to
    #[arg(long)]
    target: Option<String>,
    /// `ok`, or the code of an error
    #[arg(long)]
    outcome: Option<String>,
    /// Since: RFC 3339, or how long ago (10m)
    #[arg(long, value_name = "TIME", value_parser = values::past)]
    from: Option<Millis>,
    /// Until: RFC 3339, or how long ago (10m)
    #[arg(long, value_name = "TIME", value_parser = values::past)]
    to: Option<Millis>,
    /// How many, up to 1000
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    /// Goes on below this row: where the last list ended
    #[arg(long, value_name = "SEQ")]
    before: Option<u64>,
}

/// Runs one of them.
pub async fn run(args: Args, ctx: &Ctx) -> Result<()> {
    match args.verb {
        Verb::List(args) => list(args, ctx).await,
        Verb::Verify => verify(ctx).await,
    }
}

async fn list(args: ListArgs, ctx: &Ctx) -> Result<()> {
    let ListArgs { actor, call, target, outcome, from, to, limit, before } = args;
    let filter = AuditFilter { actor, call, target, outcome, from, to, after: None, before };
    let rows = ctx.trunkline().await?.audit().list(&filter, limit as usize).await?;
    ctx.show(&rows, || table(&rows))?;
    if let Some(last) = rows.last().filter(|_| rows.len() == limit as usize && !ctx.is_json()) {
        output::note(format!("older ones: --before {}", last.seq));
    }
    Ok(())
}

fn table(rows: &[AuditRow]) -> Table {
    let mut table = Table::new(["seq", "when", "actor", "call", "target", "outcome"]).or("no row matches");
    for AuditRow { seq, at, entry, .. } in rows {
        let texts = [&entry.actor, &entry.call, &entry.target, &entry.outcome].map(|text| output::plain(text));
        table.row([seq.to_string(), output::time_ms(*at)].into_iter().chain(texts));
    }
    table
}

async fn verify(ctx: &Ctx) -> Result<()> {
    let verified = ctx.trunkline().await?.audit().verify().await?;
    ctx.done(&verified, format!("{} fit; the last has the hash {}", output::plural(verified.rows as usize, "row"), verified.hash))?;
    let Some(broken) = verified.broken else { return Ok(()) };
    Err(Error::store(format!("row {} of the audit was {}", broken.seq, broken.what))
        .reason("audit_broken")
        .next("compare the data directory with its backups: somebody wrote into state.db beside Trunkline"))
}
