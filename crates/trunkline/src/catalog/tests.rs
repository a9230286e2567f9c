//! The catalogue over documents in memory: every rule of its calls, and that no credential is stored or shown.

use std::sync::atomic::{AtomicU64, Ordering as Atomic};

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::*;
use crate::config::ProviderKind;
use crate::error::Code;
use crate::message::Millis;
use crate::provider::Start;
use crate::store::Doc;

pub(crate) const SECRET: &str = "hunter2-hunter2";

/// Seals as the real one does: never twice alike, and only for its record.
#[derive(Debug, Default)]
pub(crate) struct Wax(AtomicU64);

impl Seal for Wax {
    fn seal(&self, record: &str, plain: &str) -> Result<String> {
        let n = self.0.fetch_add(1, Atomic::Relaxed);
        Ok(STANDARD.encode(format!("{n}\n{record}\n{plain}")))
    }

    fn open(&self, record: &str, sealed: &str) -> Result<String> {
        let bytes = STANDARD.decode(sealed).map_err(|_| Error::store("not sealed"))?;
        let text = String::from_utf8(bytes).map_err(|_| Error::store("not sealed"))?;
        let mut parts = text.splitn(3, '\n').skip(1);
        if parts.next() == Some(record) {
            Ok(parts.next().unwrap_or_default().to_owned())
        } else {
            Err(Error::store("sealed for another record"))
        }
    }
}

pub(crate) async fn catalog() -> Catalog {
    over(Arc::new(Memory::new(1_000, 0, Vec::new()))).await
}

async fn over(docs: Arc<dyn Docs>) -> Catalog {
    Catalog::over(docs, Arc::new(Wax::default())).await.expect("open")
}

fn orders() -> Value {
    json!({ "product": "shop", "name": "Order Events", "tag": "order-events", "envs": [
        { "slug": "prd", "type": "KAFKA", "config": { "brokers": ["k:9092"], "groupId": "order-consumers", "topic": "orders",
            "sasl": { "mechanism": "scram-sha-256", "username": "u", "password": SECRET } } },
        { "slug": "dev", "type": "REDIS", "config": { "host": "localhost", "port": 6379 } },
    ]})
}

fn topic(tag: &str) -> Value {
    json!({ "name": "T", "tag": tag })
}

async fn with_topic() -> Catalog {
    let catalog = catalog().await;
    catalog.create_broker(None, orders()).await.expect("broker");
    catalog.create_topic(Some("shop"), topic("order-events:created")).await.expect("topic");
    catalog
}

fn event(text: &str) -> Event {
    text.parse().expect("event")
}

fn assert_error<T: std::fmt::Debug>(result: Result<T>, code: Code, field: Option<&str>) -> Error {
    let error = result.expect_err("refused");
    assert_eq!((error.code(), error.detail_str("field")), (code, field), "{error:?}");
    assert!(!format!("{error:?}").contains(SECRET), "{error:?}");
    error
}

#[tokio::test]
async fn the_first_create_makes_the_product() {
    let catalog = catalog().await;
    let view = catalog.create_broker(None, orders()).await.expect("broker");
    assert_eq!((view.tag.as_str(), view.envs.len()), ("order-events", 2));
    assert_eq!(catalog.fetch_product("shop").expect("tag").expect("product").name, "shop");
    assert_error(catalog.create_broker(None, orders()).await, Code::BrokerExists, Some("tag"));
    assert_error(catalog.create_topic(Some("nope"), topic("order-events:t")).await, Code::ProductNotFound, None);
    assert!(catalog.fetch_product("nope").expect("tag").is_none());
}

