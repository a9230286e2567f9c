//! `trunkline doctor`: is everything as it should be, and if not, what to do.

mod checks;

use serde::Serialize;
use serde_json::json;
use trunkline::{Code, Error, Result};

use crate::context::Ctx;
use crate::output::{self, Table};

/// Checks the data directory, trunkline.yaml, every broker and every group, and says how to mend what is wrong
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  trunkline doctor\n  trunkline doctor order-events --output json")]
pub struct Args {
    /// Only this broker [default: all of the product]
    broker: Option<String>,
}

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    Ok,
    Warn,
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Check {
    /// `store`, `file`, `broker order-events/prd`, `group …`.
    area: String,
    /// What of it.
    stage: String,
    level: Level,
    ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<Code>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
}

/// Runs every check; one that fails does not keep the others from running.
pub async fn run(args: Args, ctx: &Ctx) -> Result<()> {
    let checks = checks::all(ctx, args.broker.as_deref()).await;
    let failed: Vec<&Check> = checks.iter().filter(|check| check.level == Level::Fail).collect();
    let value = json!({ "ok": failed.is_empty(), "checks": checks });
    ctx.show(&value, || {
        let mut table = Table::new(["", "area", "stage", "ms", "message"]);
        for check in &checks {
            let mark = match check.level {
                Level::Ok => "ok",
                Level::Warn => "warn",
                Level::Fail => "FAIL",
            };
            let fix = check.fix.as_ref().map(|fix| format!("\nfix: {fix}")).unwrap_or_default();
            let message = format!("{}{fix}", check.message.as_deref().unwrap_or_default());
            table.row([mark.to_owned(), check.area.clone(), check.stage.clone(), check.ms.to_string(), message]);
        }
        table
    })?;
    let Some(first) = failed.first() else {
        if !ctx.is_json() {
            let warnings = checks.iter().filter(|check| check.level == Level::Warn).count();
            output::note(if warnings == 0 {
                "all is well".into()
            } else {
                format!("it works, with {}", output::plural(warnings, "warning"))
            });
        }
        return Ok(());
    };
    let error = Error::new(first.code.unwrap_or(Code::StoreFailed), format!("{} of {} checks failed", failed.len(), checks.len()));
    Err(error.next(first.fix.clone().unwrap_or_else(|| "see the table".into())))
}
