//! The connection test: reach the endpoint, be let in, and send a canary through a queue made for it.

use std::time::{Duration, Instant};

use tokio::sync::OnceCell;

use super::client::Clients;
use super::error::{Kind, failure};
use super::provider::host_of;
use crate::config::SqsConfig;
use crate::error::{Code, Error};
use crate::message::MessageId;
use crate::provider::Stage;
use crate::provider::net::reach::Probe;

/// What the policy of the credentials must allow at the least.
const ACTIONS: &str = "sqs:ListQueues, ListQueueTags, GetQueueUrl, GetQueueAttributes, SendMessage, ReceiveMessage, DeleteMessage, \
                       ChangeMessageVisibility";
/// And where queues are created.
const CREATES: &str = "sqs:CreateQueue, TagQueue, DeleteQueue";

/// See the module. Leaves nothing behind.
pub(super) async fn probe(clients: &Clients, config: &SqsConfig, deadline: Instant) -> Vec<Stage> {
    let endpoint = config.common.endpoint.clone().unwrap_or_else(|| service(&config.region));
    let (host, port) = host_of(&endpoint);
    let mut probe = Probe::new(deadline);
    probe.reach(&host, port).await;
    // One call tells of TLS, credentials and permissions; each has a stage of its own.
    let asked = OnceCell::new();
    let ask = async || {
        let ask = async || {
            let said = clients.once.list_queues().queue_name_prefix("trunkline-").max_results(1).send().await;
            said.map(drop).map_err(|e| failure("listing queues", &e))
        };
        asked.get_or_init(ask).await.clone()
    };
    let only = async |kinds: &[Kind]| match ask().await {
        Err(failed) if kinds.contains(&failed.kind) => Err(failed.error),
        _ => Ok(()),
    };
    if endpoint.starts_with("https:") {
        let tls = only(&[Kind::Tls, Kind::Unreachable]);
        probe
            .stage("tls", tls, |_| "check that `endpoint` speaks TLS, and `tls.ca`, `tls.serverName`, `tls.cert` and `tls.key`".into())
            .await;
    }
    let known = only(&[Kind::Unknown, Kind::Tls, Kind::Unreachable]);
    probe.stage("authenticate", known, |error| advice(error, "check the credentials")).await;
    let allowed = async { ask().await.map_err(|failed| failed.error) };
    probe.stage("permissions", allowed, |error| advice(error, &format!("the policy of these credentials must allow {ACTIONS}"))).await;
    if config.common.create {
        canary(&mut probe, clients, deadline).await;
    }
    probe.into_stages()
}

fn service(region: &str) -> String {
    let domain = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
    format!("https://sqs.{region}.{domain}")
}

/// The error's own advice where it has one; for permissions ours, which names them all.
fn advice(error: &Error, otherwise: &str) -> String {
    let own = error.detail_str("next").filter(|_| error.detail_str("reason") != Some("permission_missing"));
    own.unwrap_or(otherwise).to_owned()
}

async fn canary(probe: &mut Probe, clients: &Clients, deadline: Instant) {
    let name = format!("trunkline-probe-{}", MessageId::now().0.simple());
    let made = async {
        let answer = clients.again.create_queue().queue_name(&name).attributes(RETENTION.0, RETENTION.1).send().await;
        let answer = answer.map_err(|e| failure("creating a queue", &e).error)?;
        answer.queue_url.ok_or_else(|| Error::new(Code::PublishFailed, "a queue was created without a URL"))
    };
    let fix = |error: &Error| advice(error, &format!("the policy must allow {CREATES}; or set `create: false` and make the queues"));
    let Some(url) = probe.stage("ensure", made, fix).await else { return };
    let there_and_back = async {
        let body = MessageId::now().to_text();
        clients.once.send_message().queue_url(&url).message_body(&body).send().await.map_err(|e| failure("sending", &e).error)?;
        loop {
            let call = clients.poll.receive_message().queue_url(&url).wait_time_seconds(1);
            let answer = call.send().await.map_err(|e| failure("receiving", &e).error)?;
            let found = answer.messages.unwrap_or_default().into_iter().find(|message| message.body.as_deref() == Some(&*body));
            if let Some(handle) = found.and_then(|message| message.receipt_handle) {
                let call = clients.again.delete_message().queue_url(&url).receipt_handle(handle);
                return call.send().await.map(drop).map_err(|e| failure("acking", &e).error);
            }
        }
    };
    let fix = |error: &Error| advice(error, &format!("the policy of these credentials must allow {ACTIONS}"));
    probe.stage("round_trip", there_and_back, fix).await;
    // Also where the canary did not come back.
    let left = deadline.saturating_duration_since(Instant::now()).clamp(Duration::from_millis(100), Duration::from_secs(2));
    let _ = tokio::time::timeout(left, clients.again.delete_queue().queue_url(&url).send()).await;
}

/// A minute: the shortest there is.
const RETENTION: (aws_sdk_sqs::types::QueueAttributeName, &str) = (aws_sdk_sqs::types::QueueAttributeName::MessageRetentionPeriod, "60");