#[tokio::test]
async fn broker_input_is_checked() {
    let catalog = catalog().await;
    let env = |config: Value| json!([{ "slug": "prd", "type": "REDIS", "config": config }]);
    for (change, code, field) in [
        (json!({ "name": null }), Code::InputInvalid, "name"),
        (json!({ "tag": "a b" }), Code::InputInvalid, "tag"),
        (json!({ "product": "..." }), Code::InputInvalid, "product"),
        (json!({ "product_tag": "other" }), Code::InputInvalid, "product"),
        (json!({ "envs": [] }), Code::InputInvalid, "envs"),
        (json!({ "envs": {} }), Code::InputInvalid, "envs"),
        (json!({ "evns": [] }), Code::InputInvalid, "evns"),
        (json!({ "envs": [{ "slug": "prd", "env": "dev", "type": "REDIS" }] }), Code::InputInvalid, "envs[0].slug"),
        (json!({ "envs": [{ "slug": "prd", "type": "REDDIS" }] }), Code::InputInvalid, "envs[0].type"),
        (json!({ "envs": [{ "type": "REDIS" }] }), Code::InputInvalid, "envs[0].slug"),
        (json!({ "envs": [{ "slug": "a", "type": "EMBEDDED" }, { "env": "a", "type": "EMBEDDED" }] }), Code::InputInvalid, "envs[1].slug"),
        (json!({ "envs": env(json!({ "host": "h", "pasword": SECRET })) }), Code::ConfigInvalid, "pasword"),
        (json!({ "envs": env(json!({ "host": "h", "port": SECRET })) }), Code::ConfigInvalid, "port"),
        (json!({ "envs": env(json!({ "host": "h", "password": "***" })) }), Code::ConfigInvalid, "password"),
        (json!({ "envs": env(json!({ "url": "redis://:***@h" })) }), Code::ConfigInvalid, "url"),
    ] {
        let mut input = orders();
        for (name, value) in change.as_object().expect("object") {
            input[name] = value.clone();
        }
        assert_error(catalog.create_broker(None, input).await, code, Some(field));
    }
    assert!(catalog.list_products().is_empty());
    let spelt =
        json!({ "product_tag": "shop", "name": "B", "tag": "b", "envs": [{ "env_type": "prd", "env_slug": "prd", "type": "EMBEDDED" }] });
    assert_eq!(catalog.create_broker(Some("shop"), spelt).await.expect("aliases").envs[0].slug, "prd");
}

#[tokio::test]
async fn credentials_are_sealed_masked_and_kept() {
    let docs = Arc::new(Memory::new(1_000, 0, Vec::new()));
    let catalog = over(docs.clone()).await;
    catalog.create_broker(None, orders()).await.expect("broker");
    catalog.create_topic(None, topic("order-events:t")).await.expect("topic");
    let stored = |docs: Vec<Doc>| docs.iter().map(|doc| doc.body.to_string()).collect::<String>();
    assert!(!stored(docs.read().await.expect("read").1).contains(SECRET));
    let view = catalog.fetch_broker("shop", "order-events").expect("tag").expect("broker");
    assert_eq!(view.envs[0].config["sasl"]["password"], "***");
    assert!(!format!("{:?}", catalog.snapshot()).contains(SECRET));

    // what is shown can be sent back
    let back = json!({ "envs": [{ "slug": "prd", "type": "KAFKA", "config": view.envs[0].config }] });
    let same = catalog.update_broker(None, "order-events", back.clone()).await.expect("update");
    assert!(!same.changed && same.moved.is_empty());
    let route = catalog.route("shop", "prd", &event("order-events:t")).expect("route");
    assert_eq!(route.config["sasl"]["password"], SECRET);
    assert!(!format!("{route:?}").contains(SECRET));

    let mut other = back;
    other["envs"][0]["config"]["sasl"]["password"] = "$Secret{PW}".into();
    let update = catalog.update_broker(None, "order-events", other).await.expect("update");
    assert!(update.changed && update.moved.is_empty());
    assert_eq!(update.broker.envs[0].config["sasl"]["password"], "$Secret{PW}");
    assert_eq!(update.broker.envs.len(), 2, "the other env stays");
}

