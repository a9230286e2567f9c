//! A canary that stands in payloads, headers and sessions: readable through every call before an erasure, and through none
//! after it; and in no file of the store at any time.

use std::path::Path;

use tokio::sync::mpsc;

use super::*;
use crate::consume::handler::Context;
use crate::dead_letter::{DeadFilter, Reprocess};
use crate::history::Time;
use crate::replay::Replay;
use crate::store::{LotFilter, LotState};
use crate::{MessageId, Schedule, Start};

const CANARY: &str = "canary-4711-of-ann";

/// Whether these bytes stand in a file of the data directory whose path is `of` interest.
pub(super) fn stands_in(dir: &TempDir, needle: &[u8], of: impl Fn(&Path) -> bool) -> bool {
    let mut folders = vec![dir.path().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder").flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if of(&path) && std::fs::read(&path).is_ok_and(|bytes| bytes.windows(needle.len()).any(|part| part == needle)) {
                return true;
            }
        }
    }
    false
}

/// All that Trunkline keeps but the embedded broker's own log.
fn kept(path: &Path) -> bool {
    !path.components().any(|part| part.as_os_str() == "log")
}

/// What was sent for ann: delivered, dead, delayed, and waiting for a group that has no consumer yet.
struct Sent {
    delivered: MessageId,
    dead: MessageId,
    delayed: MessageId,
    waiting: MessageId,
}

async fn send(bed: &Bed, session: &str, text: &str) -> Sent {
    let (done, mut handled) = mpsc::channel(10);
    let consumer = bed
        .env
        .consume(EVENT, move |payload: Value, context: Context| {
            let done = done.clone();
            async move {
                let _ = done.send(context.process_id).await;
                if payload["fail"] == true { Err("it fails") } else { Ok(()) }
            }
        })
        .retry(Schedule::never())
        .await
        .expect("it starts");
    let produce =
        |fail: bool| bed.env.produce(EVENT, &json!({ "text": text, "fail": fail })).header("x-text", text.to_owned()).session(session);
    let delivered = produce(false).idempotency_key("once").await.expect("sent").process_id;
    let dead = produce(true).await.expect("sent").process_id;
    let delayed = produce(false).delay(Duration::from_secs(3_600)).await.expect("put").process_id;
    for _ in 0..2 {
        tokio::time::timeout(DEADLINE, handled.recv()).await.expect("in time").expect("one");
    }
    consumer.close(DEADLINE).await;
    let again = Replay { group: Some("late".into()), ..Replay::default() };
    let waiting = bed.env.replay(delivered, again).await.expect("put").process_id;
    Sent { delivered, dead, delayed, waiting }
}

async fn lot(bed: &Bed, state: LotState) -> Vec<crate::store::LotEntry> {
    let filter = LotFilter { state: Some(state), ..LotFilter::default() };
    bed.trunkline.store().lot_list(&filter, 100, 0, false).await.expect("a list")
}

