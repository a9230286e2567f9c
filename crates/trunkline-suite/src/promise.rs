//! What the tests of the promises share: a fresh instance for each, on disk or in memory, with the lot in the store or on
//! the broker; handlers that only look; and ways to wait for what must come.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::server::setting;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::watch;
use trunkline::provider::Provider;
use trunkline::{Builder, ConsumeOptions, Consumer, Context, Env, MessageId, Schedule, Trunkline};

/// The topic of every bed.
pub const EVENT: &str = "orders:created";
/// No test waits longer than this for anything that takes no time of its own.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// Where the lot lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lot {
    /// In the store.
    Store,
    /// On the broker.
    Topics,
}

/// Where the messages of a bed go.
#[derive(Debug, Clone)]
pub struct Site {
    /// The provider, as a config names it.
    pub kind: &'static str,
    /// Its config.
    pub config: Value,
    /// What `scripts/brokers` calls the server, if it is a server.
    pub server: Option<&'static str>,
}

impl Site {
    /// The embedded broker, with more fields in its config.
    #[must_use]
    pub fn embedded(config: Value) -> Site {
        Site { kind: "EMBEDDED", config, server: None }
    }

    /// The server that `scripts/brokers` started under this name: `kafka`, `rabbitmq`, `redis`, `sqs`, `pubsub` or `nats`.
    /// Each call chooses names of its own on it.
    ///
    /// # Panics
    /// If there is none of that name, or it was not started.
    #[must_use]
    pub fn on(server: &'static str) -> Site {
        let (kind, mut config) = match server {
            "kafka" => ("KAFKA", json!({ "brokers": [setting("KAFKA")] })),
            "rabbitmq" => ("RABBITMQ", json!({ "url": setting("RABBITMQ") })),
            "redis" => ("REDIS", json!({ "url": setting("REDIS") })),
            "sqs" => (
                "AWS_SQS",
                json!({ "region": setting("SQS_REGION"), "endpoint": setting("SQS"), "accessKeyId": "x", "secretAccessKey": "x" }),
            ),
            "pubsub" => ("GOOGLE_PUBSUB", json!({ "projectId": "test", "endpoint": setting("PUBSUB") })),
            "nats" => ("NATS", json!({ "servers": setting("NATS"), "user": setting("USER"), "pass": setting("PASSWORD") })),
            other => panic!("no server is called '{other}'"),
        };
        let id = MessageId::now().to_string();
        let unique: String = id.chars().rev().filter(char::is_ascii_alphanumeric).take(10).collect();
        config["prefix"] = format!("t{unique}").into();
        Site { kind, config, server: Some(server) }
    }
}

/// An instance with one broker and one topic, in a directory of its own.
#[derive(Debug)]
pub struct Bed {
    /// The instance.
    pub trunkline: Trunkline,
    /// The env all happens in.
    pub env: Env,
    /// What the directory of the instance lies in.
    pub dir: Arc<TempDir>,
    lot: Lot,
    site: Site,
}

impl Bed {
    /// On a server, with more fields of its topic. With the lot in the store, this host is all there is.
    ///
    /// # Panics
    /// If it cannot be opened.
    pub async fn on(site: Site, lot: Lot, topic: Value) -> Bed {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let trunkline = site_builder(&site, &data(dir.path()), lot).open().await.unwrap();
        furnish_on(&trunkline, &site, topic).await;
        Bed { env: trunkline.env("shop", "prd"), trunkline, dir, lot, site }
    }