#[tokio::test]
async fn a_password_in_a_url_is_kept_too() {
    let catalog = catalog().await;
    let url = |password: &str| {
        json!({ "name": "B", "tag": "b", "product": "shop", "envs": [
        { "slug": "prd", "type": "RABBITMQ", "config": { "url": format!("amqps://u:{password}@h/v") } }] })
    };
    let view = catalog.create_broker(None, url(SECRET)).await.expect("broker");
    assert_eq!(view.envs[0].config["url"], "amqps://u:***@h/v");
    let patch = json!({ "description": "d", "envs": url("***")["envs"] });
    assert!(catalog.update_broker(None, "b", patch).await.expect("update").changed);
    let (_, config) = catalog.env_config("shop", "prd", "b").expect("config");
    assert_eq!(config["url"], format!("amqps://u:{SECRET}@h/v"));
}

#[tokio::test]
async fn a_route_is_checked_from_the_product_down() {
    let catalog = with_topic().await;
    for (product, env, tag, code, next) in [
        ("a b", "prd", "order-events:created", Code::InputInvalid, None),
        ("shpo", "prd", "order-events:created", Code::ProductNotFound, Some("trunkline brokers create")),
        ("shop", "prd", "order-event:created", Code::BrokerNotFound, Some("trunkline brokers create order-event")),
        ("shop", "prod", "order-events:nope", Code::BrokerEnvNotFound, Some("--env prod")),
        ("shop", "prd", "order-events:craeted", Code::TopicNotFound, Some("trunkline topics create order-events:craeted")),
    ] {
        let error = catalog.route(product, env, &event(tag)).expect_err("missing");
        assert_eq!(error.code(), code, "{error}");
        assert!(next.is_none_or(|next| error.detail_str("next").is_some_and(|text| text.contains(next))), "{error:?}");
    }
    let error = catalog.route("shop", "prd", &event("order-events:craeted")).expect_err("missing");
    assert_eq!(error.detail_str("didYouMean"), Some("order-events:created"));

    let route = catalog.route("shop", "prd", &event("order-events:created")).expect("route");
    assert_eq!((route.kind, route.physical.name.as_str(), &*route.default_group), (ProviderKind::Kafka, "orders", "order-consumers"));
    assert_eq!(route.address.to_string(), "shop/prd/order-events:created");
    assert_eq!((route.topic_spec().shards, route.groups.len(), route.groups[0].is_default), (8, 1, true));
    let again = catalog.route("shop", "prd", &event("order-events:created")).expect("route");
    assert!(Arc::ptr_eq(&route, &again), "worked out once");
}

#[tokio::test]
async fn an_env_that_moves_raises_the_epoch() {
    let catalog = with_topic().await;
    let at = |catalog: &Catalog, env| catalog.route("shop", env, &event("order-events:created")).expect("route");
    let (prd, dev) = (at(&catalog, "prd").epoch, at(&catalog, "dev").epoch);
    let kafka = |brokers: Value| json!({ "envs": [{ "slug": "prd", "type": "KAFKA", "config": { "brokers": brokers } }] });

    // one server of the cluster more is the same server
    let update = catalog.update_broker(None, "order-events", kafka(json!(["k:9092", "k2:9092"]))).await.expect("update");
    assert!(update.changed && update.moved.is_empty());
    assert_eq!((at(&catalog, "prd").epoch, at(&catalog, "prd").physical.name.as_str()), (prd, "orders"), "the name never changes");

    let update = catalog.update_broker(None, "order-events", kafka(json!(["elsewhere:9092"]))).await.expect("update");
    let moved = &update.moved[0];
    assert_eq!((moved.env.as_str(), moved.from, moved.left.len()), ("prd", ProviderKind::Kafka, 1));
    assert_eq!(moved.left[0].config["brokers"], json!(["k:9092", "k2:9092"]));
    assert!(at(&catalog, "prd").epoch > prd && at(&catalog, "prd").epoch == moved.epoch);
    // What it leaves is remembered, with where the topics lie there, until it is through.
    let left = |slug: &'static str| at(&catalog, slug).leaving.clone();
    assert_eq!((left("prd").len(), left("prd")[0].epoch, left("dev").len()), (1, prd, 0));
    assert_eq!((left("prd")[0].physical.name.as_str(), &left("prd")[0].config["brokers"]), ("orders", &json!(["k:9092", "k2:9092"])));
    let through = [("created".to_owned(), "shop".to_owned())];
    catalog.note_through(("shop", "order-events", "prd"), prd, &through, false).await.expect("noted");
    assert!(left("prd")[0].through.contains("shop"));
    assert_eq!(catalog.fetch_broker("shop", "order-events").expect("tag").expect("broker").envs[0].leaving.len(), 1);
    catalog.update_broker(None, "order-events", kafka(json!(["k:9092"]))).await.expect("update");
    assert_eq!(left("prd")[0].config["brokers"], json!(["elsewhere:9092"]), "where it came back to is left no longer");
    let epoch = left("prd")[0].epoch;
    catalog.note_through(("shop", "order-events", "prd"), epoch, &[], true).await.expect("noted");
    assert_eq!(left("prd").len(), 0);
    catalog.update_broker(None, "order-events", kafka(json!(["elsewhere:9092"]))).await.expect("update");

    let nats = json!({ "cut": true, "envs": [{ "slug": "prd", "type": "NATS", "config": { "servers": "n" } }] });
    let update = catalog.update_broker(None, "order-events", nats).await.expect("update");
    assert_eq!((update.moved[0].to, update.cut, left("prd").len()), (ProviderKind::Nats, true, 0));
    assert_eq!(at(&catalog, "prd").physical.name, "shop.prd.order-events.created");
    assert_eq!(at(&catalog, "dev").epoch, dev, "the other env is not touched");
}

