//! `trunkline topics`: named streams of a broker, with a sample of what is in them.

use std::time::Duration;

use serde_json::{Map, Value, json};
use trunkline::catalog::{Breaking, TopicDoc};
use trunkline::message::millis;
use trunkline::removal::Removal;
use trunkline::{Code, Error, Event, Result, Schedule};

use crate::context::Ctx;
use crate::output::{self, Table};
use crate::{payload, values};

/// Lists, shows, creates, changes and deletes topics
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Lists the topics of one broker, or of all
    #[command(after_help = "Example:\n  trunkline topics list order-events")]
    List {
        /// The broker's tag [default: all brokers]
        broker: Option<String>,
    },
    /// Shows one topic
    #[command(after_help = "Example:\n  trunkline topics show order-events:order-created")]
    Show {
        /// The topic: brokerTag:topicTag
        event: Event,
    },
    /// Creates a topic; ordering and shards are fixed then
    #[command(
        after_help = "Examples:\n  trunkline topics create order-events:order-created --sample '{\"orderId\":\"123\",\"amount\":99.99}'\n  trunkline topics create order-events:payments --ordering key --shards 16 --retry 1s,5s,30s"
    )]
    Create {
        /// The topic: brokerTag:topicTag
        event: Event,
        #[command(flatten)]
        about: Box<About>,
        /// `key`: messages of one key are handled one after the other
        #[arg(long, value_parser = ["none", "key"])]
        ordering: Option<String>,
        /// How many parts it has
        #[arg(long)]
        shards: Option<u32>,
    },
    /// Changes a topic; a given sample replaces the old one whole
    #[command(
        after_help = "Examples:\n  trunkline topics update order-events:order-created --retention-age 7d --timeout 1m\n  trunkline topics update order-events:order-created --sample '{\"orderId\":\"123\"}' --dry-run\n  trunkline topics update order-events:order-created --validate reject"
    )]
    Update {
        /// The topic: brokerTag:topicTag
        event: Event,
        /// Only shows what would break
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        about: Box<About>,
    },
    /// Removes a topic from the catalogue; nothing on the broker itself
    #[command(after_help = "Example:\n  trunkline topics delete order-events:order-created")]
    Delete {
        /// The topic: brokerTag:topicTag
        event: Event,
        /// Even while consumers are live
        #[arg(long)]
        force: bool,
        /// Also remove its messages and groups from the broker
        #[arg(long)]
        purge: bool,
    },
}

#[derive(Debug, clap::Args)]
struct About {
    /// The display name [default: the short tag]
    #[arg(long)]
    name: Option<String>,
    /// What it is
    #[arg(long)]
    description: Option<String>,
    /// An example payload, as JSON
    #[arg(long, value_name = "JSON")]
    sample: Option<String>,
    /// A JSON Schema of the payload: JSON, @FILE, or - for standard input [default: what the sample yields]
    #[arg(long, value_name = "JSON|@FILE|-")]
    schema: Option<String>,
    /// What is done about a payload that does not fit [default: warn]
    #[arg(long, value_parser = ["off", "warn", "reject"])]
    validate: Option<String>,
    /// What a confirmed message must at least survive
    #[arg(long, value_parser = ["memory", "written", "fsynced", "replicated", "cloud"])]
    durability: Option<String>,
    /// How much of each message the history keeps
    #[arg(long, value_parser = ["full", "metadata", "off"])]
    capture: Option<String>,
    /// How long the history keeps it
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    retention_age: Option<Duration>,
    /// How many bytes the history keeps
    #[arg(long, value_name = "BYTES")]
    retention_bytes: Option<u64>,
    /// When its consumers try a failed message again: 1s,5s,30s, or `none`
    #[arg(long, value_name = "DELAYS", value_parser = values::schedule)]
    retry: Option<Schedule>,
    /// How long a handler may run
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    timeout: Option<Duration>,
    /// How many messages a consumer handles at a time
    #[arg(long)]
    concurrency: Option<u32>,
    /// Passes over messages a group has handled before
    #[arg(long, value_name = "BOOL")]
    dedupe: Option<bool>,
    /// Dead letters are also produced to this event
    #[arg(long, value_name = "EVENT")]
    dead_letter: Option<Event>,
    /// Its own name on the broker of an env; may be given more than once
    #[arg(long = "name-on", value_name = "ENV=NAME", value_parser = values::by_env)]
    names: Vec<(String, String)>,
    /// Its SQS queue in an env; may be given more than once
    #[arg(long = "queue-url", value_name = "ENV=URL", value_parser = values::by_env)]
    queue_urls: Vec<(String, String)>,
    /// Takes the fields from a JSON document; flags win
    #[arg(long, value_name = "FILE|-")]
    from_json: Option<String>,
}

