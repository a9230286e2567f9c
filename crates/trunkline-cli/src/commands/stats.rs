//! `trunkline stats`: how much, how fast, what waits, what failed.

use std::io::IsTerminal;
use std::time::Duration;

use trunkline::history::{Percentiles, StatsQuery};
use trunkline::message::Millis;
use trunkline::stats::{Figures, Now};
use trunkline::{Env, Event, Result};

use crate::context::Ctx;
use crate::output::{self, Table};
use crate::record::milliseconds;
use crate::values;

/// Shows figures: produced, delivered, failed, waiting, latencies
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  trunkline stats
  trunkline stats --event order-events:order-created --from 1h --by group
  trunkline stats --watch=2s")]
pub struct Args {
    /// Of this event: brokerTag:topicTag
    #[arg(long)]
    event: Option<Event>,
    /// Since: RFC 3339, or how long ago (10m) [default: 24 h before --to]; whole minutes count
    #[arg(long, value_name = "TIME", value_parser = values::past)]
    from: Option<Millis>,
    /// Until: RFC 3339, or how long ago (10m) [default: now]
    #[arg(long, value_name = "TIME", value_parser = values::past)]
    to: Option<Millis>,
    /// A row for each
    #[arg(long, value_enum, default_value = "topic")]
    by: By,
    /// Shows them again and again until Ctrl-C
    #[arg(long, value_name = "EVERY", num_args = 0..=1, require_equals = true, default_missing_value = "2s", value_parser = values::duration)]
    watch: Option<Duration>,
}

/// What there is a row for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum By {
    Topic,
    Group,
}

/// The shortest pause between two looks.
const LEAST: Duration = Duration::from_millis(100);

/// Prints them once, or until Ctrl-C.
pub async fn run(args: Args, ctx: &Ctx) -> Result<()> {
    let env = ctx.env().await?;
    let Some(every) = args.watch else {
        let figures = args.ask(&env).await?;
        return if ctx.is_json() { output::json(&figures) } else { print(&figures, args.by) };
    };
    let stop = ctx.stop().drains();
    loop {
        let figures = args.ask(&env).await?;
        if ctx.is_json() {
            output::json_line(&figures)?;
        } else {
            if std::io::stdout().is_terminal() {
                // Clears the screen and goes to its upper left corner.
                output::line("\u{1b}[2J\u{1b}[H")?;
            }
            print(&figures, args.by)?;
        }
        tokio::select! {
            () = tokio::time::sleep(every.max(LEAST)) => {}
            () = stop.cancelled() => return Ok(()),
        }
    }
}

impl Args {
    async fn ask(&self, env: &Env) -> Result<Figures> {
        let (broker, topic) = self.event.as_ref().map(|event| (event.broker().to_owned(), event.topic().to_owned())).unzip();
        env.stats(StatsQuery { broker, topic, from: self.from, to: self.to, ..StatsQuery::default() }).await
    }
}

/// Prints figures for people.
pub fn print(figures: &Figures, by: By) -> Result<()> {
    let counters = &figures.counters;
    // Over a day most rates are nothing: then they say nothing either.
    let rate = |rate: f64| if rate < 0.05 { String::new() } else { format!(" ({rate:.1}/s)") };
    let fields = [
        ("from", output::time(figures.from.0)),
        ("to", output::time(figures.to.0)),
        ("produced", output::count(counters.produced) + &rate(figures.rates.produced)),
        ("publish failed", output::count(counters.publish_failed)),
        ("delivered", output::count(counters.delivered) + &rate(figures.rates.delivered)),
        ("failed attempts", output::count(counters.failed_attempts) + &rate(figures.rates.failed)),
        ("retried", output::count(counters.retried)),
        ("died", output::count(counters.dead)),
        ("replayed", output::count(counters.replayed)),
        ("waiting now", output::count(figures.now.waiting)),
        ("in flight now", output::count(figures.now.in_flight)),
        ("depth now", output::count(figures.now.depth)),
        ("oldest", age(figures.now)),
        ("wait p50/p95/p99", spans(figures.wait_ms)),
        ("run p50/p95/p99", spans(figures.run_ms)),
    ];
    Table::fields(fields).print()?;
    output::line("")?;
    rows(figures, by).print()?;
    for event in &figures.unreachable {
        output::note(format!("{event}: its broker does not answer, so nobody knows what waits there; `trunkline doctor` looks closer"));
    }
    for gap in &figures.gaps {
        output::note(format!("something is missing: {}", serde_json::to_string(gap).unwrap_or_default()));
    }
    Ok(())
}

fn rows(figures: &Figures, by: By) -> Table {
    let headings =
        ["event", "group", "produced", "delivered", "failed", "retried", "died", "waiting", "in flight", "depth", "oldest", "wait", "run"];
    let shown = headings.iter().copied().filter(|heading| by == By::Group || *heading != "group");
    let shown = shown.filter(|heading| by == By::Topic || *heading != "produced");
    let mut table = Table::new(shown).or("no topic yet; create one with `trunkline topics create`");
    for topic in &figures.topics {
        let ending = |failed: u64, retried: u64, dead: u64, now: Now, wait, run| {
            let counts = [failed, retried, dead, now.waiting, now.in_flight, now.depth].map(output::count);
            counts.into_iter().chain([age(now), spans(wait), spans(run)])
        };
        match by {
            By::Topic => {
                let c = &topic.counters;
                let start = [topic.event.clone(), output::count(c.produced), output::count(c.delivered)];
                table.row(start.into_iter().chain(ending(c.failed_attempts, c.retried, c.dead, topic.now, topic.wait_ms, topic.run_ms)));
            }
            By::Group => {
                for group in &topic.groups {
                    let c = &group.counters;
                    let start = [topic.event.clone(), group.group.clone(), output::count(c.delivered)];
                    table.row(start.into_iter().chain(ending(
                        c.failed_attempts,
                        c.retried,
                        c.dead,
                        group.now,
                        group.wait_ms,
                        group.run_ms,
                    )));
                }
            }
        }
    }
    table
}

fn age(now: Now) -> String {
    now.oldest_age_ms.map_or_else(|| "-".to_owned(), |ms| milliseconds(ms as f64))
}

fn spans(of: Percentiles) -> String {
    let one = |ms: Option<f64>| ms.map_or_else(|| "-".to_owned(), milliseconds);
    if of.p50.is_none() { "-".to_owned() } else { format!("{} / {} / {}", one(of.p50), one(of.p95), one(of.p99)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_measured_is_a_dash() {
        assert_eq!(spans(Percentiles::default()), "-");
        assert_eq!(spans(Percentiles { p50: Some(1.0), p95: Some(20.0), p99: None }), "1.0 ms / 20 ms / -");
        assert_eq!(age(Now::default()), "-");
    }
}