#[tokio::test]
async fn an_added_env_names_the_topics_there_are() {
    let catalog = with_topic().await;
    catalog.create_topic(None, topic("order-events:paid")).await.expect("topic");
    let stage = json!({ "envs": [{ "slug": "stg", "type": "RABBITMQ", "config": { "host": "r", "queue": "q", "exchange": "x" } }] });
    let update = catalog.update_broker(None, "order-events", stage).await.expect("update");
    let names: Vec<&str> = update.broker.topics.iter().map(|topic| topic.physical["stg"].name.as_str()).collect();
    assert_eq!(names, ["q", "q.paid"], "the oldest is bare");
    let view = catalog.fetch_broker("shop", "order-events").expect("tag").expect("broker");
    assert_eq!(view, update.broker);
}

#[tokio::test]
async fn topics_take_both_spellings() {
    let catalog = with_topic().await;
    let short = json!({ "name": "New", "messageBrokerTag": "order-events", "tag": "new-orders", "sample": { "a": 1 } });
    let doc = catalog.create_topic(Some("shop"), short).await.expect("topic");
    assert_eq!(
        (doc.tag.as_str(), doc.broker_tag.as_str(), doc.topic_tag.as_str()),
        ("order-events:new-orders", "order-events", "new-orders")
    );
    let value = serde_json::to_value(&*doc).expect("json");
    assert_eq!((&value["tag"], &value["brokerTag"]), (&json!("order-events:new-orders"), &json!("order-events")));
    for (input, code, field) in [
        (topic("order-events:created"), Code::TopicExists, Some("tag")),
        (topic("created"), Code::InputInvalid, Some("tag")),
        (topic("a:b:c"), Code::InputInvalid, Some("tag")),
        (topic("nope:t"), Code::BrokerNotFound, None),
        (json!({ "name": "T", "tag": "order-events:t", "messageBrokerTag": "other" }), Code::InputInvalid, Some("tag")),
        (json!({ "tag": "order-events:t" }), Code::InputInvalid, Some("name")),
        (json!({ "name": "T", "tag": "order-events:t", "validate": "wran" }), Code::InputInvalid, Some("validate")),
        (json!({ "name": "T", "tag": "order-events:t", "shards": 0 }), Code::InputInvalid, Some("shards")),
        (json!({ "name": "T", "tag": "order-events:t", "ordering": "kye" }), Code::InputInvalid, Some("ordering")),
        (json!({ "name": "T", "tag": "order-events:t", "capture": "some" }), Code::InputInvalid, Some("capture")),
        (json!({ "name": "T", "tag": "order-events:t", "durability": "disk" }), Code::InputInvalid, Some("durability")),
        (json!({ "name": "T", "tag": "order-events:t", "schema": 3 }), Code::InputInvalid, Some("schema")),
        (json!({ "name": "T", "tag": "order-events:t", "retention": { "age": true } }), Code::InputInvalid, Some("retention.age")),
        (json!({ "name": "T", "tag": "order-events:t", "defaults": { "retry": 3 } }), Code::InputInvalid, Some("defaults.retry")),
        (json!({ "name": "T", "tag": "order-events:t", "names": [{ "slug": "prod", "name": "x" }] }), Code::InputInvalid, Some("names")),
        (json!({ "name": "T", "tag": "order-events:t", "names": [{ "slug": "prd", "name": "a b" }] }), Code::InputInvalid, Some("names")),
        (json!({ "name": "T", "tag": "order-events:t", "queueUrl": "https://q" }), Code::InputInvalid, Some("queueUrl")),
    ] {
        assert_error(catalog.create_topic(Some("shop"), input).await, code, field);
    }
}

