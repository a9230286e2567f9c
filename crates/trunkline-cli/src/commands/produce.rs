//! `trunkline produce`: one message, or a file of them, confirmed.

mod file;

use std::io::IsTerminal;
use std::time::Duration;

use bytes::Bytes;
use serde::de::IgnoredAny;
use serde_json::Value;
use trunkline::message::Millis;
use trunkline::schema::Problem;
use trunkline::{Code, Env, Error, Produce, Result, Session};

use crate::context::Ctx;
use crate::session::SessionArgs;
use crate::values::{self, FieldPath};

/// Produces a message, or every line of a file, and waits until the broker has confirmed it
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  trunkline produce order-events:order-created '{\"orderId\":\"123\"}' --key 123
  cat order.json | trunkline produce order-events:order-created -
  trunkline produce order-events:order-created --file orders.ndjson --key-from orderId --idempotency-key-from orderId
  trunkline produce order-events:order-created '{\"orderId\":\"123\"}' --delay 10m
  trunkline produce order-events:order-created '{\"orderId\":\"123\"}' --session-file token
  trunkline produce order-events:order-created '{\"orderId\":123}' --validate-only")]
pub struct Args {
    /// Where to: brokerTag:topicTag
    event: String,
    /// The payload as JSON; `-` or nothing reads it from standard input
    payload: Option<String>,
    /// Produces every line of this file (`-`: standard input) as a message of its own
    #[arg(long, value_name = "NDJSON", conflicts_with = "payload")]
    file: Option<String>,
    /// Sends the bytes as they are, without asking whether they are JSON
    #[arg(long)]
    raw: bool,
    /// The key: messages of one key keep their order on ordered topics
    #[arg(long, conflicts_with = "key_from")]
    key: Option<String>,
    /// Takes the key from a field of the payload: /order/id or order.id
    #[arg(long, value_name = "FIELD", value_parser = FieldPath::parse, conflicts_with = "raw")]
    key_from: Option<FieldPath>,
    /// Published once within 24 h, however often it is tried
    #[arg(long, value_name = "KEY", conflicts_with_all = ["idempotency_key_from", "file"])]
    idempotency_key: Option<String>,
    /// Takes the idempotency key from a field of the payload
    #[arg(long, value_name = "FIELD", value_parser = FieldPath::parse, conflicts_with = "raw")]
    idempotency_key_from: Option<FieldPath>,
    /// A header; may be given more than once
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = values::header)]
    headers: Vec<(String, String)>,
    /// Not handed out before this long
    #[arg(long, value_name = "DURATION", value_parser = values::duration, conflicts_with = "deliver_at")]
    delay: Option<Duration>,
    /// Not handed out before this time
    #[arg(long, value_name = "TIME", value_parser = values::future)]
    deliver_at: Option<Millis>,
    /// Dead-lettered instead of handled after this time
    #[arg(long, value_name = "TIME", value_parser = values::future)]
    expires_at: Option<Millis>,
    /// Sends nothing: only checks the payload against the topic's schema
    #[arg(long, visible_alias = "dry-run", conflicts_with = "file")]
    validate_only: bool,
    /// Not sent if an equal message was produced under this cache within its expiry
    #[arg(long, value_name = "TAG")]
    cache: Option<String>,
    /// Confirmed within this, or failed [default: 30s]
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    timeout: Option<Duration>,
    #[command(flatten)]
    session: SessionArgs,
    /// With --file: how many may wait for their confirm at a time
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=100_000), requires = "file")]
    in_flight: u32,
    /// With --file: starts at this line
    #[arg(long, value_name = "LINE", default_value_t = 1, requires = "file")]
    from_line: u64,
}

