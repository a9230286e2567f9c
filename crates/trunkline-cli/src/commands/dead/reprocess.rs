//! `trunkline dead reprocess`: hands dead letters over again, with a count first, a rate, progress, and a result for each.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use trunkline::dead_letter::{Reprocess, Reprocessed, Target};
use trunkline::{Code, Error, Result};

use crate::ask::{Otherwise, ask};
use crate::commands::dead::filter::Filter;
use crate::context::Ctx;
use crate::{output, payload};

/// How often the job is looked at.
const LOOK: Duration = Duration::from_millis(250);

/// Hands dead letters over again: to the group they died at, or to everyone
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  trunkline dead reprocess --event order-events:order-created --dry-run
  trunkline dead reprocess --error 'the ledger is locked' --rate 50 --yes
  trunkline dead reprocess --id 01a2b3c4-0000-7000-8000-000000000000 --target topic")]
pub struct Args {
    #[command(flatten)]
    filter: Filter,
    /// At most this many
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Only counts
    #[arg(long)]
    dry_run: bool,
    /// Messages per second
    #[arg(long, value_name = "N", value_parser = rate)]
    rate: Option<f64>,
    /// To whom: `group` keeps the id and counts attempts from 0, `topic` produces a new message for everyone
    #[arg(long, value_enum, default_value = "group")]
    target: To,
    /// This payload instead of each one's own: JSON, @FILE, or `-` for standard input
    #[arg(long, value_name = "JSON|@FILE|-")]
    payload: Option<String>,
    /// Does not ask
    #[arg(long, short)]
    yes: bool,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum To {
    Group,
    Topic,
}

fn rate(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|rate: &f64| rate.is_finite() && *rate > 0.0).ok_or_else(|| "a number of messages per second above 0".into())
}

/// Counts, asks, hands over, and follows the job to its end.
pub async fn run(args: Args, ctx: &Ctx) -> Result<()> {
    let payload = args.payload.as_deref().map(payload::given).transpose()?;
    let what = Reprocess {
        filter: args.filter.build()?,
        target: match args.target {
            To::Group => Target::Group,
            To::Topic => Target::Topic,
        },
        payload: payload
            .map(|bytes| serde_json::from_slice(&bytes))
            .transpose()
            .map_err(|error| Error::input("payload", error.to_string()))?,
        limit: args.limit,
        rate: args.rate,
        dry_run: true,
    };
    let env = ctx.env().await?;
    let counted = env.reprocess(what.clone()).await?;
    if args.dry_run {
        return ctx.done(&counted, format!("{} would be handed over", super::letters(counted.matched)));
    }
    if counted.matched == 0 {
        return ctx.done(&counted, "no dead letter matches; `trunkline dead list` shows what there is");
    }
    let asks = !args.yes && counted.matched > 1;
    if asks && !ask(&format!("Hand {} over again?", super::letters(counted.matched)), Otherwise::GoOn)? {
        return ctx.done(&counted, "nothing was handed over");
    }
    let started = env.reprocess(Reprocess { dry_run: false, ..what }).await?;
    let ended = follow(started, ctx).await?;
    report(&ended, ctx)
}

/// Waits for the job's end. A long one outlives this process: any other that is open goes on with it.
async fn follow(mut job: Reprocessed, ctx: &Ctx) -> Result<Reprocessed> {
    let bar = (!ctx.is_json() && std::io::stderr().is_terminal() && job.state == "running").then(|| {
        let style = ProgressStyle::with_template("handing over {bar:36} {pos} of {len}").unwrap_or_else(|_| ProgressStyle::default_bar());
        ProgressBar::new(job.matched).with_style(style)
    });
    while job.state == "running" {
        let Some(id) = job.job_id.clone() else { break };
        if let Some(bar) = &bar {
            bar.set_position(job.reprocessed + job.failed + job.skipped);
        }
        tokio::time::sleep(LOOK).await;
        let now = ctx.trunkline().await?.job(&id).await?;
        job = Reprocessed {
            matched: now.matched,
            reprocessed: now.done,
            failed: now.failed,
            skipped: now.skipped,
            results: now.results,
            job_id: Some(id),
            state: now.state,
        };
    }
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    Ok(job)
}

fn report(job: &Reprocessed, ctx: &Ctx) -> Result<()> {
    let mut text = format!("handed over {} of {}", output::count(job.reprocessed), output::count(job.matched));
    for (n, word) in [(job.failed, "failed"), (job.skipped, "passed over")] {
        if n > 0 {
            text.push_str(&format!(", {} {word}", output::count(n)));
        }
    }
    ctx.done(job, text)?;
    if job.failed == 0 && job.state != "failed" {
        return Ok(());
    }
    let first = job.results.iter().find(|result| result["success"] == false);
    let why = first.and_then(|result| result["error"]["message"].as_str()).unwrap_or("see the results with --output json");
    Err(Error::new(Code::PublishFailed, format!("{} could not be handed over: {why}", super::letters(job.failed)))
        .next("they are still dead letters; try again when the cause is gone"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_above_nothing() {
        assert_eq!(rate("0.5"), Ok(0.5));
        assert!(["0", "-1", "inf", "NaN", "x"].iter().all(|text| rate(text).is_err()));
    }
}
