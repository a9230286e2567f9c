//! Kafka alone: an idempotent producer with everything in flight, and a stored offset for each message.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::message::Message as _;
use rdkafka::producer::{FutureProducer, FutureRecord};
use serde_json::json;

use super::setting;
use crate::embedded::Error;
use crate::network::{OnMessage, Opening, Place, Raw, Target};

struct Kafka {
    brokers: String,
    producer: FutureProducer,
    topic: String,
}

pub(super) fn target() -> Result<Target, Error> {
    let brokers = setting("KAFKA")?;
    let config = json!({ "brokers": [brokers] });
    let open = move |place: Place| -> Opening {
        let brokers = brokers.clone();
        Box::pin(async move {
            let producer = ClientConfig::new()
                .set("bootstrap.servers", &brokers)
                .set("enable.idempotence", "true")
                .set("acks", "all")
                .set("linger.ms", "1")
                .create()?;
            Ok(Arc::new(Kafka { brokers, producer, topic: place.topic }) as Arc<dyn Raw>)
        })
    };
    Ok(Target { provider: "KAFKA", config, raw: Box::new(open) })
}

#[async_trait]
impl Raw for Kafka {
    async fn produce(&self, payload: Bytes) -> Result<(), Error> {
        let record: FutureRecord<'_, (), [u8]> = FutureRecord::to(&self.topic).payload(&payload[..]);
        self.producer.send(record, Duration::from_secs(30)).await.map_err(|(error, _)| error)?;
        Ok(())
    }

    async fn consume(&self, group: &str, on: OnMessage) -> Result<(), Error> {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &self.brokers)
            .set("group.id", group)
            .set("auto.offset.reset", "earliest")
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("fetch.queue.backoff.ms", "10")
            .create()?;
        consumer.subscribe(&[&self.topic])?;
        tokio::task::spawn_blocking(move || -> Result<(), Error> {
            let mut stored = 0;
            loop {
                let Some(message) = consumer.poll(Duration::from_millis(100)) else { continue };
                let message = message?;
                let goes_on = on(message.payload().unwrap_or_default());
                consumer.store_offset_from_message(&message)?;
                stored += 1;
                if !goes_on {
                    consumer.commit_consumer_state(CommitMode::Sync)?;
                    return Ok(());
                }
                if stored % 1_000 == 0 {
                    consumer.commit_consumer_state(CommitMode::Async)?;
                }
            }
        })
        .await?
    }
}
