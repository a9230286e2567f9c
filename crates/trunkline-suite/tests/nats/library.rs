//! The whole library over NATS: produce, consume, retry, dead letter, with the lot on the broker and in the store.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use trunkline::{ConsumeOptions, Context, Env, Trunkline};
use trunkline_suite::promise::{Seen, retries, until};
use trunkline_suite::server::setting;

use crate::bed::fresh;

const EVENT: &str = "orders:created";

async fn instance(single_host: bool, topic: Value) -> (Trunkline, Env, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let url = dir.path().join("data");
    let trunkline = Trunkline::builder().url(url.to_string_lossy()).single_host(single_host).open().await.unwrap();
    let config = json!({ "servers": setting("NATS"), "prefix": fresh("lib") });
    let broker = json!({ "name": "Orders", "tag": "orders", "envs": [{ "slug": "prd", "type": "NATS", "config": config }] });
    trunkline.catalog().create_broker(Some("shop"), broker).await.unwrap();
    let mut fields = json!({ "name": "Created", "tag": EVENT });
    fields.as_object_mut().unwrap().extend(topic.as_object().unwrap().clone());
    trunkline.catalog().create_topic(Some("shop"), fields).await.unwrap();
    let env = trunkline.env("shop", "prd");
    (trunkline, env, dir)
}

/// One message is handled at once, one after a held and a longer wait, one never.
async fn handles_retries_and_buries(single_host: bool) {
    let (trunkline, env, _dir) = instance(single_host, json!({})).await;
    let (seen, failures) = (Seen::new(), Arc::new(AtomicU32::new(0)));
    let (s, f) = (seen.clone(), failures.clone());
    let options = ConsumeOptions { retry: Some(retries(&[100, 5_100])), ..ConsumeOptions::default() };
    let consumer = env
        .consume(EVENT, move |payload: Value, context: Context| {
            let (s, f) = (s.clone(), f.clone());
            async move {
                let n = payload["n"].as_u64().unwrap();
                if n == 2 || (n == 1 && context.attempts() < 2) {
                    f.fetch_add(1, Ordering::SeqCst);
                    return Err("not now".to_owned());
                }
                s.push(n);
                Ok(())
            }
        })
        .options(options)
        .await
        .unwrap();
    for n in 0..3 {
        env.produce(EVENT, &json!({ "n": n })).await.unwrap();
    }
    let mut handled = seen.wait(2).await;
    handled.sort_unstable();
    assert_eq!(handled, [0, 1]);
    until("the third is buried", || async { env.dead_letters().list().await.is_ok_and(|page| page.items.len() == 1) }).await;
    assert_eq!(failures.load(Ordering::SeqCst), 5, "two of the second, three of the third");
    consumer.close(Duration::from_secs(10)).await;
    trunkline.close(Duration::from_secs(10)).await;
}

#[tokio::test]
async fn with_the_lot_on_the_broker() {
    handles_retries_and_buries(false).await;
}

#[tokio::test]
async fn with_the_lot_in_the_store() {
    handles_retries_and_buries(true).await;
}
