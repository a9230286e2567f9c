//! `trunkline products`: the owners of brokers and topics.

use serde_json::{Value, json};
use trunkline::catalog::ProductDoc;
use trunkline::{Code, Error, Result};

use crate::context::Ctx;
use crate::output::{self, Table};
use crate::values;

/// Lists, shows, creates, changes and deletes products
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Lists all products
    #[command(after_help = "Example:\n  trunkline products list")]
    List,
    /// Shows one product with its brokers
    #[command(after_help = "Example:\n  trunkline products show my-product")]
    Show {
        /// The product's tag
        tag: String,
    },
    /// Creates a product; the first create of a broker in it does so too
    #[command(after_help = "Example:\n  trunkline products create my-product --name 'My product'")]
    Create {
        /// The product's tag
        tag: String,
        #[command(flatten)]
        about: About,
    },
    /// Changes name or description
    #[command(after_help = "Example:\n  trunkline products update my-product --description 'Everything about orders'")]
    Update {
        /// The product's tag
        tag: String,
        #[command(flatten)]
        about: About,
    },
    /// Removes a product with its brokers and topics from the catalogue; nothing on any broker
    #[command(after_help = "Example:\n  trunkline products delete my-product --yes")]
    Delete {
        /// The product's tag
        tag: String,
        /// Says that you mean it: all its brokers and topics go with it
        #[arg(long)]
        yes: bool,
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
    /// Takes the fields from a JSON document; flags win
    #[arg(long, value_name = "FILE|-")]
    from_json: Option<String>,
}

impl About {
    fn document(self, tag: &str) -> Result<Value> {
        let About { name, description, from_json } = self;
        values::document(
            from_json.as_deref(),
            [("tag", Some(tag.into())), ("name", name.map(Value::from)), ("description", description.map(Value::from))],
        )
    }
}

/// Runs one of them.
pub async fn run(args: Args, ctx: &Ctx) -> Result<()> {
    let catalog = ctx.catalog().await?;
    match args.verb {
        Verb::List => {
            let products = catalog.list_products();
            ctx.show(&products, || {
                let mut table =
                    Table::new(["tag", "name", "brokers", "description"]).or("no product yet; start with `trunkline init --example`");
                for product in &products {
                    let brokers = catalog.list_brokers(&product.tag).map_or(0, |brokers| brokers.len());
                    table.row([
                        product.tag.clone(),
                        product.name.clone(),
                        brokers.to_string(),
                        product.description.clone().unwrap_or_default(),
                    ]);
                }
                table
            })
        }
        Verb::Show { tag } => {
            let product = catalog.fetch_product(&tag)?.ok_or_else(|| {
                Error::new(Code::ProductNotFound, format!("product '{tag}' does not exist"))
                    .field("product")
                    .next("list them with `trunkline products list`")
            })?;
            let brokers: Vec<String> = catalog.list_brokers(&tag)?.iter().map(|broker| broker.tag.clone()).collect();
            let mut value = serde_json::to_value(&*product).unwrap_or_default();
            value["brokers"] = json!(brokers);
            ctx.show(&value, || fields(&product, &brokers))
        }
        Verb::Create { tag, about } => {
            let product = catalog.create_product(about.document(&tag)?).await?;
            ctx.done(&product, format!("created product {tag}"))
        }
        Verb::Update { tag, about } => {
            let update = catalog.update_product(&tag, about.document(&tag)?).await?;
            ctx.done(&update, if update.changed { format!("updated product {tag}") } else { format!("product {tag} is like that already") })
        }
        Verb::Delete { tag, yes } => {
            let brokers = catalog.list_brokers(&tag)?.len();
            if !yes && brokers > 0 {
                return Err(Error::new(Code::InUse, format!("product '{tag}' has {brokers} brokers, which go with it"))
                    .next(format!("say that you mean it: trunkline products delete {tag} --yes")));
            }
            let product = catalog.delete_product(&tag).await?;
            ctx.done(&product, format!("deleted product {tag}"))
        }
    }
}

fn fields(product: &ProductDoc, brokers: &[String]) -> Table {
    Table::fields([
        ("tag", product.tag.clone()),
        ("name", product.name.clone()),
        ("description", product.description.clone().unwrap_or_default()),
        ("brokers", brokers.join("\n")),
        ("created", output::time(product.created_at)),
        ("updated", output::time(product.updated_at)),
    ])
}
