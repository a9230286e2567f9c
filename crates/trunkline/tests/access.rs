//! Access keys and the audit, seen from outside: several instances of one workspace.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use trunkline::access::Role;
use trunkline::audit::AuditFilter;
use trunkline::dead_letter::{DeadFilter, Reprocess};
use trunkline::history::Query;
use trunkline::keys::NewKey;
use trunkline::{Code, Context, Error, Result, State, Trunkline};

const EVENT: &str = "orders:created";
const CLOSE: Duration = Duration::from_secs(5);

/// A workspace with a topic.
struct Bed {
    _dir: tempfile::TempDir,
    path: String,
    first: Trunkline,
}

impl Bed {
    async fn new() -> Bed {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data").display().to_string();
        let first = Trunkline::open(&path).await.unwrap();
        let broker = json!({ "name": "Orders", "tag": "orders", "envs": [{ "slug": "prd", "type": "EMBEDDED" }] });
        first.catalog().create_broker(Some("shop"), broker).await.unwrap();
        first.catalog().create_topic(Some("shop"), json!({ "name": "Created", "tag": EVENT })).await.unwrap();
        Bed { _dir: dir, path, first }
    }

    async fn key(&self, role: Role) -> NewKey {
        self.first.keys().create(role, None, None).await.unwrap()
    }

    async fn open(&self, key: &NewKey) -> Result<Trunkline> {
        Trunkline::builder().url(&self.path).access_key(key.text.expose()).open().await
    }
}

fn reason(error: &Error) -> (Code, Option<&str>) {
    (error.code(), error.detail_str("reason"))
}

