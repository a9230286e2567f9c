//! SQS under test: ElasticMQ, a server that speaks its protocol, and a client that is nobody's library.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};
use trunkline::Result;
use trunkline::config::{ProviderConfig, ProviderKind, SqsConfig};
use trunkline::provider::Provider;
use trunkline::provider::sqs::{Options, Sqs};

use crate::server::setting;
use crate::{Broker, Pace};

/// Short, with room for a busy machine.
pub const LEASE: Duration = Duration::from_secs(4);

/// Where the server is.
#[must_use]
pub fn endpoint() -> String {
    setting("SQS")
}

/// An env's config for it, with more fields or others. ElasticMQ checks no credentials.
#[must_use]
pub fn json_config(more: &Value) -> Value {
    let mut config = json!({
        "region": setting("SQS_REGION"),
        "endpoint": endpoint(),
        "accessKeyId": "AKIDTEST",
        "secretAccessKey": "not-a-secret",
    });
    if let (Some(config), Some(more)) = (config.as_object_mut(), more.as_object()) {
        config.extend(more.clone());
    }
    config
}

/// The same, parsed.
///
/// # Panics
/// If it is refused.
#[must_use]
pub fn config(more: &Value) -> SqsConfig {
    match ProviderConfig::parse(ProviderKind::AwsSqs, &json_config(more)) {
        Ok(ProviderConfig::AwsSqs(config)) => config,
        other => panic!("not a config of SQS: {other:?}"),
    }
}

/// With short leases and short waits.
#[must_use]
pub fn options() -> Options {
    Options { lease: LEASE, wait: Duration::from_secs(2), ..Options::default() }
}

/// A connection.
///
/// # Panics
/// If it cannot be prepared.
pub async fn connect(more: &Value) -> Arc<dyn Provider> {
    Arc::new(Sqs::open(&config(more), options()).await.unwrap())
}

/// The server that `scripts/brokers` started.
#[derive(Debug)]
pub struct ElasticMq;

const LEFT_OUT: &[(&str, &str)] =
    &[("order/a_message_lies_in_its_shard", "ElasticMQ answers a batch without the sequence numbers of which SQS makes positions")];

#[async_trait]
impl Broker for ElasticMq {
    fn name(&self) -> &str {
        "SQS (ElasticMQ)"
    }

    fn pace(&self) -> Pace {
        Pace::NETWORK
    }

    async fn open(&self) -> Result<Arc<dyn Provider>> {
        Ok(Arc::new(Sqs::open(&config(&json!({})), options()).await?))
    }

    fn topic_name(&self, name: String, ordered: bool) -> String {
        if ordered { format!("{name}.fifo") } else { name }
    }

    async fn restart(&self) -> Result<bool> {
        Ok(false)
    }

    fn leaves_out(&self) -> &[(&'static str, &'static str)] {
        LEFT_OUT
    }
}

/// Host and port of an `http://` endpoint.
#[must_use]
pub fn authority(endpoint: &str) -> String {
    endpoint.trim_start_matches("http://").trim_end_matches('/').to_owned()
}

/// One call in SQS's older protocol (a form, answered in XML), as `curl` would make it: neither our client nor our protocol.
///
/// # Panics
/// If the server does not answer 200.
pub async fn query(path: &str, form: &[(&str, &str)]) -> String {
    let escape = |text: &str| text.bytes().map(|b| format!("%{b:02X}")).collect::<String>();
    let body: Vec<String> = form.iter().map(|(name, value)| format!("{name}={}", escape(value))).collect();
    let body = body.join("&");
    let host = authority(&endpoint());
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    );
    let mut stream = TcpStream::connect(&host).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(answer.starts_with("HTTP/1.1 200"), "a plain client was answered: {answer}");
    answer
}

/// Passes everything on to the server and counts the calls by their action.
#[derive(Debug)]
pub struct Counter {
    /// Where clients connect to.
    pub endpoint: String,
    seen: Arc<Mutex<Vec<String>>>,
    open: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Counter {
    /// Listens on a free port.
    ///
    /// # Panics
    /// If no port can be had.
    pub async fn new() -> Counter {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let (seen, open) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicUsize::new(0)));
        let task = tokio::spawn({
            let (seen, open) = (seen.clone(), open.clone());
            async move {
                while let Ok((client, _)) = listener.accept().await {
                    let Ok(server) = TcpStream::connect(authority(&self::endpoint())).await else { continue };
                    open.fetch_add(1, Ordering::Relaxed);
                    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
                    tokio::spawn(pass(from_client, to_server, Some(seen.clone())));
                    tokio::spawn(pass(from_server, to_client, None));
                }
            }
        });
        Counter { endpoint, seen, open, task }
    }

    /// How many calls of an action were made.
    #[must_use]
    pub fn calls(&self, action: &str) -> usize {
        self.seen.lock().iter().filter(|seen| *seen == action).count()
    }

    /// How many connections were opened.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        self.task.abort();
    }
}

const MARK: &[u8] = b"x-amz-target: AmazonSQS.";

