//! RabbitMQ alone: publishes with confirms all in flight on one channel, and acks of many at a time.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt as _;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use serde_json::json;

use super::setting;
use crate::embedded::Error;
use crate::network::{OnMessage, Opening, Place, Raw, Target};

/// Acked at a time, and asked for ahead.
const ACKS: u64 = 200;
const AHEAD: u16 = 1_000;

struct Rabbit {
    connection: Connection,
    publishing: Channel,
    place: Place,
}

pub(super) fn target() -> Result<Target, Error> {
    let url = setting("RABBITMQ")?;
    let config = json!({ "url": url });
    let open = move |place: Place| -> Opening {
        let url = url.clone();
        Box::pin(async move {
            let connection = Connection::connect(&url, ConnectionProperties::default()).await?;
            let publishing = connection.create_channel().await?;
            publishing.confirm_select(ConfirmSelectOptions::default()).await?;
            Ok(Arc::new(Rabbit { connection, publishing, place }) as Arc<dyn Raw>)
        })
    };
    Ok(Target { provider: "RABBITMQ", config, raw: Box::new(open) })
}

#[async_trait]
impl Raw for Rabbit {
    async fn produce(&self, payload: Bytes) -> Result<(), Error> {
        let (exchange, key) = (self.place.exchange.as_str().into(), self.place.topic.as_str().into());
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let properties = BasicProperties::default().with_delivery_mode(2);
        let confirm = self.publishing.basic_publish(exchange, key, options, &payload, properties).await?.await?;
        if !confirm.is_ack() || confirm.take_message().is_some() {
            return Err("not confirmed".into());
        }
        Ok(())
    }

    async fn consume(&self, group: &str, on: OnMessage) -> Result<(), Error> {
        let channel = self.connection.create_channel().await?;
        channel.basic_qos(AHEAD, BasicQosOptions::default()).await?;
        let mut consumer = channel.basic_consume(group.into(), "".into(), BasicConsumeOptions::default(), FieldTable::default()).await?;
        let mut unacked = 0;
        while let Some(delivery) = consumer.next().await {
            let delivery = delivery?;
            let goes_on = on(&delivery.data);
            unacked += 1;
            if unacked >= ACKS || !goes_on {
                channel.basic_ack(delivery.delivery_tag, BasicAckOptions { multiple: true }).await?;
                unacked = 0;
            }
            if !goes_on {
                channel.close(200, "done".into()).await?;
                return Ok(());
            }
        }
        Err("the consumer ended".into())
    }
}
