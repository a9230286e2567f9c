//! `trunkline secrets`: credentials that broker configs refer to, kept sealed.

mod rekey;
mod value;

use trunkline::Result;
use trunkline::secret::{SecretInput, SecretView};

use crate::context::Ctx;
use crate::output::{self, Table};

/// Keeps secrets: create, list, rotate, delete, and a new master key
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Keeps a secret, which configs refer to as $Secret{KEY}; its value never stands on a command line
    #[command(after_help = CREATE)]
    Create {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        value: value::Args,
    },
    /// Lists the secrets of all products, never their values
    #[command(after_help = "Example:\n  trunkline secrets list")]
    List,
    /// Gives a secret another value; running programs open the connections that use it anew
    #[command(after_help = "Example:\n  trunkline secrets rotate kafka-password --from-file new-password.txt")]
    Rotate {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        value: value::Args,
    },
    /// Removes a secret; what still needs it fails with SECRET_NOT_FOUND
    #[command(after_help = "Example:\n  trunkline secrets delete kafka-password")]
    Delete {
        #[command(flatten)]
        which: Which,
    },
    Rekey(rekey::Args),
}

const CREATE: &str = "\
Examples:
  trunkline secrets create kafka-password
  pass show kafka | trunkline secrets create kafka-password --envs prd
  trunkline secrets create kafka-password --from-env KAFKA_PASSWORD --all-products

Without --from-file or --from-env the value is read from standard input, or asked for on a terminal without being
shown. One line break at its end is left out. Of several secrets of one name the most specific is used: product and env, then
product, then env.";

/// Which secret.
#[derive(Debug, clap::Args)]
struct Which {
    /// Its name
    key: String,
    /// Only for these envs [default: --env, else every env]
    #[arg(long, value_name = "SLUG", value_delimiter = ',')]
    envs: Vec<String>,
    /// For every product [default: only for the product of --product or trunkline.yaml, if there is one]
    #[arg(long)]
    all_products: bool,
}

impl Which {
    fn input(self, ctx: &Ctx) -> Result<SecretInput> {
        let product = if self.all_products { None } else { ctx.given_product()? };
        let envs = if self.envs.is_empty() { ctx.env_flag().map(str::to_owned).into_iter().collect() } else { self.envs };
        Ok(SecretInput { product, key: self.key, envs })
    }
}

/// Runs one of them.
pub async fn run(args: Args, ctx: &Ctx) -> Result<()> {
    match args.verb {
        Verb::List => list(ctx).await,
        Verb::Create { which, value } => {
            let (which, value) = (which.input(ctx)?, value.read()?);
            let made = ctx.trunkline().await?.secrets().create(which, &value).await?;
            ctx.done(&made, format!("keeps {}; configs refer to it as $Secret{{{}}}", text(&made), made.key))
        }
        Verb::Rotate { which, value } => {
            let (which, value) = (which.input(ctx)?, value.read()?);
            let rotated = ctx.trunkline().await?.secrets().rotate(which, &value).await?;
            ctx.done(&rotated, format!("rotated {}", text(&rotated)))
        }
        Verb::Delete { which } => {
            let gone = ctx.trunkline().await?.secrets().delete(which.input(ctx)?).await?;
            ctx.done(&gone, format!("deleted {}", text(&gone)))
        }
        Verb::Rekey(args) => rekey::run(args, ctx).await,
    }
}

async fn list(ctx: &Ctx) -> Result<()> {
    let secrets = ctx.trunkline().await?.secrets().list().await?;
    ctx.show(&secrets, || {
        let mut table =
            Table::new(["key", "product", "envs", "created", "rotated"]).or("no secret yet; keep one with `trunkline secrets create KEY`");
        for secret in &secrets {
            let rotated = if secret.updated_at > secret.created_at { output::time(secret.updated_at) } else { "never".into() };
            table.row([secret.key.clone(), product(secret), envs(secret), output::time(secret.created_at), rotated]);
        }
        table
    })
}

fn product(secret: &SecretView) -> String {
    secret.product.clone().unwrap_or_else(|| "every product".into())
}

fn envs(secret: &SecretView) -> String {
    if secret.envs.is_empty() { "every env".into() } else { secret.envs.join(", ") }
}

fn text(secret: &SecretView) -> String {
    format!("secret {} of {} in {}", secret.key, product(secret), envs(secret))
}
