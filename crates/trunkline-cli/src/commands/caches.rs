//! `trunkline caches`: under which equal messages are sent once.

use std::time::Duration;

use serde_json::{Value, json};
use trunkline::catalog::CacheDoc;
use trunkline::message::millis;
use trunkline::{Code, Error, Result};

use crate::context::Ctx;
use crate::output::{self, Table};
use crate::values;

/// Lists, shows, creates, changes, clears and deletes caches
///
/// A message that equals one produced under the same cache (`trunkline produce --cache TAG`) within its expiry is not sent again:
/// the first result is returned. Messages are equal if env, event, key and payload are.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Lists the product's caches
    #[command(after_help = "Example:\n  trunkline caches list")]
    List,
    /// Shows one cache
    #[command(after_help = "Example:\n  trunkline caches show recent")]
    Show {
        /// The cache's tag
        tag: String,
    },
    /// Creates a cache
    #[command(after_help = "Example:\n  trunkline caches create recent --expiry 5m")]
    Create {
        /// The cache's tag
        tag: String,
        #[command(flatten)]
        about: About,
    },
    /// Changes name, description or expiry
    #[command(after_help = "Example:\n  trunkline caches update recent --expiry 1h")]
    Update {
        /// The cache's tag
        tag: String,
        #[command(flatten)]
        about: About,
    },
    /// Lists the results that would be returned again, newest first
    #[command(after_help = "Example:\n  trunkline caches values recent --limit 50")]
    Values {
        /// The cache's tag
        tag: String,
        /// Which page, from 1
        #[arg(long, default_value_t = 1)]
        page: usize,
        /// How many a page has (1 to 1,000)
        #[arg(long, default_value_t = 20)]
        limit: usize,
    },
    /// Forgets all results, so that the next equal message is sent
    #[command(after_help = "Example:\n  trunkline caches clear recent")]
    Clear {
        /// The cache's tag
        tag: String,
    },
    /// Removes a cache with its results
    #[command(after_help = "Example:\n  trunkline caches delete recent")]
    Delete {
        /// The cache's tag
        tag: String,
    },
}

#[derive(Debug, clap::Args)]
struct About {
    /// The display name [default: the tag]
    #[arg(long)]
    name: Option<String>,
    /// What it is
    #[arg(long)]
    description: Option<String>,
    /// How old a result may be to be returned again
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    expiry: Option<Duration>,
    /// Takes the fields from a JSON document; flags win
    #[arg(long, value_name = "FILE|-")]
    from_json: Option<String>,
}

impl About {
    fn document(self, tag: &str) -> Result<Value> {
        let About { name, description, expiry, from_json } = self;
        values::document(
            from_json.as_deref(),
            [
                ("tag", Some(tag.into())),
                ("name", name.map(Value::from)),
                ("description", description.map(Value::from)),
                ("expiry", expiry.map(|expiry| millis(expiry).into())),
            ],
        )
    }
}

/// Runs one of them.
pub async fn run(args: Args, ctx: &Ctx) -> Result<()> {
    let trunkline = ctx.trunkline().await?;
    let catalog = trunkline.catalog();
    if let Verb::Create { tag, about } = args.verb {
        let cache = catalog.create_cache(ctx.given_product()?.as_deref(), about.document(&tag)?).await?;
        return ctx.done(&cache, format!("created cache {tag}; use it: trunkline produce EVENT PAYLOAD --cache {tag}"));
    }
    let product = ctx.product().await?;
    match args.verb {
        Verb::List | Verb::Create { .. } => {
            let caches = catalog.list_caches(&product)?;
            ctx.show(&caches, || {
                let empty = "no cache yet; create one with `trunkline caches create TAG --expiry 5m`";
                let mut table = Table::new(["tag", "name", "expiry", "description"]).or(empty);
                for cache in &caches {
                    let about = cache.description.clone().unwrap_or_default();
                    table.row([cache.tag.clone(), cache.name.clone(), span(cache.expiry), about]);
                }
                table
            })
        }
        Verb::Show { tag } => {
            let cache = catalog.fetch_cache(&product, &tag)?.ok_or_else(|| unknown(&product, &tag))?;
            ctx.show(&cache, || fields(&cache))
        }
        Verb::Update { tag, about } => {
            let update = catalog.update_cache(Some(&product), &tag, about.document(&tag)?).await?;
            ctx.done(&update, if update.changed { format!("updated cache {tag}") } else { format!("cache {tag} is like that already") })
        }
        Verb::Values { tag, page, limit } => values_of(ctx, &product, &tag, page, limit).await,
        Verb::Clear { tag } => {
            let cleared = trunkline.clear_cache(&product, &tag).await?;
            let text = format!("cleared cache {tag}: {}", output::plural(usize::try_from(cleared).unwrap_or(usize::MAX), "result"));
            ctx.done(&json!({ "tag": tag, "cleared": cleared }), text)
        }
        Verb::Delete { tag } => {
            let cache = trunkline.delete_cache(&product, &tag).await?;
            ctx.done(&cache, format!("deleted cache {tag}"))
        }
    }
}

async fn values_of(ctx: &Ctx, product: &str, tag: &str, page: usize, limit: usize) -> Result<()> {
    let found = ctx.trunkline().await?.cache_values(product, tag, page, limit).await?;
    ctx.show(&found, || {
        let empty = format!("no result; produce under it with `trunkline produce EVENT PAYLOAD --cache {tag}`");
        let mut table = Table::new(["process id", "env", "event", "at", "age"]).or(empty);
        for value in &found.values {
            let age = span(value.age_ms / 1_000 * 1_000);
            table.row([value.process_id.to_string(), value.env.clone(), value.event.to_string(), output::time(value.at), age]);
        }
        table
    })
}

fn span(ms: u64) -> String {
    humantime::format_duration(Duration::from_millis(ms)).to_string()
}

fn unknown(product: &str, tag: &str) -> Error {
    Error::new(Code::CacheNotFound, format!("cache '{}' does not exist in product '{product}'", output::plain(tag)))
        .field("cache")
        .next("list them with `trunkline caches list`")
}

fn fields(cache: &CacheDoc) -> Table {
    Table::fields([
        ("tag", cache.tag.clone()),
        ("name", cache.name.clone()),
        ("description", cache.description.clone().unwrap_or_default()),
        ("expiry", span(cache.expiry)),
        ("created", output::time(cache.created_at)),
        ("updated", output::time(cache.updated_at)),
    ])
}
