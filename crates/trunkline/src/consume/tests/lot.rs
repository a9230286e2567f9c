//! What comes out of the lot is counted, and what dies on one host is dead on every host.

use parking_lot::Mutex;
use std::sync::Arc;

use super::*;
use crate::dead_letter::{DeadFilter, Reprocess, Target};
use crate::lot::Lot;
use crate::message::now_ms;
use crate::store::{LotClaim, LotEntry, LotMessage, LotState};
use crate::{Headers, MessageId};

/// What a consumer without a group is in.
const GROUP: &str = "shop";

fn waiting(bed: &Bed, n: u8) -> LotEntry {
    let message = LotMessage {
        id: MessageId::derived(now_ms(), &[&[n]]),
        key: None,
        headers: Headers::new(),
        payload: json!({ "n": n }).to_string().into(),
        produced_at: now_ms(),
        position: crate::delivery::Position::default(),
    };
    LotEntry {
        seq: 0,
        state: LotState::Waiting,
        address: crate::store::Address { product: "shop".into(), env: "prd".into(), event: EVENT.parse().expect("an event") },
        group: GROUP.into(),
        chain: None,
        due_at: bed.trunkline.store().now(),
        attempts: 1,
        reason: None,
        error: Some("the first failure".into()),
        died_at: None,
        job: None,
        deliveries: 0,
        message,
    }
}

/// Hands a message of the lot out to members that die, then to one that lives.
async fn after_deaths(on_broker: bool, deaths: usize) -> (Vec<u8>, Vec<LotEntry>) {
    let bed = Bed::new(|builder| builder.lot_on_broker(on_broker)).await;
    let store = bed.trunkline.store();
    let (killer, harmless) = (waiting(&bed, 1), waiting(&bed, 2));
    let address = killer.address.clone();
    if on_broker {
        let lot = bed.env.route(EVENT).await.expect("a route").lot_of(GROUP).expect("a lot");
        lot.ensure().await.expect("topics");
        lot.put(vec![killer.clone(), harmless]).await.expect("written");
        for _ in 0..deaths {
            store.lot_start(&address, GROUP, &[killer.message.id], true).await.expect("counted");
        }
    } else {
        store.lot_put(vec![killer.clone()]).await.expect("written");
        for n in 0..deaths {
            // A claim that nobody keeps is over at once.
            let owner = format!("dead-{n}");
            let claim = LotClaim { address: &address, group: GROUP, shards: None, limit: 1, owner: &owner, lease: Duration::ZERO };
            assert_eq!(store.lot_claim(claim).await.expect("claimed")[0].deliveries as usize, n + 1);
        }
        store.lot_put(vec![harmless]).await.expect("written");
    }
    let handled = Arc::new(Mutex::new(Vec::new()));
    let h = handled.clone();
    let consumer = bed
        .env
        .consume(EVENT, move |payload: Value, _: Context| {
            h.lock().push(payload["n"].as_u64().map_or(0, |n| n as u8));
            async {}
        })
        .retry(Schedule { delays: vec![Duration::from_secs(3_600)], jitter: 0.0 })
        .await
        .expect("it starts");
    until("both are settled", || consumer.settled() == 2).await;
    let (dead, _) = bed.env.dead_letters(&DeadFilter::default(), 1, 10).await.expect("a list");
    bed.trunkline.close(Duration::from_secs(5)).await;
    let mut handled = handled.lock().clone();
    handled.sort_unstable();
    (handled, dead)
}

