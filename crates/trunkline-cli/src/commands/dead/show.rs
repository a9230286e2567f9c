//! `trunkline dead show`: one message, at each group it died at.

use trunkline::store::LotEntry;
use trunkline::{MessageId, Result};

use crate::commands::dead::view;
use crate::context::Ctx;
use crate::output::{self, Table};
use crate::record;

/// Shows a dead letter: payload, headers, reason, error, attempts
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  trunkline dead show 01a2b3c4-0000-7000-8000-000000000000")]
pub struct Args {
    /// The message's id
    id: MessageId,
    /// Only as it died at this consumer group
    #[arg(long)]
    group: Option<String>,
}

/// Shows it.
pub async fn run(args: Args, ctx: &Ctx) -> Result<()> {
    let mut found = ctx.env().await?.dead_letter(args.id).await?;
    if let Some(group) = &args.group {
        found.retain(|entry| &*entry.group == group.as_str());
        if found.is_empty() {
            return Err(super::not_at(args.id, group));
        }
    }
    if ctx.is_json() {
        return output::json(&found.iter().map(|entry| view::json_of(entry, true)).collect::<Vec<_>>());
    }
    for (at, entry) in found.iter().enumerate() {
        if at > 0 {
            output::line("")?;
        }
        print(entry)?;
    }
    Ok(())
}

fn print(entry: &LotEntry) -> Result<()> {
    let message = &entry.message;
    let mut fields = vec![
        ("id", message.id.to_string()),
        ("event", entry.address.event.to_string()),
        ("group", entry.group.to_string()),
        ("key", message.key.as_deref().map(|key| String::from_utf8_lossy(key).into_owned()).unwrap_or_default()),
        ("produced", output::time(message.produced_at)),
        ("died", entry.died_at.map(output::time).unwrap_or_default()),
        ("attempts", entry.attempts.to_string()),
        ("reason", entry.reason.clone().unwrap_or_default()),
        ("error", entry.error.clone().unwrap_or_default()),
    ];
    fields.retain(|(_, value)| !value.is_empty());
    Table::fields(fields).print()?;
    if entry.is_erased() {
        return output::line("\nerased: headers and payload cannot be read any more");
    }
    record::print_headers(&message.headers)?;
    output::line("\npayload:")?;
    output::line(record::payload(&message.payload))
}
