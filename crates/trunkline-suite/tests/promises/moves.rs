//! An env that moves to another server under running programs: both sides are consumed until nothing is left on the old one.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};
use trunkline::{ConsumeOptions, Context, MessageId, State, Verdict};

use trunkline_suite::promise::{Bed, EVENT, Lot, Seen, retries};

/// Waits longer than the others: an old server must be quiet for ten seconds before it is left.
async fn until_long(what: &str, condition: impl AsyncFn() -> bool) {
    let end = tokio::time::Instant::now() + Duration::from_secs(60);
    while !condition().await {
        assert!(tokio::time::Instant::now() < end, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn move_to(bed: &Bed, path: &str, cut: bool) -> Value {
    move_by(bed, cut, json!({ "path": path })).await
}

async fn move_by(bed: &Bed, cut: bool, config: Value) -> Value {
    let patch = json!({ "cut": cut, "envs": [{ "slug": "prd", "type": "EMBEDDED", "config": config }] });
    serde_json::to_value(bed.trunkline.update_broker(Some("shop"), "orders", patch).await.expect("it moves")).expect("JSON")
}

fn is_leaving(bed: &Bed) -> bool {
    let broker = bed.trunkline.catalog().fetch_broker("shop", "orders").expect("the catalogue").expect("the broker");
    !broker.envs[0].leaving.is_empty()
}

/// Key, number and id.
type Produced = (u64, u64, MessageId);

/// Produces all the time; what was confirmed.
fn producing(bed: &Bed, keys: u64) -> (Arc<AtomicBool>, tokio::task::JoinHandle<Vec<Produced>>) {
    let (env, end) = (bed.env.clone(), Arc::new(AtomicBool::new(false)));
    let stop = end.clone();
    let task = tokio::spawn(async move {
        let mut confirmed = Vec::new();
        for n in 0.. {
            if stop.load(Ordering::SeqCst) {
                break;
            }
            let key = n % keys;
            let receipt = env.produce(EVENT, &json!({ "key": key, "n": n })).key(format!("k{key}")).await.expect("confirmed");
            confirmed.push((key, n, receipt.process_id));
        }
        confirmed
    });
    (end, task)
}

async fn moves(lot: Lot) {
    let bed = Bed::new(lot).await;
    let another = bed.another().await;
    // Every seventh message fails once, so that some wait for a retry while the env moves.
    let (seen, failed) = (Seen::new(), Arc::new(Mutex::new(std::collections::HashSet::new())));
    let s = seen.clone();
    let handler = move |payload: Value, context: Context| {
        let fails = payload["n"].as_u64().expect("a number").is_multiple_of(7) && failed.lock().insert(context.process_id);
        if !fails {
            s.push(context.process_id);
        }
        async move { if fails { Err("not yet") } else { Ok(()) } }
    };
    let options = ConsumeOptions { retry: Some(retries(&[300, 300, 300])), breaker: Some(false), ..ConsumeOptions::default() };
    let consumer = bed.env.consume(EVENT, handler).options(options).await.expect("it starts");
    let (here, there) = (producing(&bed, 8), producing(&another, 8));
    seen.wait(200).await;
    let late = bed.env.produce(EVENT, &json!({ "n": 1 })).delay(Duration::from_secs(2)).await.expect("it waits").process_id;
    let update = move_to(&bed, "second", false).await;
    assert_eq!(update["scope"], "host", "{update}");
    assert!(is_leaving(&bed));
    seen.wait(seen.all().len() + 500).await;
    here.0.store(true, Ordering::SeqCst);
    there.0.store(true, Ordering::SeqCst);
    let mut confirmed: Vec<MessageId> = here.1.await.expect("it ends").into_iter().map(|(_, _, id)| id).collect();
    confirmed.extend(there.1.await.expect("it ends").into_iter().map(|(_, _, id)| id));
    confirmed.push(late);
    until_long("all that was confirmed comes", async || {
        let all: std::collections::HashSet<_> = seen.all().into_iter().collect();
        confirmed.iter().all(|id| all.contains(id))
    })
    .await;
    until_long("the old server is left", async || !is_leaving(&bed)).await;
    assert_eq!(consumer.state(), State::Live);
    let last = bed.produce(1).await;
    until_long("what comes to the new server alone is handled", async || seen.all().contains(&last)).await;
    another.close().await;
    bed.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_while_an_env_moves() {
    moves(Lot::Store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_while_an_env_moves_with_the_lot_on_the_broker() {
    moves(Lot::Topics).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_keep_their_order_while_an_env_moves() {
    let bed = Bed::ordered().await;
    let (consumer, seen) =
        bed.watch(|payload, _| (payload["key"].as_u64().expect("a key"), payload["n"].as_u64().expect("a number"))).await;
    let (end, task) = producing(&bed, 5);
    seen.wait(200).await;
    move_to(&bed, "second", false).await;
    // The new side begins when the old one has been empty for a while; until then what is produced waits there.
    until_long("the old server is left", async || !is_leaving(&bed)).await;
    end.store(true, Ordering::SeqCst);
    let confirmed = task.await.expect("it ends");
    until_long("all that was confirmed comes", async || seen.all().len() >= confirmed.len()).await;
    let mut last: HashMap<u64, u64> = HashMap::new();
    for (key, n) in seen.all() {
        let before = last.insert(key, n);
        assert!(before.is_none_or(|before| before < n), "key {key}: {n} after {before:?}");
    }
    assert_eq!(seen.all().len(), confirmed.len());
    consumer.close(Duration::from_secs(5)).await;
    bed.close().await;
}

/// What was left behind is taken by a consumer that starts when the env has moved already.
#[tokio::test(flavor = "multi_thread")]
async fn who_starts_in_the_middle_takes_what_is_left() {
    let bed = Bed::new(Lot::Store).await;
    let mut ids = Vec::new();
    for n in 0..20 {
        ids.push(bed.produce(n).await);
    }
    let update = move_to(&bed, "second", false).await;
    assert_eq!(update["leftBehind"][0]["depth"], 20, "{update}");
    ids.push(bed.produce(20).await);
    let another = bed.another().await;
    let (_consumer, seen) = another.watch(|_, c| c.process_id).await;
    let mut all = seen.wait(21).await;
    all.sort();
    ids.sort();
    assert_eq!(all, ids);
    another.close().await;
    bed.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_gives_the_old_server_up() {
    let bed = Bed::new(Lot::Store).await;
    let (consumer, seen) = bed.watch(|_, c| c.process_id).await;
    let first = bed.produce(1).await;
    assert_eq!(seen.wait(1).await, [first]);
    consumer.pause();
    let left = bed.produce(2).await;
    let update = move_to(&bed, "second", true).await;
    assert!(!is_leaving(&bed) && update["scope"].is_null() && update["leftBehind"][0]["depth"] == 1, "{update}");
    consumer.resume();
    let new = bed.produce(3).await;
    assert_eq!(seen.wait(2).await, [first, new]);
    // It is still there for who goes back.
    move_by(&bed, true, json!({})).await;
    assert_eq!(seen.wait(3).await, [first, new, left]);
    consumer.close(Duration::from_secs(5)).await;
    bed.close().await;
}

/// A consumer that settles by verdict keeps its options on the new side.
#[tokio::test(flavor = "multi_thread")]
async fn the_new_side_works_as_the_old_one_did() {
    let bed = Bed::new(Lot::Store).await;
    let seen = Seen::new();
    let s = seen.clone();
    let handler = move |_: Value, context: Context| {
        s.push((context.group.to_string(), context.process_id));
        async { Verdict::Bury("not wanted".into()) }
    };
    let consumer = bed.env.consume(EVENT, handler).group("audit").await.expect("it starts");
    let old = bed.produce(1).await;
    seen.wait(1).await;
    move_to(&bed, "second", false).await;
    let new = bed.produce(2).await;
    assert_eq!(seen.wait(2).await, [("audit".to_owned(), old), ("audit".to_owned(), new)]);
    consumer.close(Duration::from_secs(5)).await;
    let dead = bed.env.dead_letters(&trunkline::dead_letter::DeadFilter::default(), 1, 10).await.expect("a list");
    assert_eq!(dead.1, 2);
    bed.close().await;
}
