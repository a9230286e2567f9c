//! `trunkline dead edit`: another payload or other headers, before it is handed over again.

use bytes::Bytes;
use serde_json::json;
use trunkline::message::{Headers, header};
use trunkline::store::LotEntry;
use trunkline::{Error, MessageId, Result};

use crate::context::Ctx;
use crate::{payload, record, values};

/// Changes payload or headers of a dead letter; without flags it opens $EDITOR on the payload
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  trunkline dead edit 01a2b3c4-0000-7000-8000-000000000000
  trunkline dead edit 01a2b3c4-0000-7000-8000-000000000000 --payload '{\"orderId\":\"123\"}'
  trunkline dead edit 01a2b3c4-0000-7000-8000-000000000000 --header region=eu --unset-header debug")]
pub struct Args {
    /// The message's id
    id: MessageId,
    /// Only as it died at this consumer group
    #[arg(long)]
    group: Option<String>,
    /// The new payload: JSON, @FILE, or `-` for standard input
    #[arg(long, value_name = "JSON|@FILE|-")]
    payload: Option<String>,
    /// Sets a header; may be given more than once
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = values::header)]
    headers: Vec<(String, String)>,
    /// Removes a header; may be given more than once
    #[arg(long = "unset-header", value_name = "NAME")]
    unset: Vec<String>,
}

/// Changes it, at each group it died at.
pub async fn run(args: Args, ctx: &Ctx) -> Result<()> {
    let taken = args.headers.iter().map(|(name, _)| name).chain(&args.unset).find(|name| name.starts_with(header::PREFIX));
    if let Some(name) = taken {
        return Err(Error::input("header", format!("'{name}' is Trunkline's own: names starting with '{}' are taken", header::PREFIX)));
    }
    let env = ctx.env().await?;
    let mut found = env.dead_letter(args.id).await?;
    found.retain(|entry| args.group.as_deref().is_none_or(|group| group == &*entry.group));
    let Some(first) = found.first() else {
        return Err(super::not_at(args.id, args.group.as_deref().unwrap_or_default()));
    };
    let payload = args.new_payload(first).await?;
    if payload.is_none() && args.headers.is_empty() && args.unset.is_empty() {
        return ctx.done(&json!({ "process_id": args.id, "edited": 0 }), "nothing was changed");
    }
    let mut edited = 0;
    for entry in &found {
        edited += env.edit_dead_letter(args.id, Some(&entry.group), payload.clone(), args.new_headers(&entry.message.headers)).await?;
    }
    let groups: Vec<&str> = found.iter().map(|entry| &*entry.group).collect();
    let text = format!("changed {} at {}; hand it over again with `trunkline dead reprocess --id {}`", args.id, groups.join(", "), args.id);
    ctx.done(&json!({ "process_id": args.id, "edited": edited, "groups": groups }), text)
}

impl Args {
    /// The payload that was given, or what the editor saved; `None` if it stays.
    async fn new_payload(&self, entry: &LotEntry) -> Result<Option<Bytes>> {
        if let Some(text) = &self.payload {
            return payload::given(text).map(Some);
        }
        if !self.headers.is_empty() || !self.unset.is_empty() {
            return Ok(None);
        }
        let before = record::payload(&entry.message.payload);
        let after = payload::edited(&before).await?;
        if after.trim_end() == before.trim_end() {
            return Ok(None);
        }
        payload::must_be_json(after.as_bytes())?;
        Ok(Some(after.into()))
    }

    fn new_headers(&self, old: &Headers) -> Option<Headers> {
        if self.headers.is_empty() && self.unset.is_empty() {
            return None;
        }
        let mut headers = old.clone();
        self.unset.iter().for_each(|name| headers.remove(name));
        self.headers.iter().for_each(|(name, value)| headers.set(name, value.clone()));
        Some(headers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_set_and_removed() {
        let args =
            Args { id: MessageId::now(), group: None, payload: None, headers: vec![("a".into(), "2".into())], unset: vec!["b".into()] };
        let old: Headers = [("a", "1"), ("b", "1"), ("c", "1")].into_iter().collect();
        let new = args.new_headers(&old).expect("changed");
        assert_eq!((new.get_str("a"), new.get_str("b"), new.get_str("c")), (Some("2"), None, Some("1")));
    }
}
