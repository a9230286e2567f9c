//! `trunkline messages show`: one message and its whole life.

use serde_json::json;
use trunkline::history::Record;
use trunkline::{Code, Error, MessageId, Result};

use crate::context::Ctx;
use crate::output::{self, Table};
use crate::record;

/// Shows a message: its life line, headers and payload
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  trunkline messages show 01a2b3c4-0000-7000-8000-000000000000")]
pub struct Args {
    /// The message's id
    id: MessageId,
}

/// Shows it.
pub async fn run(args: Args, ctx: &Ctx) -> Result<()> {
    let env = ctx.env().await?;
    let found = env.message(args.id).await?.ok_or_else(|| {
        Error::new(Code::MessageNotFound, format!("no message {} in {}/{}", args.id, env.product_tag(), env.slug()))
            .field("id")
            .next("find messages with `trunkline messages query`")
    })?;
    if ctx.is_json() {
        let mut view = serde_json::to_value(&found).map_err(|error| Error::store(format!("the record cannot be shown: {error}")))?;
        view["life"] = json!(found.life);
        return output::json(&view);
    }
    print(&found)
}

fn print(found: &Record) -> Result<()> {
    let session = found
        .session
        .as_ref()
        .map(|session| format!("{} {} ({})", session.tag, session.id, if found.erased { "erased" } else { &session.identifier }));
    let mut fields = vec![
        ("id", found.process_id.to_string()),
        ("event", format!("{} ({}, {}/{})", found.event, found.provider, found.product, found.env)),
        ("key", record::key(found)),
        ("status", record::word(&found.status)),
        ("size", format!("{} bytes", output::count(found.size))),
        ("producer", found.producer.clone().unwrap_or_default()),
        ("session", session.unwrap_or_default()),
        ("idempotency", found.idempotency_key.clone().unwrap_or_default()),
        ("replays", found.replay_of.map(|id| id.to_string()).unwrap_or_default()),
        ("replayed by", found.replayed_by.map(|id| id.to_string()).unwrap_or_default()),
    ];
    fields.retain(|(_, value)| !value.is_empty());
    Table::fields(fields).print()?;
    output::line("")?;
    let mut life = Table::new(["when", "who", "what", "took"]);
    record::life(found).into_iter().for_each(|step| life.row(step));
    life.print()?;
    if found.erased {
        return output::line("\nerased: headers and payload cannot be read any more");
    }
    record::print_headers(&found.headers)?;
    output::line("\npayload:")?;
    match &found.payload {
        Some(payload) => output::line(record::payload(&payload.0)),
        None => output::line("  not kept (the topic's `capture` is not `full`)"),
    }
}
