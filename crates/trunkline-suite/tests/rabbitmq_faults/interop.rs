//! A plain AMQP client beside us: what it reads of ours, and what we read of its.

use std::collections::BTreeMap;

use lapin::options::{
    BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, ExchangeKind};
use trunkline::Headers;
use trunkline::capability::Durability;
use trunkline::delivery::{Deliveries, EnvelopeId};
use trunkline::provider::{Outgoing, TopicSpec};

use crate::bed::{self, confirmed, group, handle, ids, message, name, open, server, subscribe};

async fn foreigner() -> (Connection, Channel) {
    let connection = Connection::connect(&bed::url(), ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    (connection, channel)
}

async fn publish(channel: &Channel, topic: &TopicSpec, key: &str, properties: BasicProperties, body: &[u8]) {
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let options = BasicPublishOptions { mandatory: true, immediate: false };
    let confirm = channel.basic_publish((&*topic.name).into(), key.into(), options, body, properties).await.unwrap().await.unwrap();
    assert!(matches!(confirm, lapin::Confirmation::Ack(None)), "{confirm:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_consumer_reads_payload_key_and_headers() {
    let _server = server().await;
    let provider = open().await;
    for (ordered, binding) in [(false, "KEY"), (true, "#")] {
        let topic = bed::topic(&provider, 2, ordered).await;
        let (_connection, channel) = foreigner().await;
        let own = name("foreign");
        channel
            .queue_declare(own.as_str().into(), QueueDeclareOptions { exclusive: true, ..Default::default() }, FieldTable::default())
            .await
            .unwrap();
        let binding = binding.replace("KEY", &topic.name);
        channel
            .queue_bind(own.as_str().into(), (&*topic.name).into(), binding.into(), QueueBindOptions::default(), FieldTable::default())
            .await
            .unwrap();
        let headers: Headers = [("colour", &b"red"[..]), ("raw", b"\xff\x00")].into_iter().collect();
        let sent = Outgoing { key: Some("k-1".into()), shard: Some(1), headers, ..message("{\"a\": 1}") };
        confirmed(&provider, &topic, vec![sent.clone()]).await;
        let got = channel.basic_get(own.as_str().into(), BasicGetOptions { no_ack: true }).await.unwrap().unwrap();
        assert_eq!(got.delivery.data, b"{\"a\": 1}");
        assert_eq!(got.delivery.routing_key.as_str(), if ordered { format!("{}.@1", topic.name) } else { topic.name.to_string() });
        let table = got.delivery.properties.headers().clone().unwrap();
        let names: Vec<_> = table.inner().keys().map(|name| name.as_str().to_owned()).collect();
        assert_eq!(names, ["colour", "raw", "trunkline-id", "trunkline-key"]);
        assert_eq!(table.inner()["colour"], AMQPValue::LongString("red".into()));
        assert_eq!(table.inner()["raw"], AMQPValue::ByteArray(b"\xff\x00"[..].into()));
        assert_eq!(table.inner()["trunkline-key"], AMQPValue::LongString("k-1".into()));
        let AMQPValue::ByteArray(id) = &table.inner()["trunkline-id"] else { panic!("{table:?}") };
        assert_eq!(&id.as_slice()[..16], sent.id.as_bytes());
        assert_eq!(got.delivery.properties.delivery_mode(), &Some(2));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_a_foreign_producer_are_consumed() {
    let _server = server().await;
    let provider = open().await;
    for ordered in [false, true] {
        let topic = bed::topic(&provider, 3, ordered).await;
        let member = subscribe(&provider, &topic, "g").await;
        let (_connection, channel) = foreigner().await;
        let table: BTreeMap<_, _> = [
            ("n".into(), AMQPValue::LongInt(7)),
            ("yes".into(), AMQPValue::Boolean(true)),
            ("list".into(), AMQPValue::FieldArray(vec![AMQPValue::LongString("a".into()), AMQPValue::LongInt(2)].into())),
            ("x-delivery-count".into(), AMQPValue::LongLongInt(3)),
        ]
        .into();
        let properties = BasicProperties::default()
            .with_message_id("order-17".into())
            .with_timestamp(1_750_000_000)
            .with_content_type("application/json".into())
            .with_headers(table.into());
        publish(&channel, &topic, &topic.name, properties, b"[1, 2]").await;
        let got = bed::take(&member, 1).await.remove(0);
        assert_eq!((got.id, got.payload.as_deref(), got.stored_at), (EnvelopeId::Foreign, Some(&b"[1, 2]"[..]), 1_750_000_000_000));
        let text = |name: &str| got.headers.get_str(name).map(str::to_owned);
        assert_eq!((text("n").as_deref(), text("yes").as_deref()), (Some("7"), Some("true")));
        assert_eq!((text("message-id").as_deref(), text("content-type").as_deref()), (Some("order-17"), Some("application/json")));
        assert_eq!(got.headers.iter().filter(|(name, _)| *name == "list").count(), 2);
        // Handed out again it is the same message, and the broker's integer count is understood.
        member.settle(&[(got.token, trunkline::delivery::Settle::Retry { after: std::time::Duration::ZERO, counted: true })]).await;
        let again = handle(&member, 1).await.remove(0);
        assert_eq!((again.position, again.stored_at), (got.position, got.stored_at));
        assert!(matches!(again.deliveries, Deliveries::UpperBound(n) if n >= 2), "{:?}", again.deliveries);
        publish(&channel, &topic, &topic.name, BasicProperties::default(), b"").await;
        assert_eq!(handle(&member, 1).await[0].payload.as_deref(), Some(&b""[..]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_producer_may_give_id_and_key() {
    let _server = server().await;
    let provider = open().await;
    let topic = bed::topic(&provider, 2, true).await;
    let member = subscribe(&provider, &topic, "g").await;
    let (_connection, channel) = foreigner().await;
    let id = trunkline::MessageId::now();
    for value in [AMQPValue::ByteArray(id.as_bytes()[..].into()), AMQPValue::LongString(id.to_text().into())] {
        let table: BTreeMap<_, _> = [("trunkline-id".into(), value), ("trunkline-key".into(), AMQPValue::LongString("k".into()))].into();
        publish(&channel, &topic, &format!("{}.@1", topic.name), BasicProperties::default().with_headers(table.into()), b"x").await;
        let got = handle(&member, 1).await;
        assert_eq!((ids(&got), got[0].key.as_deref(), got[0].position.shard), (vec![id], Some(&b"k"[..]), 1));
    }
    let table: BTreeMap<_, _> = [("trunkline-id".into(), AMQPValue::LongString("what".into()))].into();
    publish(&channel, &topic, &topic.name, BasicProperties::default().with_headers(table.into()), b"x").await;
    assert_eq!(handle(&member, 1).await[0].id, EnvelopeId::Broken);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_made_is_used_and_its_differences_are_told() {
    let _server = server().await;
    let provider = open().await;
    let (_connection, channel) = foreigner().await;
    let topic =
        TopicSpec { queue: Some(name("theirs").into()), exchange: Some(name("exchange").into()), ..TopicSpec::new(name("key"), 1, false) };
    let (exchange, queue) = (topic.exchange.clone().unwrap(), topic.queue.clone().unwrap());
    let durable = ExchangeDeclareOptions { durable: true, ..Default::default() };
    channel.exchange_declare((&*exchange).into(), ExchangeKind::Direct, durable, FieldTable::default()).await.unwrap();
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare((&*queue).into(), durable, FieldTable::default()).await.unwrap();
    for _ in 0..2 {
        let ensured = provider.ensure(&topic, &[group(&queue)]).await.unwrap();
        assert_eq!((ensured.created.len(), ensured.drift.len()), (0, 2), "{ensured:?}");
        assert!(ensured.drift[0].contains("'type'") && ensured.drift[1].contains(&*queue), "{ensured:?}");
    }
    // What a queue of another kind keeps, is not promised to be more than that.
    assert_eq!(provider.capabilities(&topic).durability, Durability::Written);
    let sent = confirmed(&provider, &topic, vec![message("a")]).await;
    let member = subscribe(&provider, &topic, &queue).await;
    assert_eq!(ids(&handle(&member, 1).await), sent);

    let fleeting = TopicSpec::new(name("fleeting"), 1, false);
    assert_eq!(provider.capabilities(&fleeting).durability, Durability::Fsynced);
    let mortal = QueueDeclareOptions { auto_delete: true, ..Default::default() };
    channel.queue_declare(format!("{}.g", fleeting.name).into(), mortal, FieldTable::default()).await.unwrap();
    provider.ensure(&fleeting, &[group("g")]).await.unwrap();
    assert_eq!(provider.capabilities(&fleeting).durability, Durability::Memory);
}

/// Another client altogether: librabbitmq's own tools.
#[tokio::test(flavor = "multi_thread")]
async fn amqp_tools_read_what_was_produced_and_produce_what_is_consumed() {
    let _server = server().await;
    let provider = open().await;
    let topic = bed::topic(&provider, 1, false).await;
    provider.ensure(&topic, &[group("tools")]).await.unwrap();
    let member = subscribe(&provider, &topic, "g").await;
    confirmed(&provider, &topic, vec![message("{\"price\": 12, \"currency\": \"\u{20ac}\"}")]).await;
    handle(&member, 1).await;
    let read = tool("amqp-get", &["-q", &format!("{}.tools", topic.name)]).await;
    assert_eq!(read, "{\"price\": 12, \"currency\": \"\u{20ac}\"}");
    tool("amqp-publish", &["-e", &topic.name, "-r", &topic.name, "-p", "-C", "text/plain", "-H", "colour: red", "-b", "gr\u{fc}n"]).await;
    let got = handle(&member, 1).await.remove(0);
    assert_eq!((got.id, got.payload.as_deref()), (EnvelopeId::Foreign, Some("gr\u{fc}n".as_bytes())));
    assert_eq!((got.headers.get_str("colour"), got.headers.get_str("content-type")), (Some("red"), Some("text/plain")));
}

async fn tool(command: &str, args: &[&str]) -> String {
    let ran = tokio::process::Command::new(command).arg("-u").arg(bed::url()).args(args).output().await;
    let output = ran.unwrap_or_else(|e| panic!("{command} of Debian's amqp-tools, which `scripts/brokers up rabbitmq` installs: {e}"));
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
