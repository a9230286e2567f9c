//! `trunkline messages producers` and `consumers`: who lives, and whether it gets on.

use serde_json::json;
use trunkline::Result;
use trunkline::store::{Member, MemberRole};

use crate::context::Ctx;
use crate::output::{self, Table};

/// Of which broker or topic; all of the env's if nothing is given.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Of this broker
    #[arg(long, value_name = "TAG")]
    broker: Option<String>,
    /// Of this topic, by its short tag
    #[arg(long, value_name = "TAG", requires = "broker")]
    topic: Option<String>,
}

/// Lists those of a role.
pub async fn run(role: MemberRole, args: Args, ctx: &Ctx) -> Result<()> {
    let env = ctx.env().await?;
    let (broker, topic) = (args.broker.as_deref(), args.topic.as_deref());
    let (members, name) = match role {
        MemberRole::Producer => (env.producers(broker, topic).await?, "producers"),
        MemberRole::Consumer => (env.consumers(broker, topic).await?, "consumers"),
    };
    ctx.show(&json!({ name: members }), || table(&members, format!("no live {name}")))
}

/// As people read them.
pub fn table(members: &[Member], empty: String) -> Table {
    let mut table = Table::new(["event", "group", "state", "rate", "in flight", "progress", "host", "pid", "sdk", "version"]).or(empty);
    for member in members {
        table.row([
            member.address.event.to_string(),
            member.group.clone().unwrap_or_default(),
            member.state.clone(),
            format!("{:.1}/s", member.rate),
            output::count(member.in_flight),
            member.last_progress_at.map_or_else(|| "none yet".to_owned(), output::time),
            output::plain(&member.host),
            member.pid.to_string(),
            member.sdk.clone(),
            member.version.clone(),
        ]);
    }
    table
}
