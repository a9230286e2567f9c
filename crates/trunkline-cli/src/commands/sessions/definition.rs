//! `trunkline sessions define|update|list|show|delete`: the definitions in the catalogue.

use serde_json::Value;
use trunkline::catalog::SessionDoc;
use trunkline::{Code, Error, Result};

use crate::context::Ctx;
use crate::output::{self, Table};
use crate::values;

/// Defines a session: how long it lasts, and which field of its data says who it is of
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  trunkline sessions define user --selector '$Session{userId}' --expiry 7 --period days --sample '{\"userId\":\"u-1\"}'")]
pub struct Define {
    /// Its tag
    tag: String,
    #[command(flatten)]
    about: About,
}

/// Changes a definition; tokens that were given out keep their time
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  trunkline sessions update user --expiry 12 --period hours")]
pub struct Update {
    /// Its tag
    tag: String,
    #[command(flatten)]
    about: About,
}

/// Lists the definitions
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  trunkline sessions list")]
pub struct List {}

/// Shows a definition
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  trunkline sessions show user")]
pub struct Show {
    /// Its tag
    tag: String,
}

/// Removes a definition; its tokens are no longer valid
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  trunkline sessions delete user")]
pub struct Delete {
    /// Its tag
    tag: String,
}

#[derive(Debug, clap::Args)]
struct About {
    /// The display name [default: the tag]
    #[arg(long)]
    name: Option<String>,
    /// What it is
    #[arg(long)]
    description: Option<String>,
    /// The field of a session's data that says who it is of: $Session{userId}, or $Session{user.id}
    #[arg(long, value_name = "SELECTOR")]
    selector: Option<String>,
    /// How many periods a token is good for
    #[arg(long, value_name = "N")]
    expiry: Option<u64>,
    /// The unit of --expiry
    #[arg(long, value_parser = ["seconds", "minutes", "hours", "days"])]
    period: Option<String>,
    /// A sample of a session's data, as JSON
    #[arg(long, value_name = "JSON")]
    sample: Option<String>,
    /// Takes the fields from a JSON document; flags win
    #[arg(long, value_name = "FILE|-")]
    from_json: Option<String>,
}

impl About {
    fn document(self, tag: &str) -> Result<Value> {
        let sample = self.sample.map(|text| serde_json::from_str::<Value>(&text));
        let sample = sample.transpose().map_err(|error| {
            Error::input("sample", format!("`--sample` is not JSON: {error}")).next("quote it for your shell, or use --from-json")
        })?;
        values::document(
            self.from_json.as_deref(),
            [
                ("tag", Some(tag.into())),
                ("name", self.name.map(Value::from)),
                ("description", self.description.map(Value::from)),
                ("selector", self.selector.map(Value::from)),
                ("expiry", self.expiry.map(Value::from)),
                ("period", self.period.map(Value::from)),
                ("schema", sample),
            ],
        )
    }
}

/// Defines.
pub async fn define(args: Define, ctx: &Ctx) -> Result<()> {
    let Define { tag, about } = args;
    let mut document = about.document(&tag)?;
    if document.get("name").is_none() {
        document["name"] = tag.as_str().into();
    }
    let product = ctx.given_product()?;
    let session = ctx.catalog().await?.create_session(product.as_deref(), document).await?;
    let sample = session.schema.to_string().replace('\'', "'\\''");
    ctx.done(&session, format!("defined session {tag}; start one: trunkline sessions start {tag} '{sample}'"))
}

/// Changes.
pub async fn update(args: Update, ctx: &Ctx) -> Result<()> {
    let Update { tag, about } = args;
    let product = ctx.product().await?;
    let update = ctx.catalog().await?.update_session(Some(&product), &tag, about.document(&tag)?).await?;
    ctx.done(&update, if update.changed { format!("updated session {tag}") } else { format!("session {tag} is like that already") })
}

/// Lists.
pub async fn list(List {}: List, ctx: &Ctx) -> Result<()> {
    let sessions = ctx.catalog().await?.list_sessions(&ctx.product().await?)?;
    ctx.show(&sessions, || {
        let mut table = Table::new(["tag", "name", "selector", "expires after"])
            .or("no session is defined; define one with `trunkline sessions define TAG --selector '$Session{FIELD}' …`");
        for session in &sessions {
            table.row([session.tag.clone(), session.name.clone(), session.selector.clone(), lifetime(session)]);
        }
        table
    })
}

/// Shows.
pub async fn show(args: Show, ctx: &Ctx) -> Result<()> {
    let product = ctx.product().await?;
    let session = ctx.catalog().await?.fetch_session(&product, &args.tag)?.ok_or_else(|| {
        Error::new(Code::SessionNotFound, format!("session '{}' does not exist in product '{product}'", args.tag))
            .field("tag")
            .next("list them with `trunkline sessions list`")
    })?;
    ctx.show(&session, || {
        Table::fields([
            ("tag", session.tag.clone()),
            ("name", session.name.clone()),
            ("description", session.description.clone().unwrap_or_default()),
            ("selector", session.selector.clone()),
            ("expires after", lifetime(&session)),
            ("sample", serde_json::to_string_pretty(&session.schema).unwrap_or_default()),
            ("created", output::time(session.created_at)),
            ("updated", output::time(session.updated_at)),
        ])
    })
}

/// Removes.
pub async fn delete(args: Delete, ctx: &Ctx) -> Result<()> {
    let gone = ctx.catalog().await?.delete_session(&ctx.product().await?, &args.tag).await?;
    ctx.done(&gone, format!("deleted session {}", args.tag))
}

fn lifetime(session: &SessionDoc) -> String {
    humantime::format_duration(session.lifetime()).to_string()
}
