//! Real processes of whole programs on one data directory, some of which die: what others then make of it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;
use trunkline::dead_letter::DeadFilter;
use trunkline::history::{Query, StatsQuery, Status};
use trunkline::store::IdempotencyState;
use trunkline::{ConsumeOptions, Env, MessageId};
use trunkline_suite::app::{Apps, IN_HAND, SOME};
use trunkline_suite::ledger::Entry;
use trunkline_suite::promise::{EVENT, Seen, retries};

const PROGRAM: &str = env!("CARGO_BIN_EXE_suite-app");
/// After this the records of a process that is killed are written: 250 ms, and what a busy machine adds.
const RECORDED: u64 = 2_000;

async fn apps(dir: &TempDir) -> (Apps, Env) {
    let apps = Apps::new(PROGRAM, dir.path(), json!({})).await;
    let env = apps.trunkline.env("shop", "prd");
    (apps, env)
}

fn handled(entries: &[Vec<Entry>]) -> HashMap<MessageId, usize> {
    let mut handled = HashMap::new();
    for entry in entries.iter().flatten() {
        if let Entry::Handled { id, .. } = entry {
            *handled.entry(*id).or_default() += 1;
        }
    }
    handled
}

fn confirmed(entries: &[Vec<Entry>]) -> HashSet<MessageId> {
    let confirmed = |entry: &Entry| if let Entry::Confirmed(id) = entry { Some(*id) } else { None };
    entries.iter().flatten().filter_map(confirmed).collect()
}

async fn buried(env: &Env) -> u64 {
    env.dead_letters(&DeadFilter::default(), 1, 1).await.unwrap().1
}

