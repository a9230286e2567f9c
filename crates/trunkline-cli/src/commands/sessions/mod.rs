//! `trunkline sessions`: who messages are produced for.

mod definition;
mod erase;
mod keys;
mod list;
mod revoke;
mod token;

use trunkline::{Result, Sessions};

use crate::context::Ctx;

/// Defines sessions; starts, verifies, refreshes, revokes, lists and erases them
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    Define(definition::Define),
    Update(definition::Update),
    List(definition::List),
    Show(definition::Show),
    Delete(definition::Delete),
    Start(token::Start),
    Verify(token::Verify),
    Refresh(token::Refresh),
    Revoke(revoke::Revoke),
    RevokeAll(revoke::RevokeAll),
    Active(list::Active),
    Users(list::Users),
    Erase(erase::Args),
    Keys(keys::Args),
}

/// Runs one of them.
pub async fn run(args: Args, ctx: &Ctx) -> Result<()> {
    match args.verb {
        Verb::Define(args) => definition::define(args, ctx).await,
        Verb::Update(args) => definition::update(args, ctx).await,
        Verb::List(args) => definition::list(args, ctx).await,
        Verb::Show(args) => definition::show(args, ctx).await,
        Verb::Delete(args) => definition::delete(args, ctx).await,
        Verb::Start(args) => token::start(args, ctx).await,
        Verb::Verify(args) => token::verify(args, ctx).await,
        Verb::Refresh(args) => token::refresh(args, ctx).await,
        Verb::Revoke(args) => revoke::one(args, ctx).await,
        Verb::RevokeAll(args) => revoke::all(args, ctx).await,
        Verb::Active(args) => list::active(args, ctx).await,
        Verb::Users(args) => list::users(args, ctx).await,
        Verb::Erase(args) => erase::run(args, ctx).await,
        Verb::Keys(args) => keys::run(args, ctx).await,
    }
}

/// The product's sessions.
async fn sessions(ctx: &Ctx) -> Result<Sessions> {
    let product = ctx.product().await?;
    Ok(ctx.trunkline().await?.sessions(&product))
}
