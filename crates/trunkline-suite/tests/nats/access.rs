//! Getting in: TLS, credentials, permissions, lists of servers, and what the connection test says when it fails.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;
use trunkline::provider::{Stage, TopicSpec};
use trunkline::{Code, Error};
use trunkline_suite::server::setting;

use crate::bed::{done, fresh, group, join, message, open, plain, send, take, topic};

fn tls(more: &Value) -> Value {
    let mut config = json!({
        "servers": setting("NATS_TLS"),
        "user": setting("USER"),
        "pass": setting("PASSWORD"),
        "tls": { "ca": setting("TLS_CA") },
    });
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    config
}

/// Whether a message goes there and comes back.
async fn works(config: &Value) {
    let provider = open(config).await.unwrap();
    let (topic, group) = (topic("works"), group());
    provider.ensure(&topic, std::slice::from_ref(&group)).await.unwrap();
    send(&*provider, &topic, message("hello")).await.unwrap();
    let member = join(&*provider, &topic, &group).await;
    let got = take(&*member, 1).await;
    assert_eq!(got[0].payload.as_deref(), Some(&b"hello"[..]));
    done(&*member, &got).await;
}

async fn refused(config: &Value) -> Error {
    let provider = open(config).await.unwrap();
    provider.ensure(&topic("refused"), &[]).await.expect_err("refused")
}

async fn probe(config: &Value) -> Vec<Stage> {
    open(config).await.unwrap().probe(Instant::now() + Duration::from_secs(20)).await
}

/// The stage that failed, with its code.
fn failed(stages: &[Stage]) -> Option<(&'static str, Code)> {
    stages.iter().find(|stage| !stage.ok).map(|stage| (stage.stage, stage.code.unwrap()))
}

#[tokio::test]
async fn a_user_with_a_password_over_tls() {
    works(&tls(&json!({}))).await;
    let pem = std::fs::read_to_string(setting("TLS_CA")).unwrap();
    works(&tls(&json!({ "tls": { "ca": pem } }))).await;
    works(&tls(&json!({ "tls": { "ca": setting("TLS_OTHER_CA"), "insecure": true } }))).await;
    works(&tls(&json!({ "tls": { "ca": setting("TLS_CA"), "serverName": "localhost" } }))).await;
    let url = setting("NATS_TLS").replace("://", &format!("://{}:{}@", setting("USER"), setting("PASSWORD")));
    works(&json!({ "servers": [url], "tls": { "ca": setting("TLS_CA") } })).await;
}

#[tokio::test]
async fn a_token() {
    works(&json!({ "servers": setting("NATS_TOKEN_TLS"), "token": setting("NATS_TOKEN"), "tls": { "ca": setting("TLS_CA") } })).await;
    let wrong = json!({ "servers": setting("NATS_TOKEN_TLS"), "token": "hunter2", "tls": { "ca": setting("TLS_CA") } });
    let error = refused(&wrong).await;
    assert_eq!(error.code(), Code::AuthenticationFailed);
    assert!(!format!("{error:?}").contains("hunter2"));
}

#[tokio::test]
async fn credentials_as_a_file_and_as_text() {
    let text = std::fs::read_to_string(setting("NATS_CREDS")).unwrap();
    for creds in [setting("NATS_CREDS"), text] {
        works(&json!({ "servers": setting("NATS_CREDS_TLS"), "creds": creds, "tls": { "ca": setting("TLS_CA") } })).await;
    }
    let error = refused(&json!({ "servers": setting("NATS_CREDS_TLS"), "tls": { "ca": setting("TLS_CA") } })).await;
    assert_eq!(error.code(), Code::AuthenticationFailed);
}

#[tokio::test]
async fn the_server_that_answers_of_a_list() {
    works(&json!({ "servers": ["nats://127.0.0.1:1", setting("NATS")] })).await;
    works(&json!({ "servers": format!("127.0.0.1:1,{}", setting("NATS")), "name": "a list" })).await;
    works(&json!({ "servers": "nats://127.0.0.1:1", "endpoint": setting("NATS") })).await;
}

