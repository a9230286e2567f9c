//! Dead letters handed over again, and replay.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use trunkline::dead_letter::{DeadFilter, Reprocess, Target};
use trunkline::{Code, Consumer, Context, MessageId};

use trunkline_suite::promise::{Bed, EVENT, Lot, Seen, retries, until};

type Handled = Seen<(MessageId, Value, u32)>;

/// Buries everything until it is told that all is well.
async fn buries_until_fixed(bed: &Bed) -> (Consumer, Arc<AtomicBool>, Handled) {
    let (fixed, seen) = (Arc::new(AtomicBool::new(false)), Seen::new());
    let (f, s) = (fixed.clone(), seen.clone());
    let consumer = bed
        .env
        .consume(EVENT, move |payload: Value, c: Context| {
            let ok = f.load(Ordering::SeqCst);
            if ok {
                s.push((c.process_id, payload, c.attempt));
            }
            async move { if ok { Ok(()) } else { Err("broken") } }
        })
        .retry(retries(&[]))
        .breaker(false)
        .await
        .unwrap();
    (consumer, fixed, seen)
}

async fn reprocess_to_the_group(lot: Lot) {
    let bed = Bed::new(lot).await;
    let (consumer, fixed, seen) = buries_until_fixed(&bed).await;
    for n in 0..30 {
        bed.produce(n).await;
    }
    let all = DeadFilter::default();
    until("all are dead", || async { bed.env.dead_letters(&all, 1, 1).await.unwrap().1 == 30 }).await;
    let (letters, _) = bed.env.dead_letters(&all, 1, 1).await.unwrap();
    let one = letters[0].message.id;
    bed.env.edit_dead_letter(one, None, Some(json!({ "n": "edited" }).to_string().into()), None).await.unwrap();
    let counted = bed.env.reprocess(Reprocess { dry_run: true, ..Reprocess::default() }).await.unwrap();
    assert_eq!((counted.matched, counted.reprocessed, counted.job_id), (30, 0, None));
    fixed.store(true, Ordering::SeqCst);
    let only = DeadFilter { ids: vec![one], ..DeadFilter::default() };
    let done = bed.env.reprocess(Reprocess { filter: only, ..Reprocess::default() }).await.unwrap();
    assert_eq!((done.matched, done.reprocessed, done.state.as_str()), (1, 1, "done"));
    let first = seen.wait(1).await;
    // The same message again, its attempts from the start, with what was edited.
    assert_eq!(first[0], (one, json!({ "n": "edited" }), 1));
    let rest = bed.env.reprocess(Reprocess::default()).await.unwrap();
    assert_eq!((rest.matched, rest.reprocessed, rest.failed), (29, 29, 0));
    seen.wait(30).await;
    until("none is dead", || async { bed.env.dead_letters(&all, 1, 1).await.unwrap().1 == 0 }).await;
    consumer.close(Duration::from_secs(5)).await;
    bed.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_edited_and_handed_over_again() {
    reprocess_to_the_group(Lot::Store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_on_the_broker_are_handed_over_again() {
    reprocess_to_the_group(Lot::Topics).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reprocess_to_the_topic_is_a_replay_to_everyone() {
    let bed = Bed::new(Lot::Store).await;
    let (consumer, fixed, seen) = buries_until_fixed(&bed).await;
    let old = bed.produce(1).await;
    let all = DeadFilter::default();
    until("it is dead", || async { bed.env.dead_letters(&all, 1, 1).await.unwrap().1 == 1 }).await;
    fixed.store(true, Ordering::SeqCst);
    let done = bed.env.reprocess(Reprocess { target: Target::Topic, ..Reprocess::default() }).await.unwrap();
    assert_eq!(done.reprocessed, 1);
    let handled = seen.wait(1).await;
    assert_ne!(handled[0].0, old, "a new message");
    assert_eq!(bed.env.dead_letters(&all, 1, 1).await.unwrap().1, 0);
    consumer.close(Duration::from_secs(5)).await;
    bed.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn discarded_dead_letters_are_gone() {
    let bed = Bed::new(Lot::Store).await;
    let (consumer, _, _) = buries_until_fixed(&bed).await;
    for n in 0..5 {
        bed.produce(n).await;
    }
    let all = DeadFilter::default();
    until("all are dead", || async { bed.env.dead_letters(&all, 1, 1).await.unwrap().1 == 5 }).await;
    assert_eq!(bed.env.discard_dead_letters(&all).await.unwrap(), 5);
    assert_eq!(bed.env.dead_letter(MessageId::now()).await.unwrap_err().code(), Code::MessageNotFound);
    consumer.close(Duration::from_secs(5)).await;
    bed.close().await;
}
