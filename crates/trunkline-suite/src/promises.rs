//! What every route promises, as programs for any server: through `Trunkline`, with both forms of the lot.
//!
//! [`promise_tests!`](crate::promise_tests) makes tests of them, [`restarts`] is for a server of one's own: it is killed.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::{Value, json};
use trunkline::dead_letter::{DeadFilter, Reprocess};
use trunkline::removal::Removal;
use trunkline::{Code, ConsumeOptions, Context, MessageId};

use crate::promise::{Bed, EVENT, Lot, Seen, Site, retries};
use crate::server::{Act, Server};

#[expect(dead_code, reason = "its `main` is for those who run it by hand")]
#[path = "../../trunkline/examples/two_groups.rs"]
mod two_groups;

/// Longer than any server keeps what a dead member had in hand, and than what waits in a tier comes late.
const LONG: Duration = Duration::from_secs(120);

/// Makes a test of each promise on a site.
#[macro_export]
macro_rules! promise_tests {
    ($site:expr) => {
        $crate::promise_tests!(@ $site,
            a_failure_is_tried_again_then_buried_then_handed_over_again_by_the_store,
            a_failure_is_tried_again_then_buried_then_handed_over_again_by_the_broker,
            a_wait_outlives_its_consumer_in_the_store,
            a_wait_outlives_its_consumer_on_the_broker,
            a_delayed_publish_comes_when_it_is_due_from_the_store,
            a_delayed_publish_comes_when_it_is_due_from_the_broker,
            keys_keep_their_order_across_members_with_failures_and_deaths,
            order_with_waits_is_kept_or_refused_without_a_store_that_all_share,
            each_group_gets_everything,
            the_example_with_two_groups_runs_there_unchanged,
            an_idempotency_key_is_published_once,
            a_handler_may_take_longer_than_a_lease,
            one_poison_message_stops_nobody,
            an_env_moves_there_and_back,
        );
    };
    (@ $site:expr, $($name:ident,)*) => {
        $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                $crate::promises::$name($site).await;
            }
        )*
    };
}