#[tokio::test]
async fn queue_urls_are_kept_and_used_by_sqs() {
    let catalog = catalog().await;
    let sqs = json!({ "product": "shop", "name": "S", "tag": "sqs", "envs": [
        { "slug": "prd", "type": "AWS_SQS", "config": { "region": "r" } }, { "slug": "dev", "type": "REDIS", "config": { "host": "h" } }] });
    catalog.create_broker(None, sqs).await.expect("broker");
    let urls = json!([{ "env_slug": "prd", "url": "https://sqs/1/prd" }, { "slug": "dev", "url": "https://sqs/1/dev" }]);
    let doc = catalog.create_topic(None, json!({ "name": "T", "tag": "sqs:t", "queueUrl": urls, "queueUrls": urls })).await.expect("topic");
    assert_eq!((doc.physical["prd"].name.as_str(), doc.physical["dev"].name.as_str()), ("https://sqs/1/prd", "shop.dev.sqs.t"));
    assert_eq!(serde_json::to_value(&*doc).expect("json")["queueUrls"][1], json!({ "env_slug": "dev", "url": "https://sqs/1/dev" }));
    for bad in [
        json!({ "name": "T", "tag": "sqs:u", "queueUrl": urls, "queueUrls": [] }),
        json!({ "name": "T", "tag": "sqs:u", "queueUrls": [{ "env_slug": "prd", "env": "dev", "url": "https://x" }] }),
        json!({ "name": "T", "tag": "sqs:u", "queueUrls": [{ "env": "prd", "url": "https://x" }, { "env": "prd", "url": "https://y" }] }),
    ] {
        assert_eq!(catalog.create_topic(None, bad).await.expect_err("contradiction").code(), Code::InputInvalid);
    }
    let one = json!({ "product": "shop", "name": "S", "tag": "one", "envs": [{ "slug": "prd", "type": "AWS_SQS", "config": { "region": "r" } }] });
    catalog.create_broker(None, one).await.expect("broker");
    let doc = catalog.create_topic(None, json!({ "name": "T", "tag": "one:t", "queueUrl": "https://sqs/1/one" })).await.expect("topic");
    assert_eq!(doc.queue_urls, [QueueUrl { slug: "prd".into(), url: "https://sqs/1/one".into() }]);
}

