//! Who may come in: TLS, SASL, permissions, and what is said to who may not.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use trunkline::Code;
use trunkline::provider::kafka::Kafka;
use trunkline::provider::{Provider as _, Stage};
use trunkline_suite::server::setting;

use crate::bed::{PATIENCE, config, group, join, listen, message, name, open, send, spec, try_send};

fn secured(mechanism: &str) -> Value {
    json!({
        "brokers": [setting("KAFKA_TLS")],
        "ssl": true,
        "tls": { "ca": setting("TLS_CA") },
        "sasl": { "mechanism": mechanism, "username": setting("USER"), "password": setting("PASSWORD") },
    })
}

fn with(mut config: Value, pointer: &str, value: Value) -> Value {
    *config.pointer_mut(pointer).unwrap() = value;
    config
}

/// Goes through the whole test.
async fn probe(more: &Value) -> Vec<Stage> {
    Kafka::test(&config(more), Instant::now() + PATIENCE).await.unwrap()
}

/// The stage that failed, its code, and what is said about it. Nothing may hold a password.
async fn diagnosis(more: &Value) -> (&'static str, Code, String) {
    let stages = probe(more).await;
    let said = serde_json::to_string(&stages).unwrap();
    assert!(!said.contains(&setting("PASSWORD")) && !said.contains("wrong-hunter2"), "{said}");
    let last = stages.last().unwrap();
    assert!(!last.ok, "nothing failed: {said}");
    assert!(last.fix.as_ref().is_some_and(|fix| !fix.is_empty()), "nothing to do about it: {said}");
    (last.stage, last.code.unwrap(), said)
}

