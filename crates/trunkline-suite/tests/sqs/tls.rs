//! TLS: the authority, the name, the client's certificate, and what is said when one of them does not fit.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use trunkline::Code;
use trunkline::provider::Stage;
use trunkline_suite::elasticmq::{TlsFront, connect};
use trunkline_suite::server::setting;

async fn probe(endpoint: &str, tls: Value) -> Vec<Stage> {
    let provider = connect(&json!({ "endpoint": endpoint, "tls": tls })).await;
    provider.probe(Instant::now() + Duration::from_secs(20)).await
}

fn passes(stages: &[Stage]) {
    assert!(stages.iter().all(|stage| stage.ok), "{stages:?}");
    let names: Vec<_> = stages.iter().map(|stage| stage.stage).collect();
    assert_eq!(names, ["resolve", "connect", "tls", "authenticate", "permissions", "ensure", "round_trip"]);
}

fn fails(stages: &[Stage]) {
    let last = stages.last().expect("a stage");
    assert_eq!((last.stage, last.ok, last.code), ("tls", false, Some(Code::ConnectionFailed)), "{stages:?}");
    assert!(last.fix.as_deref().is_some_and(|fix| fix.contains("tls.")), "{stages:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_s_certificate_is_checked() {
    let front = TlsFront::new(false).await;
    passes(&probe(&front.endpoint, json!({ "ca": setting("TLS_CA") })).await);
    passes(&probe(&front.endpoint, json!({ "insecure": true })).await);
    let pem = std::fs::read_to_string(setting("TLS_CA")).expect("the authority");
    passes(&probe(&front.endpoint.replace("localhost", "127.0.0.1"), json!({ "ca": pem, "serverName": "localhost" })).await);
    fails(&probe(&front.endpoint, json!({ "ca": setting("TLS_OTHER_CA") })).await);
    fails(&probe(&front.endpoint, json!({ "ca": setting("TLS_CA"), "serverName": "elsewhere.example" })).await);
    fails(&probe(&front.endpoint, json!({})).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_s_certificate_is_shown() {
    let front = TlsFront::new(true).await;
    let ca = setting("TLS_CA");
    passes(&probe(&front.endpoint, json!({ "ca": ca, "cert": setting("TLS_CERT"), "key": setting("TLS_KEY") })).await);
    fails(&probe(&front.endpoint, json!({ "ca": ca })).await);
}
