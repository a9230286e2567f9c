//! A member of a Kafka group in a process of its own, until it is killed.
//!
//! `kafka-member SERVER TOPIC SHARDS GROUP DONE`: settles the first DONE messages, holds the others, and writes a line for
//! each: its id, its offset, how often it was handed out.

use std::io::Write as _;
use std::time::Duration;

use serde_json::json;
use trunkline::config::{ProviderConfig, ProviderKind};
use trunkline::delivery::{EnvelopeId, Settle, Settled};
use trunkline::provider::{GroupSpec, Prefetch, Signal, Start, SubscribeOptions, TopicSpec};

#[tokio::main]
async fn main() {
    // Whatever becomes of the test, nothing of it stays behind.
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [server, topic, shards, group, done] = arguments.as_slice() else { panic!("kafka-member SERVER TOPIC SHARDS GROUP DONE") };
    let config = json!({ "brokers": [server], "options": { "session.timeout.ms": 6000 } });
    let config = ProviderConfig::parse(ProviderKind::Kafka, &config).expect("a config");
    let provider = trunkline::provider::open(&config, std::path::Path::new("unused")).await.expect("the broker");
    let topic = TopicSpec::new(topic.as_str(), shards.parse().expect("a number"), false);
    let group = GroupSpec { name: group.as_str().into(), start: Start::Earliest };
    let options = SubscribeOptions { member: "member".into(), prefetch: Prefetch { count: 16, bytes: 1 << 20 } };
    let member = provider.subscribe(&[topic], &group, options).await.expect("a member");
    let mut left: usize = done.parse().expect("a number");
    loop {
        for signal in member.next(16, usize::MAX, Duration::from_secs(1)).await.expect("a subscription that lives") {
            let Signal::Deliveries { items, .. } = signal else { continue };
            for item in items {
                let EnvelopeId::Id(id) = item.id else { panic!("a message without an id") };
                if left > 0 {
                    left -= 1;
                    assert_eq!(member.settle(&[(item.token, Settle::Done)]).await, [Settled::Settled]);
                }
                let mut out = std::io::stdout().lock();
                writeln!(out, "{id} {} {}", item.position.offset, item.deliveries.count()).expect("a reader");
                out.flush().expect("a reader");
            }
        }
    }
}