/// Everything that can be read of a message and of the lot, as text.
async fn all_that_is_read(bed: &Bed) -> String {
    let mut text = String::new();
    for record in bed.env.messages(Query { limit: Some(100), ..Query::default() }).await.expect("a page").messages {
        let whole = bed.env.message(record.process_id).await.expect("read").expect("there");
        text += &format!("{} {}", json!(record), json!(whole));
    }
    for state in [LotState::Dead, LotState::Publish, LotState::Waiting] {
        for entry in lot(bed, state).await {
            text += &format!("{} {}", String::from_utf8_lossy(&entry.message.payload), json!(entry.message.headers));
        }
    }
    for entry in bed.env.dead_letters(&DeadFilter::default(), 1, 100).await.expect("a list").0 {
        text += &String::from_utf8_lossy(&entry.message.payload);
    }
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_session_is_kept_in_plain_text() {
    let bed = Bed::new().await;
    let started = bed.start(CANARY).await;
    let sent = send(&bed, &started.token, CANARY).await;
    let text = all_that_is_read(&bed).await;
    assert!(text.matches(CANARY).count() > 8, "it is read in all places: {text}");
    let record = bed.env.message(sent.dead).await.expect("read").expect("there");
    assert_eq!(record.session.map(|session| session.identifier).as_deref(), Some(CANARY));
    assert_eq!(record.headers.get_str("x-text"), Some(CANARY));
    // The same without a session stands in the store's files, so that the search is known to find.
    bed.env.produce(EVENT, &json!({ "text": "an open word" })).delay(Duration::from_secs(3_600)).await.expect("put");
    let dir = bed.end().await;
    assert!(stands_in(&dir, b"an open word", kept));
    assert!(!stands_in(&dir, CANARY.as_bytes(), kept));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_erased_cannot_be_read_by_anybody() {
    let bed = Bed::new().await;
    let second = open(&bed.dir).await;
    let (ann, bob) = (bed.start(CANARY).await, bed.start("bob").await);
    let elsewhere = second.env("shop", "prd");
    let sent = send(&bed, &ann.token, CANARY).await;
    let of_bob = bed.env.produce(EVENT, &json!({ "text": "bob's" })).session(bob.token.as_str()).await.expect("sent").process_id;
    bed.trunkline.flush().await.expect("written");
    // The other process has read it, and with it the key.
    assert!(json!(elsewhere.message(sent.delivered).await.expect("read")).to_string().contains(CANARY));
    let keys: Vec<String> = bed
        .trunkline
        .store()
        .session_users("shop", "user", 10, 0)
        .await
        .expect("users")
        .0
        .into_iter()
        .map(|user| user.subject.key)
        .collect();

    let erased = bed.sessions.erase("user", CANARY).await.expect("erased");
    assert_eq!((erased.erased, erased.sessions), (true, 1));
    assert!(!bed.sessions.erase("user", CANARY).await.expect("a result").erased, "there is nobody any more");
    let text = all_that_is_read(&bed).await;
    assert!(!text.contains(CANARY), "{text}");
    let record = bed.env.message(sent.delivered).await.expect("read").expect("still there");
    assert!(record.erased && record.payload.is_none() && record.headers.is_empty());
    assert_eq!(json!(record)["erased"], true);
    assert!(record.produced_at > Time(0) && record.groups.len() == 1, "what happened is still told");
    is_invalid(bed.refused(&ann.token).await.as_ref(), "its session ended");
    is_invalid(bed.sessions.refresh("user", &ann.refresh_token).await.err().as_ref(), "and is not refreshed");
    assert!(bed.sessions.users("user", 1, 10).await.expect("users").users.iter().all(|user| user.identifier == "bob"));
    let by_name = Query { identifier: Some(CANARY.into()), ..Query::default() };
    assert_eq!(bed.env.messages(by_name).await.expect("a page").total, 0, "the name leads nowhere");
    let by_session = Query { session: Some(ann.session_id.clone()), ..Query::default() };
    assert!(bed.env.messages(by_session).await.expect("a page").messages.iter().all(|record| record.erased));
    let replay = bed.env.replay(sent.delivered, Replay { force: true, ..Replay::default() }).await.expect_err("refused");
    assert_eq!((replay.code(), replay.detail_str("reason")), (Code::MessageNotFound, Some("erased")));
    // Somebody else's is as it was.
    let bobs = bed.env.message(of_bob).await.expect("read").expect("there");
    assert!(!bobs.erased && json!(bobs).to_string().contains("bob's"));
    // The same name later is another subject.
    let again = bed.start(CANARY).await;
    assert!(bed.refused(&again.token).await.is_none());
    assert!(bed.env.message(sent.delivered).await.expect("read").expect("there").erased);
    let end = tokio::time::Instant::now() + DEADLINE;
    while json!(elsewhere.message(sent.delivered).await.expect("read")).to_string().contains(CANARY) {
        assert!(tokio::time::Instant::now() < end, "the other process goes on reading it");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    second.close(Duration::from_secs(5)).await;
    let dir = bed.end().await;
    let key = |text: &str| stands_in(&dir, text.as_bytes(), kept);
    assert_eq!(keys.iter().filter(|sealed| key(sealed)).count(), 1, "bob's key is there, the other one is not");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_never_handed_to_a_handler_as_garbage() {
    let bed = Bed::new().await;
    let ann = bed.start(CANARY).await;
    let sent = send(&bed, &ann.token, CANARY).await;
    bed.sessions.erase("user", CANARY).await.expect("erased");
    let (seen, mut handled) = mpsc::channel(10);
    let handler = move |_: Value, context: Context| {
        let seen = seen.clone();
        async move { seen.send(context.process_id).await }
    };
    let consumer = bed.env.consume(EVENT, handler).group("late").from(Start::Latest).await.expect("it starts");
    let buried = |id: MessageId| {
        let store = bed.trunkline.store().clone();
        async move {
            let filter = LotFilter { state: Some(LotState::Dead), ids: vec![id], ..LotFilter::default() };
            let end = tokio::time::Instant::now() + DEADLINE;
            loop {
                let found = store.lot_list(&filter, 10, 0, false).await.expect("a list");
                if let Some(entry) = found.into_iter().find(|entry| entry.reason.as_deref() == Some("erased")) {
                    return entry;
                }
                assert!(tokio::time::Instant::now() < end, "{id} is not settled");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    };
    assert!(buried(sent.waiting).await.is_erased());
    consumer.close(DEADLINE).await;
    assert!(handled.try_recv().is_err(), "no handler saw it");
    // A dead letter that is handed over again dies of it anew.
    let dead = bed.env.dead_letter(sent.dead).await.expect("found");
    assert!(dead[0].is_erased() && dead[0].message.payload.is_empty());
    let edit = bed.env.edit_dead_letter(sent.dead, None, Some("{}".into()), None).await.expect_err("refused");
    assert_eq!(edit.detail_str("reason"), Some("erased"));
    let filter = DeadFilter { ids: vec![sent.dead], ..DeadFilter::default() };
    bed.env.reprocess(Reprocess { filter, ..Reprocess::default() }).await.expect("set back");
    let consumer = bed.env.consume(EVENT, |_: Value, _: Context| async { Err::<(), _>("it was handled") }).await.expect("it starts");
    assert!(buried(sent.dead).await.is_erased());
    consumer.close(DEADLINE).await;
    let put = lot(&bed, LotState::Publish).await;
    assert!(put.iter().any(|entry| entry.message.id == sent.delayed && entry.is_erased()));
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_of_a_session_are_edited_and_handed_over_in_plain() {
    let bed = Bed::new().await;
    let ann = bed.start(CANARY).await;
    let sent = send(&bed, &ann.token, CANARY).await;
    let filter = DeadFilter { ids: vec![sent.dead], ..DeadFilter::default() };
    assert_eq!(
        bed.env.edit_dead_letter(sent.dead, None, Some(json!({ "text": "edited-4711" }).to_string().into()), None).await.expect("edited"),
        1
    );
    let letter = bed.env.dead_letter(sent.dead).await.expect("found").remove(0);
    assert_eq!((letter.message.payload, letter.message.headers.get_str("x-text")), (r#"{"text":"edited-4711"}"#.into(), Some(CANARY)));
    let what = Reprocess { filter, payload: Some(json!({ "text": "once more" })), ..Reprocess::default() };
    assert_eq!(bed.env.reprocess(what).await.expect("set back").reprocessed, 1);
    let (seen, mut handled) = mpsc::channel(10);
    let handler = move |payload: Value, context: Context| {
        let seen = seen.clone();
        async move { seen.send((payload, context.session().map(|session| session.identifier))).await }
    };
    let consumer = bed.env.consume(EVENT, handler).await.expect("it starts");
    let (payload, who) = tokio::time::timeout(DEADLINE, handled.recv()).await.expect("in time").expect("one");
    assert_eq!((payload, who.as_deref()), (json!({ "text": "once more" }), Some(CANARY)));
    consumer.close(DEADLINE).await;
    let dir = bed.end().await;
    assert!(!stands_in(&dir, b"edited-4711", kept));
}