/// Produces.
pub async fn run(args: Args, ctx: &Ctx) -> Result<()> {
    if let Some(file) = &args.file {
        return file::run(&args, file, ctx).await;
    }
    let (env, session) = (ctx.env().await?, args.session.read()?);
    let payload = match args.payload.as_deref() {
        Some("-") => values::input("payload", "-")?,
        Some(text) => text.as_bytes().to_vec(),
        None if !std::io::stdin().is_terminal() => values::input("payload", "-")?,
        None => Vec::new(),
    };
    if payload.trim_ascii().is_empty() && !args.raw {
        let next = format!("write it behind the event: trunkline produce {} '{{\"orderId\":\"123\"}}'", args.event);
        return Err(Error::new(Code::PayloadInvalid, "there is no payload").field("payload").next(next));
    }
    if args.validate_only {
        return validate(&env, &args.event, &payload, ctx);
    }
    let receipt = args.message(&env, payload.into(), session.as_ref())?.await?;
    let before = receipt.duplicate == Some(true) || receipt.cached == Some(true);
    let twice = if before { " (published before; nothing was sent)" } else { "" };
    ctx.done(&receipt, format!("{}{twice}", receipt.process_id))
}

/// Says whether a payload fits, and where not.
fn validate(env: &Env, event: &str, payload: &[u8], ctx: &Ctx) -> Result<()> {
    let validation = env.validate(event, payload)?;
    if validation.valid {
        return ctx.done(&validation, "the payload fits; nothing was sent");
    }
    let problem =
        |problem: &Problem| format!("{}: {}", if problem.pointer.is_empty() { "the payload" } else { &problem.pointer }, problem.message);
    let said = validation.problems.iter().map(problem).collect::<Vec<_>>().join("; ");
    let pointer = validation.problems.first().map(|first| first.pointer.clone()).unwrap_or_default();
    Err(Error::new(Code::PayloadInvalid, format!("the payload does not fit the schema of topic '{event}': {said}"))
        .field("message")
        .detail("pointer", pointer)
        .detail("problems", serde_json::json!(validation.problems))
        .next(format!("see the schema with `trunkline topics show {event}`")))
}

impl Args {
    /// The produce that a payload makes, or why it makes none.
    fn message<'a>(&'a self, env: &'a Env, payload: Bytes, session: Option<&Session>) -> Result<Produce<'a>> {
        let keys = if self.raw { (None, None) } else { self.keys(&payload)? };
        let mut produce = env.produce_raw(&self.event, payload);
        if let Some(key) = keys.0.or_else(|| self.key.clone()) {
            produce = produce.key(key);
        }
        if let Some(key) = keys.1.or_else(|| self.idempotency_key.clone()) {
            produce = produce.idempotency_key(key);
        }
        for (name, value) in &self.headers {
            produce = produce.header(name, value.clone());
        }
        if let Some(delay) = self.delay {
            produce = produce.delay(delay);
        }
        if let Some(at) = self.deliver_at {
            produce = produce.deliver_at(at);
        }
        if let Some(at) = self.expires_at {
            produce = produce.expires_at(at);
        }
        if let Some(cache) = &self.cache {
            produce = produce.cache(cache);
        }
        if let Some(timeout) = self.timeout {
            produce = produce.timeout(timeout);
        }
        if let Some(session) = session {
            produce = produce.session(session.clone());
        }
        Ok(produce)
    }

    /// Key and idempotency key as the payload's own fields give them. The payload must be JSON.
    fn keys(&self, payload: &[u8]) -> Result<(Option<String>, Option<String>)> {
        let not_json = |error: serde_json::Error| {
            Error::new(Code::PayloadInvalid, format!("the payload is not JSON: {error}"))
                .field("message")
                .next("quote it for your shell, or send the bytes as they are with --raw")
        };
        if self.key_from.is_none() && self.idempotency_key_from.is_none() {
            return serde_json::from_slice::<IgnoredAny>(payload).map(|_| (None, None)).map_err(not_json);
        }
        let value: Value = serde_json::from_slice(payload).map_err(not_json)?;
        let take = |flag: &str, from: &Option<FieldPath>| match from {
            None => Ok(None),
            Some(field) => field.of(&value).map(Some).ok_or_else(|| {
                Error::input(flag, format!("the payload has no text, number or boolean at {}", field.pointer()))
                    .detail("pointer", field.pointer())
                    .next(format!("check the field that --{flag} names"))
            }),
        };
        Ok((take("key-from", &self.key_from)?, take("idempotency-key-from", &self.idempotency_key_from)?))
    }
}
