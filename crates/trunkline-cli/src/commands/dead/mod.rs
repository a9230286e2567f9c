//! `trunkline dead`: dead letters found, grouped, shown, edited, handed over again, discarded.

mod discard;
mod edit;
mod filter;
mod groups;
mod list;
mod reprocess;
mod show;
mod view;

use clap::Subcommand;
use trunkline::{Code, Error, MessageId, Result};

use crate::context::Ctx;
use crate::output;

/// Dead letters: list, group by error, show, edit, reprocess, discard
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    List(list::Args),
    Groups(groups::Args),
    Show(show::Args),
    Edit(edit::Args),
    Reprocess(reprocess::Args),
    Discard(discard::Args),
}

/// Does one of them.
pub async fn run(args: Args, ctx: &Ctx) -> Result<()> {
    match args.what {
        What::List(args) => list::run(args, ctx).await,
        What::Groups(args) => groups::run(args, ctx).await,
        What::Show(args) => show::run(args, ctx).await,
        What::Edit(args) => edit::run(args, ctx).await,
        What::Reprocess(args) => reprocess::run(args, ctx).await,
        What::Discard(args) => discard::run(args, ctx).await,
    }
}

/// How many, in words.
fn letters(n: u64) -> String {
    if n == 1 { "1 dead letter".to_owned() } else { format!("{} dead letters", output::count(n)) }
}

fn not_at(id: MessageId, group: &str) -> Error {
    Error::new(Code::MessageNotFound, format!("message {id} did not die at group '{group}'"))
        .field("group")
        .next(format!("see where it died with `trunkline dead show {id}`"))
}
