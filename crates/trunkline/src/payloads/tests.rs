//! What a topic does about payloads that do not fit, on both sides, and that a change of it is followed.

use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::store::{LotFilter, LotState};
use crate::{Code, Trunkline};

const EVENT: &str = "orders:created";

struct Bed {
    _dir: tempfile::TempDir,
    trunkline: Trunkline,
    shop: Env,
}

async fn bed(topic: Value) -> Bed {
    let dir = tempfile::tempdir().expect("a directory");
    let trunkline = Trunkline::open(&dir.path().join("data").display().to_string()).await.expect("open");
    let broker = json!({ "name": "O", "tag": "orders", "envs": [{ "slug": "prd", "type": "EMBEDDED" }] });
    trunkline.catalog().create_broker(Some("shop"), broker).await.expect("broker");
    let mut input = json!({ "name": "Created", "tag": EVENT, "sample": { "orderId": "1", "amount": 1 } });
    input.as_object_mut().expect("an object").extend(topic.as_object().cloned().unwrap_or_default());
    trunkline.catalog().create_topic(Some("shop"), input).await.expect("topic");
    let shop = trunkline.env("shop", "prd");
    Bed { _dir: dir, trunkline, shop }
}

impl Bed {
    async fn set(&self, patch: Value) {
        self.trunkline.catalog().update_topic(Some("shop"), EVENT, patch).await.expect("update");
    }
}

#[tokio::test]
async fn warn_lets_pass_reject_refuses_and_off_does_not_look() {
    let bed = bed(json!({})).await;
    let wrong = json!({ "orderId": 7, "amount": 1 });
    bed.shop.produce(EVENT, &wrong).await.expect("warned");
    assert_eq!(bed.shop.invalid_payloads(EVENT).await.expect("count"), 1);
    bed.set(json!({ "validate": "reject" })).await;
    for _ in 0..2 {
        // Once over the path that opens the route anew, once over the short one.
        let error = bed.shop.produce(EVENT, &wrong).await.expect_err("refused");
        assert_eq!((error.code(), error.detail_str("pointer")), (Code::PayloadInvalid, Some("/orderId")));
    }
    let raw = bed.shop.produce_raw(EVENT, "not json").await.expect_err("refused");
    assert_eq!((raw.code(), raw.detail_str("pointer")), (Code::PayloadInvalid, Some("")));
    bed.shop.produce(EVENT, &json!({ "orderId": "7", "amount": 1, "more": true })).await.expect("it fits");
    bed.set(json!({ "validate": "off" })).await;
    bed.shop.produce(EVENT, &wrong).await.expect("not looked at");
    assert_eq!(bed.shop.invalid_payloads(EVENT).await.expect("count"), 4);
    assert_eq!(bed.shop.groups(EVENT).await.expect("groups")[0].ready, 3, "nothing that was refused was sent");
    let validation = bed.shop.validate(EVENT, wrong.to_string().as_bytes()).expect("validation");
    assert_eq!((validation.valid, validation.validate, validation.problems.len()), (false, Validate::Off, 1));
}

#[tokio::test]
async fn a_given_schema_goes_before_the_sample() {
    let bed = bed(json!({ "schema": { "required": ["id"] }, "validate": "reject" })).await;
    bed.shop.produce(EVENT, &json!({ "id": 1 })).await.expect("it fits the schema");
    let error = bed.shop.produce(EVENT, &json!({ "orderId": "1", "amount": 1 })).await.expect_err("only the sample");
    assert_eq!(error.code(), Code::PayloadInvalid);
    let bad = bed.trunkline.catalog().update_topic(Some("shop"), EVENT, json!({ "schema": { "type": 3 } })).await.expect_err("no schema");
    assert_eq!((bad.code(), bad.detail_str("field")), (Code::InputInvalid, Some("schema")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_and_does_not_fit_is_buried_under_reject() {
    let bed = bed(json!({})).await;
    let wrong = bed.shop.produce(EVENT, &json!({ "orderId": 7 })).await.expect("warned");
    bed.set(json!({ "validate": "reject" })).await;
    let right = bed.shop.produce(EVENT, &json!({ "orderId": "8", "amount": 1 })).await.expect("it fits");
    let (sender, mut handled) = tokio::sync::mpsc::channel(4);
    let consumer = bed.shop.consume(EVENT, move |_: Value, context: crate::Context| {
        let sender = sender.clone();
        async move { sender.send(context.process_id).await }
    });
    let consumer = consumer.await.expect("consumer");
    assert_eq!(handled.recv().await, Some(right.process_id));
    let filter = LotFilter { state: Some(LotState::Dead), ..LotFilter::default() };
    // The other one may lie in another shard, and come later.
    let buried = async {
        loop {
            let dead = bed.trunkline.store().lot_list(&filter, 10, 0, false).await.expect("dead");
            if !dead.is_empty() {
                return dead;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let dead = tokio::time::timeout(Duration::from_secs(20), buried).await.expect("buried");
    consumer.close(Duration::from_secs(10)).await;
    assert_eq!((dead.len(), dead[0].message.id, dead[0].reason.as_deref()), (1, wrong.process_id, Some("payload_invalid")));
    assert!(dead[0].error.as_deref().is_some_and(|error| error.contains("/orderId") || error.contains("amount")), "{dead:?}");
}

#[tokio::test]
async fn a_changed_sample_says_what_breaks_and_for_whom() {
    let bed = bed(json!({})).await;
    let consumer = bed.shop.consume(EVENT, |_: Value, _| async {}).await.expect("consumer");
    let patch = || json!({ "sample": { "orderId": 1, "amount": 1, "currency": "EUR" } });
    let plan = bed.trunkline.plan_topic(Some("shop"), EVENT, patch()).await.expect("plan");
    let changes = |update: &crate::catalog::TopicUpdate| {
        update.breaking.iter().map(|breaking| (breaking.path.clone(), breaking.change)).collect::<Vec<_>>()
    };
    let expected = [("/currency".to_owned(), "required_added"), ("/orderId".to_owned(), "type_narrowed")];
    assert_eq!(changes(&plan), expected);
    let topic = |bed: &Bed| bed.trunkline.catalog().fetch_topic("shop", EVENT).expect("fetch").expect("topic");
    assert_eq!(topic(&bed).sample, Some(json!({ "orderId": "1", "amount": 1 })), "a plan writes nothing");
    // The consumer stands in the registry after its first heartbeat.
    let affected = async {
        loop {
            let plan = bed.trunkline.plan_topic(Some("shop"), EVENT, patch()).await.expect("plan");
            if let Some(member) = plan.affected.first() {
                return member.id.clone();
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let id = tokio::time::timeout(Duration::from_secs(20), affected).await.expect("affected");
    assert_eq!(id, consumer.id());
    let update = bed.trunkline.update_topic(Some("shop"), EVENT, patch()).await.expect("update");
    assert_eq!((changes(&update).len(), update.affected.len()), (2, 1));
    assert_eq!(topic(&bed).inferred_schema.as_ref().expect("a schema")["properties"]["orderId"], json!({ "type": "number" }));
}