#[tokio::test]
async fn a_topic_is_updated_but_not_what_is_fixed() {
    let catalog = with_topic().await;
    let patch = json!({ "description": "d", "sample": { "b": 2 }, "defaults": { "retry": false } });
    catalog.update_topic(None, "order-events:created", json!({ "sample": { "a": 1 } })).await.expect("sample");
    let update = catalog.update_topic(Some("shop"), "order-events:created", patch.clone()).await.expect("update");
    assert!(update.changed);
    assert_eq!(update.topic.sample, Some(json!({ "b": 2 })), "replaced whole");
    assert!(!catalog.update_topic(None, "order-events:created", patch).await.expect("same").changed);
    for (patch, field) in [
        (json!({ "ordering": "key" }), "ordering"),
        (json!({ "shards": 3 }), "shards"),
        (json!({ "tag": "order-events:other" }), "tag"),
        (json!({ "smaple": {} }), "smaple"),
    ] {
        assert_error(catalog.update_topic(None, "order-events:created", patch).await, Code::InputInvalid, Some(field));
    }
    assert_error(catalog.update_topic(None, "order-events:nope", json!({})).await, Code::TopicNotFound, None);
    let same = json!({ "tag": "created", "messageBrokerTag": "order-events", "ordering": "none" });
    assert!(!catalog.update_topic(None, "created", same).await.expect("same").changed);

    let before = catalog.route("shop", "prd", &event("order-events:created")).expect("route").epoch;
    let update =
        catalog.update_topic(None, "order-events:created", json!({ "names": [{ "env": "prd", "name": "own" }] })).await.expect("name");
    assert_eq!(update.renamed, ["prd"]);
    let route = catalog.route("shop", "prd", &event("order-events:created")).expect("route");
    assert!(route.epoch > before && route.physical.name == "own");
}

#[tokio::test]
async fn two_topics_never_share_a_name_on_one_server() {
    let catalog = with_topic().await;
    let named = |tag: &str, name: &str| json!({ "name": "T", "tag": tag, "names": [{ "slug": "prd", "name": name }] });
    let error = assert_error(catalog.create_topic(None, named("order-events:a", "orders")).await, Code::InputInvalid, Some("names"));
    assert!(error.message().contains("'order-events:a'") && error.message().contains("'order-events:created'"), "{error}");
    assert_eq!(error.detail_str("reason"), Some("name_taken"));
    // another product on the same server, and on another
    let mut other = orders();
    other["product"] = "other".into();
    catalog.create_broker(None, other.clone()).await.expect("broker");
    assert_error(catalog.create_topic(Some("other"), topic("order-events:x")).await, Code::InputInvalid, Some("names"));
    other["envs"][0]["config"]["brokers"] = json!(["elsewhere:9092"]);
    catalog.update_broker(Some("other"), "order-events", json!({ "envs": other["envs"] })).await.expect("moved");
    catalog.create_topic(Some("other"), topic("order-events:x")).await.expect("another server");
    let back = json!({ "envs": orders()["envs"] });
    assert_error(catalog.update_broker(Some("other"), "order-events", back).await, Code::InputInvalid, Some("names"));
    // Kafka takes '.' and '_' for the same
    assert_error(
        catalog
            .create_topic(Some("shop"), named("order-events:b", "a.b"))
            .await
            .and(catalog.create_topic(Some("shop"), named("order-events:c", "a_b")).await),
        Code::InputInvalid,
        Some("names"),
    );
}

#[tokio::test]
async fn a_group_may_not_take_another_topics_queue() {
    let catalog = catalog().await;
    let rabbit = json!({ "product": "shop", "name": "R", "tag": "r", "envs": [
        { "slug": "prd", "type": "RABBITMQ", "config": { "host": "h", "queue": "q" } }] });
    catalog.create_broker(None, rabbit).await.expect("broker");
    catalog.create_topic(None, topic("r:first")).await.expect("topic");
    catalog.create_topic(None, topic("r:billing")).await.expect("topic");
    let error = assert_error(catalog.know_group("shop", &event("r:first"), "billing", None).await, Code::InputInvalid, Some("names"));
    assert!(error.message().contains("queue q.billing"), "{error}");
    catalog.know_group("shop", &event("r:first"), "audit", None).await.expect("free");
    assert_error(catalog.create_topic(None, topic("r:audit")).await, Code::InputInvalid, Some("names"));
}

