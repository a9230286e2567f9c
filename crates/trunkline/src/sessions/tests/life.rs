//! Start, verify, refresh, revoke, list; and what a message and its history say of a session.

use tokio::sync::mpsc;

use super::super::Revoke;
use super::*;
use crate::consume::handler::Context;

async fn is_valid(sessions: &Sessions, started: &Started) -> bool {
    sessions.verify("user", &started.token).await.expect("verified").valid
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_needs_its_definition_and_its_field() {
    let bed = Bed::new().await;
    let refused = |tag: &'static str, data: Value| {
        let sessions = bed.sessions.clone();
        async move { sessions.start(tag, data).await.expect_err("refused") }
    };
    let error = refused("usr", json!({ "user": { "id": 1 } })).await;
    assert_eq!((error.code(), error.detail_str("didYouMean")), (Code::SessionNotFound, Some("user")));
    for data in [json!({}), json!({ "user": {} }), json!({ "user": { "id": "" } }), json!({ "user": { "id": [1] } })] {
        let error = refused("user", data).await;
        assert_eq!((error.code(), error.detail_str("field")), (Code::InputInvalid, Some("data.user.id")));
    }
    assert_eq!(refused("user", json!([1])).await.detail_str("field"), Some("data"));
    let large = refused("user", json!({ "user": { "id": "ann" }, "bio": "x".repeat(5_000) })).await;
    assert_eq!(large.detail_str("field"), Some("data"));
    let unknown = bed.trunkline.sessions("shoop").verify("user", "t").await.expect_err("refused");
    assert_eq!(unknown.code(), Code::ProductNotFound);
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_says_who_and_until_when() {
    let bed = Bed::new().await;
    let started = bed.start("ann").await;
    let two_hours = started.expires_at.0.abs_diff(crate::message::now_ms() + 2 * 3_600_000);
    assert!(two_hours < 60_000, "{two_hours}");
    let verified = bed.sessions.verify("user", &started.token).await.expect("verified");
    assert_eq!((verified.valid, verified.session_id.as_ref()), (true, Some(&started.session_id)));
    assert_eq!((verified.data, verified.expires_at), (Some(json!({ "user": { "id": "ann" }, "plan": "free" })), Some(started.expires_at)));
    let wrong = bed.sessions.verify("admin", &started.token).await.expect("a result");
    assert_eq!(serde_json::to_value(wrong).expect("JSON"), json!({ "valid": false }));
    assert!(!format!("{started:?}").contains(&started.refresh_token) && !format!("{started:?}").contains("user:"));
    // Without its definition it is good no longer.
    bed.trunkline.catalog().delete_session("shop", "user").await.expect("removed");
    assert!(!is_valid(&bed.sessions, &started).await);
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_token_is_good_once_and_a_second_use_ends_the_family() {
    let bed = Bed::new().await;
    let first = bed.start("ann").await;
    let second = bed.sessions.refresh("user", &first.refresh_token).await.expect("refreshed");
    assert_eq!((&second.session_id, second.token == first.token), (&first.session_id, false));
    assert!(is_valid(&bed.sessions, &first).await && is_valid(&bed.sessions, &second).await);
    let third = bed.sessions.refresh("user", &second.refresh_token).await.expect("refreshed");
    let reused = bed.sessions.refresh("user", &first.refresh_token).await.expect_err("refused");
    assert_eq!((reused.code(), reused.detail_str("reason")), (Code::SessionInvalid, Some("refresh_reused")));
    for started in [&first, &second, &third] {
        assert!(!is_valid(&bed.sessions, started).await, "the whole family is over");
        is_invalid(bed.refused(&started.token).await.as_ref(), "revoked");
    }
    is_invalid(bed.sessions.refresh("user", &third.refresh_token).await.err().as_ref(), "the newest refresh token");
    for unknown in ["", "x", &first.token] {
        is_invalid(bed.sessions.refresh("user", unknown).await.err().as_ref(), "no refresh token");
    }
    let other = bed.start("ann").await;
    is_invalid(bed.sessions.refresh("admin", &other.refresh_token).await.err().as_ref(), "another tag");
    assert!(is_valid(&bed.sessions, &other).await, "another session of the same user goes on");
    // At rest there is only its hash.
    let dir = bed.end().await;
    for token in [&other.refresh_token, &other.token] {
        assert!(!erasure::stands_in(&dir, token.as_bytes(), |_| true));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_revoked_is_refused_here_at_once_and_elsewhere_soon() {
    let bed = Bed::new().await;
    let second = open(&bed.dir).await;
    let elsewhere = second.sessions("shop");
    let (a, b, c, d) = (bed.start("ann").await, bed.start("ann").await, bed.start("bob").await, bed.start("cleo").await);
    for started in [&a, &b, &c, &d] {
        assert!(is_valid(&elsewhere, started).await);
    }
    let revoked = |which| bed.sessions.revoke("user", which);
    assert_eq!(revoked(Revoke::Session(a.session_id.clone())).await.expect("revoked").revoked, 1);
    assert!(!is_valid(&bed.sessions, &a).await && is_valid(&bed.sessions, &b).await);
    assert_eq!(revoked(Revoke::Identifier("ann".into())).await.expect("revoked").revoked, 1);
    assert_eq!(revoked(Revoke::Identifier("nobody".into())).await.expect("revoked").revoked, 0);
    assert!(!is_valid(&bed.sessions, &b).await && is_valid(&bed.sessions, &c).await);
    assert_eq!(bed.sessions.revoke_all("user").await.expect("revoked").revoked, 2);
    assert!(!is_valid(&bed.sessions, &c).await && !is_valid(&bed.sessions, &d).await);
    let end = tokio::time::Instant::now() + DEADLINE;
    while is_valid(&elsewhere, &d).await || is_valid(&elsewhere, &a).await {
        assert!(tokio::time::Instant::now() < end, "the other process does not hear of it");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    second.close(Duration::from_secs(5)).await;
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_and_users_are_listed_in_pages() {
    let bed = Bed::new().await;
    for user in ["ann", "bob", "ann"] {
        bed.start(user).await;
    }
    let page = bed.sessions.active("user", None, 1, 2).await.expect("a page");
    assert_eq!((page.sessions.len(), page.total), (2, 3));
    assert_eq!(page.sessions[0].identifier, "ann");
    let of_bob = bed.sessions.active("user", Some("bob"), 1, 10).await.expect("a page");
    assert_eq!((of_bob.total, of_bob.sessions[0].identifier.as_str()), (1, "bob"));
    let users = bed.sessions.users("user", 2, 1).await.expect("a page");
    assert_eq!((users.total, users.total_pages, users.users.len()), (2, 2, 1));
    let all = bed.sessions.users("user", 1, 10).await.expect("a page").users;
    assert_eq!(all.iter().find(|user| user.identifier == "ann").map(|user| user.active), Some(2));
    for (page, limit) in [(0, 1), (1, 0), (1, 1_001)] {
        assert_eq!(bed.sessions.users("user", page, limit).await.expect_err("refused").code(), Code::InputInvalid);
    }
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_carries_its_session_and_is_found_by_it() {
    let bed = Bed::new().await;
    let (ann, worker) = (bed.start("ann").await, bed.start("worker").await);
    let (seen, mut contexts) = mpsc::channel(10);
    let consumer = bed
        .env
        .consume(EVENT, move |_: Value, context: Context| {
            let seen = seen.clone();
            async move { seen.send(context.session()).await }
        })
        .session(worker.token.as_str())
        .await
        .expect("it starts");
    is_invalid(bed.env.consume(EVENT, |_: Value, _: Context| async {}).session("user:x").await.err().as_ref(), "a consumer");
    // It may end afterwards: the consumer goes on.
    bed.sessions.revoke("user", Revoke::Session(worker.session_id.clone())).await.expect("revoked");
    let with = bed.env.produce(EVENT, &json!({ "n": 1 })).session(ann.token.as_str()).key("k").await.expect("sent");
    let context = tokio::time::timeout(DEADLINE, contexts.recv()).await.expect("in time").expect("one").expect("a session");
    assert_eq!((context.tag.as_str(), context.identifier.as_str()), ("user", "ann"));
    assert_eq!((&context.id, &context.data["plan"]), (&ann.session_id, &json!("free")));
    let without = bed.env.produce(EVENT, &json!({ "n": 2 })).await.expect("sent");
    assert!(tokio::time::timeout(DEADLINE, contexts.recv()).await.expect("in time").expect("one").is_none());
    consumer.close(DEADLINE).await;

    let found = |query: Query| {
        let env = bed.env.clone();
        async move { env.messages(query).await.expect("a page").messages.iter().map(|m| m.process_id).collect::<Vec<_>>() }
    };
    let by = |session: Option<&str>, identifier: Option<&str>| Query {
        session: session.map(Into::into),
        identifier: identifier.map(Into::into),
        ..Query::default()
    };
    assert_eq!(found(by(Some(&ann.session_id), None)).await, [with.process_id]);
    assert_eq!(found(by(None, Some("ann"))).await, [with.process_id]);
    assert_eq!(found(by(None, Some("bob"))).await, []);
    assert_eq!(found(Query { key: Some("k".into()), ..Query::default() }).await, [with.process_id]);
    assert_eq!(found(Query::default()).await, [without.process_id, with.process_id]);
    let record = bed.env.message(with.process_id).await.expect("read").expect("there");
    let session = record.session.expect("a session");
    assert_eq!((session.tag.as_str(), session.id, session.identifier.as_str()), ("user", ann.session_id, "ann"));
    assert_eq!(record.payload.expect("kept").0, r#"{"n":1}"#);
    let group = record.groups[0].session.as_ref().expect("the consumer's session");
    assert_eq!((group.tag.as_str(), &group.id), ("user", &worker.session_id));
    let plain = bed.env.message(without.process_id).await.expect("read").expect("there");
    assert!(plain.session.is_none() && plain.headers.is_empty());
    bed.end().await;
}
