//! Secrets, seen from outside: what a reference means, connections that follow a rotation, another master key.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use trunkline::secret::{MasterKey, NewMasterKey, Secret, SecretInput};
use trunkline::{Code, Context, State, Trunkline};

const EVENT: &str = "orders:created";
const CLOSE: Duration = Duration::from_secs(5);

fn secret(text: &str) -> Secret {
    Secret::new(text)
}

fn which(key: &str) -> SecretInput {
    SecretInput::new(key).product("shop")
}

/// A broker whose config has a secret, and a topic. On the embedded broker `endpoint` leads nowhere, but it is resolved.
async fn orders(trunkline: &Trunkline) {
    let config = json!({ "endpoint": "http://u:$Secret{PW}@h" });
    let broker = json!({ "name": "Orders", "tag": "orders", "envs": [{ "slug": "prd", "type": "EMBEDDED", "config": config }] });
    trunkline.catalog().create_broker(Some("shop"), broker).await.unwrap();
    let topic = json!({ "name": "Created", "tag": EVENT, "ordering": "key", "shards": 2 });
    trunkline.catalog().create_topic(Some("shop"), topic).await.unwrap();
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds().await {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Another process: an instance of its own on the same directory, which counts the connections it opens.
async fn counting(path: &str) -> (Trunkline, Arc<AtomicUsize>) {
    let opened = Arc::new(AtomicUsize::new(0));
    let count = opened.clone();
    let wrap = move |provider| {
        count.fetch_add(1, Ordering::SeqCst);
        provider
    };
    (Trunkline::builder().url(path).wrap_providers(wrap).open().await.unwrap(), opened)
}

#[tokio::test]
async fn they_are_made_listed_rotated_and_deleted_but_never_shown() {
    let dir = tempfile::tempdir().unwrap();
    let trunkline = Trunkline::open(&dir.path().join("d").display().to_string()).await.unwrap();
    let secrets = trunkline.secrets();
    secrets.create(which("PW"), &secret("one")).await.unwrap();
    secrets.create(which("PW").envs(["prd", "dev"]), &secret("two")).await.unwrap();
    for overlapping in [which("PW"), which("PW").envs(["dev"]), which("PW").envs(["dev", "qa"])] {
        assert_eq!(secrets.create(overlapping, &secret("x")).await.unwrap_err().code(), Code::AlreadyExists);
    }
    secrets.create(which("PW").envs(["qa"]), &secret("three")).await.unwrap();
    let error = secrets.rotate(which("WP"), &secret("x")).await.unwrap_err();
    assert!(error.code() == Code::SecretNotFound && error.message().contains("did you mean 'PW'"), "{error}");
    assert_eq!(secrets.rotate(SecretInput::new("PW"), &secret("x")).await.unwrap_err().code(), Code::SecretNotFound);
    for (bad, field) in [(which("a b"), "key"), (which("PW").product("-"), "product"), (which("PW").envs(["?"]), "envs")] {
        let error = secrets.create(bad, &secret("x")).await.unwrap_err();
        assert_eq!((error.code(), error.detail_str("field")), (Code::InputInvalid, Some(field)));
    }
    assert_eq!(secrets.create(which("EMPTY"), &secret("")).await.unwrap_err().detail_str("field"), Some("value"));
    let rotated = secrets.rotate(which("PW").envs(["dev", "prd"]), &secret("four")).await.unwrap();
    assert_eq!(rotated.envs, ["dev", "prd"]);
    let shown = serde_json::to_string(&secrets.list().await.unwrap()).unwrap();
    assert!(!["one", "two", "three", "four", "sealed"].iter().any(|value| shown.contains(value)), "{shown}");
    secrets.delete(which("PW").envs(["qa"])).await.unwrap();
    assert_eq!(secrets.list().await.unwrap().len(), 2);
    trunkline.close(CLOSE).await;
}

#[tokio::test]
async fn every_process_opens_its_connections_anew_and_nothing_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("d").display().to_string();
    let admin = Trunkline::open(&path).await.unwrap();
    orders(&admin).await;
    let env = admin.env("shop", "prd");
    let error = env.produce(EVENT, &json!({})).await.unwrap_err();
    assert_eq!(error.code(), Code::SecretNotFound);
    assert!(error.detail_str("next").is_some_and(|next| next.contains("trunkline secrets create PW")), "{error:?}");
    admin.secrets().create(which("PW"), &secret("first")).await.unwrap();

    let ((a, a_opened), (b, b_opened)) = (counting(&path).await, counting(&path).await);
    let handled = Arc::new(Mutex::new(BTreeSet::new()));
    let seen = handled.clone();
    let consumer = b.env("shop", "prd").consume(EVENT, move |n: Value, _: Context| {
        seen.lock().unwrap().insert(n["n"].as_u64().unwrap_or_default());
        async {}
    });
    let consumer = consumer.await.unwrap();
    let producing = a.env("shop", "prd");
    let mut sent = 0;
    for round in 1..=3 {
        until("both have their connections", async || {
            producing.produce(EVENT, &json!({ "n": sent })).key(format!("k{}", sent % 5)).await.unwrap();
            sent += 1;
            (a_opened.load(Ordering::SeqCst), b_opened.load(Ordering::SeqCst)) == (round, round)
        })
        .await;
        admin.secrets().rotate(which("PW"), &secret(&format!("next {round}"))).await.unwrap();
    }
    until("all are handled", async || handled.lock().unwrap().len() as u64 == sent).await;
    until("it is live", async || consumer.state() == State::Live).await;

    // A deleted one ends what needs it, until there is another.
    admin.secrets().delete(which("PW")).await.unwrap();
    until("the producer is refused", async || {
        let refused = producing.produce(EVENT, &json!({ "n": sent })).await;
        sent += u64::from(refused.is_ok());
        refused.is_err_and(|error| error.code() == Code::SecretNotFound)
    })
    .await;
    until("the consumer says so", async || matches!(consumer.state(), State::Degraded(_))).await;
    admin.secrets().create(SecretInput::new("PW").envs(["prd"]), &secret("again")).await.unwrap();
    until("it goes on", async || producing.produce(EVENT, &json!({ "n": sent })).await.is_ok()).await;
    sent += 1;
    until("all are handled", async || handled.lock().unwrap().len() as u64 == sent).await;
    for one in [a, b, admin] {
        one.close(CLOSE).await;
    }
}

#[tokio::test]
async fn another_master_key_is_followed_by_every_process() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("d").display().to_string();
    let admin = Trunkline::open(&path).await.unwrap();
    orders(&admin).await;
    admin.secrets().create(which("PW"), &secret("first")).await.unwrap();
    let kafka = json!({ "brokers": ["k:1"], "sasl": { "mechanism": "plain", "username": "u", "password": "hunter2" } });
    let broker = json!({ "name": "K", "tag": "k", "envs": [{ "slug": "prd", "type": "KAFKA", "config": kafka }] });
    admin.catalog().create_broker(Some("shop"), broker).await.unwrap();
    let other = Trunkline::open(&path).await.unwrap();
    other.env("shop", "prd").produce(EVENT, &json!({})).await.unwrap();
    let key = |path: &str| std::fs::read_to_string(format!("{path}/master.key")).unwrap();
    let before = key(&path);

    let done = admin.secrets().rekey(NewMasterKey::Random).await.unwrap();
    assert_eq!((done.secrets, done.brokers, done.restart), (1, 1, false));
    assert_ne!(key(&path), before);
    assert!(!std::path::Path::new(&format!("{path}/master.key.old")).exists());
    // The process that was open goes on, also with what it seals from now on.
    other.env("shop", "prd").produce(EVENT, &json!({})).await.unwrap();
    other.secrets().rotate(which("PW"), &secret("second")).await.unwrap();
    let given = MasterKey::random().unwrap();
    let again = other.secrets().rekey(NewMasterKey::Given(given.clone())).await.unwrap();
    assert_eq!(again.key_id, given.id());
    for one in [admin, other] {
        one.env("shop", "prd").produce(EVENT, &json!({})).await.unwrap();
        one.close(CLOSE).await;
    }
    let late = Trunkline::open(&path).await.unwrap();
    late.env("shop", "prd").produce(EVENT, &json!({})).await.unwrap();
    let filter = trunkline::audit::AuditFilter { call: Some("secrets.rekey".into()), ..Default::default() };
    assert_eq!(late.audit().list(&filter, 10).await.unwrap().len(), 2);
    late.close(CLOSE).await;
    // The old key opens nothing any more.
    std::fs::write(format!("{path}/master.key"), before).unwrap();
    let stale = Trunkline::open(&path).await.unwrap();
    let error = stale.env("shop", "prd").produce(EVENT, &json!({})).await.unwrap_err();
    assert_eq!((error.code(), error.detail_str("reason")), (Code::StoreFailed, Some("master_key")));
    stale.close(CLOSE).await;
}