#[tokio::test]
async fn partitions_and_shards_agree() {
    let catalog = catalog().await;
    let kafka = json!({ "product": "shop", "name": "K", "tag": "k", "envs": [
        { "slug": "prd", "type": "KAFKA", "config": { "brokers": ["h"], "partitions": 3 } }] });
    catalog.create_broker(None, kafka).await.expect("broker");
    assert_eq!(catalog.create_topic(None, topic("k:a")).await.expect("unordered").physical["prd"].shards, 3);
    catalog.create_topic(None, json!({ "name": "T", "tag": "k:b", "shards": 3 })).await.expect("alike");
    for bad in [json!({ "name": "T", "tag": "k:c", "shards": 4 }), json!({ "name": "T", "tag": "k:c", "ordering": "key" })] {
        assert_error(catalog.create_topic(None, bad).await, Code::ConfigInvalid, Some("partitions"));
    }
}

#[tokio::test]
async fn groups_are_known_paused_and_deleted() {
    let catalog = with_topic().await;
    let created = event("order-events:created");
    let names = |catalog: &Catalog| {
        let route = catalog.route("shop", "prd", &event("order-events:created")).expect("route");
        route.groups.iter().map(|group| group.name.to_string()).collect::<Vec<_>>()
    };
    catalog.create_group("shop", &created, "billing", Some(Start::Earliest)).await.expect("group");
    assert_error(catalog.create_group("shop", &created, "billing", None).await, Code::AlreadyExists, Some("group"));
    let version = catalog.snapshot().version();
    catalog.know_group("shop", &created, "billing", Some(Start::Latest)).await.expect("known");
    assert_eq!(catalog.snapshot().version(), version, "nothing is written for a known group");
    assert_eq!(names(&catalog), ["order-consumers", "billing"]);
    assert!(catalog.pause_group("shop", &created, "billing", true).await.expect("pause").paused);
    assert_error(catalog.pause_group("shop", &created, "biling", true).await, Code::GroupNotFound, None);
    assert_error(catalog.delete_group("shop", &created, "nope").await, Code::GroupNotFound, None);
    catalog.delete_group("shop", &created, "billing").await.expect("delete");
    assert_error(catalog.delete_group("shop", &created, "billing").await, Code::GroupNotFound, None);

    // the default group stays deleted until a consume names it
    catalog.delete_group("shop", &created, "order-consumers").await.expect("delete");
    assert!(names(&catalog).is_empty() && catalog.list_groups("shop", &created).expect("list").is_empty());
    catalog.know_group("shop", &created, "order-consumers", None).await.expect("named");
    assert_eq!(names(&catalog), ["order-consumers"]);
    assert_error(catalog.create_group("shop", &event("order-events:nope"), "g", None).await, Code::TopicNotFound, None);
    assert_error(catalog.create_group("shop", &created, "", None).await, Code::InputInvalid, Some("group"));
}

#[tokio::test]
async fn products_and_the_only_one_there_is() {
    let catalog = catalog().await;
    assert_error(catalog.product_or_only(None).map(drop), Code::InputInvalid, Some("product"));
    catalog.create_product(json!({ "tag": "a" })).await.expect("product");
    assert_eq!(catalog.product_or_only(Some("")).expect("only"), "a");
    assert_error(catalog.create_product(json!({ "tag": "a" })).await, Code::AlreadyExists, Some("tag"));
    assert_error(catalog.create_product(json!({ "nmae": "x", "tag": "b" })).await, Code::InputInvalid, Some("nmae"));
    assert!(catalog.update_product("a", json!({ "name": "A" })).await.expect("update").changed);
    catalog.create_broker(None, orders()).await.expect("broker");
    let error = assert_error(catalog.product_or_only(None), Code::InputInvalid, Some("product"));
    assert!(error.message().contains("a, shop"), "{error}");
    let error = assert_error(catalog.env_or_only("shop", None), Code::InputInvalid, Some("env"));
    assert!(error.message().contains("dev, prd"), "{error}");
    assert_eq!(catalog.env_or_only("shop", Some("prd")).expect("given"), "prd");
    catalog.delete_product("shop").await.expect("delete");
    assert_error(catalog.fetch_broker("shop", "order-events"), Code::ProductNotFound, None);
    assert_eq!(catalog.docs.read().await.expect("read").1.len(), 1, "nothing of it stays in the store");
}

