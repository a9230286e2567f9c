//! Connections and names for the tests of Kafka's faults.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::{Mutex, MutexGuard};
use trunkline::config::{KafkaConfig, ProviderConfig, ProviderKind};
use trunkline::delivery::{Position, Settle, Settled};
use trunkline::provider::kafka::Kafka;
use trunkline::provider::{
    GroupSpec, Outgoing, Prefetch, Provider, SendError, Signal, Start, SubscribeOptions, Subscription, SubscriptionState, TopicSpec,
};
use trunkline::{Headers, MessageId, Result};
use trunkline_suite::server::setting;

/// No test waits longer than this for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The shortest session the broker allows: what waits for a death is quick.
pub(crate) const SHORT: (&str, u32) = ("session.timeout.ms", 6_000);

/// A server of a test's own, which it may hurt: fresh, so that it is back soon. Gone when this is dropped.
pub(crate) struct Own {
    dir: TempDir,
    pub(crate) address: String,
    /// One at a time: each is a Java machine.
    _alone: MutexGuard<'static, ()>,
}

static OWN: Mutex<()> = Mutex::const_new(());

impl Own {
    pub(crate) async fn start() -> Own {
        let alone = OWN.lock().await;
        let mut own = Own { dir: TempDir::new().unwrap(), address: String::new(), _alone: alone };
        let settings = own.act(&["up", "kafka"]).await;
        let address = settings.lines().find_map(|line| line.strip_prefix("export TRUNKLINE_TEST_KAFKA="));
        own.address = address.unwrap_or_else(|| panic!("no address among {settings}")).to_owned();
        own
    }

    /// Does what `scripts/brokers` can do, and returns when it is done.
    pub(crate) async fn act(&self, words: &[&str]) -> String {
        let mut command = tokio::process::Command::from(self.command(words));
        let output = tokio::time::timeout(3 * PATIENCE, command.kill_on_drop(true).output()).await.unwrap().unwrap();
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(setting("BROKERS"));
        command.args(words).env("TRUNKLINE_BROKERS_DIR", self.dir.path()).stdin(Stdio::null());
        command
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let ended = self.command(&["down", "kafka", "--purge"]).output();
        assert!(std::thread::panicking() || ended.is_ok_and(|output| output.status.success()), "the server was not ended");
    }
}

/// A config, with these fields beside the server.
pub(crate) fn config(more: &Value) -> KafkaConfig {
    let mut config = json!({ "brokers": [setting("KAFKA")], "options": { SHORT.0: SHORT.1, "topic.metadata.refresh.interval.ms": 1000 } });
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    match ProviderConfig::parse(ProviderKind::Kafka, &config).unwrap() {
        ProviderConfig::Kafka(config) => config,
        other => panic!("{other:?} is not Kafka's"),
    }
}

pub(crate) async fn open(more: &Value) -> Result<Kafka> {
    Kafka::open(&config(more)).await
}

/// A name nobody else uses.
pub(crate) fn name() -> String {
    format!("f{}", MessageId::now().0.simple())
}

pub(crate) fn spec(shards: u32, ordered: bool) -> TopicSpec {
    TopicSpec::new(name(), shards, ordered)
}

pub(crate) fn group() -> GroupSpec {
    GroupSpec { name: name().into(), start: Start::Earliest }
}

pub(crate) fn message(payload: impl Into<Bytes>) -> Outgoing {
    Outgoing { id: MessageId::now(), shard: None, key: None, headers: Headers::new(), payload: payload.into() }
}

pub(crate) fn to_shard(shard: u32, payload: impl Into<Bytes>) -> Outgoing {
    Outgoing { shard: Some(shard), ..message(payload) }
}

/// Sends one; it must be confirmed.
pub(crate) async fn send(kafka: &Kafka, topic: &TopicSpec, message: Outgoing) -> Position {
    try_send(kafka, topic, message).await.unwrap()
}

pub(crate) async fn try_send(kafka: &Kafka, topic: &TopicSpec, message: Outgoing) -> std::result::Result<Position, SendError> {
    kafka.send(topic, Arc::new(vec![message])).await.pop().unwrap()
}

pub(crate) async fn join(kafka: &Kafka, topic: &TopicSpec, group: &GroupSpec) -> Arc<dyn Subscription> {
    let options = SubscribeOptions { member: "member".into(), prefetch: Prefetch { count: 64, bytes: 1 << 20 } };
    kafka.subscribe(std::slice::from_ref(topic), group, options).await.unwrap()
}

/// What a member was told.
#[derive(Debug, Default)]
pub(crate) struct Told {
    pub(crate) messages: Vec<trunkline::delivery::Delivery>,
    pub(crate) states: Vec<SubscriptionState>,
    pub(crate) shards: Vec<String>,
}

/// Receives until enough was told; settles each message where `settle` says so.
pub(crate) async fn listen(member: &dyn Subscription, settle: bool, enough: impl Fn(&Told) -> bool) -> Told {
    let end = Instant::now() + PATIENCE;
    let mut told = Told::default();
    while !enough(&told) {
        assert!(Instant::now() < end, "not in {PATIENCE:?}; told {:?} {:?}, {} messages", told.states, told.shards, told.messages.len());
        for signal in member.next(64, usize::MAX, Duration::from_millis(500)).await.unwrap() {
            match signal {
                Signal::Deliveries { items, .. } => {
                    if settle {
                        let done: Vec<_> = items.iter().map(|item| (item.token, Settle::Done)).collect();
                        assert!(member.settle(&done).await.iter().all(|answer| *answer == Settled::Settled));
                    }
                    told.messages.extend(items);
                }
                Signal::State(state) => told.states.push(state),
                other => told.shards.push(format!("{other:?}")),
            }
        }
    }
    told
}

pub(crate) fn offsets(told: &Told) -> Vec<u64> {
    told.messages.iter().map(|message| message.position.offset).collect()
}
