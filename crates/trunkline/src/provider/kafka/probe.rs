//! The connection test: a client of its own goes through every stage, up to a message that comes back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rdkafka::types::RDKafkaErrorCode as Kafka;

use super::client::{Client, NoReports, Properties, blocking};
use super::connect;
use super::desk::{Desk, at_desk};
use super::error::{Fault, error};
use super::offsets::{self, REQUEST};
use super::read::LazyReader;
use super::send::Senders;
use super::topics::{self, Cluster};
use crate::config::KafkaConfig;
use crate::error::{Code, Error, Result};
use crate::message::{Headers, MessageId};
use crate::provider::net::reach::Probe;
use crate::provider::{Outgoing, Stage, TopicSpec};

/// What listens there speaks Kafka within this time, or not at all.
const SPEAKS: Duration = Duration::from_secs(5);
/// Kept on the topic of canaries: an hour.
const KEPT: &[(&str, &str)] = &[("retention.ms", "3600000")];

/// Goes through the stages until one fails, or the deadline comes.
pub(super) async fn run(properties: &Properties, config: &KafkaConfig, deadline: Instant) -> Vec<Stage> {
    let mut probe = Probe::new(deadline);
    stages(&mut probe, properties, config, deadline).await;
    probe.into_stages()
}

fn fix(error: &Error) -> String {
    error.detail_str("next").unwrap_or("look at the broker's log").to_owned()
}

async fn stages(probe: &mut Probe, properties: &Properties, config: &KafkaConfig, deadline: Instant) -> Option<()> {
    let (host, port) = properties.first_server();
    probe.reach(&host, port).await?;
    // librdkafka does TLS and authentication in one; what it complains of tells which of them it was.
    let client = probe.stage("client", async { Client::new(properties, &[], NoReports).map(Arc::new) }, fix).await?;
    let connected = connect(&client, deadline.min(Instant::now() + SPEAKS)).await;
    if properties.encrypted() {
        let tls = async {
            match &connected {
                Err(error) if error.code() == Code::AuthenticationFailed => Ok(()),
                Err(error) => Err(error.clone()),
                Ok(_) => Ok(()),
            }
        };
        probe.stage("tls", tls, fix).await?;
    }
    let hint = |error: &Error| match error.code() {
        Code::AuthenticationFailed => fix(error),
        _ if !properties.encrypted() => "check that this listener takes connections without TLS: else set `ssl: true`".to_owned(),
        _ if !properties.authenticates() => "check whether this listener wants `sasl`".to_owned(),
        _ => fix(error),
    };
    let cluster = probe.stage("authenticate", async { connected }, hint).await?;
    let name = match &config.common.prefix {
        Some(prefix) => format!("{}.trunkline.probe", prefix.trim_end_matches('.')),
        None => "trunkline.probe".to_owned(),
    };
    probe.stage("permissions", permitted(&client, properties, config, name.clone()), fix).await?;
    let there = probe.stage("ensure", ensure(&client, &cluster, config, name.clone()), fix).await?;
    if there {
        probe.stage("round_trip", round_trip(properties, &client, name), fix).await?;
    }
    Some(())
}

/// The default group may be read, and the default topic seen, where the config names them.
async fn permitted(client: &Arc<Client<NoReports>>, properties: &Properties, config: &KafkaConfig, name: String) -> Result<()> {
    let (topic, group) = (config.topic.clone(), config.group_id.clone().unwrap_or_else(|| name.clone()));
    let (asked, desk) = (Arc::clone(client), Arc::new(Desk::new(properties, &group)?));
    let done = at_desk(&desk, move |desk| {
        let list = offsets::all(topic.as_deref().unwrap_or(&name), 1);
        offsets::patiently(Instant::now() + REQUEST, || {
            for part in desk.committed(&group, &list)? {
                match part.code {
                    Kafka::NoError | Kafka::UnknownTopicOrPartition => {}
                    code => return Err(Fault::new(code, "the group cannot be read")),
                }
            }
            Ok(())
        })?;
        topic.map_or(Ok(()), |topic| topics::partitions(&asked, &topic).map(drop))
    });
    done.await.map_err(|fault| error("permissions are missing", &fault))
}

/// Whether there is a topic for canaries.
async fn ensure(client: &Arc<Client<NoReports>>, cluster: &Cluster, config: &KafkaConfig, name: String) -> Result<bool> {
    let (asked, cluster, create, replication) = (Arc::clone(client), *cluster, config.common.create, config.replication);
    let spec = TopicSpec::new(name, 1, false);
    let done =
        blocking(client, move |_| topics::ensure_with(&asked, &cluster, &spec, create, replication, KEPT).map(|found| found.is_some()));
    done.await.map_err(|fault| error("the topic of the test cannot be created", &fault))
}

async fn round_trip(properties: &Properties, client: &Arc<Client<NoReports>>, name: String) -> Result<()> {
    let spec = TopicSpec::new(name, 1, false);
    let senders = Senders::new(properties.clone());
    let id = MessageId::now();
    let canary = Outgoing { id, shard: Some(0), key: None, headers: Headers::new(), payload: Bytes::from_static(b"canary") };
    let sent = senders.send(&spec, 1_000_000, Arc::new(vec![canary])).await.pop();
    senders.close();
    let position = match sent {
        Some(Ok(position)) => position,
        Some(Err(failed)) => return Err(failed.error),
        None => return Err(Error::new(Code::PublishFailed, "the canary got no answer")),
    };
    let (properties, offset) = (properties.clone(), i64::try_from(position.offset).unwrap_or(i64::MAX));
    let read = blocking(client, move |_| {
        let reader = LazyReader::default();
        reader.with(&properties, |reader| reader.read(&spec.name, 0, offset, i64::MAX, 1))
    });
    let found = read.await.map_err(|fault| error("the canary cannot be read", &fault))?;
    match found.first() {
        Some(stored) if stored.id == Some(id) => Ok(()),
        _ => Err(Error::new(Code::ConnectionFailed, "the canary did not come back")),
    }
}