/// A message that kills whoever handles it is buried; the others that were in the same hands are not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_kills_its_handlers_is_buried_as_a_crash_loop() {
    const NEIGHBOURS: usize = 60;
    let dir = TempDir::new().unwrap();
    let (mut apps, env) = apps(&dir).await;
    let mut neighbours = HashSet::new();
    let mut poison = None;
    for n in 0..=NEIGHBOURS {
        if n == NEIGHBOURS / 2 {
            poison = Some(env.produce(EVENT, &json!({ "poison": true })).await.unwrap().process_id);
        } else {
            neighbours.insert(env.produce(EVENT, &json!({ "neighbour": n })).await.unwrap().process_id);
        }
    }
    let mut deaths = 0;
    let mut at = apps.start("crash", "20");
    while buried(&env).await == 0 {
        if apps.workers[at].ended() {
            deaths += 1;
            assert!(deaths <= 25, "it goes on killing");
            at = apps.start("crash", "20");
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // Each death raises the count by one; at twenty hand-overs nobody gets it any more.
    assert!((15..=20).contains(&deaths), "{deaths} deaths");
    let (letters, total) = env.dead_letters(&DeadFilter::default(), 1, 10).await.unwrap();
    assert_eq!((total, letters[0].message.id), (1, poison.unwrap()));
    assert_eq!((letters[0].reason.as_deref(), &letters[0].message.payload[..]), (Some("crash_loop"), &br#"{"poison":true}"#[..]));
    apps.wait("the neighbours are handled", |entries| handled(entries).len() == NEIGHBOURS).await;
    let entries = apps.entries();
    let handled = handled(&entries);
    assert_eq!(handled.keys().copied().collect::<HashSet<_>>(), neighbours);
    // What a process had in its hands when it died may come once more; suspects are handed out one at a time.
    let repeated: usize = handled.values().map(|n| n - 1).sum();
    assert!(repeated <= 2 * IN_HAND + deaths, "{repeated} repeated by {deaths} deaths");
    apps.close().await;
}

async fn a_reprocess_goes_on_elsewhere(target: &str) {
    const DEAD: usize = 150;
    let dir = TempDir::new().unwrap();
    let (mut apps, env) = apps(&dir).await;
    let mut ids = HashSet::new();
    for n in 0..DEAD {
        ids.insert(env.produce(EVENT, &json!({ "n": n })).await.unwrap().process_id);
    }
    let buries = env
        .consume(EVENT, |_: trunkline::Raw, _: trunkline::Context| async { Err::<(), _>("broken") })
        .retry(retries(&[]))
        .breaker(false)
        .await
        .unwrap();
    while buried(&env).await < DEAD as u64 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    buries.close(Duration::from_secs(5)).await;
    let seen = Seen::new();
    let s = seen.clone();
    let consumer = env
        .consume(EVENT, move |_: trunkline::Raw, c: trunkline::Context| {
            s.push((c.process_id, c.attempt));
            async {}
        })
        .options(ConsumeOptions::default())
        .await
        .unwrap();
    let at = apps.start("reprocess", &format!("30 {target}"));
    let job = async || apps.trunkline.store().jobs("shop").await.unwrap().into_iter().next();
    while job().await.is_none_or(|job| job.done == 0) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    apps.workers[at].kill();
    let left = job().await.unwrap();
    assert!(left.done < DEAD as u64 && left.state == "running", "it was killed too late: {left:?}");
    let end = tokio::time::Instant::now() + Duration::from_secs(60);
    while job().await.is_none_or(|job| job.state == "running") {
        assert!(tokio::time::Instant::now() < end, "nobody goes on with it: {:?}", job().await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let done = job().await.unwrap();
    assert_eq!((done.state.as_str(), done.matched, done.done, done.failed), ("done", DEAD as u64, DEAD as u64, 0));
    let all = seen.wait(DEAD).await;
    consumer.close(Duration::from_secs(5)).await;
    assert_eq!(buried(&env).await, 0);
    assert!(all.iter().all(|(_, attempt)| *attempt == 1), "from the start again");
    let distinct: HashSet<MessageId> = all.iter().map(|(id, _)| *id).collect();
    assert_eq!(distinct.len(), DEAD, "each once");
    if target == "group" {
        assert_eq!(distinct, ids, "the same messages");
        assert_eq!(seen.all().len(), DEAD, "the ledger is exact, and nobody who handled them died");
    } else {
        assert!(distinct.is_disjoint(&ids), "new messages");
        // Of the step under way, some may have been produced twice, with the same ids.
        assert!(seen.all().len() <= DEAD + 30, "{} came", seen.all().len());
    }
    apps.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reprocess_to_the_group_outlives_its_process() {
    a_reprocess_goes_on_elsewhere("group").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reprocess_to_the_topic_outlives_its_process() {
    a_reprocess_goes_on_elsewhere("topic").await;
}

/// The claim runs out, and the next produce with the key goes on with the id that the dead one had.
async fn a_claim_is_taken_over(sent: bool) {
    let dir = TempDir::new().unwrap();
    let (mut apps, env) = apps(&dir).await;
    let at = apps.start("claim", if sent { "sent" } else { "unsent" });
    apps.ended(at).await;
    let key = format!("shop/prd/{EVENT}/key");
    let claimed = apps.trunkline.store().idempotency_get(&key).await.unwrap().expect("it died with a claim");
    assert_eq!(claimed.sent_at, None);
    let receipt = env.produce(EVENT, &json!({ "n": 1 })).idempotency_key("key").await.unwrap();
    assert_eq!((receipt.process_id, receipt.duplicate), (claimed.id, Some(false)));
    let again = env.produce(EVENT, &json!({ "n": 1 })).idempotency_key("key").await.unwrap();
    assert_eq!((again.process_id, again.duplicate), (claimed.id, Some(true)));
    assert!(matches!(apps.trunkline.store().idempotency_get(&key).await.unwrap(), Some(IdempotencyState { sent_at: Some(_), .. })));
    // One group as it is, one that dedupes: the broker may have it twice, and it is the same message.
    let mut handled = Vec::new();
    for (group, dedupe) in [("plain", None), ("dedupes", Some(Duration::from_secs(600)))] {
        let seen = Seen::new();
        let s = seen.clone();
        let options =
            ConsumeOptions { group: Some(group.into()), dedupe, concurrency: Some(1), prefetch: Some(1), ..ConsumeOptions::default() };
        let consumer = env
            .consume(EVENT, move |_: trunkline::Raw, c: trunkline::Context| {
                s.push(c.process_id);
                async {}
            })
            .options(options)
            .await
            .unwrap();
        let expected = if sent { 2 } else { 1 };
        while consumer.settled() < expected {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        consumer.close(Duration::from_secs(5)).await;
        assert!(seen.all().iter().all(|id| *id == claimed.id));
        handled.push(seen.all().len());
    }
    assert_eq!(handled, [if sent { 2 } else { 1 }, 1]);
    apps.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_whose_owner_died_before_it_sent_is_taken_over() {
    a_claim_is_taken_over(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_whose_owner_died_before_the_confirm_was_noted_is_taken_over() {
    a_claim_is_taken_over(true).await;
}

/// Every id of a query, page by page.
async fn all_ids(env: &Env, mut query: Query) -> HashMap<MessageId, Status> {
    let mut found = HashMap::new();
    query.limit = Some(1_000);
    loop {
        let page = env.messages(query.clone()).await.unwrap();
        assert_eq!(page.gaps, [], "nothing is damaged and nothing was left out");
        for record in &page.messages {
            assert!(found.insert(record.process_id, record.status).is_none(), "{} twice", record.process_id);
        }
        query.cursor = page.cursor;
        if !page.has_more {
            return found;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_is_killed_takes_the_last_of_its_history_with_it_and_no_more() {
    let dir = TempDir::new().unwrap();
    let (mut apps, env) = apps(&dir).await;
    let at = apps.start("produce", "1");
    let long_enough = |entries: &[Vec<Entry>]| {
        let ids = confirmed(entries);
        let times = || ids.iter().map(|id| id.millis());
        times().max().unwrap_or(0) - times().min().unwrap_or(0) > 2 * RECORDED
    };
    apps.wait("it produces for a while", long_enough).await;
    apps.workers[at].kill();
    let confirmed = confirmed(&apps.entries());
    let last = confirmed.iter().map(|id| id.millis()).max().unwrap();
    let found = all_ids(&env, Query::default()).await;
    let lost: Vec<_> = confirmed.iter().filter(|id| !found.contains_key(id)).collect();
    for id in &lost {
        assert!(last - id.millis() <= RECORDED, "{id} was confirmed {} ms before the end and is not in the history", last - id.millis());
    }
    // Only the records: the messages are there.
    let (consumer, seen) = {
        let seen = Seen::new();
        let s = seen.clone();
        let consumer = env.consume(EVENT, move |_: trunkline::Raw, c: trunkline::Context| {
            s.push(c.process_id);
            async {}
        });
        (consumer.await.unwrap(), seen)
    };
    seen.wait(confirmed.len()).await;
    consumer.close(Duration::from_secs(5)).await;
    let handled: HashSet<MessageId> = seen.all().into_iter().collect();
    assert!(confirmed.is_subset(&handled));
    println!("{} confirmed, {} without a record", confirmed.len(), lost.len());
    apps.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_processes_record_at_once_and_all_of_it_is_found() {
    let dir = TempDir::new().unwrap();
    let (mut apps, env) = apps(&dir).await;
    let producers = [0; 3].map(|_| apps.start("produce-some", "0"));
    apps.start("consume", "0");
    apps.start("consume", "0");
    for at in producers {
        apps.ended(at).await;
    }
    apps.wait_for_all().await;
    let ids = confirmed(&apps.entries());
    assert_eq!(ids.len() as u64, 3 * SOME);
    // The consumers live on; what they did is recorded within a moment, by each of them.
    let end = tokio::time::Instant::now() + Duration::from_secs(30);
    let found = loop {
        let found = all_ids(&env, Query::default()).await;
        if found.values().all(|status| *status == Status::Delivered) && found.len() == ids.len() {
            break found;
        }
        assert!(tokio::time::Instant::now() < end, "{} of {} are found", found.len(), ids.len());
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert_eq!(found.keys().copied().collect::<HashSet<_>>(), ids);
    for id in ids.iter().take(20) {
        let record = env.message(*id).await.unwrap().expect("by its id");
        assert_eq!((record.groups.len(), record.status), (1, Status::Delivered));
    }
    // By a term of the index, and by a text in the payload.
    let keyed = all_ids(&env, Query { key: Some("key-3".into()), ..Query::default() }).await;
    assert_eq!(keyed.len() as u64, 3 * (0..SOME).filter(|n| n % 7 == 3).count() as u64);
    let text = Query { text: Some("\"n\":500}".into()), budget: Some(Duration::from_secs(20)), ..Query::default() };
    assert_eq!(all_ids(&env, text).await.len(), 3);
    let figures = env.stats(StatsQuery::default()).await.unwrap();
    let counters = &figures.topics.iter().find(|topic| topic.event == EVENT).expect("the topic").counters;
    assert_eq!(counters.produced, 3 * SOME);
    assert!(counters.delivered >= 3 * SOME);
    apps.close().await;
}
