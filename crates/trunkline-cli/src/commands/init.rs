//! `trunkline init`: the data directory and the file that says what is in it.

use std::path::Path;

use serde_json::json;
use trunkline::file::File;
use trunkline::store::is_postgres;
use trunkline::{Code, Error, Result};

use crate::commands::apply;
use crate::context::{Ctx, FILE, read_file};
use crate::output;

/// Makes the data directory, writes a commented trunkline.yaml, and applies it
///
/// A file that is there already is kept and applied.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  trunkline init --example\n  trunkline init --data /var/lib/trunkline --product shop --env dev")]
pub struct Args {
    /// Starts with a product, an embedded broker and a topic to try things on
    #[arg(long)]
    example: bool,
    /// Overwrites a trunkline.yaml that is there
    #[arg(long)]
    force: bool,
}

const DIRECTORY: &str = ".trunkline";
const HEAD: &str = include_str!("init/head.yaml");
const EMPTY: &str = include_str!("init/empty.yaml");
const EXAMPLE: &str = include_str!("init/example.yaml");

/// Makes, writes, applies.
pub async fn run(args: Args, ctx: &Ctx) -> Result<()> {
    let here =
        std::env::current_dir().map_err(|error| Error::input("directory", format!("the working directory cannot be read: {error}")))?;
    let path = here.join(FILE);
    let text = text(args.example, ctx.product_flag(), ctx.env_flag());
    let there = path.exists();
    let keep = there && !args.force;
    if keep && args.example && std::fs::read_to_string(&path).is_ok_and(|old| old != text) {
        return Err(Error::new(Code::AlreadyExists, format!("{} is there already", path.display()))
            .field("file")
            .next("apply it with `trunkline apply`, overwrite it with --force, or start in an empty directory"));
    }
    let file = if keep { read_file(&path)? } else { File::parse(&text)? };
    ctx.default_data(here.join(DIRECTORY).display().to_string());
    let trunkline = ctx.trunkline().await?;
    let location = trunkline.store().location();
    if let Some(data) = ctx.data()?.filter(|data| !is_postgres(data)) {
        keep_out_of_git(Path::new(data.trim_start_matches("sqlite:")));
    }
    if !keep {
        std::fs::write(&path, &text).map_err(|error| {
            Error::input("file", format!("{} cannot be written: {error}", path.display())).next("run it in a directory you may write to")
        })?;
    }
    let changes = file.apply(trunkline.catalog(), ctx.product_flag(), false).await?;
    let wrote = if keep { "kept" } else { "wrote" };
    let next = if args.example {
        "trunkline produce order-events:order-created '{\"orderId\":\"123\",\"amount\":99.99}'\n  trunkline consume order-events:order-created"
    } else {
        "edit trunkline.yaml, then: trunkline apply"
    };
    if ctx.is_json() {
        return output::json(&json!({ "data": location, "file": path, "wrote": !keep, "changes": changes }));
    }
    output::line(format!("data directory {location}\n{wrote} {}\n{}", path.display(), apply::summary(&changes, false)))?;
    output::note(format!("next:\n  {next}"));
    Ok(())
}

fn text(example: bool, product: Option<&str>, env: Option<&str>) -> String {
    let (product, env) = (product.unwrap_or("my-product"), env.unwrap_or("prd"));
    let body = if example { EXAMPLE } else { EMPTY };
    format!("{HEAD}{body}").replace("PRODUCT", product).replace("ENV", env)
}

/// The data directory holds the key that seals credentials: it must not be committed by accident.
fn keep_out_of_git(directory: &Path) {
    let path = directory.join(".gitignore");
    if directory.is_dir() && !path.exists() {
        let _ = std::fs::write(path, "*\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_are_valid_yaml() {
        for example in [false, true] {
            let file = File::parse(&text(example, None, Some("dev"))).expect("a valid file");
            assert_eq!((file.product.as_deref(), file.env.as_deref()), (Some("my-product"), Some("dev")));
        }
    }
}
