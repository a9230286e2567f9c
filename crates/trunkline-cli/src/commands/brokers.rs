//! `trunkline brokers`: named connections, whose provider is chosen per env.

use serde_json::{Map, Value, json};
use trunkline::catalog::{BrokerView, LeftBehind};
use trunkline::removal::Removal;
use trunkline::{Code, Error, Result};

use crate::context::Ctx;
use crate::output::{self, Table};
use crate::values;

/// Lists, shows, creates, changes and deletes brokers
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Lists the product's brokers
    #[command(after_help = "Example:\n  trunkline brokers list")]
    List,
    /// Shows one broker with its envs and topics; credentials read ***
    #[command(after_help = "Example:\n  trunkline brokers show order-events")]
    Show {
        /// The broker's tag
        tag: String,
    },
    /// Creates a broker
    #[command(after_help = CREATE)]
    Create {
        /// The broker's tag
        tag: String,
        #[command(flatten)]
        about: About,
    },
    /// Changes a broker; the envs given replace those envs and keep the others
    #[command(after_help = "Example:\n  trunkline brokers update order-events --on prd=KAFKA --config prd=kafka.json")]
    Update {
        /// The broker's tag
        tag: String,
        #[command(flatten)]
        about: About,
        /// Leaves what still waits on the old server of an env that moves
        #[arg(long)]
        cut: bool,
    },
    /// Removes a broker with its topics from the catalogue; nothing on the broker itself
    #[command(after_help = "Example:\n  trunkline brokers delete order-events")]
    Delete {
        /// The broker's tag
        tag: String,
        /// Even while consumers are live
        #[arg(long)]
        force: bool,
        /// Also remove the messages and groups of its topics from the servers
        #[arg(long)]
        purge: bool,
    },
}

const CREATE: &str = "\
Examples:
  trunkline brokers create order-events --on prd=EMBEDDED
  trunkline brokers create order-events --on dev=EMBEDDED --on prd=KAFKA --config prd=kafka.json
  trunkline brokers create order-events --from-json broker.json

Credentials never stand on a command line: a config comes from a file or from standard input, and names them by
reference, as ${KAFKA_PASSWORD} or $Secret{kafka-password}.";

#[derive(Debug, clap::Args)]
struct About {
    /// The display name [default: the tag]
    #[arg(long)]
    name: Option<String>,
    /// What it is
    #[arg(long)]
    description: Option<String>,
    /// The provider of an env: KAFKA, RABBITMQ, REDIS, AWS_SQS, GOOGLE_PUBSUB, NATS, EMBEDDED; may be given more than once
    #[arg(long = "on", value_name = "ENV=PROVIDER", value_parser = values::by_env)]
    on: Vec<(String, String)>,
    /// The config of an env: a JSON file, or - for standard input
    #[arg(long = "config", value_name = "ENV=FILE|-", value_parser = values::by_env)]
    configs: Vec<(String, String)>,
    /// Takes the fields from a JSON document; flags win
    #[arg(long, value_name = "FILE|-")]
    from_json: Option<String>,
}

impl About {
    fn document(self, tag: &str, new: bool) -> Result<Value> {
        let About { name, description, on, configs, from_json } = self;
        if let Some((env, _)) = configs.iter().find(|(env, _)| !on.iter().any(|(slug, _)| slug == env)) {
            return Err(
                Error::input("config", format!("--config {env}=… needs the provider of that env")).next(format!("add --on {env}=PROVIDER"))
            );
        }
        let envs = on.iter().map(|(slug, provider)| {
            let mut env = Map::from_iter([("slug".to_owned(), json!(slug)), ("type".to_owned(), json!(provider))]);
            for (_, from) in configs.iter().filter(|(env, _)| env == slug) {
                env.insert("config".to_owned(), values::json_input("config", from)?);
            }
            Ok(Value::Object(env))
        });
        let envs = envs.collect::<Result<Vec<_>>>()?;
        let envs = (!envs.is_empty()).then_some(Value::Array(envs));
        let flags =
            [("tag", Some(tag.into())), ("name", name.map(Value::from)), ("description", description.map(Value::from)), ("envs", envs)];
        let mut document = values::document(from_json.as_deref(), flags)?;
        if new && document.get("name").is_none() {
            document["name"] = tag.into();
        }
        Ok(document)
    }
}

