//! `trunkline apply`: makes the catalogue follow a file, and shows what that changes.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use similar::{ChangeTag, TextDiff};
use trunkline::file::{Action, Change, File};
use trunkline::{Error, Result};

use crate::context::{Ctx, FILE, read_file};
use crate::{output, values};

/// Creates and updates the brokers, topics and caches of a file; shows a diff
///
/// Applying a file twice changes nothing the second time. What the plan refuses is refused before anything is written.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  trunkline apply --dry-run\n  trunkline apply -f trunkline.yaml\n  generate-config | trunkline apply -f - --prune"
)]
pub struct Args {
    /// The file, or - for standard input [default: the nearest trunkline.yaml upward]
    #[arg(short, long, value_name = "FILE|-")]
    file: Option<PathBuf>,
    /// Only shows what would change
    #[arg(long)]
    dry_run: bool,
    /// Removes from the product what the file does not have
    #[arg(long)]
    prune: bool,
}

/// Plans, shows, applies.
pub async fn run(args: Args, ctx: &Ctx) -> Result<()> {
    let file = match args.file.as_deref() {
        Some(path) if path == Path::new("-") => File::parse(&String::from_utf8_lossy(&values::input("file", "-")?))?,
        Some(path) => read_file(path)?,
        None => match ctx.file()? {
            Some((_, file)) => file,
            None => {
                return Err(Error::input("file", format!("there is no {FILE} here or upward"))
                    .next("write one with `trunkline init`, or name one with -f"));
            }
        },
    };
    let catalog = ctx.catalog().await?;
    let product = ctx.product_flag();
    let changes =
        if args.dry_run { file.plan(catalog, product, args.prune).await? } else { file.apply(catalog, product, args.prune).await? };
    if ctx.is_json() {
        return output::json(&json!({ "dryRun": args.dry_run, "changed": changed(&changes), "changes": changes }));
    }
    for change in changes.iter().filter(|change| change.action != Action::Unchanged) {
        show(change)?;
    }
    output::line(summary(&changes, args.dry_run))
}

fn changed(changes: &[Change]) -> usize {
    changes.iter().filter(|change| change.action != Action::Unchanged).count()
}

/// What was done, in one line.
pub fn summary(changes: &[Change], dry_run: bool) -> String {
    if changed(changes) == 0 {
        return "nothing to change: the catalogue is as the file says".into();
    }
    let count = |action| changes.iter().filter(|change| change.action == action).count();
    let parts = [("created", Action::Create), ("updated", Action::Update), ("deleted", Action::Delete), ("unchanged", Action::Unchanged)]
        .into_iter()
        .filter_map(|(word, action)| Some(count(action)).filter(|n| *n > 0).map(|n| format!("{n} {word}")));
    let parts = parts.collect::<Vec<_>>().join(", ");
    if dry_run { format!("would be: {parts} (dry run, nothing was written)") } else { parts }
}

/// A change as a diff of what is shown of the thing, in YAML like the file.
fn show(change: &Change) -> Result<()> {
    use anstyle::AnsiColor::{Cyan, Green, Red};
    let (mark, head) = match change.action {
        Action::Create => ('+', Green.on_default().bold()),
        Action::Delete => ('-', Red.on_default().bold()),
        Action::Update | Action::Unchanged => ('~', Cyan.on_default().bold()),
    };
    let mut text = format!("{head}{mark} {} {}{head:#}", change.kind, output::plain(&change.tag));
    let (before, after) = (yaml(change.before.as_ref()), yaml(change.after.as_ref()));
    let diff = TextDiff::from_lines(&before, &after);
    for hunk in diff.grouped_ops(2).iter().flatten() {
        for line in diff.iter_changes(hunk) {
            let (sign, style) = match line.tag() {
                ChangeTag::Delete => ('-', Red.on_default()),
                ChangeTag::Insert => ('+', Green.on_default()),
                ChangeTag::Equal => (' ', anstyle::Style::new()),
            };
            let value = output::plain(line.value().trim_end_matches('\n'));
            text.push_str(&format!("\n  {style}{sign} {value}{style:#}"));
        }
    }
    output::line(text)
}

/// As the file would say it: without what the catalogue adds by itself.
fn yaml(value: Option<&Value>) -> String {
    let Some(mut value) = value.cloned() else { return String::new() };
    if let Value::Object(map) = &mut value {
        map.retain(|name, _| !matches!(name.as_str(), "brokerTag" | "topicTag" | "physical"));
    }
    serde_yaml_ng::to_string(&value).unwrap_or_default()
}
