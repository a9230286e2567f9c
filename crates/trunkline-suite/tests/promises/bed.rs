//! A fresh instance for each test, on disk or in memory, with the lot in the store or on the broker.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::watch;
use trunkline::provider::Provider;
use trunkline::{Builder, Env, MessageId, Schedule, Trunkline};

pub(crate) const EVENT: &str = "orders:created";
/// No test waits longer than this for anything.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lot {
    Store,
    Topics,
}

pub(crate) struct Bed {
    pub(crate) trunkline: Trunkline,
    pub(crate) env: Env,
    pub(crate) dir: Arc<TempDir>,
    lot: Lot,
}

impl Bed {
    pub(crate) async fn new(lot: Lot) -> Bed {
        Bed::with_topic(lot, json!({})).await
    }

    pub(crate) async fn ordered() -> Bed {
        Bed::with_topic(Lot::Store, json!({ "ordering": "key", "shards": 4 })).await
    }

    pub(crate) async fn with_topic(lot: Lot, extra: Value) -> Bed {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let trunkline = builder(dir.path(), lot).open().await.unwrap();
        Bed::furnish(trunkline, dir, lot, &extra).await
    }

    /// With something between the core and the broker.
    pub(crate) async fn wrapped(lot: Lot, wrap: impl Fn(Arc<dyn Provider>) -> Arc<dyn Provider> + Send + Sync + 'static) -> Bed {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let trunkline = builder(dir.path(), lot).wrap_providers(wrap).open().await.unwrap();
        Bed::furnish(trunkline, dir, lot, &json!({})).await
    }

    async fn furnish(trunkline: Trunkline, dir: Arc<TempDir>, lot: Lot, extra: &Value) -> Bed {
        let broker = json!({ "name": "Orders", "tag": "orders", "envs": [{ "slug": "prd", "type": "EMBEDDED", "config": {} }] });
        trunkline.catalog().create_broker(Some("shop"), broker).await.unwrap();
        let mut topic = json!({ "name": "Created", "tag": EVENT });
        topic.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        trunkline.catalog().create_topic(Some("shop"), topic).await.unwrap();
        Bed { env: trunkline.env("shop", "prd"), trunkline, dir, lot }
    }

    /// Another instance on the same directory: it shares nothing with this one but the files.
    pub(crate) async fn another(&self) -> Bed {
        let trunkline = builder(self.dir.path(), self.lot).open().await.unwrap();
        Bed { env: trunkline.env("shop", "prd"), trunkline, dir: self.dir.clone(), lot: self.lot }
    }

    pub(crate) async fn produce(&self, n: u64) -> MessageId {
        self.env.produce(EVENT, &json!({ "n": n })).await.unwrap().process_id
    }

    pub(crate) async fn produce_keyed(&self, key: &str, n: u64) -> MessageId {
        self.env.produce(EVENT, &json!({ "key": key, "n": n })).key(key).await.unwrap().process_id
    }

    pub(crate) async fn close(self) {
        self.trunkline.close(Duration::from_secs(10)).await;
    }
}

fn builder(dir: &Path, lot: Lot) -> Builder {
    Trunkline::builder().url(dir.join("data").to_string_lossy()).lot_on_broker(lot == Lot::Topics)
}

pub(crate) fn retries(millis: &[u64]) -> Schedule {
    Schedule { delays: millis.iter().map(|ms| Duration::from_millis(*ms)).collect(), jitter: 0.0 }
}

/// What handlers saw, and a way to wait until they saw enough.
#[derive(Clone)]
pub(crate) struct Seen<T> {
    items: Arc<Mutex<Vec<T>>>,
    count: watch::Sender<usize>,
}

impl<T: Clone> Seen<T> {
    pub(crate) fn new() -> Self {
        Seen { items: Arc::default(), count: watch::Sender::new(0) }
    }

    pub(crate) fn push(&self, item: T) {
        let mut items = self.items.lock();
        items.push(item);
        self.count.send_replace(items.len());
    }

    pub(crate) fn all(&self) -> Vec<T> {
        self.items.lock().clone()
    }

    pub(crate) async fn wait(&self, at_least: usize) -> Vec<T> {
        let mut count = self.count.subscribe();
        let seen = tokio::time::timeout(DEADLINE, count.wait_for(|n| *n >= at_least)).await.map(|found| found.map(|n| *n));
        assert!(seen.is_ok(), "only {} of {at_least} were seen in time", self.items.lock().len());
        self.all()
    }
}

/// Waits until the condition holds.
pub(crate) async fn until<F, R>(what: &str, condition: F)
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
