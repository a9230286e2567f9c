//! Who may, and over what: credentials, permissions, TLS, `create: false`. Each refusal is told apart, and shows no secret.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use trunkline::Code;
use trunkline::capability::Durability;
use trunkline::provider::redis::{Options, Redis};
use trunkline::provider::{Remove, TopicSpec};
use trunkline_suite::server::setting;

use crate::private::{DURABLE, MEMORY, Private, open, parsed, short};
use crate::{done, group, message, messages, send, subscribe, take, topic};

/// What `permissions` of the provider's page lists, word for word.
const LEAST: &[&str] = &[
    "+hello",
    "+auth",
    "+select",
    "+ping",
    "+client|unblock",
    "+xadd",
    "+xreadgroup",
    "+xack",
    "+xautoclaim",
    "+xclaim",
    "+xpending",
    "+xinfo|groups",
    "+xinfo|consumers",
    "+xrange",
    "+xtrim",
    "+xlen",
    "+xgroup|delconsumer",
    "+hget",
    "+exists",
    "+memory|usage",
    "+time",
    "+eval",
    "+evalsha",
];
const ORDERED: &[&str] =
    &["+multi", "+exec", "+get", "+set", "+del", "+pexpire", "+hincrby", "+zadd", "+zrem", "+zrange", "+zremrangebyscore"];
const CREATE: &[&str] = &["+xgroup|create", "+xgroup|destroy", "+hsetnx", "+del"];

/// The stages of a test: each name, with the code of the one that failed.
async fn stages(config: Value) -> (Vec<&'static str>, Option<(Code, String, String)>) {
    let stages = Redis::test(&parsed(&config), Instant::now() + Duration::from_secs(20)).await.unwrap();
    let failed = stages.iter().find(|stage| !stage.ok);
    let failed = failed.map(|stage| (stage.code.unwrap(), stage.message.clone().unwrap(), stage.fix.clone().unwrap()));
    (stages.iter().map(|stage| stage.stage).collect(), failed)
}

