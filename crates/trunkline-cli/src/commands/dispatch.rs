//! `trunkline dispatch`: a message that is produced at a time, every so often, or by a cron pattern.

use std::time::Duration;

use serde_json::{Map, Value};
use trunkline::message::{millis, now_ms};
use trunkline::schedules::Timing;
use trunkline::store::Scope;
use trunkline::{Error, Result};

use crate::context::Ctx;
use crate::output;
use crate::{payload, values};

/// Schedules a message: once at a time, every so often, or by a cron pattern
///
/// Any open process of the data directory fires it, each due time once; `trunkline run` does where none is always open. What is
/// missed meanwhile is fired once, for the latest due time.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  trunkline dispatch reports:due '{\"kind\":\"daily\"}' --cron '0 9 * * MON-FRI' --tz Europe/Berlin
  trunkline dispatch order-events:order-created '{\"orderId\":\"123\",\"amount\":1}' --every 10m --limit 6
  trunkline dispatch order-events:order-created '{\"orderId\":\"123\",\"amount\":1}' --at 2026-12-24T18:00:00 --tz Europe/Berlin
  trunkline schedules list")]
pub struct Args {
    /// Where to: brokerTag:topicTag
    event: String,
    /// The payload of each firing: JSON, @FILE, or - for standard input
    payload: String,
    /// Fires once at this time, or not before it: RFC 3339, by the clocks of --tz, or how long from now (10m)
    #[arg(long, value_name = "TIME", required_unless_present_any = ["cron", "every"])]
    at: Option<String>,
    /// A cron pattern: minute, hour, day of month, month, day of week; with seconds in front, six fields
    #[arg(long, value_name = "PATTERN", conflicts_with = "every")]
    cron: Option<String>,
    /// The time from one firing to the next; at least 1s
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    every: Option<Duration>,
    /// At most so many firings
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Nothing fires at or after this time
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// The time zone of --cron, and of times without an offset [default: UTC]
    #[arg(long, value_name = "ZONE")]
    tz: Option<String>,
    /// The key of each message
    #[arg(long)]
    key: Option<String>,
    /// A header of each message; may be given more than once
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = values::header)]
    headers: Vec<(String, String)>,
    /// Each message is produced under this cache
    #[arg(long, value_name = "TAG")]
    cache: Option<String>,
}

/// Schedules it.
pub async fn run(args: Args, ctx: &Ctx) -> Result<()> {
    let timing = args.timing()?;
    let env = ctx.env().await?;
    let mut produce = env.produce_raw(&args.event, payload::given(&args.payload)?);
    if let Some(key) = args.key {
        produce = produce.key(key);
    }
    for (name, value) in args.headers {
        produce = produce.header(&name, value);
    }
    if let Some(cache) = args.cache {
        produce = produce.cache(cache);
    }
    let dispatched = produce.dispatch(timing).await?;
    let id = dispatched.schedule_id;
    ctx.done(&dispatched, format!("{id} is due first at {}", output::time(dispatched.next_at)))?;
    if !ctx.is_json() && dispatched.scope == Scope::Host {
        output::note("it is fired by an open process of this host; `trunkline run` is one that stays");
    }
    Ok(())
}

impl Args {
    fn timing(&self) -> Result<Timing> {
        let fields = [
            ("start_at", self.at.as_deref().map(time)),
            ("cron", self.cron.clone().map(Value::from)),
            ("every", self.every.map(|every| millis(every).into())),
            ("limit", self.limit.map(Value::from)),
            ("endDate", self.until.as_deref().map(time)),
            ("tz", self.tz.clone().map(Value::from)),
        ];
        let given: Map<String, Value> = fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect();
        Timing::read("", &Value::Object(given)).map_err(|error| {
            let flag = match error.detail_str("field") {
                Some("start_at") => "at",
                Some("endDate") => "until",
                _ => return error,
            };
            Error::input(flag, format!("`--{flag}` is no time"))
                .next("write it like 2026-11-22T09:00:00Z, 2026-11-22T09:00:00 with --tz, or 10m")
        })
    }
}

/// A time as the timing reads it: how long from now is taken here, the rest as it stands.
fn time(text: &str) -> Value {
    let text = text.trim();
    match (text.parse::<u64>(), humantime::parse_duration(text)) {
        (Ok(ms), _) => ms.into(),
        (_, Ok(span)) => (now_ms() + millis(span)).into(),
        _ => text.into(),
    }
}
