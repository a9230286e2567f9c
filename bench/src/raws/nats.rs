//! NATS alone: publishes all in flight, pulls of 1,000, and an ack for each message.

use std::sync::Arc;

use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::{self, Context};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt as _;
use serde_json::json;

use super::setting;
use crate::embedded::Error;
use crate::network::{OnMessage, Opening, Place, Raw, Target};

const BATCH: usize = 1_000;

struct Nats {
    context: Context,
    topic: String,
}

pub(super) fn target() -> Result<Target, Error> {
    let (servers, user, pass) = (setting("NATS")?, setting("USER")?, setting("PASSWORD")?);
    let config = json!({ "servers": servers, "user": user, "pass": pass });
    let open = move |place: Place| -> Opening {
        let (servers, user, pass, topic) = (servers.clone(), user.clone(), pass.clone(), place.topic);
        Box::pin(async move {
            let client = async_nats::ConnectOptions::with_user_and_password(user, pass).connect(servers).await?;
            Ok(Arc::new(Nats { context: jetstream::new(client), topic }) as Arc<dyn Raw>)
        })
    };
    Ok(Target { provider: "NATS", config, raw: Box::new(open) })
}

#[async_trait]
impl Raw for Nats {
    async fn produce(&self, payload: Bytes) -> Result<(), Error> {
        self.context.publish(self.topic.clone(), payload).await?.await?;
        Ok(())
    }

    async fn consume(&self, group: &str, on: OnMessage) -> Result<(), Error> {
        // The stream of a topic is called as the topic, with what a stream's name may not hold escaped.
        let stream = trunkline::names::nats_stream(&self.topic);
        let consumer: PullConsumer = self.context.get_consumer_from_stream(group, stream).await?;
        loop {
            let mut messages = consumer.fetch().max_messages(BATCH).messages().await?;
            let mut goes_on = true;
            while let Some(message) = messages.next().await {
                let message = message?;
                goes_on = on(&message.payload);
                message.ack().await?;
            }
            if !goes_on {
                return Ok(());
            }
        }
    }
}