#[tokio::test]
async fn wrong_certificates_are_refused() {
    for (what, wrong) in [
        ("another authority", json!({ "tls": { "ca": setting("TLS_OTHER_CA") } })),
        ("no authority of the server's", json!({ "tls": {} })),
        ("another name", json!({ "tls": { "ca": setting("TLS_CA"), "serverName": "example.com" } })),
    ] {
        let error = refused(&tls(&wrong)).await;
        assert_eq!((error.code(), error.detail_str("reason")), (Code::ConnectionFailed, Some("tls")), "{what}: {error:?}");
        assert!(error.detail_str("next").is_some(), "{what}");
    }
}

/// Right, wrong password, wrong port, TLS mismatch, missing permission: each is found where it is.
#[tokio::test]
async fn the_connection_test_tells_what_is_wrong() {
    let right = probe(&tls(&json!({}))).await;
    let names: Vec<_> = right.iter().map(|stage| stage.stage).collect();
    assert_eq!(names, ["resolve", "connect", "greeting", "tls", "authenticate", "permissions", "ensure", "round_trip"]);
    assert_eq!(failed(&right), None);

    let password = probe(&tls(&json!({ "pass": "hunter2" }))).await;
    assert_eq!(failed(&password), Some(("authenticate", Code::AuthenticationFailed)));
    assert!(!format!("{password:?}").contains("hunter2"));

    assert_eq!(failed(&probe(&json!({ "servers": "nats://127.0.0.1:1" })).await), Some(("connect", Code::ConnectionFailed)));
    assert_eq!(failed(&probe(&json!({ "servers": "nats://no.such.host.invalid" })).await), Some(("resolve", Code::ConnectionFailed)));

    let ca = probe(&tls(&json!({ "tls": { "ca": setting("TLS_OTHER_CA") } }))).await;
    assert_eq!(failed(&ca), Some(("tls", Code::ConnectionFailed)));
    let none = probe(&json!({ "servers": setting("NATS"), "tls": { "ca": setting("TLS_CA") } })).await;
    assert_eq!(failed(&none), Some(("tls", Code::ConnectionFailed)));

    let limited = json!({ "user": setting("LIMITED_USER"), "pass": setting("LIMITED_PASSWORD") });
    let limited = probe(&tls(&limited)).await;
    assert_eq!(failed(&limited), Some(("ensure", Code::AuthenticationFailed)));
    assert!(limited.last().unwrap().fix.as_deref().unwrap().contains("$JS.API.STREAM.CREATE"), "{limited:?}");
    // Whoever makes nothing needs no leave to make something.
    let limited = json!({ "user": setting("LIMITED_USER"), "pass": setting("LIMITED_PASSWORD"), "create": false });
    assert_eq!(failed(&probe(&tls(&limited)).await), None);
}

/// A missing permission is an answer at once, not a timeout.
#[tokio::test]
async fn what_is_not_allowed_is_said_at_once() {
    let limited = tls(&json!({ "user": setting("LIMITED_USER"), "pass": setting("LIMITED_PASSWORD") }));
    let provider = open(&limited).await.unwrap();
    let begun = Instant::now();
    let error = provider.ensure(&topic("limited.none"), &[]).await.expect_err("may not make streams");
    assert_eq!((error.code(), error.detail_str("reason")), (Code::AuthenticationFailed, Some("permission_denied")), "{error:?}");
    let foreign = TopicSpec::new("others.topic", 1, false);
    let error = send(&*provider, &foreign, message("x")).await.expect_err("may not publish there");
    assert_eq!((error.error.detail_str("reason"), error.ambiguous), (Some("permission_denied"), false), "{error:?}");
    assert!(begun.elapsed() < Duration::from_secs(4), "a refusal took {:?}", begun.elapsed());
}