async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    let end = Instant::now() + LONG;
    while !condition().await {
        assert!(Instant::now() < end, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn seen_all<T: Clone>(seen: &Seen<T>, n: usize) -> Vec<T> {
    until("all are seen", async || seen.all().len() >= n).await;
    seen.all()
}

async fn dead(bed: &Bed) -> u64 {
    bed.env.dead_letters(&DeadFilter::default(), 1, 1).await.expect("a list").1
}

async fn life_of_a_failure(site: Site, lot: Lot) {
    let bed = Bed::on(site, lot, json!({})).await;
    let (fixed, seen) = (Arc::new(AtomicBool::new(false)), Seen::new());
    let (f, s) = (fixed.clone(), seen.clone());
    let handler = move |payload: Value, c: Context| {
        s.push((c.process_id, payload, c.attempt, c.headers.get_str("tenant").map(str::to_owned)));
        let ok = f.load(Ordering::SeqCst);
        async move { if ok { Ok(()) } else { Err("broken") } }
    };
    let options = ConsumeOptions { retry: Some(retries(&[150, 150])), breaker: Some(false), ..ConsumeOptions::default() };
    let _consumer = bed.env.consume(EVENT, handler).options(options).await.expect("it starts");
    let id = bed.env.produce(EVENT, &json!({ "n": 1 })).key("k").header("tenant", "ä").await.expect("confirmed").process_id;
    let runs = seen_all(&seen, 3).await;
    assert!(runs.iter().all(|run| run.0 == id && run.1 == json!({ "n": 1 }) && run.3.as_deref() == Some("ä")), "{runs:?}");
    assert_eq!(runs.iter().map(|run| run.2).collect::<Vec<_>>(), [1, 2, 3]);
    until("it is dead", async || dead(&bed).await == 1).await;
    fixed.store(true, Ordering::SeqCst);
    let done = bed.env.reprocess(Reprocess::default()).await.expect("reprocessed");
    assert_eq!((done.matched, done.reprocessed, done.failed), (1, 1, 0));
    let again = seen_all(&seen, 4).await;
    assert_eq!((again[3].0, again[3].2), (id, 1), "the same message, its attempts from the start");
    until("none is dead", async || dead(&bed).await == 0).await;
    bed.clear().await;
}

/// # Panics
/// If the promise is broken, as all of these.
pub async fn a_failure_is_tried_again_then_buried_then_handed_over_again_by_the_store(site: Site) {
    life_of_a_failure(site, Lot::Store).await;
}

#[expect(missing_docs, reason = "the name says it")]
pub async fn a_failure_is_tried_again_then_buried_then_handed_over_again_by_the_broker(site: Site) {
    life_of_a_failure(site, Lot::Topics).await;
}

/// A wait too long to be held is written down before the original is acked.
async fn wait_of_a_dead(site: Site, lot: Lot) {
    let bed = Bed::on(site, lot, json!({})).await;
    let other = bed.another().await;
    let options = || ConsumeOptions { retry: Some(retries(&[7_000])), breaker: Some(false), ..ConsumeOptions::default() };
    let first = Seen::new();
    let s = first.clone();
    let fails = move |_: Value, c: Context| {
        s.push(c.attempt);
        async { Err::<(), _>("not yet") }
    };
    let consumer = bed.env.consume(EVENT, fails).options(options()).await.expect("it starts");
    let id = bed.produce(1).await;
    seen_all(&first, 1).await;
    until("it waits, and nothing is in hand", async || consumer.in_flight() == 0 && consumer.settled() == 1).await;
    drop(consumer);
    let (_consumer, seen) = other.watch_with(options(), |_, c| (c.process_id, c.attempt)).await;
    assert_eq!(seen_all(&seen, 1).await, [(id, 2)]);
    other.close().await;
    bed.clear().await;
}

#[expect(missing_docs, reason = "the name says it")]
pub async fn a_wait_outlives_its_consumer_in_the_store(site: Site) {
    wait_of_a_dead(site, Lot::Store).await;
}

#[expect(missing_docs, reason = "the name says it")]
pub async fn a_wait_outlives_its_consumer_on_the_broker(site: Site) {
    wait_of_a_dead(site, Lot::Topics).await;
}

async fn delayed(site: Site, lot: Lot) {
    let bed = Bed::on(site, lot, json!({})).await;
    let (_consumer, seen) = bed.watch(|_, c| (c.process_id, Instant::now())).await;
    let start = Instant::now();
    let late = bed.env.produce(EVENT, &1).delay(Duration::from_secs(3)).await.expect("it waits").process_id;
    let at_once = bed.env.produce(EVENT, &2).await.expect("confirmed").process_id;
    let all = seen_all(&seen, 2).await;
    assert_eq!([all[0].0, all[1].0], [at_once, late]);
    assert!(all[1].1.duration_since(start) >= Duration::from_secs(3));
    bed.clear().await;
}

#[expect(missing_docs, reason = "the name says it")]
pub async fn a_delayed_publish_comes_when_it_is_due_from_the_store(site: Site) {
    delayed(site, Lot::Store).await;
}

#[expect(missing_docs, reason = "the name says it")]
pub async fn a_delayed_publish_comes_when_it_is_due_from_the_broker(site: Site) {
    delayed(site, Lot::Topics).await;
}

/// Three members on three instances; every fifth message of a key fails once, and a member stops without a word.
///
/// # Panics
/// If a key is out of order or something is missing.
pub async fn keys_keep_their_order_across_members_with_failures_and_deaths(site: Site) {
    const KEYS: u64 = 8;
    const EACH: u64 = 40;
    let bed = Bed::on(site, Lot::Store, json!({ "ordering": "key", "shards": 4 })).await;
    let others = [bed.another().await, bed.another().await];
    // In the order in which handlers succeeded; under one lock, so that this order is one.
    let done: Arc<Mutex<Vec<(u64, u64)>>> = Arc::default();
    let mut consumers = Vec::new();
    for of in [&bed, &others[0], &others[1]] {
        let done = done.clone();
        let handler = move |payload: Value, c: Context| {
            let (key, n) = (payload["key"].as_u64().expect("a key"), payload["n"].as_u64().expect("a number"));
            let done = done.clone();
            async move {
                tokio::time::sleep(Duration::from_millis(2)).await;
                if n % 5 == 2 && c.attempt == 1 {
                    return Err("not yet");
                }
                done.lock().push((key, n));
                Ok(())
            }
        };
        let options = ConsumeOptions { retry: Some(retries(&[50, 50, 50, 50])), breaker: Some(false), ..ConsumeOptions::default() };
        consumers.push(of.env.consume(EVENT, handler).options(options).await.expect("it starts"));
    }
    for n in 0..EACH {
        for key in 0..KEYS {
            bed.env.produce(EVENT, &json!({ "key": key, "n": n })).key(format!("k{key}")).await.expect("confirmed");
        }
        if n == EACH / 2 {
            drop(consumers.pop());
        }
    }
    until("every message of every key is handled", async || done.lock().iter().collect::<HashSet<_>>().len() as u64 == KEYS * EACH).await;
    let mut furthest: HashMap<u64, u64> = HashMap::new();
    let mut handled = HashSet::new();
    for (key, n) in done.lock().iter().copied() {
        // At least once: what was handled before may come again, but nothing new before its turn.
        if handled.insert((key, n)) {
            let expected = furthest.entry(key).or_default();
            assert_eq!(n, *expected, "key {key} out of order");
            *expected += 1;
        }
    }
    for other in others {
        other.close().await;
    }
    bed.clear().await;
}

/// Where waits would lie in a store that other hosts do not see, a consumer of an ordered topic that retries is refused, unless
/// the provider keeps both by itself.
///
/// # Panics
/// If it is neither refused as documented nor kept.
pub async fn order_with_waits_is_kept_or_refused_without_a_store_that_all_share(site: Site) {
    let bed = Bed::on(site, Lot::Topics, json!({ "ordering": "key", "shards": 2 })).await;
    let seen = Seen::new();
    let s = seen.clone();
    let handler = move |payload: Value, c: Context| {
        let fails = payload["n"] == 0 && c.attempt == 1;
        if !fails {
            s.push(payload["n"].as_u64().expect("a number"));
        }
        async move { if fails { Err("not yet") } else { Ok(()) } }
    };
    match bed.env.consume(EVENT, handler).retry(retries(&[200, 7_000])).await {
        Err(error) => {
            assert_eq!(error.code(), Code::CapabilityUnsupported, "{error:?}");
            assert!(error.detail_str("next").is_some_and(|next| next.contains("singleHost") || next.contains("retry")), "{error:?}");
        }
        Ok(_consumer) => {
            for n in 0..5 {
                bed.produce_keyed("k", n).await;
            }
            assert_eq!(seen_all(&seen, 5).await, [0, 1, 2, 3, 4]);
        }
    }
    bed.clear().await;
}

/// # Panics
/// If a group misses something.
pub async fn each_group_gets_everything(site: Site) {
    let bed = Bed::on(site, Lot::Store, json!({})).await;
    let mut groups = Vec::new();
    for group in ["billing", "audit"] {
        let options = ConsumeOptions { group: Some(group.into()), ..ConsumeOptions::default() };
        groups.push(bed.watch_with(options, |_, c| c.process_id).await);
    }
    let mut sent = HashSet::new();
    for n in 0..300 {
        sent.insert(bed.produce(n).await);
    }
    for (_, seen) in &groups {
        until("the group has all", async || seen.all().into_iter().collect::<HashSet<_>>() == sent).await;
    }
    bed.clear().await;
}

/// The example's own file, which names no broker: the env alone is another.
///
/// # Panics
/// If one of its groups does not get every order.
pub async fn the_example_with_two_groups_runs_there_unchanged(site: Site) {
    let bed = Bed::on(site.clone(), Lot::Store, json!({})).await;
    let (catalog, how) = (bed.trunkline.catalog(), Removal { purge: true, force: true });
    let env = json!({ "slug": "prd", "type": site.kind, "config": site.config });
    let broker = json!({ "name": "Order Events", "tag": "order-events", "envs": [env] });
    catalog.create_broker(Some("my-product"), broker).await.expect("a broker");
    let topic = json!({ "name": "Order Created", "tag": "order-events:order-created" });
    catalog.create_topic(Some("my-product"), topic).await.expect("a topic");
    two_groups::run(&bed.trunkline, "my-product", "prd").await.expect("both groups get every order");
    bed.trunkline.delete_broker("my-product", "order-events", how).await.expect("it is removed");
    bed.clear().await;
}

/// # Panics
/// If it is published twice.
pub async fn an_idempotency_key_is_published_once(site: Site) {
    let bed = Bed::on(site, Lot::Store, json!({})).await;
    let (_consumer, seen) = bed.watch(|payload, _| payload["n"].as_u64()).await;
    let mut receipts = Vec::new();
    for _ in 0..3 {
        receipts.push(bed.env.produce(EVENT, &json!({ "n": 1 })).idempotency_key("order-1").await.expect("confirmed"));
    }
    assert!(receipts.iter().all(|receipt| receipt.process_id == receipts[0].process_id));
    assert_eq!(receipts.iter().map(|receipt| receipt.duplicate).collect::<Vec<_>>(), [Some(false), Some(true), Some(true)]);
    let error = bed.env.produce(EVENT, &json!({ "n": 2 })).idempotency_key("order-1").await.expect_err("another payload");
    assert_eq!(error.code(), Code::IdempotencyConflict);
    bed.produce(3).await;
    seen_all(&seen, 2).await;
    assert_eq!(seen.all().iter().filter(|n| **n == Some(1)).count(), 1);
    bed.clear().await;
}

/// Longer than the lease of any provider: 30 s where a server has one.
///
/// # Panics
/// If it is handed out again meanwhile.
pub async fn a_handler_may_take_longer_than_a_lease(site: Site) {
    let bed = Bed::on(site, Lot::Store, json!({})).await;
    let (began, ended) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let handler = {
        let (began, ended) = (began.clone(), ended.clone());
        move |_: Value, _: Context| {
            let (began, ended) = (began.clone(), ended.clone());
            async move {
                began.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_secs(40)).await;
                ended.fetch_add(1, Ordering::SeqCst);
            }
        }
    };
    let consumer = bed.env.consume(EVENT, handler).timeout(Duration::from_secs(90)).await.expect("it starts");
    for n in 0..3 {
        bed.produce(n).await;
    }
    until("all are handled and settled", async || ended.load(Ordering::SeqCst) >= 3 && consumer.in_flight() == 0).await;
    assert_eq!((began.load(Ordering::SeqCst), ended.load(Ordering::SeqCst)), (3, 3), "a message was handed out beside its handler");
    bed.clear().await;
}

/// # Panics
/// If the others wait for it.
pub async fn one_poison_message_stops_nobody(site: Site) {
    let bed = Bed::on(site, Lot::Store, json!({})).await;
    let seen = Seen::new();
    let s = seen.clone();
    let handler = move |payload: Value, c: Context| {
        let poison = payload["n"] == 7;
        if !poison {
            s.push(c.process_id);
        }
        async move { if poison { Err("poison") } else { Ok(()) } }
    };
    let options = ConsumeOptions { retry: Some(retries(&[100, 100])), breaker: Some(false), ..ConsumeOptions::default() };
    let _consumer = bed.env.consume(EVENT, handler).options(options).await.expect("it starts");
    for n in 0..100 {
        bed.produce(n).await;
    }
    seen_all(&seen, 99).await;
    until("it is dead", async || dead(&bed).await == 1).await;
    bed.clear().await;
}

/// A running program, two groups, and an env that moves from the embedded broker to the server and back: nothing is lost.
///
/// # Panics
/// If something is lost.
pub async fn an_env_moves_there_and_back(site: Site) {
    let bed = Bed::on(Site::embedded(json!({})), Lot::Store, json!({})).await;
    let mut groups = Vec::new();
    for group in ["billing", "audit"] {
        let options = ConsumeOptions { group: Some(group.into()), ..ConsumeOptions::default() };
        groups.push(bed.watch_with(options, |_, c| c.process_id).await);
    }
    let (env, end) = (bed.env.clone(), Arc::new(AtomicBool::new(false)));
    let stop = end.clone();
    let producing = tokio::spawn(async move {
        let mut confirmed = Vec::new();
        while !stop.load(Ordering::SeqCst) {
            confirmed.push(env.produce(EVENT, &json!({ "n": confirmed.len() })).await.expect("confirmed").process_id);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        confirmed
    });
    let more = async || {
        let n = groups[0].1.all().len();
        seen_all(&groups[0].1, n + 100).await;
    };
    let move_to = async |site: &Site| {
        let patch = json!({ "envs": [{ "slug": "prd", "type": site.kind, "config": site.config }] });
        bed.trunkline.update_broker(Some("shop"), "orders", patch).await.expect("it moves");
    };
    more().await;
    move_to(&site).await;
    more().await;
    move_to(&Site::embedded(json!({ "path": "second" }))).await;
    more().await;
    end.store(true, Ordering::SeqCst);
    let confirmed: HashSet<MessageId> = producing.await.expect("it ends").into_iter().collect();
    for (_, seen) in &groups {
        until("each group has all that was confirmed", async || confirmed.is_subset(&seen.all().into_iter().collect())).await;
    }
    move_to(&site).await;
    bed.clear().await;
}

/// At least so many messages while the server is killed and started again so often: more, as long as it takes until the last
/// restart is over. Everything that was confirmed is handled; what it came to is printed.
///
/// # Panics
/// If a confirmed message is lost, or the program does not go on after a restart.
pub async fn restarts(name: &'static str, messages: usize, restarts: usize) {
    const CALLERS: usize = 50;
    let bed = Bed::on(Site::on(name), Lot::Store, json!({})).await;
    let (consumer, seen) = bed.watch(|_, c| c.process_id).await;
    bed.produce(0).await;
    seen_all(&seen, 1).await;
    let confirmed: Arc<Mutex<Vec<MessageId>>> = Arc::default();
    let (next, unsure, over) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let callers: Vec<_> = (0..CALLERS)
        .map(|_| {
            let (env, confirmed, next, unsure, over) = (bed.env.clone(), confirmed.clone(), next.clone(), unsure.clone(), over.clone());
            tokio::spawn(async move {
                loop {
                    let n = next.fetch_add(1, Ordering::SeqCst);
                    if n >= messages && over.load(Ordering::SeqCst) {
                        return;
                    }
                    match env.produce(EVENT, &json!({ "n": n })).await {
                        Ok(receipt) => confirmed.lock().push(receipt.process_id),
                        // Not confirmed within its deadline: another message takes its place.
                        Err(error) => {
                            assert!(error.details().contains_key("ambiguous"), "{error:?}");
                            unsure.fetch_add(1, Ordering::SeqCst);
                            next.fetch_sub(1, Ordering::SeqCst);
                        }
                    }
                }
            })
        })
        .collect();
    let server = Server::named(name);
    let mut returns = Vec::new();
    for restart in 1..=restarts {
        // Spread over the run: the next one when its part of the messages is confirmed.
        let due = messages * restart / (restarts + 1);
        until("enough are confirmed", async || confirmed.lock().len() >= due).await;
        server.act(Act::Restart).await;
        let (back, before) = (Instant::now(), (confirmed.lock().len(), seen.all().len()));
        until("it goes on after the restart", async || confirmed.lock().len() > before.0 && seen.all().len() > before.1).await;
        returns.push(back.elapsed());
    }
    over.store(true, Ordering::SeqCst);
    for caller in callers {
        caller.await.expect("a caller ends");
    }
    let all: HashSet<MessageId> = confirmed.lock().iter().copied().collect();
    let lost = async || all.len() - seen.all().iter().collect::<HashSet<_>>().iter().filter(|id| all.contains(id)).count();
    until("all that was confirmed is handled", async || lost().await == 0).await;
    let runs = seen.all();
    let handled: HashSet<_> = runs.iter().collect();
    returns.sort();
    println!(
        "{name}: {} confirmed, {} without a confirm, {restarts} restarts by SIGKILL; lost 0, handled {}, again {}; went on after {:?} (median), {:?} (worst)",
        all.len(),
        unsure.load(Ordering::SeqCst),
        handled.len(),
        runs.len() - handled.len(),
        returns[returns.len() / 2],
        returns[returns.len() - 1],
    );
    consumer.close(Duration::from_secs(10)).await;
    bed.clear().await;
}
