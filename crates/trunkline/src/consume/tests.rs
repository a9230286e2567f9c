//! Consumers of one process, on the embedded broker: what they share, and what they count.

use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::watch;

use crate::consume::handler::{Context, Raw, Verdict};
use crate::consume::state::State;
use crate::{Builder, Consumer, Env, Schedule, Trunkline};

mod cancelled;
mod delayed;
mod lot;
mod moved;
mod shared;

const EVENT: &str = "orders:created";
/// No test waits longer than this for anything.
const DEADLINE: Duration = Duration::from_secs(20);

struct Bed {
    trunkline: Trunkline,
    env: Env,
    _dir: TempDir,
}

impl Bed {
    async fn new(build: impl FnOnce(Builder) -> Builder) -> Bed {
        Bed::on(json!({}), build).await
    }

    /// With this config of the broker.
    async fn on(config: Value, build: impl FnOnce(Builder) -> Builder) -> Bed {
        let dir = tempfile::tempdir().expect("a directory");
        let builder = Trunkline::builder().url(dir.path().join("data").to_string_lossy());
        let trunkline = build(builder).open().await.expect("it opens");
        let broker = json!({ "name": "Orders", "tag": "orders", "envs": [{ "slug": "prd", "type": "EMBEDDED", "config": config }] });
        trunkline.catalog().create_broker(Some("shop"), broker).await.expect("a broker");
        let topic = json!({ "name": "Created", "tag": EVENT });
        trunkline.catalog().create_topic(Some("shop"), topic).await.expect("a topic");
        Bed { env: trunkline.env("shop", "prd"), trunkline, _dir: dir }
    }

    async fn produce(&self, n: usize, bytes: usize) {
        let payload = vec![b'x'; bytes];
        let all = (0..n).map(|_| async { self.env.produce_raw(EVENT, payload.clone()).await.map(drop) });
        futures_util::future::try_join_all(all).await.expect("confirmed");
    }
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let end = tokio::time::Instant::now() + DEADLINE;
    while !condition() {
        assert!(tokio::time::Instant::now() < end, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn is_seen(consumer: &Consumer, state: State) {
    let seen = tokio::time::timeout(DEADLINE, consumer.states().wait_for(|now| *now == state)).await.is_ok_and(|seen| seen.is_ok());
    assert!(seen, "it is {:?}, not {state:?}", consumer.state());
}
