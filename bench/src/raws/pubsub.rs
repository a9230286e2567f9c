//! Pub/Sub alone, over its protocol: what waits in one publish call, a pull stream, acks on it.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use googleapis_tonic_google_pubsub_v1::google::pubsub::v1::publisher_client::PublisherClient;
use googleapis_tonic_google_pubsub_v1::google::pubsub::v1::subscriber_client::SubscriberClient;
use googleapis_tonic_google_pubsub_v1::google::pubsub::v1::{PublishRequest, PubsubMessage, StreamingPullRequest};
use serde_json::json;
use tokio::sync::{mpsc, oneshot};
use tonic::transport::Channel;

use super::setting;
use crate::embedded::Error;
use crate::network::{OnMessage, Opening, Place, Raw, Target};

/// What the service takes in one call.
const BATCH: usize = 1_000;
const PROJECT: &str = "bench";

type Waiting = (Bytes, oneshot::Sender<()>);

struct PubSub {
    channel: Channel,
    sending: mpsc::UnboundedSender<Waiting>,
}

pub(super) fn target() -> Result<Target, Error> {
    let address = setting("PUBSUB")?;
    let config = json!({ "projectId": PROJECT, "endpoint": address });
    let open = move |place: Place| -> Opening {
        let address = address.clone();
        Box::pin(async move {
            let channel = Channel::from_shared(format!("http://{address}"))?.connect().await?;
            let (sending, waiting) = mpsc::unbounded_channel();
            tokio::spawn(send(channel.clone(), place.topic, waiting));
            Ok(Arc::new(PubSub { channel, sending }) as Arc<dyn Raw>)
        })
    };
    Ok(Target { provider: "GOOGLE_PUBSUB", config, raw: Box::new(open) })
}

async fn send(channel: Channel, topic: String, mut waiting: mpsc::UnboundedReceiver<Waiting>) {
    let (mut client, mut batch) = (PublisherClient::new(channel), Vec::new());
    while waiting.recv_many(&mut batch, BATCH).await > 0 {
        let messages = batch.iter().map(|(payload, _)| PubsubMessage { data: payload.clone(), ..PubsubMessage::default() });
        let request = PublishRequest { topic: format!("projects/{PROJECT}/topics/{topic}"), messages: messages.collect() };
        client.publish(request).await.expect("confirmed");
        for (_, done) in batch.drain(..) {
            let _ = done.send(());
        }
    }
}

#[async_trait]
impl Raw for PubSub {
    async fn produce(&self, payload: Bytes) -> Result<(), Error> {
        let (done, confirmed) = oneshot::channel();
        self.sending.send((payload, done)).map_err(|_| "the sender ended")?;
        Ok(confirmed.await?)
    }

    async fn consume(&self, group: &str, on: OnMessage) -> Result<(), Error> {
        let (requests, mut stream) = mpsc::unbounded_channel();
        requests.send(StreamingPullRequest {
            subscription: format!("projects/{PROJECT}/subscriptions/{group}"),
            stream_ack_deadline_seconds: 60,
            max_outstanding_messages: 1_000,
            ..StreamingPullRequest::default()
        })?;
        let mut client = SubscriberClient::new(self.channel.clone());
        let stream = futures_util::stream::poll_fn(move |context| stream.poll_recv(context));
        let mut pulled = client.streaming_pull(stream).await?.into_inner();
        while let Some(batch) = pulled.message().await? {
            let mut goes_on = true;
            let mut ack_ids = Vec::with_capacity(batch.received_messages.len());
            for received in batch.received_messages {
                goes_on &= on(&received.message.unwrap_or_default().data);
                ack_ids.push(received.ack_id);
            }
            requests.send(StreamingPullRequest { ack_ids, ..StreamingPullRequest::default() })?;
            if !goes_on {
                return Ok(());
            }
        }
        Err("the stream ended".into())
    }
}
