//! The connection test of Redis: each stage says what it is that fails, and what to change.

use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::{Pipeline, PushInfo, PushKind, Value};
use tokio::sync::Notify;

use super::config::RedisMode;
use super::envelope::bytes;
use super::error;
use super::link::items;
use super::target::{Target, Wire};
use crate::error::{Code, Error, Result};
use crate::message::MessageId;
use crate::provider::Stage;
use crate::provider::net::reach::Probe;

const CANARY: &[u8] = b"canary";
const GROUP: &str = "trunkline.probe";
/// How long a canary may take to come back.
const BACK: Duration = Duration::from_secs(5);

/// Runs the stages until one fails or the deadline has come.
pub(super) async fn run(target: &Target, mode: RedisMode, create: bool, prefix: Option<&str>, deadline: Instant) -> Vec<Stage> {
    let mut probe = Probe::new(deadline);
    stages(&mut probe, target, mode, create, prefix).await;
    probe.into_stages()
}

async fn stages(probe: &mut Probe, target: &Target, mode: RedisMode, create: bool, prefix: Option<&str>) -> Option<()> {
    match target.address() {
        Some((host, port)) => probe.reach(host, port).await?,
        None => probe.stage("connect", target.reach(), fix).await.map(drop)?,
    }
    let tls = target.is_tls();
    let secured = if tls { Some(probe.stage("tls", async { target.secure(target.reach().await?).await }, fix).await?) } else { None };
    let login = async {
        let socket = match secured {
            Some(socket) => socket,
            None => target.reach().await?,
        };
        target.log_in(socket, None).await
    };
    let mut wire = probe.stage("authenticate", login, fix).await?;
    let heard = Arc::new(Notify::new());
    let canary = format!("{}.probe-{}", prefix.unwrap_or("trunkline"), MessageId::now().0.simple());
    probe.stage("permissions", permitted(&mut wire, mode, create, &canary), fix).await?;
    match mode {
        RedisMode::Stream if create => {
            probe.stage("ensure", ensure(&mut wire, &canary), fix).await?;
            let back = probe.stage("round_trip", round_trip(&mut wire, &canary), fix).await;
            // The canary must not stay, whatever came of it.
            let _ = tokio::time::timeout(BACK, say(&mut wire, redis::cmd("DEL").arg(&canary))).await;
            back
        }
        RedisMode::Stream => {
            let ping = redis::cmd("PING");
            probe.stage("round_trip", async { say(&mut wire, &ping).await.map(drop) }, fix).await
        }
        RedisMode::Pubsub => probe.stage("round_trip", heard_back(target, &mut wire, &canary, &heard), fix).await,
    }
}

fn fix(error: &Error) -> String {
    error.detail_str("next").unwrap_or("look at the server's log").to_owned()
}

async fn say(wire: &mut Wire, cmd: &redis::Cmd) -> Result<Value> {
    match wire.connection.send_packed_command(cmd).await {
        Ok(Value::ServerError(refused)) => Err(error::server(&refused, Code::ConnectionFailed)),
        Ok(value) => Ok(value),
        Err(broken) => Err(error::transport(&broken)),
    }
}

/// Asks for everything a broker of this mode needs, on a key that is not there: a refusal for want of permission comes before
/// anything else.
async fn permitted(wire: &mut Wire, mode: RedisMode, create: bool, key: &str) -> Result<()> {
    let mut pipeline = redis::pipe();
    match mode {
        RedisMode::Stream => ask_streams(&mut pipeline, create, key),
        RedisMode::Pubsub => {
            pipeline.cmd("PUBLISH").arg(key).arg("");
            pipeline.cmd("PUBLISH").arg(super::keys::envelopes(key)).arg("");
        }
    }
    let answers = wire.connection.send_packed_commands(&pipeline, 0, pipeline.len()).await.map_err(|broken| error::transport(&broken))?;
    let refused = answers.iter().find_map(|answer| match answer {
        Value::ServerError(refused) if refused.code() == "NOPERM" => Some(refused),
        _ => None,
    });
    refused.map_or(Ok(()), |refused| Err(error::server(refused, Code::ConnectionFailed)))
}

