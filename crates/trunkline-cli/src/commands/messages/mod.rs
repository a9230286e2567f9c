//! `trunkline messages`: what happened to every message.

mod filter;
mod query;
mod show;
mod tail;

use clap::Subcommand;
use trunkline::Result;

use crate::context::Ctx;

/// Recorded messages: query, show, tail
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    Query(query::Args),
    Show(show::Args),
    Tail(tail::Args),
}

/// Does one of them.
pub async fn run(args: Args, ctx: &Ctx) -> Result<()> {
    match args.what {
        What::Query(args) => query::run(args, ctx).await,
        What::Show(args) => show::run(args, ctx).await,
        What::Tail(args) => tail::run(args, ctx).await,
    }
}
