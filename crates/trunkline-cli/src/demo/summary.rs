//! What happened to every message, for people and for programs.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use trunkline::history::Step;
use trunkline::message::millis;
use trunkline::{Env, Result};

use crate::demo::check::Check;
use crate::demo::evidence::{Ended, Evidence};
use crate::demo::input::Webhook;
use crate::demo::members::GROUPS;
use crate::demo::next::Next;
use crate::output::{self, Table};
use crate::record::milliseconds;

/// The whole story.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Summary {
    /// Whether every promise was kept.
    pub(crate) ok: bool,
    /// Where the data lies.
    pub(crate) data: String,
    /// The provider whose server it was played on.
    provider: &'static str,
    /// Confirmed messages.
    produced: usize,
    /// Kinds of webhooks.
    kinds: usize,
    /// Keys.
    keys: usize,
    /// From the first produce to the last confirm.
    produce_ms: u64,
    /// From the first produce to the end of the last message.
    total_ms: u64,
    /// Each group.
    groups: Vec<GroupSummary>,
    /// The promises.
    pub(crate) checks: Vec<Check>,
    /// As the history tells it.
    stats: Value,
    /// What to try next.
    next: Vec<Next>,
    /// How what was made on the server is removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    remove: Option<Next>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct GroupSummary {
    group: &'static str,
    handled: usize,
    /// Messages that failed and were handled in the end.
    retried: usize,
    failed_runs: usize,
    /// Failures after which the message stayed in flight until its next run.
    held: usize,
    /// Failures after which the message waited in the lot, where it survives every crash.
    waited: usize,
    dead_letters: usize,
    /// Handed over again although they were done: allowed, and told.
    duplicates: usize,
    members: Vec<MemberSummary>,
}

#[derive(Debug, Serialize)]
struct MemberSummary {
    member: String,
    handled: usize,
    failed: usize,
}

/// What is not in the evidence.
#[derive(Debug)]
pub(crate) struct Told {
    /// The figures of the history.
    pub(crate) stats: Value,
    /// Where failed messages waited.
    pub(crate) waits: Waits,
    /// From the first produce to the last confirm.
    pub(crate) producing: Duration,
    /// From the first produce to the end of the last message.
    pub(crate) total: Duration,
    /// The provider.
    pub(crate) provider: &'static str,
    /// How what was made on a server is removed.
    pub(crate) made: Option<Next>,
    /// What to try next.
    pub(crate) next: Vec<Next>,
}

/// By group: how often a failed message was held in flight, and how often it waited in the lot.
pub(crate) type Waits = BTreeMap<String, (usize, usize)>;

/// What the history knows of the waits of the messages that failed.
///
/// # Errors
/// `STORE_FAILED`.
pub(crate) async fn waits_of(env: &Env, evidence: &Evidence) -> Result<Waits> {
    let failed: HashSet<_> = evidence.runs.iter().filter(|run| run.how == Ended::Failed).map(|run| run.id).collect();
    let mut waits = Waits::new();
    for id in failed {
        for moment in env.message(id).await?.map(|record| record.life).unwrap_or_default() {
            let (held, waited) = waits.entry(moment.group).or_default();
            *held += usize::from(moment.step == Some(Step::Held));
            *waited += usize::from(moment.step == Some(Step::Waiting));
        }
    }
    Ok(waits)
}

/// What the history knows of the demo's env.
///
/// # Errors
/// `STORE_FAILED`.
pub(crate) async fn stats_of(env: &Env) -> Result<Value> {
    let stats = env.stats(trunkline::history::StatsQuery::default()).await?;
    serde_json::to_value(stats).map_err(|error| trunkline::Error::store(format!("the stats cannot be shown: {error}")))
}

