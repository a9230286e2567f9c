//! The connection test: name, port, TLS, credentials, permissions, and a message that goes there and comes back.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::TcpStream;

use super::access::Server;
use super::api;
use super::error;
use super::link::Link;
use super::{Shared, admin};
use crate::error::{Code, Error, Result};
use crate::message::MessageId;
use crate::provider::Stage;
use crate::provider::net::reach::Probe;

/// How long one server of several may take before the next is tried.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long a server may take to say what it is.
const GREETING: Duration = Duration::from_secs(5);

pub(super) async fn probe(shared: &Shared, deadline: Instant) -> Vec<Stage> {
    let servers = &shared.dial.servers;
    let mut stages = Vec::new();
    for (at, server) in servers.iter().enumerate() {
        let last = at + 1 == servers.len();
        // Only the last one may take all the time there is.
        let until = if last { deadline } else { deadline.min(Instant::now() + PATIENCE) };
        let mut reach = Probe::new(until);
        if reach.reach(&server.host, server.port).await.is_some() {
            let mut probe = Probe::new(deadline);
            one(shared, server, &mut probe).await;
            stages = reach.into_stages();
            stages.extend(probe.into_stages());
            return stages;
        }
        stages = reach.into_stages();
    }
    stages
}

async fn one(shared: &Shared, server: &Server, probe: &mut Probe) -> Option<()> {
    let wants = shared.dial.tls_required || server.tls;
    let greeting = probe.stage("greeting", greeting(server), |_| format!("check that {} is a NATS server", server.name())).await?;
    let mut refused = None;
    if wants || greeting.tls_required {
        let handshake = async {
            if wants && !greeting.tls_required && !greeting.tls_available {
                return Err(error::no_tls(&format!("{} speaks no TLS, and this config asks for it", server.name())));
            }
            match shared.dial.connect_to(server).await {
                Err(error) if error.detail_str("reason") == Some("tls") => Err(error),
                other => Ok(other),
            }
        };
        refused = Some(probe.stage("tls", handshake, advice).await?);
    }
    let connected = async {
        match refused {
            Some(connected) => connected,
            None => shared.dial.connect_to(server).await,
        }
    };
    let link = probe.stage("authenticate", connected, advice).await?;
    let done = within(shared, &link, probe).await;
    link.close(Instant::now() + Duration::from_secs(1)).await;
    done
}

/// What is done on the connection itself.
async fn within(shared: &Shared, link: &Link, probe: &mut Probe) -> Option<()> {
    if shared.is_core() {
        let echo = async { link.echo(api::WITHIN).await.map_err(|missed| missed.into_error("a round trip", "_INBOX.>")) };
        return probe.stage("round_trip", echo, advice).await;
    }
    let permissions = async { api::account(link).await.map(drop).map_err(|e| e.into_error("asking for the account")) };
    probe.stage("permissions", permissions, advice).await?;
    let canary = format!("trunkline-canary-{}", MessageId::now().to_text());
    let subject = format!("_trunkline.canary.{}", MessageId::now().to_text());
    if !shared.config.common.create {
        // Without leave to make anything, only the way to JetStream and back can be tested.
        let again = async { api::account(link).await.map(drop).map_err(|e| e.into_error("asking for the account")) };
        return probe.stage("round_trip", again, advice).await;
    }
    let ensure = async {
        let config = json!({
            "name": canary,
            "subjects": [subject],
            "storage": "memory",
            "max_msgs": 1,
            "num_replicas": 1,
        });
        api::stream_create(link, &canary, &config).await.map(drop).map_err(|e| e.into_error("making a stream for the test"))
    };
    probe.stage("ensure", ensure, advice).await?;
    let round_trip = round_trip(link, &canary, &subject);
    let done = probe.stage("round_trip", round_trip, advice).await;
    let _ = api::stream_delete(link, &canary).await;
    done
}

async fn round_trip(link: &Link, stream: &str, subject: &str) -> Result<()> {
    let sent = subject.to_owned();
    let to = sent.clone().into();
    let answer = link.request(&to, sent.clone().into(), api::WITHIN).await;
    answer.map_err(|missed| missed.into_error("publishing the canary", subject))?;
    let found = api::last_message(link, stream, subject).await.map_err(|e| e.into_error("reading the canary"))?;
    match found {
        Some(message) if admin::payload(&message).as_deref() == Some(sent.as_bytes()) => Ok(()),
        _ => Err(Error::new(Code::PublishFailed, "the canary was confirmed and is not there")),
    }
}

/// What a server says before anything is asked.
#[derive(Debug, serde::Deserialize)]
struct Greeting {
    #[serde(default)]
    tls_required: bool,
    #[serde(default)]
    tls_available: bool,
}

async fn greeting(server: &Server) -> Result<Greeting> {
    let wrong = |what: &str| Error::new(Code::ConnectionFailed, format!("{} {what}", server.name()));
    let stream = TcpStream::connect((server.host.as_str(), server.port)).await.map_err(|e| wrong(&format!("cannot be reached: {e}")))?;
    let mut line = String::new();
    let mut stream = BufReader::new(stream);
    let read = stream.read_line(&mut line);
    let read = tokio::time::timeout(GREETING, read)
        .await
        .map_err(|_| wrong("says nothing: it is stopped, or not a NATS server").reason("timeout"))?;
    read.map_err(|e| wrong(&format!("closed the connection: {e}")))?;
    let info = line.strip_prefix("INFO ").and_then(|json| serde_json::from_str(json.trim()).ok());
    info.ok_or_else(|| wrong("answers, but is not a NATS server").reason("not_nats"))
}

fn advice(error: &Error) -> String {
    match error.detail_str("next") {
        Some(next) => next.to_owned(),
        None if error.code() == Code::Timeout => "look whether the server is overloaded or stopped, then try again".into(),
        None => "look at the server's log".into(),
    }
}