async fn until(what: &str, within: Duration, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + within;
    while !holds().await {
        assert!(Instant::now() < deadline, "not within {within:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn from_the_first_key_on_only_keys_open_it() {
    let bed = Bed::new().await;
    // Without keys everybody is let in, with any key.
    let any = Trunkline::builder().url(&bed.path).access_key("tl_any_thing").open().await.unwrap();
    any.close(CLOSE).await;
    let error = bed.first.keys().create(Role::Viewer, None, None).await.unwrap_err();
    assert_eq!(error.code(), Code::InputInvalid, "the first one must be an admin's: {error}");
    let admin = bed.key(Role::Admin).await;
    assert_eq!(reason(&Trunkline::open(&bed.path).await.unwrap_err()), (Code::AccessDenied, Some("key_missing")));
    let text = admin.text.expose();
    let mut near = text.to_owned();
    let last = if near.pop() == Some('A') { 'E' } else { 'A' };
    near.push(last);
    for wrong in [near.as_str(), "tl_any_thing", "", "nonsense", &text[3..], &format!("{text}A")] {
        let error = Trunkline::builder().url(&bed.path).access_key(wrong).open().await.unwrap_err();
        assert_eq!(reason(&error), (Code::AccessDenied, Some("key_invalid")), "{wrong}");
        assert!(!format!("{error:?}").contains(text));
    }
    bed.open(&admin).await.unwrap().close(CLOSE).await;
    // The last admin's key is not revoked by accident; when no key is left, it is open again.
    let error = bed.first.keys().revoke(&admin.key.id, false).await.unwrap_err();
    assert_eq!(error.code(), Code::InUse);
    let revoked = bed.first.keys().revoke(&admin.key.id, true).await.unwrap();
    assert_eq!(revoked.state, "revoked");
    Trunkline::open(&bed.path).await.unwrap().close(CLOSE).await;
}

#[tokio::test]
async fn each_role_may_do_what_it_is_for() {
    let bed = Bed::new().await;
    let _admin = bed.key(Role::Admin).await;
    let id = bed.first.env("shop", "prd").produce(EVENT, &json!({ "n": 1 })).await.unwrap().process_id;
    bed.first.flush().await.unwrap();
    for role in Role::ALL.iter().copied() {
        let one = bed.open(&bed.key(role).await).await.unwrap();
        let env = one.env("shop", "prd");
        let denied = |result: Result<()>| match result {
            Ok(()) => false,
            Err(error) if error.code() == Code::AccessDenied => {
                assert!(error.detail_str("next").is_some_and(|next| next.contains("admin")), "{error:?}");
                true
            }
            Err(error) => panic!("{role}: {error}"),
        };
        let admin = role == Role::Admin;
        let sees = matches!(role, Role::ViewerWithoutPayloads | Role::Viewer | Role::Operator | Role::Admin);
        let acts = matches!(role, Role::Operator | Role::Admin);
        assert_eq!(!denied(env.produce(EVENT, &json!({ "by": role })).await.map(drop)), admin || role == Role::Producer, "{role}");
        let consumer = env.consume(EVENT, |_: Value, _: Context| async {}).group("g").await;
        assert_eq!(!denied(consumer.map(drop)), admin || role == Role::Consumer, "{role}");
        let page = env.messages(Query::default()).await;
        assert_eq!(page.is_ok(), sees, "{role}");
        if let Ok(page) = page {
            let payloads = page.messages.iter().all(|record| record.payload.is_some());
            assert_eq!(payloads, role != Role::ViewerWithoutPayloads, "{role}");
            assert_eq!(env.message(id).await.unwrap().unwrap().payload.is_some(), payloads);
        }
        let search = env.messages(Query { text: Some("n".into()), ..Query::default() }).await;
        assert_eq!(search.is_ok(), sees && role != Role::ViewerWithoutPayloads, "{role}: a search tells of payloads");
        assert_eq!(!denied(env.dead_letters(&DeadFilter::default(), 1, 1).await.map(drop)), sees, "{role}");
        assert_eq!(!denied(env.reprocess(Reprocess::default()).await.map(drop)), acts, "{role}");
        assert_eq!(!denied(env.dashboard(Default::default()).await.map(drop)), sees, "{role}");
        assert_eq!(!denied(one.jobs("shop").await.map(drop)), sees, "{role}");
        let topic = json!({ "name": "T", "tag": format!("orders:{role}") });
        assert_eq!(!denied(one.catalog().create_topic(Some("shop"), topic).await.map(drop)), admin, "{role}");
        assert_eq!(!denied(one.secrets().list().await.map(drop)), admin, "{role}");
        assert_eq!(!denied(one.keys().list().await.map(drop)), admin, "{role}");
        assert_eq!(!denied(one.audit().verify().await.map(drop)), admin, "{role}");
        one.close(CLOSE).await;
    }
}

#[tokio::test]
async fn a_revoked_or_expired_key_stops_a_running_process() {
    let bed = Bed::new().await;
    let _admin = bed.key(Role::Admin).await;
    let now = trunkline::message::now_ms();
    let past = bed.first.keys().create(Role::Consumer, Some(now - 1), None).await.unwrap_err();
    assert_eq!((past.code(), past.detail_str("field")), (Code::InputInvalid, Some("expiresAt")));
    let (producer, consumer) = (bed.key(Role::Producer).await, bed.key(Role::Consumer).await);
    let brief = bed.first.keys().create(Role::Producer, Some(now + 8_000), None).await.unwrap();
    let (a, b, c) = (bed.open(&producer).await.unwrap(), bed.open(&consumer).await.unwrap(), bed.open(&brief).await.unwrap());
    let env = a.env("shop", "prd");
    env.produce(EVENT, &json!({})).await.unwrap();
    let running = b.env("shop", "prd").consume(EVENT, |_: Value, _: Context| async {}).await.unwrap();
    for key in [&producer, &consumer] {
        bed.first.keys().revoke(&key.key.id, false).await.unwrap();
    }
    let within = Duration::from_secs(5);
    until("the producer is refused", within, async || {
        env.produce(EVENT, &json!({})).await.is_err_and(|error| reason(&error) == (Code::AccessDenied, Some("key_revoked")))
    })
    .await;
    until("the consumer ends", within, async || running.state() == State::Closed).await;
    until("the key expires", Duration::from_secs(20), async || {
        let sent = c.env("shop", "prd").produce(EVENT, &json!({})).await;
        sent.is_err_and(|error| reason(&error) == (Code::AccessDenied, Some("key_expired")))
    })
    .await;
    assert_eq!(reason(&bed.open(&brief).await.unwrap_err()), (Code::AccessDenied, Some("key_expired")));
    assert_eq!(reason(&bed.open(&producer).await.unwrap_err()), (Code::AccessDenied, Some("key_revoked")));
    for one in [a, b, c] {
        one.close(CLOSE).await;
    }
}

#[tokio::test]
async fn the_audit_says_who_changed_and_who_read() {
    let bed = Bed::new().await;
    let admin = bed.key(Role::Admin).await;
    let viewer = bed.key(Role::Viewer).await;
    let id = bed.first.env("shop", "prd").produce(EVENT, &json!({ "n": 1 })).await.unwrap().process_id;
    bed.first.flush().await.unwrap();
    let one = bed.open(&viewer).await.unwrap();
    one.env("shop", "prd").message(id).await.unwrap();
    one.catalog().create_topic(Some("shop"), json!({ "name": "T", "tag": "orders:t" })).await.unwrap_err();
    let rows = bed.first.audit().list(&AuditFilter::default(), 100).await.unwrap();
    let said: Vec<String> = rows.iter().rev().map(|row| format!("{} {} {}", row.entry.call, row.entry.target, row.entry.outcome)).collect();
    assert_eq!(
        said,
        [
            "brokers.create shop/orders ok".to_owned(),
            "topics.create shop/orders:created ok".into(),
            format!("keys.create {} admin ok", admin.key.id),
            format!("keys.create {} viewer ok", viewer.key.id),
            format!("messages.readPayload shop/prd/orders:created/{id} ok"),
            "topics.create shop/orders:t ACCESS_DENIED".into(),
        ],
        "each change and each payload read, but no produced message"
    );
    assert!(rows[5].entry.actor.starts_with("local:") && rows[5].entry.actor.contains('@'));
    assert_eq!(rows[0].entry.actor, format!("key:{}", viewer.key.id));
    let by_viewer = AuditFilter { actor: Some(rows[0].entry.actor.clone()), ..AuditFilter::default() };
    assert_eq!(bed.first.audit().list(&by_viewer, 100).await.unwrap().len(), 2);
    let older = AuditFilter { before: Some(3), ..AuditFilter::default() };
    assert_eq!(bed.first.audit().list(&older, 100).await.unwrap().iter().map(|row| row.seq).collect::<Vec<_>>(), [2, 1]);
    let verified = bed.first.audit().verify().await.unwrap();
    assert!(verified.ok && verified.rows == 6, "{verified:?}");
    one.close(CLOSE).await;
}
