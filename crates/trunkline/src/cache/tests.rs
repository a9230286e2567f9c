//! Equal messages are sent once within the expiry, whoever produces them, and whatever the store does.

use std::time::Duration;

use serde_json::json;

use super::*;
use crate::{Code, Env, Receipt};

const EVENT: &str = "quotes:asked";

struct Bed {
    dir: tempfile::TempDir,
    trunkline: Trunkline,
    shop: Env,
}

async fn bed() -> Bed {
    let dir = tempfile::tempdir().expect("a directory");
    let trunkline = Trunkline::open(&dir.path().join("data").display().to_string()).await.expect("open");
    let catalog = trunkline.catalog();
    let broker =
        json!({ "name": "Q", "tag": "quotes", "envs": [{ "slug": "prd", "type": "EMBEDDED" }, { "slug": "dev", "type": "EMBEDDED" }] });
    catalog.create_broker(Some("shop"), broker).await.expect("broker");
    catalog.create_topic(Some("shop"), json!({ "name": "A", "tag": EVENT })).await.expect("topic");
    catalog.create_cache(Some("shop"), json!({ "tag": "recent", "expiry": "1h" })).await.expect("cache");
    let shop = trunkline.env("shop", "prd");
    Bed { dir, trunkline, shop }
}

impl Bed {
    async fn ask(&self, payload: &str) -> Result<Receipt> {
        self.shop.produce_raw(EVENT, payload.to_owned()).cache("recent").await
    }

    async fn depth(&self) -> u64 {
        self.shop.groups(EVENT).await.expect("groups")[0].ready
    }
}

#[tokio::test]
async fn what_equals_an_earlier_message_is_sent_once() {
    let bed = bed().await;
    let first = bed.ask(r#"{"a":1,"b":2.0}"#).await.expect("first");
    assert_eq!(first.cached, Some(false));
    let same = bed.ask(r#"{ "b": 2, "a": 1 }"#).await.expect("the same");
    assert_eq!((same.process_id, same.cached), (first.process_id, Some(true)));
    let other = bed.ask(r#"{"a":1,"b":3}"#).await.expect("other");
    let keyed = bed.shop.produce_raw(EVENT, r#"{"a":1,"b":2}"#).key("k").cache("recent").await.expect("keyed");
    let dev = bed.trunkline.env("shop", "dev").produce_raw(EVENT, r#"{"a":1,"b":2}"#).cache("recent").await.expect("dev");
    assert!([other, keyed, dev].iter().all(|receipt| receipt.cached == Some(false)));
    assert_eq!(bed.depth().await, 3);
    let values = bed.trunkline.cache_values("shop", "recent", 1, 3).await.expect("values");
    assert_eq!((values.values.len(), values.total, values.has_more), (3, 4, true));
    assert_eq!(bed.trunkline.cache_values("shop", "recent", 2, 3).await.expect("values").values[0].process_id, first.process_id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn equal_messages_at_the_same_time_are_sent_once() {
    let bed = bed().await;
    let all = futures_util::future::join_all((0..32).map(|_| bed.ask("{}"))).await;
    let ids: std::collections::HashSet<_> = all.iter().map(|receipt| receipt.as_ref().expect("receipt").process_id).collect();
    let sent = all.iter().filter(|receipt| receipt.as_ref().is_ok_and(|receipt| receipt.cached == Some(false))).count();
    assert_eq!((ids.len(), sent, bed.depth().await), (1, 1, 1));
}

#[tokio::test]
async fn an_unknown_cache_sends_nothing() {
    let bed = bed().await;
    let produce = || bed.shop.produce(EVENT, &json!({})).cache("recnt").idempotency_key("k");
    let error = produce().await.expect_err("unknown");
    assert_eq!((error.code(), error.detail_str("didYouMean")), (Code::CacheNotFound, Some("recent")));
    assert_eq!(produce().await.expect_err("the key is free again").code(), Code::CacheNotFound);
    assert_eq!(bed.depth().await, 0);
    let consume = bed.shop.consume(EVENT, |_: serde_json::Value, _| async {});
    let options = crate::ConsumeOptions { cache: Some("recnt".into()), ..Default::default() };
    assert_eq!(consume.options(options).await.expect_err("unknown").code(), Code::CacheNotFound);
}

#[tokio::test]
async fn cleared_shortened_and_deleted_caches_know_nothing() {
    let bed = bed().await;
    let first = bed.ask("{}").await.expect("first").process_id;
    assert_eq!(bed.trunkline.clear_cache("shop", "recent").await.expect("clear"), 1);
    let second = bed.ask("{}").await.expect("second");
    assert_ne!(second.process_id, first);
    tokio::time::sleep(Duration::from_millis(5)).await;
    bed.trunkline.catalog().update_cache(Some("shop"), "recent", json!({ "expiry": 1 })).await.expect("update");
    assert_eq!(bed.trunkline.cache_values("shop", "recent", 1, 20).await.expect("values").total, 0);
    assert_eq!(bed.ask("{}").await.expect("third").cached, Some(false));
    bed.trunkline.delete_cache("shop", "recent").await.expect("delete");
    assert_eq!(bed.ask("{}").await.expect_err("gone").code(), Code::CacheNotFound);
    assert_eq!(bed.trunkline.cache_values("shop", "recent", 0, 20).await.expect_err("page").detail_str("field"), Some("page"));
}

#[tokio::test]
async fn a_store_that_is_down_is_a_miss() {
    let bed = bed().await;
    bed.ask("{}").await.expect("first");
    let file = bed.dir.path().join("data").join("state.db");
    rusqlite::Connection::open(file).expect("open").execute_batch("DROP TABLE cache_value").expect("no values to be had");
    for _ in 0..2 {
        assert_eq!(bed.ask("{}").await.expect("sent all the same").cached, Some(false));
    }
    assert_eq!(bed.depth().await, 3);
}

#[tokio::test]
async fn a_hit_leaves_the_idempotency_key_free() {
    let bed = bed().await;
    let first = bed.ask("{}").await.expect("first").process_id;
    let hit = bed.shop.produce_raw(EVENT, "{}").cache("recent").idempotency_key("k").await.expect("hit");
    assert_eq!((hit.process_id, hit.cached, hit.duplicate), (first, Some(true), Some(false)));
    let other = bed.shop.produce_raw(EVENT, r#"{"other":1}"#).idempotency_key("k").await.expect("the key was not used");
    assert_eq!(other.duplicate, Some(false));
}