    /// Ends, and removes what it made on its server: afterwards, since a server may keep a group that has members, also one
    /// that stopped without a word a moment ago.
    ///
    /// # Panics
    /// If it cannot be removed.
    pub async fn clear(self) {
        let last = self.another().await;
        self.close().await;
        let how = trunkline::removal::Removal { purge: true, force: true };
        let end = tokio::time::Instant::now() + Duration::from_secs(60);
        loop {
            match last.trunkline.delete_broker("shop", "orders", how).await {
                Ok(_) => break,
                Err(error) if error.code() == trunkline::Code::InUse && tokio::time::Instant::now() < end => {
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
                Err(error) => panic!("what was made on the server cannot be removed: {error:?}"),
            }
        }
        last.close().await;
    }

    /// With an unordered topic.
    pub async fn new(lot: Lot) -> Bed {
        Bed::with_topic(lot, json!({})).await
    }

    /// With an ordered topic of four shards.
    pub async fn ordered() -> Bed {
        Bed::with_topic(Lot::Store, json!({ "ordering": "key", "shards": 4 })).await
    }

    /// With a topic that has these fields as well.
    pub async fn with_topic(lot: Lot, topic: Value) -> Bed {
        Bed::with(lot, |builder| builder, json!({}), topic).await
    }

    /// With something between the core and the broker.
    pub async fn wrapped(lot: Lot, wrap: impl Fn(Arc<dyn Provider>) -> Arc<dyn Provider> + Send + Sync + 'static) -> Bed {
        Bed::with(lot, |builder| builder.wrap_providers(wrap), json!({}), json!({})).await
    }

    /// With everything chosen: how it is opened, the config of its broker, more fields of its topic.
    ///
    /// # Panics
    /// As the others: if it cannot be opened.
    pub async fn with(lot: Lot, open: impl FnOnce(Builder) -> Builder, config: Value, topic: Value) -> Bed {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let trunkline = open(builder(&data(dir.path()), lot)).open().await.unwrap();
        furnish(&trunkline, config.clone(), topic).await;
        Bed { env: trunkline.env("shop", "prd"), trunkline, dir, lot, site: Site::embedded(config) }
    }

    /// With something done to its data directory before it is opened.
    ///
    /// # Panics
    /// If it cannot be opened.
    pub async fn with_data(lot: Lot, prepare: impl FnOnce(&Path)) -> Bed {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        std::fs::create_dir(data(dir.path())).unwrap();
        prepare(&data(dir.path()));
        let trunkline = builder(&data(dir.path()), lot).open().await.unwrap();
        furnish(&trunkline, json!({}), json!({})).await;
        Bed { env: trunkline.env("shop", "prd"), trunkline, dir, lot, site: Site::embedded(json!({})) }
    }

    /// Another instance on the same directory: it shares nothing with this one but the files.
    ///
    /// # Panics
    /// If it cannot be opened.
    pub async fn another(&self) -> Bed {
        let trunkline = site_builder(&self.site, &data(self.dir.path()), self.lot).open().await.unwrap();
        Bed { env: trunkline.env("shop", "prd"), trunkline, dir: self.dir.clone(), lot: self.lot, site: self.site.clone() }
    }

    /// Produces one message.
    ///
    /// # Panics
    /// If it is not confirmed.
    pub async fn produce(&self, n: u64) -> MessageId {
        self.env.produce(EVENT, &json!({ "n": n })).await.unwrap().process_id
    }

    /// Produces one message with a key.
    ///
    /// # Panics
    /// If it is not confirmed.
    pub async fn produce_keyed(&self, key: &str, n: u64) -> MessageId {
        self.env.produce(EVENT, &json!({ "key": key, "n": n })).key(key).await.unwrap().process_id
    }

    /// A consumer whose handler only writes down what it sees, and succeeds.
    pub async fn watch<T, F>(&self, look: F) -> (Consumer, Seen<T>)
    where
        T: Clone + Send + 'static,
        F: Fn(&Value, &Context) -> T + Send + Sync + 'static,
    {
        self.watch_with(ConsumeOptions::default(), look).await
    }

    /// As [`Bed::watch`], with options.
    ///
    /// # Panics
    /// If it cannot subscribe.
    pub async fn watch_with<T, F>(&self, options: ConsumeOptions, look: F) -> (Consumer, Seen<T>)
    where
        T: Clone + Send + 'static,
        F: Fn(&Value, &Context) -> T + Send + Sync + 'static,
    {
        let seen = Seen::new();
        let s = seen.clone();
        let consume = self.env.consume(EVENT, move |payload: Value, context: Context| {
            s.push(look(&payload, &context));
            async {}
        });
        (consume.options(options).await.unwrap(), seen)
    }

    /// Ends all its consumers, then the instance.
    pub async fn close(self) {
        self.trunkline.close(Duration::from_secs(10)).await;
    }
}

/// Where in a bed's directory its data lies.
#[must_use]
pub fn data(dir: &Path) -> std::path::PathBuf {
    dir.join("data")
}

/// How an instance is opened at a data directory.
#[must_use]
pub fn builder(data: &Path, lot: Lot) -> Builder {
    Trunkline::builder().url(data.to_string_lossy()).lot_on_broker(lot == Lot::Topics)
}

/// How an instance is opened for a site.
fn site_builder(site: &Site, data: &Path, lot: Lot) -> Builder {
    let on_server = site.server.is_some();
    builder(data, lot).single_host(on_server && lot == Lot::Store)
}

/// Makes the broker of a site, and the topic with these fields as well.
///
/// # Panics
/// If they are refused.
pub async fn furnish_on(trunkline: &Trunkline, site: &Site, topic: Value) {
    let env = json!({ "slug": "prd", "type": site.kind, "config": site.config });
    let broker = json!({ "name": "Orders", "tag": "orders", "envs": [env] });
    trunkline.catalog().create_broker(Some("shop"), broker).await.unwrap();
    let mut fields = json!({ "name": "Created", "tag": EVENT });
    fields.as_object_mut().unwrap().extend(topic.as_object().unwrap().clone());
    trunkline.catalog().create_topic(Some("shop"), fields).await.unwrap();
}

/// Makes the embedded broker with this config, and the topic with these fields as well.
///
/// # Panics
/// If they are refused.
pub async fn furnish(trunkline: &Trunkline, config: Value, topic: Value) {
    furnish_on(trunkline, &Site::embedded(config), topic).await;
}

/// A schedule of exactly these waits.
#[must_use]
pub fn retries(millis: &[u64]) -> Schedule {
    Schedule { delays: millis.iter().map(|ms| Duration::from_millis(*ms)).collect(), jitter: 0.0 }
}

/// What handlers saw, and a way to wait until they saw enough.
#[derive(Debug, Clone)]
pub struct Seen<T> {
    items: Arc<Mutex<Vec<T>>>,
    count: watch::Sender<usize>,
}

impl<T> Default for Seen<T> {
    fn default() -> Self {
        Seen { items: Arc::default(), count: watch::Sender::new(0) }
    }
}

impl<T: Clone> Seen<T> {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Seen::default()
    }