/// With `create: false` the listed permissions are enough to produce and consume what somebody else has made.
#[tokio::test]
async fn what_was_made_needs_few_permissions() {
    let (topic, group) = (topic("limited.made"), group());
    open(&tls(&json!({}))).await.unwrap().ensure(&topic, std::slice::from_ref(&group)).await.unwrap();
    let limited = json!({ "user": setting("LIMITED_USER"), "pass": setting("LIMITED_PASSWORD"), "create": false });
    let provider = open(&tls(&limited)).await.unwrap();
    let ensured = provider.ensure(&topic, std::slice::from_ref(&group)).await.unwrap();
    assert!(ensured.created.is_empty());
    send(&*provider, &topic, message("hello")).await.unwrap();
    let member = join(&*provider, &topic, &group).await;
    let got = take(&*member, 1).await;
    done(&*member, &got).await;
    let depth = provider.depth(&topic, &group.name).await.unwrap();
    assert_eq!((depth.ready + depth.in_flight, depth.exact), (0, false));
}

#[tokio::test]
async fn nothing_is_made_where_it_may_not_be() {
    let provider = open(&json!({ "servers": setting("NATS"), "create": false })).await.unwrap();
    let missing = topic("missing");
    let error = provider.ensure(&missing, &[group()]).await.expect_err("no stream");
    assert_eq!(error.code(), Code::TopicNotFound);
    let next = error.detail_str("next").unwrap();
    assert!(next.contains(&*missing.name), "{next}");
    let error = provider.ensure(&TopicSpec { ordered: true, shards: 3, ..missing.clone() }, &[]).await.expect_err("no stream");
    assert!(error.detail_str("next").unwrap().contains("trunkline.shards=3"), "{error:?}");

    open(&plain()).await.unwrap().ensure(&missing, &[]).await.unwrap();
    let error = provider.ensure(&missing, &[group()]).await.expect_err("no consumer");
    assert_eq!(error.code(), Code::GroupNotFound);
}

/// A server that says it is older than pinned clients: no order can be had there.
#[tokio::test]
async fn an_old_server_keeps_no_order() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let info =
                    json!({ "server_id": "x", "version": "2.10.29", "max_payload": 4096, "headers": true, "proto": 1, "jetstream": true });
                stream.write_all(format!("INFO {info}\r\n").as_bytes()).await.unwrap();
                let (read, mut write) = stream.into_split();
                let mut lines = BufReader::new(read).lines();
                while let Ok(Some(line)) = lines.next_line().await {
                    if line.starts_with("PING") {
                        write.write_all(b"PONG\r\n").await.unwrap();
                    }
                }
            });
        }
    });
    let provider = open(&json!({ "servers": format!("127.0.0.1:{port}") })).await.unwrap();
    let ordered = TopicSpec { ordered: true, shards: 2, ..topic("old") };
    let capabilities = provider.capabilities(&ordered);
    assert!(!capabilities.ordered_shards);
    assert!(capabilities.max_message_bytes < 4096);
    let error = provider.ensure(&ordered, &[]).await.expect_err("no order");
    assert_eq!(error.code(), Code::CapabilityUnsupported);
    assert!(error.message().contains("2.11"), "{error}");
}

/// Nothing that is shown of a connection holds a credential.
#[tokio::test]
async fn nothing_shows_a_secret() {
    let (name, secret) = (fresh("u"), "hunter2-in-a-url");
    let config = json!({ "servers": format!("nats://{name}:{secret}@127.0.0.1:1"), "pass": "hunter2-of-a-user", "user": "u" });
    let provider = open(&config).await.unwrap();
    let error = provider.ensure(&topic("x"), &[]).await.expect_err("nobody there");
    let stages = provider.probe(Instant::now() + Duration::from_secs(2)).await;
    let shown = format!("{provider:?} {error:?} {stages:?}");
    assert!(!shown.contains("hunter2"), "{shown}");
}
