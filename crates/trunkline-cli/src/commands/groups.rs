//! `trunkline groups`: how far each consumer group of a topic is, and what can be done to it.

use serde_json::json;
use trunkline::groups::GroupStatus;
use trunkline::message::now_ms;
use trunkline::{Event, Result, Start};

use crate::context::Ctx;
use crate::output::{self, Table};
use crate::values;

/// Lists, shows, creates, deletes, pauses, resumes and moves consumer groups
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Args)]
struct Named {
    /// The topic: brokerTag:topicTag
    event: Event,
    /// The group's name
    group: String,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Lists the groups of a topic with what waits for them
    #[command(after_help = "Example:\n  trunkline groups list order-events:order-created")]
    List {
        /// The topic: brokerTag:topicTag
        event: Event,
    },
    /// Shows one group with its members
    #[command(after_help = "Example:\n  trunkline groups show order-events:order-created my-product")]
    Show(Named),
    /// Declares a group, so that what is produced before its first consumer waits for it
    #[command(after_help = "Example:\n  trunkline groups create order-events:order-created billing --from latest")]
    Create {
        #[command(flatten)]
        named: Named,
        /// Where it starts: earliest, latest, or a time
        #[arg(long, value_name = "WHERE", default_value = "earliest", value_parser = values::start)]
        from: Start,
    },
    /// Removes a group with what waits for it on the broker
    #[command(after_help = "Example:\n  trunkline groups delete order-events:order-created billing")]
    Delete {
        #[command(flatten)]
        named: Named,
        /// Even while it has live members
        #[arg(long)]
        force: bool,
    },
    /// Stops all its members from receiving
    #[command(after_help = "Example:\n  trunkline groups pause order-events:order-created billing")]
    Pause(Named),
    /// Lets its members receive again
    #[command(after_help = "Example:\n  trunkline groups resume order-events:order-created billing")]
    Resume(Named),
    /// Sets a group to start elsewhere, for all its members
    #[command(after_help = "Example:\n  trunkline groups seek order-events:order-created billing --to 1h")]
    Seek {
        #[command(flatten)]
        named: Named,
        /// Where: earliest, latest, a time (1h: an hour ago), or SHARD:OFFSET
        #[arg(long, value_name = "WHERE", value_parser = position)]
        to: Start,
    },
}

fn position(text: &str) -> Result<Start, String> {
    let place =
        text.split_once(':').and_then(|(shard, offset)| Some(Start::Position { shard: shard.parse().ok()?, offset: offset.parse().ok()? }));
    place.map_or_else(|| values::start(text), Ok)
}

/// Runs one of them.
pub async fn run(args: Args, ctx: &Ctx) -> Result<()> {
    let env = ctx.env().await?;
    let did = |what: &str, Named { event, group }: &Named| {
        ctx.done(&json!({ "event": event, "group": group, "done": what }), format!("{what} group {group} of {event}"))
    };
    match args.verb {
        Verb::List { event } => {
            let groups = env.groups(event.as_str()).await?;
            ctx.show(&groups, || {
                let empty = format!("no group yet; consume with `trunkline consume {event}`");
                let mut table = Table::new(["group", "ready", "in flight", "waiting", "dead", "oldest", "members", "state"]).or(empty);
                for group in &groups {
                    table.row(cells(group));
                }
                table
            })
        }
        Verb::Show(Named { event, group }) => {
            let group = env.group(event.as_str(), &group).await?;
            ctx.show(&group, || fields(&group))
        }
        Verb::Create { named, from } => {
            env.create_group(named.event.as_str(), &named.group, from).await?;
            did("created", &named)
        }
        Verb::Delete { named, force } => {
            env.delete_group(named.event.as_str(), &named.group, force).await?;
            did("deleted", &named)
        }
        Verb::Pause(named) => {
            env.pause_group(named.event.as_str(), &named.group, true).await?;
            did("paused", &named)
        }
        Verb::Resume(named) => {
            env.pause_group(named.event.as_str(), &named.group, false).await?;
            did("resumed", &named)
        }
        Verb::Seek { named, to } => {
            env.seek_group(named.event.as_str(), &named.group, &to).await?;
            did("moved", &named)
        }
    }
}

/// How long ago, for people.
fn age(at: Option<u64>) -> String {
    at.map(|at| humantime::format_duration(std::time::Duration::from_secs(now_ms().saturating_sub(at) / 1_000)).to_string())
        .unwrap_or_default()
}

fn state(group: &GroupStatus) -> String {
    match (group.paused, group.members.is_empty()) {
        (true, _) => "paused".into(),
        (false, true) => "no member".into(),
        (false, false) => {
            let mut states: Vec<&str> = group.members.iter().map(|member| member.state.as_str()).collect();
            states.sort_unstable();
            states.dedup();
            states.join(", ")
        }
    }
}

fn cells(group: &GroupStatus) -> [String; 8] {
    let name = if group.default { format!("{} (default)", group.name) } else { group.name.clone() };
    let counted = |n| if group.counted { output::count(n) } else { "not known".to_owned() };
    [
        name,
        counted(group.ready),
        counted(group.in_flight),
        output::count(group.waiting),
        output::count(group.dead),
        age(group.oldest),
        group.members.len().to_string(),
        state(group),
    ]
}

fn fields(group: &GroupStatus) -> Table {
    let members = group.members.iter().map(|member| {
        format!(
            "{} pid {} ({} {}): {}, {:.1}/s, {} in flight",
            member.host, member.pid, member.sdk, member.version, member.state, member.rate, member.in_flight
        )
    });
    let [name, ready, in_flight, waiting, dead, oldest, _, state] = cells(group);
    Table::fields([
        ("group", name),
        ("state", state),
        ("ready", ready),
        ("in flight", in_flight),
        ("waiting", waiting),
        ("next due", group.next_due.map(output::time).unwrap_or_default()),
        ("dead", dead),
        ("oldest", oldest),
        ("members", members.collect::<Vec<_>>().join("\n")),
    ])
}