/// The stage that failed, its code, and a word of what to do.
async fn diagnosis(config: Value, stage: &str, code: Code, fix: &str) {
    let (stages, failed) = stages(config.clone()).await;
    let (was, message, says) = failed.unwrap_or_else(|| panic!("{config} passed {stages:?}"));
    assert_eq!((*stages.last().unwrap(), was), (stage, code), "{message}; {says}");
    assert!(says.contains(fix), "what to do about '{message}': {says}");
    // To open it fails for the same reason.
    let error = match open(config.clone(), short()).await {
        Err(error) => error,
        Ok(_) if stage == "permissions" => return,
        Ok(_) => panic!("{config} was opened"),
    };
    assert_eq!((error.code(), error.detail_str("stage")), (code, Some(stage)), "{error:?}");
    assert!(!format!("{error:?}{message}{says}").contains("hunter2"), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_password_port_tls_and_permission_are_five_diagnoses() {
    let plain = setting("REDIS");
    let tls = setting("REDIS_TLS");
    let user = setting("USER");
    let port = |url: &str| url.rsplit_once(':').unwrap().1.parse::<u16>().unwrap();
    let (plain_port, tls_port) = (port(&plain), port(&tls));
    let host = |port: u16, more: Value| {
        let mut config = json!({ "host": "127.0.0.1", "port": port });
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        config
    };
    let wrong_password = host(plain_port, json!({ "username": user, "password": "hunter2" }));
    diagnosis(wrong_password, "authenticate", Code::AuthenticationFailed, "password").await;
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    diagnosis(host(free, json!({})), "connect", Code::ConnectionFailed, "port").await;
    diagnosis(json!({ "url": format!("redis://127.0.0.1:{tls_port}") }), "authenticate", Code::ConnectionFailed, "rediss://").await;
    diagnosis(
        json!({ "url": format!("rediss://127.0.0.1:{plain_port}") , "tls": { "insecure": true } }),
        "tls",
        Code::ConnectionFailed,
        "TLS",
    )
    .await;
    diagnosis(host(tls_port, json!({ "tls": { "ca": setting("TLS_OTHER_CA") } })), "tls", Code::ConnectionFailed, "tls.ca").await;
    let limited = json!({ "username": setting("LIMITED_USER"), "password": setting("LIMITED_PASSWORD"), "prefix": "limited" });
    diagnosis(host(plain_port, limited), "permissions", Code::AuthenticationFailed, "permissions").await;
    diagnosis(json!({ "host": "no-such-host.invalid" }), "resolve", Code::ConnectionFailed, "host name").await;
    let unknown_db = host(plain_port, json!({ "db": 9_999 }));
    diagnosis(unknown_db, "authenticate", Code::ConfigInvalid, "db").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_way_through_tls_leads_to_the_server() {
    let url = setting("REDIS_TLS");
    let port: u16 = url.rsplit_once(':').unwrap().1.parse().unwrap();
    let (user, password) = (setting("USER"), setting("PASSWORD"));
    let ca = setting("TLS_CA");
    let text = std::fs::read_to_string(&ca).unwrap();
    let (cert, key) = (setting("TLS_CERT"), setting("TLS_KEY"));
    for config in [
        json!({ "url": format!("rediss://{user}:{password}@127.0.0.1:{port}/0"), "tls": { "ca": ca } }),
        json!({ "host": "localhost", "port": port, "username": user, "password": password, "tls": { "ca": text } }),
        json!({ "host": "127.0.0.1", "port": port, "tls": { "ca": ca, "serverName": "localhost" } }),
        json!({ "host": "127.0.0.1", "port": port, "tls": { "ca": ca, "cert": cert, "key": key } }),
        json!({ "host": "127.0.0.1", "port": port, "tls": { "insecure": true, "serverName": "whatever.example" } }),
        json!({ "url": format!("rediss://127.0.0.1:{port}#insecure") }),
        json!({ "host": "nowhere.invalid", "endpoint": format!("127.0.0.1:{port}"), "tls": { "ca": ca } }),
        json!({ "host": "127.0.0.1", "port": port, "mode": "pubsub", "tls": { "ca": ca } }),
    ] {
        let (stages, failed) = stages(config.clone()).await;
        assert!(failed.is_none(), "{config}: {failed:?}");
        assert!(stages.contains(&"tls") && stages.ends_with(&["round_trip"]), "{stages:?}");
        // A whole subscription over it, not only the handshake.
        let provider = open(config.clone(), short()).await.unwrap();
        if config.get("mode").is_none() {
            let (topic, group) = (topic(&trunkline::MessageId::now().to_string()), group("g"));
            provider.ensure(&topic, std::slice::from_ref(&group)).await.unwrap();
            send(&*provider, &topic, vec![message(vec![b'x'; 1 << 20])]).await;
            let subscription = subscribe(&*provider, &topic, &group).await.unwrap();
            done(&*subscription, &take(&*subscription, 1).await).await;
            provider.remove(Remove::Topic(&topic)).await.unwrap();
        }
    }
    let wrong_name = json!({ "host": "127.0.0.1", "port": port, "tls": { "ca": ca, "serverName": "other.example" } });
    diagnosis(wrong_name, "tls", Code::ConnectionFailed, "tls.serverName").await;
}

fn user(server: &Private, rules: &[&str]) -> Value {
    let mut args = vec!["ACL", "SETUSER", "least", "reset", "on", ">hunter2", "~shop.*"];
    args.extend(rules);
    assert_eq!(server.cli(&args), "OK");
    json!({ "host": "127.0.0.1", "port": server.port(), "username": "least", "password": "hunter2" })
}

#[tokio::test(flavor = "multi_thread")]
async fn without_create_the_least_permissions_are_enough() {
    let server = Private::start(DURABLE).await;
    let mut config = user(&server, LEAST);
    config["create"] = json!(false);
    config["prefix"] = json!("shop");
    let (stages, failed) = stages(config.clone()).await;
    assert!(failed.is_none(), "{stages:?}: {failed:?}");
    let provider = open(config, Options { trim: short().lease / 4, ..short() }).await.unwrap();
    // The settings were asked for in vain; nothing else will be.
    server.cli(&["ACL", "LOG", "RESET"]);
    let (topic, group) = (topic("shop.orders"), group("billing"));
    // What is missing is named with the command that makes it.
    let missing = provider.ensure(&topic, std::slice::from_ref(&group)).await.unwrap_err();
    assert_eq!(missing.code(), Code::TopicNotFound);
    assert!(missing.detail_str("next").is_some_and(|next| next.contains("XGROUP CREATE 'shop.orders'")), "{missing:?}");
    assert_eq!(server.cli(&["XGROUP", "CREATE", "shop.orders", "other", "0", "MKSTREAM"]), "OK");
    let missing = provider.ensure(&topic, std::slice::from_ref(&group)).await.unwrap_err();
    assert_eq!(missing.code(), Code::GroupNotFound);
    assert!(missing.detail_str("next").is_some_and(|next| next.contains("'billing'")), "{missing:?}");
    assert_eq!(server.cli(&["XGROUP", "CREATE", "shop.orders", "billing", "0"]), "OK");
    let ensured = provider.ensure(&topic, std::slice::from_ref(&group)).await.unwrap();
    assert!(ensured.created.is_empty());
    // The settings may not be read: nothing better than memory is promised, and it is said.
    assert_eq!(provider.capabilities(&topic).durability, Durability::Memory);
    assert!(ensured.drift.iter().any(|words| words.contains("CONFIG GET")), "{:?}", ensured.drift);
    send(&*provider, &topic, messages(10, 100)).await;
    let first = subscribe(&*provider, &topic, &group).await.unwrap();
    let got = take(&*first, 10).await;
    done(&*first, &got[..4]).await;
    first.close(Instant::now() + Duration::from_secs(10)).await;
    let second = subscribe(&*provider, &topic, &group).await.unwrap();
    done(&*second, &take(&*second, 6).await).await;
    // It kept its leases and trimmed without a refusal, which the server would have in its log.
    tokio::time::sleep(short().lease).await;
    assert_eq!(server.cli(&["ACL", "LOG"]), "");
    second.close(Instant::now() + Duration::from_secs(10)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_create_and_order_the_listed_permissions_are_enough() {
    let server = Private::start(DURABLE).await;
    let rules = [LEAST, CREATE, ORDERED, &["+config|get", "+info"]].concat();
    let mut config = user(&server, &rules);
    config["prefix"] = json!("shop");
    let (stages, failed) = stages(config.clone()).await;
    assert!(failed.is_none(), "{stages:?}: {failed:?}");
    let provider = open(config, short()).await.unwrap();
    let (topic, group) = (TopicSpec::new("shop.orders", 3, true), group("billing"));
    provider.ensure(&topic, std::slice::from_ref(&group)).await.unwrap();
    assert_eq!(provider.capabilities(&topic).durability, Durability::Fsynced);
    let batch = (0..9).map(|at| trunkline::provider::Outgoing { shard: Some(at % 3), ..message("x") }).collect();
    send(&*provider, &topic, batch).await;
    let member = subscribe(&*provider, &topic, &group).await.unwrap();
    done(&*member, &take(&*member, 9).await).await;
    member.close(Instant::now() + Duration::from_secs(10)).await;
    provider.remove(Remove::Group(&topic, "billing")).await.unwrap();
    provider.remove(Remove::Topic(&topic)).await.unwrap();
    assert_eq!(server.cli(&["ACL", "LOG"]), "");
    assert_eq!(server.cli(&["KEYS", "*"]), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_permission_names_itself() {
    let server = Private::start(MEMORY).await;
    let provider = open(user(&server, &[LEAST, CREATE].concat()), short()).await.unwrap();
    let elsewhere = provider.ensure(&topic("other"), &[]).await.unwrap_err();
    assert_eq!((elsewhere.code(), elsewhere.detail_str("reason")), (Code::AuthenticationFailed, Some("permission")), "{elsewhere:?}");
    let t = topic("shop.t");
    provider.ensure(&t, &[]).await.unwrap();
    server.cli(&["ACL", "SETUSER", "least", "-xadd"]);
    let failed = provider.send(&t, std::sync::Arc::new(messages(1, 1))).await.remove(0).unwrap_err();
    assert_eq!((failed.error.code(), failed.retryable, failed.ambiguous), (Code::AuthenticationFailed, false, false));
    assert!(failed.error.message().contains("xadd"), "{failed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_refused_by_name() {
    let server = Private::start(&["--cluster-enabled", "yes"]).await;
    let error = open(server.config(), short()).await.unwrap_err();
    assert_eq!((error.code(), error.detail_str("reason")), (Code::CapabilityUnsupported, Some("cluster")), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_of_another_kind_is_named() {
    let server = Private::start(MEMORY).await;
    server.cli(&["SET", "t", "x"]);
    let provider = server.open().await;
    let error = provider.ensure(&topic("t"), &[group("g")]).await.unwrap_err();
    assert_eq!((error.code(), error.detail_str("reason")), (Code::ConfigInvalid, Some("not_a_stream")), "{error:?}");
    assert_eq!(server.cli(&["GET", "t"]), "x");
}
