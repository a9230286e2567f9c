//! Where the demo plays: a data directory of its own, with one ordered topic on the embedded broker, or on a server.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value, json};
use trunkline::config::ProviderKind;
use trunkline::{Code, Env, Error, Event, Result, Trunkline};

use crate::demo::members::GROUPS;

/// The product.
pub(crate) const PRODUCT: &str = "demo";
/// The env.
pub(crate) const ENV: &str = "local";
/// The broker.
pub(crate) const BROKER: &str = "webhooks";
/// Broker and topic.
pub(crate) const EVENT: &str = "webhooks:github";
/// Instances that open the same directory, as several processes would.
const HOMES: usize = 2;
/// Shards: two for each member of the larger group.
const SHARDS: u32 = 8;

/// Fields of a config that name what is there already, or forbid to make something: the demo makes topics of its own.
const NOT_OURS: [&str; 12] = [
    "topic",
    "groupId",
    "partitions",
    "exchange",
    "queue",
    "routingKey",
    "channel",
    "fifo",
    "topicName",
    "subscriptionName",
    "stream",
    "create",
];

/// A server to play on, with its credentials.
#[derive(Clone)]
pub(crate) struct Server {
    /// Its provider.
    pub(crate) kind: ProviderKind,
    /// Its config.
    pub(crate) config: Value,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("kind", &self.kind).finish_non_exhaustive()
    }
}

impl Server {
    /// The embedded broker, in the demo's own directory.
    pub(crate) fn embedded() -> Self {
        Server { kind: ProviderKind::Embedded, config: Value::Object(Map::new()) }
    }

    /// The config with names that nobody else has, so that the demo meets nothing that is there.
    fn of_its_own(&self) -> Value {
        let mut config = self.config.as_object().cloned().unwrap_or_default();
        if self.kind == ProviderKind::Embedded {
            return Value::Object(Map::new());
        }
        NOT_OURS.iter().for_each(|field| drop(config.remove(*field)));
        let unique = trunkline::MessageId::now().to_string();
        let unique: String = unique.chars().filter(char::is_ascii_alphanumeric).rev().take(8).collect();
        config.insert("prefix".to_owned(), format!("trunkline-demo.{unique}").into());
        Value::Object(config)
    }
}

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
    pub(crate) async fn set(dir: Option<&Path>, server: &Server) -> Result<Self> {
        let dir = fresh(dir)?;
        let url = dir.to_str().ok_or_else(|| Error::input("keep", "the directory's name is not UTF-8"))?;
        // All members are here, so the order of keys and the waits of messages may rest on the store of this host.
        let open = || Trunkline::builder().url(url).sdk("cli").single_host(true).open();
        let mut homes = vec![open().await?];
        let catalog = homes[0].catalog();
        catalog
            .create_broker(Some(PRODUCT), json!({ "name": "Webhooks", "tag": BROKER, "envs": [{ "slug": ENV, "type": server.kind.as_str(), "config": server.of_its_own() }] }))
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
    fn a_server_keeps_its_login_and_loses_its_names() {
        let config = json!({ "brokers": "k:9092", "topic": "orders", "groupId": "shop", "create": false, "sasl": { "username": "u" } });
        let server = Server { kind: ProviderKind::Kafka, config };
        let (one, two) = (server.of_its_own(), server.of_its_own());
        assert_eq!((&one["brokers"], &one["sasl"]["username"]), (&json!("k:9092"), &json!("u")));
        assert!(["topic", "groupId", "create"].iter().all(|field| one.get(field).is_none()), "{one}");
        assert!(one["prefix"].as_str().is_some_and(|prefix| prefix.starts_with("trunkline-demo.")) && one["prefix"] != two["prefix"]);
        assert_eq!(Server::embedded().of_its_own(), json!({}));
    }

    #[test]
    fn only_an_empty_directory_is_taken() {
        let dir = tempfile::tempdir().expect("tempdir");
        let inside = dir.path().join("new");
        assert!(fresh(Some(&inside)).expect("made").is_dir());
        assert_eq!(fresh(Some(dir.path())).expect_err("not empty").code(), Code::InputInvalid);
    }
}