async fn a_killer_is_buried(on_broker: bool) {
    // The twentieth hand-over without an outcome is none any more.
    let (handled, dead) = after_deaths(on_broker, 19).await;
    assert_eq!((handled, dead.len()), (vec![2], 1));
    let letter = &dead[0];
    assert_eq!((letter.reason.as_deref(), letter.attempts), (Some("crash_loop"), 1));
    assert_eq!(letter.message.payload, json!({ "n": 1 }).to_string());
    let (handled, dead) = after_deaths(on_broker, 18).await;
    assert_eq!((handled, dead.len()), (vec![1, 2], 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_kills_its_process_out_of_the_lot_is_buried() {
    a_killer_is_buried(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_kills_its_process_out_of_the_lot_on_the_broker_is_buried() {
    a_killer_is_buried(true).await;
}

/// An outcome ends the count: a message may be put off for as long as its handler likes.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_put_off_again_and_again_is_no_crash_loop() {
    for on_broker in [false, true] {
        let bed = Bed::new(|builder| builder.lot_on_broker(on_broker)).await;
        let route = bed.env.route(EVENT).await.expect("a route");
        match route.lot_of(GROUP) {
            Some(lot) => {
                lot.ensure().await.expect("topics");
                lot.put(vec![waiting(&bed, 1)]).await.expect("written");
            }
            None => bed.trunkline.store().lot_put(vec![waiting(&bed, 1)]).await.expect("written"),
        }
        let runs = watch::Sender::new(0);
        let r = runs.clone();
        // Nothing may be held, so that each retry goes through the lot.
        let handler = move |_: Raw, _: Context| {
            r.send_modify(|runs| *runs += 1);
            let last = *r.borrow() > 25;
            async move { if last { Verdict::Done } else { Verdict::RetryAfter(Duration::from_millis(1)) } }
        };
        let options =
            crate::ConsumeOptions { retry: Some(Schedule::never()), waits_per_second: Some(1e6), ..crate::ConsumeOptions::default() };
        let consumer = bed.env.consume(EVENT, handler).options(options).await.expect("it starts");
        consumer.engine().lanes.lock().hold_nothing();
        until("it is done", || *runs.borrow() > 25).await;
        until("it is settled", || consumer.in_flight() == 0).await;
        assert_eq!(bed.env.dead_letters(&DeadFilter::default(), 1, 1).await.expect("a list").1, 0);
        bed.trunkline.close(Duration::from_secs(5)).await;
    }
}

/// Two hosts: each with a data directory of its own, on one broker.
async fn two_hosts() -> (TempDir, Bed, Bed) {
    let broker = tempfile::tempdir().expect("a directory");
    let config = json!({ "path": broker.path().join("log") });
    let (a, b) = (Bed::on(config.clone(), |builder| builder.lot_on_broker(true)), Bed::on(config, |builder| builder.lot_on_broker(true)));
    let (a, b) = tokio::join!(a, b);
    (broker, a, b)
}

/// A consumer that fails for everything but payloads that are well.
async fn fussy(bed: &Bed) -> (Consumer, Arc<Mutex<Vec<MessageId>>>) {
    let handled = Arc::new(Mutex::new(Vec::new()));
    let h = handled.clone();
    let handler = move |payload: Value, context: Context| {
        let well = payload["well"] == true;
        if well {
            h.lock().push(context.process_id);
        }
        async move { if well { Ok(()) } else { Err("not well") } }
    };
    let consumer = bed.env.consume(EVENT, handler).retry(Schedule::never()).breaker(false).await.expect("it starts");
    (consumer, handled)
}

async fn dead(bed: &Bed) -> Vec<LotEntry> {
    bed.env.dead_letters(&DeadFilter::default(), 1, 100).await.expect("a list").0
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_on_the_broker_are_known_to_every_host() {
    let (_broker, a, b) = two_hosts().await;
    let (consumer, handled) = fussy(&a).await;
    a.produce(3, 1).await;
    until("all are dead", || consumer.settled() == 3).await;
    let (here, there) = (dead(&a).await, dead(&b).await);
    assert_eq!(there.len(), 3);
    let told = |entry: &LotEntry| (entry.message.clone(), entry.reason.clone(), entry.error.clone(), entry.attempts, entry.died_at);
    assert_eq!(here.iter().map(told).collect::<Vec<_>>(), there.iter().map(told).collect::<Vec<_>>());
    assert_eq!(there[0].reason.as_deref(), Some("attempts_exhausted"));

    // Edited on one host, it is edited on the other.
    let (edited, again, dropped) = (there[0].message.id, there[1].message.id, there[2].message.id);
    b.env.edit_dead_letter(edited, None, Some(json!({ "well": true }).to_string().into()), None).await.expect("edited");
    let seen = a.env.dead_letter(edited).await.expect("it is there");
    assert_eq!(seen[0].message.payload, json!({ "well": true }).to_string());

    // Handed over again by a host that has no consumer, it is handled on the one that has.
    let only = |id| DeadFilter { ids: vec![id], ..DeadFilter::default() };
    let done = b.env.reprocess(Reprocess { filter: only(edited), ..Reprocess::default() }).await.expect("a result");
    assert_eq!((done.matched, done.reprocessed), (1, 1));
    until("it is handled", || *handled.lock() == [edited]).await;
    assert_eq!((dead(&a).await.len(), dead(&b).await.len()), (2, 2));

    // What dies anew is dead on both.
    let first_death = there[1].died_at;
    b.env.reprocess(Reprocess { filter: only(again), ..Reprocess::default() }).await.expect("a result");
    until("it died again", || consumer.settled() == 5).await;
    for bed in [&a, &b] {
        let letters = bed.env.dead_letter(again).await.expect("it is there");
        assert!(letters.len() == 1 && letters[0].died_at > first_death);
    }

    // Discarded on one host, it is gone on the other.
    assert_eq!(b.env.discard_dead_letters(&only(dropped)).await.expect("a number"), 1);
    assert_eq!(dead(&a).await.iter().map(|entry| entry.message.id).collect::<Vec<_>>(), [again]);

    // Replayed to everyone from one host, it is no letter on the other.
    let everyone = Reprocess { target: Target::Topic, payload: Some(json!({ "well": true })), ..Reprocess::default() };
    assert_eq!(b.env.reprocess(everyone).await.expect("a result").reprocessed, 1);
    until("it is handled", || handled.lock().len() == 2).await;
    assert_eq!((dead(&a).await.len(), dead(&b).await.len()), (0, 0));
    a.trunkline.close(Duration::from_secs(5)).await;
    b.trunkline.close(Duration::from_secs(5)).await;
}

/// Nobody has to ask: what runs in the background reads the dead topics of the routes that are open.
#[tokio::test(flavor = "multi_thread")]
async fn the_background_indexes_what_other_hosts_buried() {
    let (_broker, a, b) = two_hosts().await;
    let (consumer, _) = fussy(&a).await;
    // As `trunkline run` does.
    assert_eq!(b.trunkline.attend().await.len(), 0);
    a.produce(2, 1).await;
    until("all are dead", || consumer.settled() == 2).await;
    let end = tokio::time::Instant::now() + DEADLINE;
    let filter = b.env.lot_filter(&DeadFilter::default());
    while b.trunkline.store().lot_count(&filter).await.expect("a number") != 2 {
        assert!(tokio::time::Instant::now() < end, "not in time");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    a.trunkline.close(Duration::from_secs(5)).await;
    b.trunkline.close(Duration::from_secs(5)).await;
}
