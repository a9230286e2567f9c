//! Who may log in, from where, and to what: each refusal its own diagnosis.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use trunkline::Code;
use trunkline::provider::{Stage, TopicSpec};
use trunkline_suite::server::setting;

use crate::bed::{self, address, confirmed, group, handle, message, name, open, open_with, reason, send, server, subscribe};

fn port(address: &str) -> u16 {
    address.rsplit(':').next().unwrap().parse().unwrap()
}

fn tls_port() -> u16 {
    port(&setting("RABBITMQ_TLS"))
}

fn plain() -> Value {
    json!({ "host": "127.0.0.1", "port": port(&address()), "username": setting("USER"), "password": setting("PASSWORD"),
            "vhost": setting("RABBITMQ_VHOST") })
}

fn with(mut config: Value, more: &Value) -> Value {
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    config
}

fn secure(tls: &Value) -> Value {
    with(plain(), &json!({ "port": tls_port(), "tls": tls }))
}

/// How opening fails: code, reason; and that nothing of it tells the password.
async fn refusal(config: Value) -> (Code, String) {
    let error = open_with(config).await.expect_err("it should be refused");
    for secret in [setting("PASSWORD"), setting("LIMITED_PASSWORD"), "hunter2".into()] {
        assert!(!format!("{error} {error:?}").contains(&secret), "{error:?} tells a secret");
    }
    assert!(error.details().contains_key("next") || error.retryable(), "{error:?} names nothing to do");
    (error.code(), reason(&error).to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_wrong_way_in_is_told_apart() {
    let _server = server().await;
    let refused = |code: Code, reason: &str| (code, reason.to_owned());
    assert_eq!(refusal(with(plain(), &json!({ "password": "hunter2" }))).await, refused(Code::AuthenticationFailed, "credentials"));
    assert_eq!(refusal(with(plain(), &json!({ "vhost": "nowhere" }))).await, refused(Code::AuthenticationFailed, "vhost"));
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    assert_eq!(refusal(with(plain(), &json!({ "port": nobody }))).await, refused(Code::ConnectionFailed, ""));
    let other = json!({ "ca": setting("TLS_OTHER_CA") });
    assert_eq!(refusal(secure(&other)).await, refused(Code::ConnectionFailed, "tls"));
    let spoken_to_plain = with(plain(), &json!({ "tls": { "ca": setting("TLS_CA") } }));
    assert_eq!(refusal(spoken_to_plain).await, refused(Code::ConnectionFailed, "tls"));
    let (code, _) = refusal(with(plain(), &json!({ "port": tls_port() }))).await;
    assert_eq!(code, Code::ConnectionFailed);
    assert_eq!(refusal(secure(&json!({ "ca": setting("TLS_CA"), "serverName": "elsewhere.example" }))).await.1, "tls");
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_is_spoken_as_the_config_asks() {
    let _server = server().await;
    let ca = std::fs::read_to_string(setting("TLS_CA")).unwrap();
    let user = format!("{}:{}", setting("USER"), setting("PASSWORD"));
    let urls = format!("amqps://{user}@localhost:{}/{}", tls_port(), setting("RABBITMQ_VHOST"));
    for config in [
        secure(&json!({ "ca": setting("TLS_CA") })),
        secure(&json!({ "ca": ca, "serverName": "localhost" })),
        secure(&json!({ "insecure": true })),
        secure(&json!({ "ca": ca, "cert": setting("TLS_CERT"), "key": setting("TLS_KEY") })),
        json!({ "url": urls, "tls": { "ca": ca } }),
        json!({ "url": format!("amqps://{user}@elsewhere.example/{}", setting("RABBITMQ_VHOST")), "tls": { "ca": ca },
                "endpoint": format!("amqps://localhost:{}", tls_port()) }),
    ] {
        let provider = open_with(config.clone()).await.unwrap_or_else(|error| panic!("{error:?}"));
        let topic = bed::topic(&provider, 1, false).await;
        let member = subscribe(&provider, &topic, "g").await;
        confirmed(&provider, &topic, vec![message(vec![7; 300_000]), message("b")]).await;
        assert_eq!(handle(&member, 2).await[0].payload.as_ref().unwrap().len(), 300_000);
        assert!(!format!("{provider:?}").contains(&setting("PASSWORD")));
        bed::close(&provider).await;
    }
}

/// A user who may only write and read what is named after him, and make nothing.
fn limited(create: bool) -> Value {
    json!({ "host": "127.0.0.1", "port": port(&address()), "username": setting("LIMITED_USER"), "password": setting("LIMITED_PASSWORD"),
            "vhost": setting("RABBITMQ_VHOST"), "create": create })
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_right_to_create_what_is_there_is_used() {
    let _server = server().await;
    let (admin, user) = (open_with(plain()).await.unwrap(), open_with(limited(false)).await.unwrap());
    let topic = TopicSpec::new(name("limited"), 1, false);
    let missing = user.ensure(&topic, &[group("g")]).await.unwrap_err();
    assert_eq!(missing.code(), Code::TopicNotFound);
    assert!(missing.details()["next"].as_str().unwrap().contains(&*topic.name), "{missing:?}");
    admin.ensure(&topic, &[]).await.unwrap();
    let missing = user.ensure(&topic, &[group("g")]).await.unwrap_err();
    assert_eq!(missing.code(), Code::TopicNotFound);
    assert!(missing.details()["next"].as_str().unwrap().contains("queue"), "{missing:?}");
    admin.ensure(&topic, &[group("g")]).await.unwrap();
    for provider in [user, open_with(limited(true)).await.unwrap()] {
        let ensured = provider.ensure(&topic, &[group("g")]).await.unwrap();
        assert!(ensured.created.is_empty() && ensured.drift.is_empty(), "{ensured:?}");
        let sent = confirmed(&provider, &topic, vec![message("a")]).await;
        let member = subscribe(&provider, &topic, "g").await;
        assert_eq!(bed::ids(&handle(&member, 1).await), sent);
        member.close(Instant::now() + Duration::from_secs(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_permission_is_said_to_be_one() {
    let _server = server().await;
    let (admin, user) = (open_with(plain()).await.unwrap(), open_with(limited(true)).await.unwrap());
    let own = TopicSpec::new(name("limited"), 1, false);
    let refused = user.ensure(&own, &[group("g")]).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused)), (Code::AuthenticationFailed, "permission_denied"));
    let foreign = bed::topic(&admin, 1, false).await;
    let refused = send(&user, &foreign, vec![message("a")]).await.pop().unwrap().unwrap_err();
    assert_eq!((refused.error.code(), reason(&refused.error)), (Code::AuthenticationFailed, "permission_denied"));
    assert!(!refused.retryable && !refused.ambiguous);
    let options =
        trunkline::provider::SubscribeOptions { member: "m".into(), prefetch: trunkline::provider::Prefetch { count: 10, bytes: 1 << 20 } };
    let refused = user.subscribe(std::slice::from_ref(&foreign), &group("g"), options).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused)), (Code::AuthenticationFailed, "permission_denied"));
    // It goes on where it may.
    admin.ensure(&own, &[group("g")]).await.unwrap();
    confirmed(&user, &own, vec![message("b")]).await;
}

/// The test of a config that can be opened, or of one that cannot, through one that can.
async fn probed(config: Value) -> Vec<Stage> {
    let trunkline::config::ProviderConfig::RabbitMq(config) =
        trunkline::config::ProviderConfig::parse(trunkline::config::ProviderKind::RabbitMq, &config).unwrap()
    else {
        unreachable!()
    };
    let begun = Instant::now();
    let stages = trunkline::provider::rabbitmq::probe(&config, begun + Duration::from_secs(20)).await;
    assert!(begun.elapsed() < Duration::from_secs(21), "a probe took {:?}", begun.elapsed());
    stages
}

#[tokio::test(flavor = "multi_thread")]
async fn five_diagnoses_of_the_connection_test() {
    let _server = server().await;
    let failed = |stages: Vec<Stage>| {
        let last = stages.into_iter().next_back().unwrap();
        assert!(!last.ok && last.fix.is_some(), "{last:?}");
        (last.stage, last.code.unwrap())
    };
    let good = probed(plain()).await;
    assert!(good.iter().all(|stage| stage.ok), "{good:?}");
    let names: Vec<_> = good.iter().map(|stage| stage.stage).collect();
    assert_eq!(names, ["resolve", "connect", "greet", "authenticate", "permissions", "ensure", "round_trip"]);
    let good = probed(secure(&json!({ "ca": setting("TLS_CA") }))).await;
    assert!(good.iter().all(|stage| stage.ok) && good[2].stage == "tls", "{good:?}");

    let password = failed(probed(with(plain(), &json!({ "password": "hunter2" }))).await);
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let wrong_port = failed(probed(with(plain(), &json!({ "port": nobody }))).await);
    let no_name = failed(probed(with(plain(), &json!({ "host": "no-such-host.invalid" }))).await);
    let tls = failed(probed(secure(&json!({ "ca": setting("TLS_OTHER_CA") }))).await);
    let permission = failed(probed(limited(true)).await);
    assert_eq!(password, ("authenticate", Code::AuthenticationFailed));
    assert_eq!(wrong_port, ("connect", Code::ConnectionFailed));
    assert_eq!(no_name, ("resolve", Code::ConnectionFailed));
    assert_eq!(tls, ("tls", Code::ConnectionFailed));
    assert_eq!(permission, ("permissions", Code::AuthenticationFailed));
    let looked = probed(with(limited(false), &json!({ "exchange": name("limited") }))).await;
    assert_eq!(failed(looked), ("ensure", Code::TopicNotFound));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_connection_test_of_a_silent_server_ends_in_time() {
    let _server = server().await;
    // Takes connections and says nothing.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = listener.local_addr().unwrap().port();
    let provider = open().await;
    let begun = Instant::now();
    let stages = {
        let config = with(plain(), &json!({ "port": silent }));
        let trunkline::config::ProviderConfig::RabbitMq(config) =
            trunkline::config::ProviderConfig::parse(trunkline::config::ProviderKind::RabbitMq, &config).unwrap()
        else {
            unreachable!()
        };
        trunkline::provider::rabbitmq::probe(&config, begun + Duration::from_secs(1)).await
    };
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    let last = stages.last().unwrap();
    assert_eq!((last.stage, last.code), ("greet", Some(Code::Timeout)));
    bed::close(&provider).await;
}
