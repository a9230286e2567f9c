//! Delayed publishes that fail.

use super::*;
use crate::MessageId;
use crate::dead_letter::{DeadFilter, Reprocess};
use crate::removal::Removal;
use crate::store::{LotEntry, LotFilter};

/// A delayed publish whose topic is gone fails, backs off where everybody can see it, and is published when it can be.
#[tokio::test(flavor = "multi_thread")]
async fn a_delayed_publish_that_fails_is_visible_and_not_lost() {
    let bed = Bed::new(|builder| builder).await;
    let store = bed.trunkline.store();
    let id = bed.env.produce(EVENT, &json!({ "n": 1 })).delay(Duration::from_millis(500)).await.expect("it waits").process_id;
    let waiting = store.lot_list(&LotFilter::default(), 1, 0, false).await.expect("a list").remove(0);
    bed.trunkline.delete_topic("shop", &EVENT.parse().expect("an event"), Removal::default()).await.expect("it is gone");
    // Another one, which has but its last attempt left.
    let mut last = LotEntry { attempts: 8, ..waiting.clone() };
    last.message.id = MessageId::now();
    let given_up = last.message.id;
    store.lot_put(vec![last]).await.expect("written");
    let end = tokio::time::Instant::now() + DEADLINE;
    let letter = loop {
        let counts = store.lot_counts(&waiting.address, Some("")).await.expect("counts");
        let mut dead = bed.env.dead_letters(&DeadFilter::default(), 1, 10).await.expect("a list").0;
        if counts.failing == 1 && dead.len() == 1 {
            break dead.remove(0);
        }
        assert!(tokio::time::Instant::now() < end, "not in time: {counts:?}, {dead:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert_eq!((letter.message.id, letter.reason.as_deref(), &*letter.group, letter.attempts), (given_up, Some("publish_failed"), "", 9));
    assert!(letter.error.is_some_and(|error| error.contains(EVENT)));
    // The topic is back: the one goes on by itself, the other when it is told to.
    bed.trunkline.catalog().create_topic(Some("shop"), json!({ "name": "Created", "tag": EVENT })).await.expect("a topic");
    assert_eq!(bed.env.reprocess(Reprocess::default()).await.expect("a result").reprocessed, 1);
    let seen = watch::Sender::new(std::collections::BTreeSet::new());
    let s = seen.clone();
    let handler = move |_: Raw, context: Context| {
        s.send_modify(|seen| {
            seen.insert(context.process_id);
        });
        async {}
    };
    let consumer = bed.env.consume(EVENT, handler).await.expect("it starts");
    until("both are handled", || *seen.borrow() == [id, given_up].into()).await;
    consumer.close(DEADLINE).await;
    bed.trunkline.close(Duration::from_secs(5)).await;
}
