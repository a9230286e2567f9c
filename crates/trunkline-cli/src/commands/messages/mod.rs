//! `trunkline messages`: what happened to every message.

mod filter;
mod members;
mod query;
mod show;
mod tail;

use clap::Subcommand;
use trunkline::Result;
use trunkline::store::MemberRole;

use crate::context::Ctx;

pub use members::table as members_table;
pub use show::{Args as ShowArgs, run as show};

/// Recorded messages: query, show, tail; who produces and who consumes
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
    /// Lists live producers: where they run, how fast, and their last progress
    #[command(after_help = "Example:\n  trunkline messages producers")]
    Producers(members::Args),
    /// Lists live consumers: group, state, how fast, in flight, and their last progress
    #[command(after_help = "Example:\n  trunkline messages consumers --broker order-events")]
    Consumers(members::Args),
}

/// Does one of them.
pub async fn run(args: Args, ctx: &Ctx) -> Result<()> {
    match args.what {
        What::Query(args) => query::run(args, ctx).await,
        What::Show(args) => show::run(args, ctx).await,
        What::Tail(args) => tail::run(args, ctx).await,
        What::Producers(args) => members::run(MemberRole::Producer, args, ctx).await,
        What::Consumers(args) => members::run(MemberRole::Consumer, args, ctx).await,
    }
}
