//! What a confirm survives, as the broker's config says, and what a topic may ask for.

use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use trunkline::Code;
use trunkline::capability::Durability;
use trunkline::provider::{Provider, TopicSpec};
use trunkline_suite::promise::{Bed, EVENT, Lot};

/// A bed whose broker has this config and whose topic asks for that, and what its provider says of itself.
async fn bed(config: Value, topic: Value) -> (Bed, impl Fn() -> Durability) {
    let provider: Arc<Mutex<Option<Arc<dyn Provider>>>> = Arc::default();
    let keep = provider.clone();
    let open = move |builder: trunkline::Builder| {
        builder.wrap_providers(move |provider| {
            *keep.lock().unwrap() = Some(provider.clone());
            provider
        })
    };
    let bed = Bed::with(Lot::Store, open, config, topic).await;
    let topic = TopicSpec::new("any", 1, false);
    (bed, move || provider.lock().unwrap().as_ref().unwrap().capabilities(&topic).durability)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_way_to_sync_says_what_it_is_worth_and_takes_what_asks_for_no_more() {
    let configs = [
        (json!({ "memory": true }), Durability::Memory),
        (json!({ "fsync": "interval" }), Durability::Written),
        (json!({}), Durability::Fsynced),
    ];
    for (config, worth) in configs {
        for wish in ["memory", "written", "fsynced", "replicated", "cloud"] {
            let (bed, says) = bed(config.clone(), json!({ "durability": wish })).await;
            let produced = bed.env.produce(EVENT, &1).await;
            assert_eq!(says(), worth);
            let wished: Durability = serde_json::from_value(json!(wish)).unwrap();
            match produced {
                Ok(_) => assert!(wished <= worth, "{config}: {wish} was promised"),
                Err(error) => {
                    assert!(wished > worth, "{config}: {wish} was refused: {error:?}");
                    assert_eq!(error.code(), Code::CapabilityUnsupported);
                    assert!(error.detail_str("next").is_some(), "{error:?}");
                }
            }
            bed.close().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_synced_now_and_then_is_there_for_others_at_once() {
    let (bed, says) = bed(json!({ "fsync": "interval" }), json!({})).await;
    let id = bed.produce(1).await;
    assert_eq!(says(), Durability::Written);
    let other = bed.another().await;
    let (_consumer, seen) = other.watch(|_, c| c.process_id).await;
    assert_eq!(seen.wait(1).await, [id]);
    other.close().await;
    bed.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_memory_works_and_is_gone_with_its_process() {
    let (bed, _) = bed(json!({ "memory": true }), json!({})).await;
    let ids = [bed.produce(1).await, bed.produce(2).await];
    let (_consumer, seen) = bed.watch(|_, c| c.process_id).await;
    assert_eq!(seen.wait(2).await.len(), 2);
    assert!(ids.iter().all(|id| seen.all().contains(id)));
    let other = bed.another().await;
    let depth = other.env.group(EVENT, "shop").await.unwrap();
    assert_eq!((depth.ready, depth.in_flight), (0, 0), "another process has a memory of its own");
    assert!(!bed.dir.path().join("data/log").join("topics").exists(), "nothing of it is on the disk");
    other.close().await;
    bed.close().await;
}