fn ask_streams(pipeline: &mut Pipeline, create: bool, key: &str) {
    pipeline.cmd("XADD").arg(key).arg("NOMKSTREAM").arg("*").arg("payload").arg("");
    pipeline.cmd("XREADGROUP").arg("GROUP").arg(GROUP).arg(GROUP).arg("COUNT").arg(1).arg("STREAMS").arg(key).arg(">");
    pipeline.cmd("XACK").arg(key).arg(GROUP).arg("0-1");
    pipeline.cmd("XAUTOCLAIM").arg(key).arg(GROUP).arg(GROUP).arg(1000).arg("0");
    pipeline.cmd("XCLAIM").arg(key).arg(GROUP).arg(GROUP).arg(1000).arg("0-1");
    pipeline.cmd("XPENDING").arg(key).arg(GROUP);
    pipeline.cmd("XINFO").arg("GROUPS").arg(key);
    pipeline.cmd("XRANGE").arg(key).arg("-").arg("+").arg("COUNT").arg(1);
    pipeline.cmd("XTRIM").arg(key).arg("MINID").arg("0-1");
    pipeline.cmd("XLEN").arg(key);
    pipeline.cmd("XINFO").arg("CONSUMERS").arg(key).arg(GROUP);
    pipeline.cmd("XGROUP").arg("DELCONSUMER").arg(key).arg(GROUP).arg(GROUP);
    pipeline.cmd("HGET").arg(key).arg(GROUP);
    pipeline.cmd("EXISTS").arg(key);
    pipeline.cmd("TIME");
    pipeline.cmd("EVAL").arg("return 1").arg(1).arg(key);
    if create {
        pipeline.cmd("XGROUP").arg("DESTROY").arg(key).arg(GROUP);
        pipeline.cmd("DEL").arg(key);
    }
}

async fn ensure(wire: &mut Wire, key: &str) -> Result<()> {
    say(wire, redis::cmd("XGROUP").arg("CREATE").arg(key).arg(GROUP).arg("0").arg("MKSTREAM")).await.map(drop)
}

async fn round_trip(wire: &mut Wire, key: &str) -> Result<()> {
    let id = say(wire, redis::cmd("XADD").arg(key).arg("NOMKSTREAM").arg("*").arg("payload").arg(CANARY)).await?;
    let mut read = redis::cmd("XREADGROUP");
    read.arg("GROUP").arg(GROUP).arg(GROUP).arg("COUNT").arg(1).arg("STREAMS").arg(key).arg(">");
    let came = say(wire, &read).await?;
    // [[key, [[id, [field, value]]]]]
    let mut entry =
        items(came).into_iter().next().map(items).and_then(|mut stream| stream.pop()).map(items).and_then(|mut list| list.pop()).map(items);
    let fields = entry.as_mut().and_then(Vec::pop).map(items).unwrap_or_default();
    if entry.and_then(|mut entry| entry.pop()) != Some(id.clone()) || fields.into_iter().nth(1).map(bytes).as_deref() != Some(CANARY) {
        return Err(error::connection("what was stored did not come back"));
    }
    say(wire, redis::cmd("XACK").arg(key).arg(GROUP).arg(bytes(id))).await.map(drop)
}

async fn heard_back(target: &Target, wire: &mut Wire, channel: &str, heard: &Arc<Notify>) -> Result<()> {
    let hearing = Arc::clone(heard);
    let pushes = move |push: PushInfo| {
        if push.kind == PushKind::Message && push.data.into_iter().nth(1).map(bytes).as_deref() == Some(CANARY) {
            hearing.notify_one();
        }
    };
    let mut listening = target.open(Some(Box::new(pushes))).await?;
    listening.connection.subscribe(channel).await.map_err(|e| match e.clone().into_server_errors().as_deref() {
        Some([(_, refused), ..]) => error::server(refused, Code::SubscribeFailed),
        _ => error::transport(&e),
    })?;
    say(wire, redis::cmd("PUBLISH").arg(channel).arg(CANARY)).await?;
    tokio::time::timeout(BACK, heard.notified()).await.map_err(|_| error::silence("what was published did not come back"))
}