/// Runs one of them.
pub async fn run(args: Args, ctx: &Ctx) -> Result<()> {
    let catalog = ctx.catalog().await?;
    match args.verb {
        Verb::List => {
            let brokers = catalog.list_brokers(&ctx.product().await?)?;
            ctx.show(&brokers, || {
                let empty = "no broker yet; create one with `trunkline brokers create TAG --on ENV=EMBEDDED`";
                let mut table = Table::new(["tag", "name", "envs", "topics"]).or(empty);
                for broker in &brokers {
                    table.row([broker.tag.clone(), broker.name.clone(), envs(broker).join("\n"), broker.topics.len().to_string()]);
                }
                table
            })
        }
        Verb::Show { tag } => {
            let product = ctx.product().await?;
            let broker = catalog.fetch_broker(&product, &tag)?.ok_or_else(|| unknown(&product, &tag))?;
            ctx.show(&broker, || fields(&broker))
        }
        Verb::Create { tag, about } => {
            let document = about.document(&tag, true)?;
            let product = ctx.given_product()?;
            let broker = catalog.create_broker(product.as_deref(), document).await?;
            ctx.done(&broker, format!("created broker {tag}; add a topic: trunkline topics create {tag}:TOPIC"))
        }
        Verb::Update { tag, about, cut } => {
            let mut document = about.document(&tag, false)?;
            if cut {
                document["cut"] = true.into();
            }
            let update = ctx.trunkline().await?.update_broker(Some(&ctx.product().await?), &tag, document).await?;
            ctx.done(&update, if update.changed { format!("updated broker {tag}") } else { format!("broker {tag} is like that already") })?;
            if !ctx.is_json() {
                update.left_behind.iter().for_each(|left| output::note(behind(left)));
            }
            Ok(())
        }
        Verb::Delete { tag, force, purge } => {
            let product = ctx.product().await?;
            let broker = ctx.trunkline().await?.delete_broker(&product, &tag, Removal { purge, force }).await?;
            ctx.done(&broker, format!("deleted broker {tag}"))
        }
    }
}

/// What waits where an env led to before.
fn behind(left: &LeftBehind) -> String {
    let LeftBehind { topic, env, group, depth, error } = left;
    match (depth, error) {
        (Some(depth), _) => {
            format!("{} wait for group {group} of {topic} where env {env} led to before", output::plural(*depth as usize, "message"))
        }
        (None, Some(error)) => format!("what waits for group {group} of {topic} where env {env} led to before is not known: {error}"),
        (None, None) => format!("what waits for group {group} of {topic} where env {env} led to before is not known"),
    }
}

fn unknown(product: &str, tag: &str) -> Error {
    Error::new(Code::BrokerNotFound, format!("broker '{tag}' does not exist in product '{product}'"))
        .field("tag")
        .next(format!("list them with `trunkline brokers list`, or create it with `trunkline brokers create {tag} --on ENV=EMBEDDED`"))
}

fn envs(broker: &BrokerView) -> Vec<String> {
    broker.envs.iter().map(|env| format!("{}: {}", env.slug, env.kind)).collect()
}

fn fields(broker: &BrokerView) -> Table {
    let configs = broker.envs.iter().map(|env| format!("{}: {} {}", env.slug, env.kind, env.config));
    Table::fields([
        ("tag", broker.tag.clone()),
        ("name", broker.name.clone()),
        ("description", broker.description.clone().unwrap_or_default()),
        ("product", broker.product.clone()),
        ("envs", configs.collect::<Vec<_>>().join("\n")),
        ("topics", broker.topics.iter().map(|topic| topic.tag.to_string()).collect::<Vec<_>>().join("\n")),
        ("created", output::time(broker.created_at)),
        ("updated", output::time(broker.updated_at)),
    ])
}