impl About {
    fn document(self, event: &Event, more: [(&str, Option<Value>); 2]) -> Result<Value> {
        let sample = self.sample.as_deref().map(|text| {
            serde_json::from_str(text).map_err(|error| {
                Error::new(Code::PayloadInvalid, format!("the sample is not JSON: {error}")).field("sample").next("quote it for your shell")
            })
        });
        let schema = self.schema.as_deref().map(|text| {
            let bytes = payload::given(text).map_err(|error| Error::input("schema", format!("`--schema`: {}", error.message())))?;
            serde_json::from_slice::<Value>(&bytes).map_err(|error| Error::input("schema", format!("`--schema` is not JSON: {error}")))
        });
        let some = |pairs: Vec<(&str, Option<Value>)>| {
            let map: Map<String, Value> = pairs.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect();
            (!map.is_empty()).then_some(Value::Object(map))
        };
        let ms = |duration: Option<Duration>| duration.map(|duration| json!(millis(duration)));
        let retry = self.retry.map(|schedule| {
            let delays: Vec<u64> = schedule.delays.iter().map(|delay| millis(*delay)).collect();
            if delays.is_empty() { Value::Bool(false) } else { json!({ "delays": delays, "jitter": schedule.jitter }) }
        });
        let defaults = some(vec![
            ("retry", retry),
            ("timeout", ms(self.timeout)),
            ("concurrency", self.concurrency.map(Value::from)),
            ("dedupe", self.dedupe.map(Value::from)),
            ("deadLetter", self.dead_letter.map(|event| json!({ "topic": event }))),
        ]);
        let list = |pairs: Vec<(String, String)>, slug: &str, value: &str| {
            let list: Vec<Value> = pairs.into_iter().map(|(env, text)| json!({ slug: env, value: text })).collect();
            (!list.is_empty()).then_some(Value::Array(list))
        };
        let [ordering, shards] = more;
        values::document(
            self.from_json.as_deref(),
            [
                ("tag", Some(event.as_str().into())),
                ("name", self.name.map(Value::from)),
                ("description", self.description.map(Value::from)),
                ("sample", sample.transpose()?),
                ("schema", schema.transpose()?),
                ("validate", self.validate.map(Value::from)),
                ("durability", self.durability.map(Value::from)),
                ("capture", self.capture.map(Value::from)),
                ("retention", some(vec![("age", ms(self.retention_age)), ("bytes", self.retention_bytes.map(Value::from))])),
                ("defaults", defaults),
                ("names", list(self.names, "slug", "name")),
                ("queueUrls", list(self.queue_urls, "env_slug", "url")),
                ordering,
                shards,
            ],
        )
    }
}