#[tokio::test]
async fn what_is_unknown_is_none_or_not_found() {
    let catalog = with_topic().await;
    assert!(catalog.fetch_broker("shop", "nope").expect("tag").is_none());
    assert!(catalog.fetch_topic("shop", "nope:t").expect("tag").is_none());
    assert!(catalog.fetch_topic("shop", "order-events:nope").expect("tag").is_none());
    assert_error(catalog.fetch_topic("nope", "order-events:t"), Code::ProductNotFound, None);
    assert_error(catalog.list_topics("shop", "nope"), Code::BrokerNotFound, None);
    assert_error(catalog.list_brokers("nope"), Code::ProductNotFound, None);
    assert_error(catalog.delete_topic("shop", "order-events:nope").await, Code::TopicNotFound, None);
    assert_error(catalog.delete_broker("shop", "nope").await, Code::BrokerNotFound, None);
    catalog.delete_topic("shop", "order-events:created").await.expect("delete");
    assert!(catalog.list_topics("shop", "order-events").expect("list").is_empty());
    catalog.delete_broker("shop", "order-events").await.expect("delete");
    assert!(catalog.list_brokers("shop").expect("list").is_empty());
}

#[tokio::test]
async fn two_processes_see_and_respect_each_other() {
    let docs: Arc<dyn Docs> = Arc::new(Memory::new(1_000, 0, Vec::new()));
    let (a, b) = (over(docs.clone()).await, over(docs.clone()).await);
    let mut seen = b.watch();
    a.create_broker(None, orders()).await.expect("broker");
    assert!(b.refresh().await.expect("refresh") && !b.refresh().await.expect("refresh"));
    assert!(seen.has_changed().expect("open") && *seen.borrow_and_update() == a.snapshot().version());
    let (one, two) = (topic("order-events:one"), topic("order-events:two"));
    let (one, two) = tokio::join!(a.create_topic(None, one), b.create_topic(None, two));
    let (one, two) = (one.expect("one"), two.expect("two"));
    assert_ne!(one.physical["prd"].name, two.physical["prd"].name, "only the oldest is bare");
    assert_ne!(one.created_at, two.created_at);
    a.refresh().await.expect("refresh");
    b.refresh().await.expect("refresh");
    assert_eq!(a.list_topics("shop", "order-events").expect("list"), b.list_topics("shop", "order-events").expect("list"));
    // what was changed step by step is what the store holds
    let (version, all) = docs.read().await.expect("read");
    assert_eq!(format!("{:?}", Snapshot::build(version, all).expect("build").docs()), format!("{:?}", a.snapshot().docs()));
}

/// A store where another process is always faster, a few times.
#[derive(Debug)]
struct Contended(Memory, AtomicU64);

#[async_trait]
impl Docs for Contended {
    fn now(&self) -> Millis {
        self.0.now()
    }
    async fn version(&self) -> Result<u64> {
        self.0.version().await
    }
    async fn read(&self) -> Result<(u64, Vec<Doc>)> {
        self.0.read().await
    }
    async fn write(&self, expected: u64, changes: Vec<DocChange>) -> Result<Option<u64>> {
        if self.1.fetch_add(1, Atomic::Relaxed) < 3 {
            self.0.write(expected, Vec::new()).await?;
        }
        self.0.write(expected, changes).await
    }
}

#[tokio::test]
async fn a_lost_race_is_run_again() {
    let docs = Arc::new(Contended(Memory::new(1_000, 0, Vec::new()), AtomicU64::new(0)));
    let catalog = over(docs.clone()).await;
    catalog.create_broker(None, orders()).await.expect("broker");
    assert_eq!(docs.1.load(Atomic::Relaxed), 4);
    assert_eq!(catalog.snapshot().version(), 4);
}
