//! `trunkline schedules`: what fires when, how it fares, and what can be done to it.

use serde_json::Value;
use trunkline::schedules::{ScheduleQuery, ScheduleView};
use trunkline::{Code, Error, Result};

use crate::context::Ctx;
use crate::output::{self, Table};

/// Lists, shows, pauses, resumes and cancels schedules (`trunkline dispatch` makes them)
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Args)]
struct Named {
    /// The schedule's id
    id: String,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Lists the env's schedules, newest first
    #[command(after_help = "Examples:\n  trunkline schedules list\n  trunkline schedules list --failing")]
    List {
        /// Only of this topic: brokerTag:topicTag
        event: Option<String>,
        /// Also those that are done or cancelled (kept for 30 days)
        #[arg(long)]
        all: bool,
        /// Only those whose last try failed
        #[arg(long)]
        failing: bool,
        /// Which page, from 1
        #[arg(long, default_value_t = 1)]
        page: usize,
        /// How many a page has (1 to 1,000)
        #[arg(long, default_value_t = 20)]
        limit: usize,
    },
    /// Shows one schedule with its payload and how its last firing went
    #[command(after_help = "Example:\n  trunkline schedules show 0198a3c2-7d1e-7b4f-9a60-2f1d5c3b8e97")]
    Show(Named),
    /// Stops a schedule until it is resumed
    #[command(after_help = "Example:\n  trunkline schedules pause 0198a3c2-7d1e-7b4f-9a60-2f1d5c3b8e97")]
    Pause(Named),
    /// Lets a paused schedule fire again, from its next due time on
    #[command(after_help = "Example:\n  trunkline schedules resume 0198a3c2-7d1e-7b4f-9a60-2f1d5c3b8e97")]
    Resume(Named),
    /// Ends a schedule
    #[command(after_help = "Example:\n  trunkline schedules cancel 0198a3c2-7d1e-7b4f-9a60-2f1d5c3b8e97")]
    Cancel(Named),
}

/// Runs one of them.
pub async fn run(args: Args, ctx: &Ctx) -> Result<()> {
    let env = ctx.env().await?;
    let did = |what: &str, view: &ScheduleView| ctx.done(view, format!("{what} schedule {}{}", view.schedule_id, next(view)));
    match args.verb {
        Verb::List { event, all, failing, page, limit } => {
            let found = env.schedules(&ScheduleQuery { event, all, failing, page, limit }).await?;
            ctx.show(&found, || {
                let empty = "no schedule; make one with `trunkline dispatch EVENT PAYLOAD --every 10m`";
                let mut table = Table::new(["id", "event", "schedule", "state", "next", "fired", "missed"]).or(empty);
                for view in &found.schedules {
                    table.row([
                        view.schedule_id.to_string(),
                        view.event.to_string(),
                        timing(&view.schedule),
                        state(view),
                        view.next_at.map(output::time).unwrap_or_default(),
                        output::count(view.fired),
                        output::count(view.missed),
                    ]);
                }
                table
            })
        }
        Verb::Show(Named { id }) => {
            let view = env.schedule(&id).await?.ok_or_else(|| {
                Error::new(Code::ScheduleNotFound, format!("schedule '{}' does not exist", output::plain(&id)))
                    .field("schedule_id")
                    .next("list them with `trunkline schedules list --all`")
            })?;
            ctx.show(&view, || fields(&view))
        }
        Verb::Pause(Named { id }) => did("paused", &env.pause_schedule(&id).await?),
        Verb::Resume(Named { id }) => did("resumed", &env.resume_schedule(&id).await?),
        Verb::Cancel(Named { id }) => did("cancelled", &env.cancel_schedule(&id).await?),
    }
}

fn next(view: &ScheduleView) -> String {
    view.next_at.map(|at| format!("; it is due at {}", output::time(at))).unwrap_or_default()
}

fn state(view: &ScheduleView) -> String {
    if view.failures > 0 { format!("{}, failing", view.state.as_str()) } else { view.state.as_str().to_owned() }
}

/// A timing as one line: `cron 0 9 * * *, tz Europe/Berlin`.
fn timing(timing: &Value) -> String {
    let word = |(name, value): (&String, &Value)| match (name.as_str(), value.as_u64()) {
        ("start_at", Some(at)) => format!("from {}", output::time(at)),
        ("endDate", Some(at)) => format!("until {}", output::time(at)),
        _ => format!("{name} {}", output::cell(value)),
    };
    timing.as_object().map(|fields| fields.iter().map(word).collect::<Vec<_>>().join(", ")).unwrap_or_default()
}

fn fields(view: &ScheduleView) -> Table {
    let time = |at: Option<u64>| at.map(output::time_ms).unwrap_or_default();
    Table::fields([
        ("id", view.schedule_id.to_string()),
        ("event", view.event.to_string()),
        ("state", state(view)),
        ("schedule", timing(&view.schedule)),
        ("next", time(view.next_at)),
        ("fired", output::count(view.fired)),
        ("missed", output::count(view.missed)),
        ("last fired", time(view.last_at)),
        ("last message", view.last_process_id.map(|id| id.to_string()).unwrap_or_default()),
        ("failures", view.failures.to_string()),
        ("error", view.error.clone().unwrap_or_default()),
        ("tried again", time(view.retry_at)),
        ("key", view.key.clone().unwrap_or_default()),
        ("headers", serde_json::to_string(&view.headers).unwrap_or_default()),
        ("cache", view.cache.clone().unwrap_or_default()),
        ("payload", view.message.as_ref().map(|value| serde_json::to_string_pretty(value).unwrap_or_default()).unwrap_or_default()),
        ("created", output::time(view.created_at)),
        ("updated", output::time(view.updated_at)),
    ])
}