/// Runs one of them.
pub async fn run(args: Args, ctx: &Ctx) -> Result<()> {
    let catalog = ctx.catalog().await?;
    let product = ctx.product().await?;
    match args.verb {
        Verb::List { broker } => {
            let topics = match broker {
                Some(broker) => catalog.list_topics(&product, &broker)?,
                None => catalog.list_brokers(&product)?.into_iter().flat_map(|broker| broker.topics).collect(),
            };
            ctx.show(&topics, || {
                let empty = "no topic yet; create one with `trunkline topics create BROKER:TOPIC`";
                let mut table = Table::new(["tag", "name", "ordering", "sample"]).or(empty);
                for topic in &topics {
                    let sample = topic.sample.as_ref().map(ToString::to_string).unwrap_or_default();
                    table.row([topic.tag.to_string(), topic.name.clone(), word(&topic.ordering), sample]);
                }
                table
            })
        }
        Verb::Show { event } => {
            let topic = catalog.fetch_topic(&product, event.as_str())?.ok_or_else(|| unknown(&product, &event))?;
            ctx.show(&topic, || fields(&topic))
        }
        Verb::Create { event, about, ordering, shards } => {
            let mut document = about.document(&event, [("ordering", ordering.map(Value::from)), ("shards", shards.map(Value::from))])?;
            if document.get("name").is_none() {
                document["name"] = event.topic().into();
            }
            let topic = catalog.create_topic(Some(&product), document).await?;
            ctx.done(&topic, format!("created topic {event}; try it: trunkline produce {event} '{{}}'"))
        }
        Verb::Update { event, dry_run, about } => {
            let document = about.document(&event, [("ordering", None), ("shards", None)])?;
            update(ctx, &product, &event, dry_run, document).await
        }
        Verb::Delete { event, force, purge } => {
            let topic = ctx.trunkline().await?.delete_topic(&product, &event, Removal { purge, force }).await?;
            ctx.done(&topic, format!("deleted topic {event}"))
        }
    }
}

async fn update(ctx: &Ctx, product: &str, event: &Event, dry_run: bool, document: Value) -> Result<()> {
    let trunkline = ctx.trunkline().await?;
    let update = if dry_run {
        trunkline.plan_topic(Some(product), event.as_str(), document).await?
    } else {
        trunkline.update_topic(Some(product), event.as_str(), document).await?
    };
    let said = match (update.changed, dry_run) {
        (false, _) => format!("topic {event} is like that already"),
        (true, true) => format!("would update topic {event} (dry run, nothing was written)"),
        (true, false) => format!("updated topic {event}"),
    };
    ctx.done(&update, said)?;
    if !ctx.is_json() {
        for Breaking { path, message, .. } in &update.breaking {
            let place = if path.is_empty() { "the payload" } else { path };
            output::note(format!("breaking: {place}: {message}"));
        }
        for member in &update.affected {
            let group = member.group.as_deref().unwrap_or_default();
            output::note(format!("affected: group {group} in {}: {} on {} pid {}", member.address.env, member.id, member.host, member.pid));
        }
    }
    Ok(())
}

fn unknown(product: &str, event: &Event) -> Error {
    Error::new(Code::TopicNotFound, format!("topic '{event}' does not exist in product '{product}'"))
        .field("event")
        .next(format!("list them with `trunkline topics list`, or create it with `trunkline topics create {event}`"))
}

/// The word an enum is written as in JSON.
fn word(value: &impl serde::Serialize) -> String {
    serde_json::to_value(value).map(|value| output::cell(&value)).unwrap_or_default()
}

fn fields(topic: &TopicDoc) -> Table {
    let json =
        |value: &Option<Value>| value.as_ref().map(|value| serde_json::to_string_pretty(value).unwrap_or_default()).unwrap_or_default();
    let schema = topic.payload_schema().map(std::borrow::Cow::into_owned);
    let whence = match (&topic.schema, &schema) {
        (None, Some(_)) => "schema (of the sample)",
        _ => "schema",
    };
    Table::fields([
        ("tag", topic.tag.to_string()),
        ("name", topic.name.clone()),
        ("description", topic.description.clone().unwrap_or_default()),
        ("ordering", word(&topic.ordering)),
        ("names", word(&topic.physical)),
        ("capture", word(&topic.capture)),
        ("retention", word(&topic.retention)),
        ("defaults", word(&topic.defaults)),
        ("sample", json(&topic.sample)),
        (whence, json(&schema)),
        ("validate", word(&topic.validate)),
        ("created", output::time(topic.created_at)),
        ("updated", output::time(topic.updated_at)),
    ])
}
