//! The connection test: reach the server, be let in, and send a canary through a topic made for it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use googleapis_tonic_google_pubsub_v1::google::pubsub::v1::{
    AcknowledgeRequest, DeleteSubscriptionRequest, DeleteTopicRequest, ExpirationPolicy, GetTopicRequest, PublishRequest, PubsubMessage,
    PullRequest, Subscription, Topic,
};
use tokio::sync::OnceCell;

use super::error::{Failure, Kind};
use super::link::Link;
use super::names::Names;
use crate::config::PubsubConfig;
use crate::error::Error;
use crate::message::MessageId;
use crate::provider::Stage;
use crate::provider::net::reach::Probe;

/// What the account must be allowed at the least, and what it must where topics are created.
const ALLOWED: &str = "the account needs roles/pubsub.publisher, roles/pubsub.subscriber and roles/pubsub.viewer on the project";
const CREATES: &str = "the account needs roles/pubsub.editor on the project; or set `create: false` and make topics and subscriptions";

/// See the module. Leaves nothing behind.
pub(super) async fn probe(link: &Link, names: &Names, config: &PubsubConfig, deadline: Instant) -> Vec<Stage> {
    let mut probe = Probe::new(deadline);
    probe.reach(&link.target.host, link.target.port).await;
    let canary = format!("trunkline-probe-{}", MessageId::now().0.simple());
    let looked_for = config.topic_name.as_deref().filter(|_| !config.common.create).unwrap_or(&canary);
    // One call tells of TLS, credentials and permissions; each has a stage of its own.
    let asked: OnceCell<Result<(), Failure>> = OnceCell::new();
    let ask = async || {
        let ask = async || {
            let topic = names.topic(looked_for);
            let request = GetTopicRequest { topic: topic.clone() };
            let about = format!("topic={topic}");
            let said =
                link.publisher("looking at a topic", &about, request, async |mut client, request| client.get_topic(request).await).await;
            match said {
                // Who is told that it is not there may look.
                Err(failed) if failed.kind == Kind::Missing && looked_for == canary => Ok(()),
                other => other.map(drop),
            }
        };
        asked.get_or_init(ask).await.clone()
    };
    let only = async |kinds: &[Kind]| match ask().await {
        Err(failed) if kinds.contains(&failed.kind) => Err(failed.error),
        _ => Ok(()),
    };
    if !link.target.is_plain() {
        let tls = async { link.target.connect(link.options().patience).await.map(drop) };
        let fix = "check that `endpoint` speaks TLS, and `tls.ca`, `tls.serverName`, `tls.cert` and `tls.key`";
        probe.stage("tls", tls, |error| advice(error, fix)).await;
    }
    let known = only(&[Kind::Unknown, Kind::Tls, Kind::Unreachable, Kind::Passing]);
    probe
        .stage("authenticate", known, |error| {
            advice(error, "check `endpoint`: it must be a Pub/Sub server, with https:// if it speaks TLS")
        })
        .await;
    let allowed = async { ask().await.map_err(|failed| failed.error) };
    probe.stage("permissions", allowed, |error| advice(error, ALLOWED)).await;
    if config.common.create {
        there_and_back(&mut probe, link, names, &canary, deadline).await;
    }
    probe.into_stages()
}

/// The error's own advice where it has one; for permissions ours, which names the roles.
fn advice(error: &Error, otherwise: &str) -> String {
    let own = error.detail_str("next").filter(|_| error.detail_str("reason") != Some("permission_missing"));
    own.unwrap_or(otherwise).to_owned()
}

async fn there_and_back(probe: &mut Probe, link: &Link, names: &Names, canary: &str, deadline: Instant) {
    let (topic, subscription) = (names.topic(canary), names.subscription(canary, "probe"));
    let about = (format!("topic={topic}"), format!("subscription={subscription}"));
    let made = async {
        let wish = Topic { name: topic.clone(), ..Topic::default() };
        link.publisher("creating a topic", &format!("name={topic}"), wish, async |mut client, wish| client.create_topic(wish).await)
            .await?;
        let wish = Subscription {
            name: subscription.clone(),
            topic: topic.clone(),
            ack_deadline_seconds: 10,
            // Gone by itself, should this process not get to it.
            expiration_policy: Some(ExpirationPolicy { ttl: Some(prost_types::Duration { seconds: 86_400, nanos: 0 }) }),
            ..Subscription::default()
        };
        let name = format!("name={subscription}");
        link.subscribe("creating a subscription", &name, wish, async |mut client, wish| client.create_subscription(wish).await).await
    };
    let made = probe.stage("ensure", async { made.await.map_err(|failed: Failure| failed.error) }, |error| advice(error, CREATES)).await;
    if made.is_some() {
        let sent = async {
            let body = MessageId::now().to_text();
            let message = PubsubMessage { data: body.clone().into(), attributes: HashMap::new(), ..PubsubMessage::default() };
            let request = PublishRequest { topic: topic.clone(), messages: vec![message] };
            link.publisher("publishing", &about.0, request, async |mut client, request| client.publish(request).await).await?;
            loop {
                let request = PullRequest { subscription: subscription.clone(), max_messages: 1, ..PullRequest::default() };
                let pulled = link.subscribe("receiving", &about.1, request, async |mut client, request| client.pull(request).await).await?;
                let found = pulled
                    .received_messages
                    .into_iter()
                    .find(|received| received.message.as_ref().is_some_and(|message| message.data == body.as_bytes()));
                if let Some(received) = found {
                    let request = AcknowledgeRequest { subscription: subscription.clone(), ack_ids: vec![received.ack_id] };
                    let acked = link.subscribe("acking", &about.1, request, async |mut client, request| client.acknowledge(request).await);
                    return acked.await;
                }
            }
        };
        probe.stage("round_trip", async { sent.await.map_err(|failed: Failure| failed.error) }, |error| advice(error, ALLOWED)).await;
    }
    // Also where the canary did not come back, or only one of the two was made.
    let left = deadline.saturating_duration_since(Instant::now()).clamp(Duration::from_millis(100), Duration::from_secs(2));
    let gone = async {
        let request = DeleteSubscriptionRequest { subscription: subscription.clone() };
        let _ = link.subscribe("deleting", &about.1, request, async |mut client, request| client.delete_subscription(request).await).await;
        let request = DeleteTopicRequest { topic: topic.clone() };
        let _ = link.publisher("deleting", &about.0, request, async |mut client, request| client.delete_topic(request).await).await;
    };
    let _ = tokio::time::timeout(left, gone).await;
}