async fn works(more: &Value) {
    let kafka = open(more).await.unwrap();
    let (topic, group) = (spec(1, false), group());
    kafka.ensure(&topic, std::slice::from_ref(&group)).await.unwrap();
    send(&kafka, &topic, message("over tls")).await;
    let member = join(&kafka, &topic, &group).await;
    let told = listen(&*member, true, |told| !told.messages.is_empty()).await;
    assert_eq!(told.messages[0].payload.as_deref(), Some(&b"over tls"[..]));
    kafka.close(Instant::now() + PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_mechanism_opens_the_door() {
    for mechanism in ["plain", "scram-sha-256", "scram-sha-512"] {
        works(&secured(mechanism)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_may_be_text_and_any_may_be_taken() {
    let ca = std::fs::read_to_string(setting("TLS_CA")).unwrap();
    works(&with(secured("plain"), "/tls", json!({ "ca": ca, "cert": setting("TLS_CERT"), "key": setting("TLS_KEY") }))).await;
    works(&with(secured("plain"), "/tls", json!({ "insecure": true }))).await;
    // A private endpoint in the place of the brokers.
    works(&with(with(secured("plain"), "/brokers", json!(["nowhere.invalid:1"])), "/ssl", json!(true)).as_object().map_or(
        json!({}),
        |map| {
            let mut map = map.clone();
            map.insert("endpoint".into(), json!(format!("kafka://{}", setting("KAFKA_TLS"))));
            Value::Object(map)
        },
    ))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_working_config_passes_every_stage() {
    let stages = probe(&secured("scram-sha-512")).await;
    let names: Vec<_> = stages.iter().map(|stage| (stage.stage, stage.ok)).collect();
    let wanted = ["resolve", "connect", "client", "tls", "authenticate", "permissions", "ensure", "round_trip"];
    assert_eq!(names, wanted.map(|name| (name, true)), "{stages:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn five_faults_get_five_diagnoses() {
    let wrong_password = diagnosis(&with(secured("scram-sha-256"), "/sasl/password", json!("wrong-hunter2"))).await;
    assert_eq!((wrong_password.0, wrong_password.1), ("authenticate", Code::AuthenticationFailed), "{}", wrong_password.2);
    assert!(wrong_password.2.contains("sasl.password"), "{}", wrong_password.2);

    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let wrong_port = diagnosis(&with(secured("plain"), "/brokers", json!([format!("127.0.0.1:{port}")]))).await;
    assert_eq!((wrong_port.0, wrong_port.1), ("connect", Code::ConnectionFailed), "{}", wrong_port.2);

    let other_ca = diagnosis(&with(secured("plain"), "/tls/ca", json!(setting("TLS_OTHER_CA")))).await;
    assert_eq!((other_ca.0, other_ca.1), ("tls", Code::ConnectionFailed), "{}", other_ca.2);
    let tls_to_plain = diagnosis(&with(secured("plain"), "/brokers", json!([setting("KAFKA")]))).await;
    assert_eq!((tls_to_plain.0, tls_to_plain.1), ("tls", Code::ConnectionFailed), "{}", tls_to_plain.2);

    let plain_to_tls = diagnosis(&json!({ "brokers": [setting("KAFKA_TLS")] })).await;
    assert_eq!((plain_to_tls.0, plain_to_tls.1), ("authenticate", Code::ConnectionFailed), "{}", plain_to_tls.2);
    assert!(plain_to_tls.2.contains("ssl: true"), "{}", plain_to_tls.2);

    let nobody = diagnosis(&with(secured("plain"), "/brokers", json!(["nowhere.invalid:9092"]))).await;
    assert_eq!((nobody.0, nobody.1), ("resolve", Code::ConnectionFailed), "{}", nobody.2);

    let limited = diagnosis(&limited(&json!({}))).await;
    assert_eq!((limited.0, limited.1), ("permissions", Code::AuthenticationFailed), "{}", limited.2);
    assert!(limited.2.contains("allow this user"), "{}", limited.2);
}

/// The user who may use what begins with its name, and create nothing.
fn limited(more: &Value) -> Value {
    let user = setting("LIMITED_USER");
    let mut config = with(secured("scram-sha-256"), "/sasl", json!({}));
    config["sasl"] = json!({ "mechanism": "scram-sha-256", "username": user, "password": setting("LIMITED_PASSWORD") });
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    config
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_said_when_the_broker_is_opened() {
    let begun = Instant::now();
    let error = open(&with(secured("plain"), "/sasl/password", json!("wrong-hunter2"))).await.unwrap_err();
    assert_eq!(error.code(), Code::AuthenticationFailed);
    assert!(!error.retryable() && !format!("{error:?}").contains("wrong-hunter2"), "{error:?}");
    assert!(begun.elapsed() < Duration::from_secs(10), "told only after {:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_least_permissions_do_with_what_is_there() {
    let user = setting("LIMITED_USER");
    let admin = open(&json!({})).await.unwrap();
    let topic = trunkline::provider::TopicSpec::new(format!("{user}-{}", name()), 2, false);
    admin.ensure(&topic, &[]).await.unwrap();
    let group = trunkline::provider::GroupSpec { name: format!("{user}-{}", name()).into(), ..group() };

    let kafka = open(&limited(&json!({ "create": false }))).await.unwrap();
    kafka.ensure(&topic, std::slice::from_ref(&group)).await.unwrap();
    send(&kafka, &topic, message("mine")).await;
    let member = join(&kafka, &topic, &group).await;
    listen(&*member, true, |told| told.messages.len() == 1).await;
    assert_eq!(kafka.depth(&topic, &group.name).await.unwrap().ready, 0);
    // What is another's is refused with what to do.
    let foreign = spec(1, false);
    admin.ensure(&foreign, &[]).await.unwrap();
    let error = try_send(&kafka, &foreign, message("not mine")).await.unwrap_err();
    assert_eq!(error.error.code(), Code::AuthenticationFailed, "{:?}", error.error);
    assert!(!error.retryable && !error.ambiguous, "{error:?}");
    let error = kafka.ensure(&foreign, &[crate::bed::group()]).await.unwrap_err();
    assert!(matches!(error.code(), Code::AuthenticationFailed | Code::TopicNotFound), "{error:?}");
    // To create is refused too.
    let kafka = open(&limited(&json!({}))).await.unwrap();
    let new = trunkline::provider::TopicSpec { name: format!("{user}-{}", name()).into(), ..topic };
    let error = kafka.ensure(&new, &[]).await.unwrap_err();
    assert_eq!((error.code(), error.detail_str("reason")), (Code::AuthenticationFailed, Some("permission")), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_topic_is_not_created_against_the_wish() {
    let kafka = open(&json!({ "create": false })).await.unwrap();
    let topic = spec(3, false);
    let error = kafka.ensure(&topic, &[group()]).await.unwrap_err();
    assert_eq!(error.code(), Code::TopicNotFound);
    assert!(error.detail_str("next").is_some_and(|next| next.contains('3')), "{error:?}");
    let admin = open(&json!({})).await.unwrap();
    assert!(!admin.ensure(&topic, &[]).await.unwrap().created.is_empty(), "somebody created it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_topic_does_not_come_back_by_itself() {
    let kafka = open(&json!({})).await.unwrap();
    let topic = spec(1, false);
    kafka.ensure(&topic, &[]).await.unwrap();
    send(&kafka, &topic, message("there")).await;
    kafka.remove(trunkline::provider::Remove::Topic(&topic)).await.unwrap();
    let error = try_send(&kafka, &topic, message("gone")).await.unwrap_err();
    assert!(!error.ambiguous, "{error:?}");
    let ensured = kafka.ensure(&topic, &[]).await.unwrap();
    assert!(!ensured.created.is_empty(), "a produce made the deleted topic again");
}
