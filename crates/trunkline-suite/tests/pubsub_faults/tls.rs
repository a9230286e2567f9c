//! TLS, and the credentials that only go over it.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};
use trunkline::Code;
use trunkline::provider::Stage;
use trunkline_suite::server::setting;

use crate::{config, done, group, id, messages, name, open, send, server, set, subscribe, take, topic};

/// TLS in front of the test server, with the certificate that `scripts/brokers` made for `localhost`.
struct Front {
    endpoint: String,
    task: JoinHandle<()>,
}

impl Front {
    /// `asks` for a client's certificate, signed by the same authority.
    async fn new(asks: bool) -> Front {
        let dir = PathBuf::from(setting("TLS_CA"));
        let dir = dir.parent().unwrap();
        let certificates = |file: &str| CertificateDer::pem_file_iter(dir.join(file)).unwrap().map(Result::unwrap).collect::<Vec<_>>();
        let crypto = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(crypto.clone()).with_safe_default_protocol_versions().unwrap();
        let builder = if asks {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(certificates("ca.pem"));
            builder.with_client_cert_verifier(WebPkiClientVerifier::builder_with_provider(Arc::new(roots), crypto).build().unwrap())
        } else {
            builder.with_no_client_auth()
        };
        let key = PrivateKeyDer::from_pem_file(dir.join("server.key")).unwrap();
        let mut config = builder.with_single_cert(certificates("server.pem"), key).unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("https://localhost:{}", listener.local_addr().unwrap().port());
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let Ok(mut client) = acceptor.accept(client).await else { return };
                    let Ok(mut to) = TcpStream::connect(server()).await else { return };
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut to).await;
                });
            }
        });
        Front { endpoint, task }
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A service account's key of its own.
fn key() -> Value {
    let made = Command::new("openssl").args(["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"]).output();
    let made = made.expect("openssl cannot be run: `scripts/brokers` needs it too");
    json!({
        "type": "service_account",
        "project_id": "p",
        "private_key_id": "1",
        "private_key": String::from_utf8(made.stdout).unwrap(),
        "client_email": "trunkline@p.iam.gserviceaccount.com",
        "token_uri": "https://127.0.0.1:1/never-asked",
    })
}

async fn probe(endpoint: &str, fields: Value) -> Vec<Stage> {
    let mut all = json!({ "endpoint": endpoint, "projectId": name("token-p") });
    all.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    let provider = open(&config(&all)).await.unwrap();
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
    let (front, key) = (Front::new(false).await, key());
    let with = |tls: Value| json!({ "credentials": key, "tls": tls });
    let ca = setting("TLS_CA");
    passes(&probe(&front.endpoint, with(json!({ "ca": ca }))).await);
    passes(&probe(&front.endpoint, with(json!({ "insecure": true }))).await);
    let pem = std::fs::read_to_string(&ca).unwrap();
    let by_address = front.endpoint.replace("localhost", "127.0.0.1");
    passes(&probe(&by_address, with(json!({ "ca": pem, "serverName": "localhost" }))).await);
    fails(&probe(&front.endpoint, with(json!({ "ca": setting("TLS_OTHER_CA") }))).await);
    fails(&probe(&front.endpoint, with(json!({ "ca": ca, "serverName": "elsewhere.example" }))).await);
    fails(&probe(&front.endpoint, with(json!({}))).await);
    // TLS towards a server that speaks none.
    let stages = probe(&format!("https://{}", server()), with(json!({ "insecure": true }))).await;
    let last = stages.last().unwrap();
    assert_eq!((last.stage, last.code), ("tls", Some(Code::ConnectionFailed)), "{stages:?}");
    assert!(last.fix.as_deref().is_some_and(|fix| fix.contains("leave TLS out")), "{stages:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_s_certificate_is_shown() {
    let (front, key) = (Front::new(true).await, key());
    let with = |tls: Value| json!({ "credentials": key, "tls": tls });
    let ca = setting("TLS_CA");
    passes(&probe(&front.endpoint, with(json!({ "ca": ca, "cert": setting("TLS_CERT"), "key": setting("TLS_KEY") }))).await);
    let stages = probe(&front.endpoint, with(json!({ "ca": ca }))).await;
    let last = stages.last().unwrap();
    assert!(!last.ok && last.code == Some(Code::ConnectionFailed), "{stages:?}");
}

/// The server of these projects knows nobody without a token, which the key signs.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_shown_in_every_spelling() {
    let (front, key, dir) = (Front::new(false).await, key(), tempfile::tempdir().unwrap());
    let file = dir.path().join("key.json");
    std::fs::write(&file, key.to_string()).unwrap();
    for mut fields in [json!({ "credentials": key }), json!({ "credentials": key.to_string() }), json!({ "keyFilename": file })] {
        let more = json!({ "endpoint": front.endpoint, "projectId": name("token-p"), "tls": { "ca": setting("TLS_CA") } });
        fields.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let provider = open(&config(&fields)).await.unwrap();
        let (topic, group) = (topic("orders"), group("g"));
        provider.ensure(&topic, std::slice::from_ref(&group)).await.unwrap();
        let subscription = subscribe(&*provider, &topic, &group).await.unwrap();
        let sent = send(&*provider, &topic, messages(3)).await;
        let got = take(&*subscription, 3).await;
        assert_eq!(set(got.iter().map(id)), set(sent));
        done(&*subscription, &got).await;
        let shown = format!("{provider:?} {subscription:?}");
        assert!(!shown.contains("PRIVATE") && !shown.contains("Bearer"), "{shown}");
    }
}

/// A token over a connection without TLS would be anybody's: it is not sent, and the server says that it knows nobody.
#[tokio::test(flavor = "multi_thread")]
async fn no_token_goes_over_a_plain_connection() {
    let fields = json!({ "projectId": name("token-p"), "credentials": key() });
    let provider = open(&config(&fields)).await.unwrap();
    let stages = provider.probe(Instant::now() + Duration::from_secs(20)).await;
    let last = stages.last().unwrap();
    assert_eq!((last.stage, last.code), ("authenticate", Some(Code::AuthenticationFailed)), "{stages:?}");
}