    /// One more.
    pub fn push(&self, item: T) {
        let mut items = self.items.lock();
        items.push(item);
        self.count.send_replace(items.len());
    }

    /// How many so far.
    #[must_use]
    pub fn count(&self) -> usize {
        self.items.lock().len()
    }

    /// All so far.
    #[must_use]
    pub fn all(&self) -> Vec<T> {
        self.items.lock().clone()
    }

    /// All, once they are so many.
    ///
    /// # Panics
    /// If they do not come in time.
    pub async fn wait(&self, at_least: usize) -> Vec<T> {
        self.wait_longer(at_least, Duration::ZERO).await
    }

    /// The same for what takes up to `more` of its own.
    ///
    /// # Panics
    /// If they do not come in time.
    pub async fn wait_longer(&self, at_least: usize, more: Duration) -> Vec<T> {
        let mut count = self.count.subscribe();
        let seen = tokio::time::timeout(DEADLINE + more, count.wait_for(|n| *n >= at_least)).await.map(|found| found.map(|n| *n));
        assert!(seen.is_ok(), "only {} of {at_least} were seen in time", self.items.lock().len());
        self.all()
    }
}

/// Waits until the condition holds.
///
/// # Panics
/// If it does not in time.
pub async fn until<F, R>(what: &str, condition: F)
where
    F: Fn() -> R,
    R: Future<Output = bool>,
{
    let end = tokio::time::Instant::now() + DEADLINE;
    while !condition().await {
        assert!(tokio::time::Instant::now() < end, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
