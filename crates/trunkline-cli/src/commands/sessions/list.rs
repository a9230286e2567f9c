//! `trunkline sessions active|users`: who is there.

use trunkline::Result;

use super::sessions;
use crate::context::Ctx;
use crate::output::{self, Table};

/// Lists the sessions whose token is good now, newest first
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  trunkline sessions active user --identifier u-42")]
pub struct Active {
    /// The definition's tag
    tag: String,
    /// Only those of this identifier
    #[arg(long, value_name = "VALUE")]
    identifier: Option<String>,
    #[command(flatten)]
    page: Page,
}

/// Lists those who had sessions, newest first
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  trunkline sessions users user --page 2")]
pub struct Users {
    /// The definition's tag
    tag: String,
    #[command(flatten)]
    page: Page,
}

#[derive(Debug, clap::Args)]
struct Page {
    /// The page
    #[arg(long, default_value_t = 1)]
    page: u64,
    /// How many on a page, at most 1000
    #[arg(long, default_value_t = 20)]
    limit: u64,
}

/// Lists sessions.
pub async fn active(args: Active, ctx: &Ctx) -> Result<()> {
    let page = sessions(ctx).await?.active(&args.tag, args.identifier.as_deref(), args.page.page, args.page.limit).await?;
    ctx.show(&page, || {
        let empty = format!("no session is active; start one with `trunkline sessions start {} DATA`", args.tag);
        let mut table = Table::new(["session", "identifier", "env", "started", "expires"]).or(empty);
        for session in &page.sessions {
            table.row([
                session.session_id.clone(),
                session.identifier.clone(),
                session.env.clone().unwrap_or_default(),
                output::time(session.started_at.0),
                output::time(session.expires_at.0),
            ]);
        }
        table
    })
}

/// Lists users.
pub async fn users(args: Users, ctx: &Ctx) -> Result<()> {
    let page = sessions(ctx).await?.users(&args.tag, args.page.page, args.page.limit).await?;
    ctx.show(&page, || {
        let empty = format!("nobody has had a session; start one with `trunkline sessions start {} DATA`", args.tag);
        let mut table = Table::new(["identifier", "active", "first", "last"]).or(empty);
        for user in &page.users {
            let last = user.last_at.map(|at| output::time(at.0)).unwrap_or_default();
            table.row([user.identifier.clone(), output::count(user.active), output::time(user.first_at.0), last]);
        }
        table
    })
}