impl Summary {
    /// Adds it all up.
    pub(crate) fn new(dir: &Path, webhooks: &[Webhook], evidence: &Evidence, checks: Vec<Check>, told: Told) -> Self {
        let Told { stats, waits, producing, total, provider, made, next } = told;
        Summary {
            ok: checks.iter().all(|check| check.kept),
            data: dir.display().to_string(),
            provider,
            produced: evidence.confirmed.len(),
            kinds: webhooks.iter().map(|webhook| &webhook.kind).collect::<HashSet<_>>().len(),
            keys: webhooks.iter().map(|webhook| &webhook.key).collect::<HashSet<_>>().len(),
            produce_ms: millis(producing),
            total_ms: millis(total),
            groups: GROUPS.iter().map(|group| GroupSummary::new(group.name, evidence, &waits)).collect(),
            checks,
            stats,
            next,
            remove: made,
        }
    }

    /// Tells it to people.
    ///
    /// # Errors
    /// Nobody reads the output.
    pub(crate) fn print(&self) -> Result<()> {
        let rate = self.produced as u64 * 1_000 / self.produce_ms.max(1);
        let count = |n: usize| output::count(n as u64);
        output::line(format!(
            "{} webhooks of {} kinds under {} keys, each confirmed {}: {} ({}/s); all handled after {}\n",
            count(self.produced),
            self.kinds,
            self.keys,
            if self.remove.is_some() { format!("by {}", self.provider) } else { "on disk".to_owned() },
            milliseconds(self.produce_ms as f64),
            output::count(rate),
            milliseconds(self.total_ms as f64),
        ))?;
        let mut table = Table::new(["group", "member", "handled", "failed runs", "held", "in the lot", "then handled", "dead letters"]);
        for group in &self.groups {
            let counts = [group.handled, group.failed_runs, group.held, group.waited, group.retried, group.dead_letters].map(count);
            table.row([group.group.to_owned(), "all".to_owned()].into_iter().chain(counts));
            for member in &group.members {
                table.row([String::new(), member.member.clone(), count(member.handled), count(member.failed)]);
            }
        }
        table.print()?;
        output::line("")?;
        self.print_spans()?;
        for check in &self.checks {
            output::line(format!("{} {}: {}", if check.kept { "ok    " } else { "FAILED" }, check.promise, check.seen))?;
            check.faults.iter().try_for_each(|fault| output::line(format!("         {fault}")))?;
        }
        output::line(format!("\nThe data stays in {}. Try next:", self.data))?;
        self.next.iter().chain(&self.remove).try_for_each(|next| output::line(format!("\n  # {}\n  {}", next.shows, next.command)))
    }

    fn print_spans(&self) -> Result<()> {
        let span = |of: &str, p: &str| self.stats[of][p].as_f64().map_or_else(|| "-".to_owned(), milliseconds);
        let line = |of: &str| ["p50", "p95", "p99"].map(|p| format!("{p} {}", span(of, p))).join(", ");
        output::line(format!("waited from confirm to first run: {}", line("waitMs")))?;
        output::line(format!("ran in the handler:               {}\n", line("runMs")))
    }
}

impl GroupSummary {
    fn new(group: &'static str, evidence: &Evidence, waits: &Waits) -> Self {
        let runs: Vec<_> = evidence.runs.iter().filter(|run| run.group == group).collect();
        let failed: HashSet<_> = runs.iter().filter(|run| run.how == Ended::Failed).map(|run| run.id).collect();
        let done: HashSet<_> = runs.iter().filter(|run| run.how == Ended::Done).map(|run| run.id).collect();
        let mut members: BTreeMap<usize, MemberSummary> = BTreeMap::new();
        for run in &runs {
            let number = run.member + 1;
            let member =
                members.entry(number).or_insert_with(|| MemberSummary { member: format!("{group}-{number}"), handled: 0, failed: 0 });
            match run.how {
                Ended::Done => member.handled += 1,
                Ended::Failed => member.failed += 1,
            }
        }
        let successes = runs.iter().filter(|run| run.how == Ended::Done).count();
        GroupSummary {
            group,
            handled: done.len(),
            retried: failed.intersection(&done).count(),
            failed_runs: runs.len() - successes,
            held: waits.get(group).map_or(0, |(held, _)| *held),
            waited: waits.get(group).map_or(0, |(_, waited)| *waited),
            dead_letters: evidence.dead.get(group).map_or(0, Vec::len),
            duplicates: successes - done.len(),
            members: members.into_values().collect(),
        }
    }
}