/// Copies bytes, and notes the action of each call in them.
async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, seen: Option<Arc<Mutex<Vec<String>>>>) {
    let (mut piece, mut rest) = (vec![0; 65_536], Vec::new());
    while let Ok(n) = from.read(&mut piece).await {
        if n == 0 {
            break;
        }
        if let Some(seen) = &seen {
            rest.extend_from_slice(&piece[..n]);
            let mut from = 0;
            while let Some(at) = rest[from..].windows(MARK.len()).position(|part| part.eq_ignore_ascii_case(MARK)) {
                let begin = from + at + MARK.len();
                let Some(len) = rest[begin..].iter().position(|byte| *byte == b'\r') else { break };
                seen.lock().push(String::from_utf8_lossy(&rest[begin..begin + len]).into_owned());
                from = begin + len;
            }
            // What may be the start of a mark that is cut in two.
            let keep = rest.len().saturating_sub(200).max(from);
            rest.drain(..keep);
        }
        if to.write_all(&piece[..n]).await.is_err() {
            break;
        }
    }
    let _ = to.shutdown().await;
}

/// TLS in front of the server, with the certificate that `scripts/brokers` made for `localhost`.
#[derive(Debug)]
pub struct TlsFront {
    /// Where clients connect to.
    pub endpoint: String,
    task: JoinHandle<()>,
}

impl TlsFront {
    /// Listens on a free port; `asks` for a client's certificate, signed by the same authority.
    ///
    /// # Panics
    /// If the certificates cannot be read.
    pub async fn new(asks: bool) -> TlsFront {
        let dir = std::path::PathBuf::from(setting("TLS_CA"));
        let dir = dir.parent().unwrap();
        let certificates =
            |file: &str| CertificateDer::pem_file_iter(dir.join(file)).unwrap().collect::<std::result::Result<Vec<_>, _>>().unwrap();
        let key = PrivateKeyDer::from_pem_file(dir.join("server.key")).unwrap();
        let crypto = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(crypto.clone()).with_safe_default_protocol_versions().unwrap();
        let builder = if asks {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(certificates("ca.pem"));
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), crypto).build().unwrap();
            builder.with_client_cert_verifier(verifier)
        } else {
            builder.with_no_client_auth()
        };
        let config = builder.with_single_cert(certificates("server.pem"), key).unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("https://localhost:{}", listener.local_addr().unwrap().port());
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let Ok(mut client) = acceptor.accept(client).await else { return };
                    let Ok(mut server) = TcpStream::connect(authority(&self::endpoint())).await else { return };
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                });
            }
        });
        TlsFront { endpoint, task }
    }
}

impl Drop for TlsFront {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A server that gives the answers it is told to: for what no emulator does.
#[derive(Debug)]
pub struct Replies {
    /// Where clients connect to.
    pub endpoint: String,
    task: JoinHandle<()>,
}

/// What is asked: the action, the body, and the headers as text.
#[derive(Debug, Clone)]
pub struct Asked {
    /// `SendMessageBatch`.
    pub action: String,
    /// Its parameters.
    pub body: Value,
    /// All headers.
    pub headers: String,
}

impl Replies {
    /// Answers with what `answer` says: the status, and the body, or an error's `(code, message)` as `error` makes it.
    ///
    /// # Panics
    /// If no port can be had.
    pub async fn new(answer: impl Fn(Asked) -> (u16, Value) + Send + Sync + 'static) -> Replies {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let answer = Arc::new(answer);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let answer = answer.clone();
                tokio::spawn(async move { converse(client, &*answer).await });
            }
        });
        Replies { endpoint, task }
    }
}

impl Drop for Replies {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// An error as SQS answers it.
#[must_use]
pub fn error(status: u16, code: &str, message: &str) -> (u16, Value) {
    (status, json!({ "__type": format!("com.amazonaws.sqs#{code}"), "message": message }))
}

async fn converse(mut client: TcpStream, answer: &(dyn Fn(Asked) -> (u16, Value) + Send + Sync)) {
    let (mut bytes, mut piece) = (Vec::new(), vec![0; 65_536]);
    loop {
        if !bytes.starts_with(b"POST") && bytes.len() > 4 {
            let _ = client.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").await;
            return;
        }
        let Some((head, body)) = request(&bytes) else {
            match client.read(&mut piece).await {
                Ok(n) if n > 0 => bytes.extend_from_slice(&piece[..n]),
                _ => return,
            }
            continue;
        };
        let headers = String::from_utf8_lossy(&bytes[..head]).into_owned();
        let action = headers.lines().find_map(|line| line.to_lowercase().starts_with("x-amz-target:").then(|| line.rsplit('.').next()));
        let asked = Asked {
            action: action.flatten().unwrap_or_default().to_owned(),
            body: serde_json::from_slice(&bytes[head..body]).unwrap_or_default(),
            headers,
        };
        bytes.drain(..body);
        let (status, said) = answer(asked);
        let said = said.to_string();
        let text =
            format!("HTTP/1.1 {status} X\r\nContent-Type: application/x-amz-json-1.0\r\nContent-Length: {}\r\n\r\n{said}", said.len());
        // A status of 0 is no answer at all.
        if status == 0 || client.write_all(text.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// Where the head of the first whole request ends, and where its body does.
fn request(bytes: &[u8]) -> Option<(usize, usize)> {
    let head = bytes.windows(4).position(|part| part == b"\r\n\r\n")? + 4;
    let text = String::from_utf8_lossy(&bytes[..head]).to_lowercase();
    let length = text.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok()).unwrap_or(0);
    (bytes.len() >= head + length).then_some((head, head + length))
}