#[tokio::test]
async fn another_master_key_reaches_the_keys_of_sessions_and_of_their_subjects() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("d").display().to_string();
    let trunkline = Trunkline::open(&path).await.unwrap();
    let definition = json!({
        "name": "User", "tag": "user", "selector": "$Session{userId}", "expiry": 1, "period": "hours", "schema": { "userId": "1" },
    });
    trunkline.catalog().create_session(Some("shop"), definition).await.unwrap();
    let sessions = trunkline.sessions("shop");
    let ann = sessions.start("user", json!({ "userId": "ann" })).await.unwrap();
    sessions.start("user", json!({ "userId": "bob" })).await.unwrap();
    assert!(sessions.erase("user", "bob").await.unwrap().erased);
    trunkline.secrets().rekey(NewMasterKey::Random).await.unwrap();
    trunkline.close(CLOSE).await;
    // One that starts anew knows the new key alone.
    let anew = Trunkline::open(&path).await.unwrap();
    let sessions = anew.sessions("shop");
    assert!(sessions.verify("user", &ann.token).await.unwrap().valid);
    let next = sessions.refresh("user", &ann.refresh_token).await.unwrap();
    assert_eq!(sessions.verify("user", &next.token).await.unwrap().data, Some(json!({ "userId": "ann" })));
    let users = sessions.users("user", 1, 10).await.unwrap();
    assert_eq!(users.users.iter().map(|user| user.identifier.as_str()).collect::<Vec<_>>(), ["ann"], "who was erased stays erased");
    anew.close(CLOSE).await;
}
