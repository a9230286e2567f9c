//! `trunkline store`: the store as a whole, copied to another place, into a file, and back.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::json;
use trunkline::store::transfer::{self, Counts};
use trunkline::store::{self, Opened};
use trunkline::{Error, Result};

use crate::context::Ctx;
use crate::output;

/// Copies the store to another place, backs it up, and restores it
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Copies everything that one store holds into another
    ///
    /// Stop the processes that use either of them first. The source is only read. What is sealed stays sealed, so both need the same
    /// master key.
    #[command(
        after_help = "Example:\n  trunkline store migrate --from sqlite:.trunkline --to postgres://app@db/app\n\nA password is better given in PGPASSWORD than on the command line."
    )]
    Migrate {
        /// What is copied: sqlite:DIR or postgres://…
        #[arg(long, value_name = "URL")]
        from: String,
        /// Where to; it must be empty
        #[arg(long, value_name = "URL")]
        to: String,
        /// Replaces everything that is in the target, its audit too
        #[arg(long)]
        force: bool,
    },
    /// Writes a copy of the store, as of one moment, into a new file
    ///
    /// It may be in use meanwhile. Credentials, secrets, session keys and what belongs to sessions are sealed in the file, other
    /// payloads are not; the master key is not part of it.
    #[command(after_help = "Example:\n  trunkline store backup trunkline-2026-11-22.ndjson")]
    Backup {
        /// The file
        file: PathBuf,
    },
    /// Puts a backup into an empty store
    ///
    /// Stop the processes that use it first. What waited at the time of the backup is delivered again, also if it was handled
    /// since; a key that was published since is not known, and would be published once more.
    #[command(after_help = "Example:\n  trunkline store restore trunkline-2026-11-22.ndjson --url sqlite:./restored")]
    Restore {
        /// The file
        file: PathBuf,
        /// Replaces everything that is in the store, its audit too
        #[arg(long)]
        force: bool,
    },
}

/// Runs one of them.
pub async fn run(args: Args, ctx: &Ctx) -> Result<()> {
    match args.verb {
        Verb::Migrate { from, to, force } => migrate(&from, &to, force, ctx).await,
        Verb::Backup { file } => {
            let opened = store::open(ctx.data()?.as_deref()).await?;
            let counts = transfer::backup(&*opened.store, opened.key.id(), &file).await;
            opened.store.close().await;
            done(counts?, &format!("wrote {}", file.display()), ctx)
        }
        Verb::Restore { file, force } => {
            let opened = store::open(ctx.data()?.as_deref()).await?;
            let counts = transfer::restore(&*opened.store, opened.key.id(), &file, force, &*progress(ctx)).await;
            opened.store.close().await;
            done(counts?, &format!("restored {} into {}", file.display(), opened.store.location()), ctx)
        }
    }
}

async fn migrate(from: &str, to: &str, force: bool, ctx: &Ctx) -> Result<()> {
    let source = store::open(Some(from)).await?;
    let target = store::open(Some(to)).await?;
    let copied = copy(&source, &target, force, ctx).await;
    for opened in [&source, &target] {
        opened.store.close().await;
    }
    done(copied?, &format!("copied {} to {}", source.store.location(), target.store.location()), ctx)
}

async fn copy(source: &Opened, target: &Opened, force: bool, ctx: &Ctx) -> Result<Counts> {
    if source.store.location() == target.store.location() {
        return Err(Error::input("to", "`to` is the store that `from` names").next("name another store"));
    }
    if source.key.id() != target.key.id() {
        let file = source.directory.master_key_file();
        return Err(Error::store("the two stores have different master keys: credentials could not be read in the target")
            .reason("master_key")
            .next(format!("set TRUNKLINE_MASTER_KEY to the key in {}, and name a target that is new", file.display())));
    }
    transfer::copy(&*source.store, &*target.store, force, &*progress(ctx)).await
}

/// Says how far it is, for people.
fn progress(ctx: &Ctx) -> Arc<dyn Fn(Counts) + Send + Sync> {
    let quiet = ctx.is_json();
    let last = parking_lot::Mutex::new(std::time::Instant::now());
    Arc::new(move |counts: Counts| {
        let mut last = last.lock();
        if !quiet && last.elapsed() > std::time::Duration::from_secs(1) {
            *last = std::time::Instant::now();
            output::note(format!("{} records so far", output::count(counts.sum())));
        }
    })
}

fn done(counts: Counts, what: &str, ctx: &Ctx) -> Result<()> {
    let kinds = [
        (counts.docs, "documents"),
        (counts.entries, "entries of the lot"),
        (counts.keys, "idempotency keys"),
        (counts.jobs, "jobs"),
        (counts.secrets, "secrets"),
        (counts.access_keys, "access keys"),
        (counts.audit, "rows of the audit"),
        (counts.subjects, "subjects"),
        (counts.sessions, "sessions"),
        (counts.cache_values, "cached results"),
        (counts.schedules, "schedules"),
    ];
    let shown = kinds.iter().filter(|(count, _)| *count > 0).map(|(count, kind)| format!("{} {kind}", output::count(*count)));
    let text = format!("{what}: {}; all are there", shown.collect::<Vec<_>>().join(", "));
    ctx.done(&json!({ "counts": counts, "verified": true }), text)
}
