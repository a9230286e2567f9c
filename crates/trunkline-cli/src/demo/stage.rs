//! Where the demo plays: a data directory of its own, with one ordered topic on the embedded broker.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;
use trunkline::{Code, Env, Error, Event, Result, Trunkline};

use crate::demo::members::GROUPS;

/// The product.
pub(crate) const PRODUCT: &str = "demo";
/// The env.
pub(crate) const ENV: &str = "local";
/// Broker and topic.
pub(crate) const EVENT: &str = "webhooks:github";
/// Instances that open the same directory, as several processes would.
const HOMES: usize = 2;
/// Shards: two for each member of the larger group.
const SHARDS: u32 = 8;

/// The open instances.
#[derive(Debug)]
pub(crate) struct Stage {
    /// The data directory.
    pub(crate) dir: PathBuf,
    /// The instances; there is at least one.
    pub(crate) homes: Vec<Trunkline>,
}

/// The demo's env on an instance.
pub(crate) fn env(home: &Trunkline) -> Env {
    home.env(PRODUCT, ENV)
}

impl Stage {
    /// Sets the stage in `dir`, or in a temporary directory that stays.
    ///
    /// # Errors
    /// `INPUT_INVALID` if the directory has something in it already.
    pub(crate) async fn set(dir: Option<&Path>) -> Result<Self> {
        let dir = fresh(dir)?;
        let url = dir.to_str().ok_or_else(|| Error::input("keep", "the directory's name is not UTF-8"))?;
        let open = || Trunkline::builder().url(url).sdk("cli").open();
        let mut homes = vec![open().await?];
        let catalog = homes[0].catalog();
        catalog
            .create_broker(Some(PRODUCT), json!({ "name": "Webhooks", "tag": "webhooks", "envs": [{ "slug": ENV, "type": "EMBEDDED" }] }))
            .await?;
        let topic = json!({ "name": "GitHub", "tag": EVENT, "ordering": "key", "shards": SHARDS });
        catalog.create_topic(Some(PRODUCT), topic).await?;
        let event: Event = EVENT.parse()?;
        // Declared before the first produce, so that each message is for both.
        for group in GROUPS {
            catalog.create_group(PRODUCT, &event, group.name, None).await?;
        }
        // Nobody will ever consume as the product's default group.
        catalog.delete_group(PRODUCT, &event, PRODUCT).await?;
        while homes.len() < HOMES {
            homes.push(open().await?);
        }
        Ok(Stage { dir, homes })
    }

    /// Closes all instances but the first.
    pub(crate) async fn leave_one(&self, within: Duration) {
        for home in &self.homes[1..] {
            home.close(within).await;
        }
    }

    /// Writes what is left and lets go of the directory.
    pub(crate) async fn close(&self, within: Duration) {
        for home in &self.homes {
            home.close(within).await;
        }
    }
}

/// A directory with nothing in it.
fn fresh(dir: Option<&Path>) -> Result<PathBuf> {
    let unwritable = |error: std::io::Error| Error::new(Code::StoreFailed, format!("the demo's directory cannot be made: {error}"));
    let Some(dir) = dir else {
        return Ok(tempfile::Builder::new().prefix("trunkline-demo-").tempdir().map_err(unwritable)?.keep());
    };
    std::fs::create_dir_all(dir).map_err(unwritable)?;
    if std::fs::read_dir(dir).map_err(unwritable)?.next().is_some() {
        return Err(Error::input("keep", format!("{} has something in it already", dir.display()))
            .next("name a directory that is empty or does not exist yet"));
    }
    dir.canonicalize().map_err(unwritable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_empty_directory_is_taken() {
        let dir = tempfile::tempdir().expect("tempdir");
        let inside = dir.path().join("new");
        assert!(fresh(Some(&inside)).expect("made").is_dir());
        assert_eq!(fresh(Some(dir.path())).expect_err("not empty").code(), Code::InputInvalid);
    }
}
