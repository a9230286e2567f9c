//! `trunkline jobs`: long work, with its progress.

use trunkline::Result;
use trunkline::store::Job;

use crate::context::Ctx;
use crate::output::{self, Table};

/// Lists, shows and cancels long work: a reprocess of many dead letters
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Lists the product's jobs, newest first
    #[command(after_help = "Example:\n  trunkline jobs list")]
    List,
    /// Shows one job with what became of each message
    #[command(after_help = "Example:\n  trunkline jobs show 0198a3c2-7d1e-7b4f-9a60-2f1d5c3b8e97")]
    Show {
        /// The job's id
        id: String,
    },
    /// Ends a job before it is done; what it did stays done
    #[command(after_help = "Example:\n  trunkline jobs cancel 0198a3c2-7d1e-7b4f-9a60-2f1d5c3b8e97")]
    Cancel {
        /// The job's id
        id: String,
    },
}

/// Runs one of them.
pub async fn run(args: Args, ctx: &Ctx) -> Result<()> {
    let trunkline = ctx.trunkline().await?;
    match args.verb {
        Verb::List => {
            let jobs = trunkline.jobs(&ctx.product().await?).await?;
            ctx.show(&jobs, || {
                let mut table = Table::new(["id", "kind", "state", "done", "failed", "skipped", "of", "created"]).or("no job yet");
                for job in &jobs {
                    let [done, failed, skipped, matched] = [job.done, job.failed, job.skipped, job.matched].map(output::count);
                    table.row([
                        job.id.clone(),
                        job.kind.clone(),
                        job.state.clone(),
                        done,
                        failed,
                        skipped,
                        matched,
                        output::time(job.created_at),
                    ]);
                }
                table
            })
        }
        Verb::Show { id } => {
            let job = trunkline.job(&id).await?;
            ctx.show(&job, || fields(&job))
        }
        Verb::Cancel { id } => {
            let job = trunkline.cancel_job(&id).await?;
            ctx.done(&job, format!("job {id} is {}: {} of {} done", job.state, output::count(job.done), output::count(job.matched)))
        }
    }
}

fn fields(job: &Job) -> Table {
    Table::fields([
        ("id", job.id.clone()),
        ("kind", job.kind.clone()),
        ("product", job.product.clone()),
        ("state", job.state.clone()),
        ("progress", format!("{} of {} done, {} failed, {} skipped", job.done, job.matched, job.failed, job.skipped)),
        ("created", output::time(job.created_at)),
        ("updated", output::time(job.updated_at)),
        ("results", job.results.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")),
    ])
}
