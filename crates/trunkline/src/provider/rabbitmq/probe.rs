//! The connection test: each stage on a connection of its own, so that it sees what a new one would meet.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use lapin::options::{BasicConsumeOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Channel, ExchangeKind};

use super::config::RabbitmqConfig;
use super::connection::{ANSWER, Link, LinkChannel, dial};
use super::error::within;
use super::hello;
use super::send::publish_one;
use super::target::Target;
use crate::error::{Code, Error, Result};
use crate::message::MessageId;
use crate::names;
use crate::provider::Stage;
use crate::provider::net::reach::Probe;

/// Tests a config in stages, from the host's name to a message that comes back, and ends before the deadline. What it makes
/// is exclusive to its connection, and goes with it. A provider that cannot be opened can be tested so, too.
pub async fn probe(config: &RabbitmqConfig, deadline: Instant) -> Vec<Stage> {
    let mut probe = Probe::new(deadline);
    let link = run(&mut probe, config).await;
    if let Some(link) = link {
        link.close(deadline.min(Instant::now() + Duration::from_secs(1))).await;
    }
    probe.into_stages()
}

async fn run(probe: &mut Probe, config: &RabbitmqConfig) -> Option<Arc<Link>> {
    let target = match Target::new(config).await {
        Ok(target) => Arc::new(target),
        Err(error) => {
            let fix = error.details().get("next").and_then(|next| next.as_str()).unwrap_or("correct the config").to_owned();
            probe.stage::<()>("config", async { Err(error) }, |_| fix).await;
            return None;
        }
    };
    probe.reach(target.host(), target.port()).await?;
    let address = target.address();
    let handshake = async {
        let (stream, socket) = dial(&target).await?;
        hello::greet(stream, &format!("connecting to {address}")).await?;
        drop(socket);
        Ok(())
    };
    let stage = if target.tls.is_some() { "tls" } else { "greet" };
    probe.stage(stage, handshake, |error| next(error, "check that the port and `amqp`/`amqps` go together")).await?;
    let login = Link::open(&target, "trunkline probe");
    let link = probe.stage("authenticate", login, |error| next(error, "check user, password and virtual host")).await?;
    checks(probe, config, &link).await;
    Some(link)
}

async fn checks(probe: &mut Probe, config: &RabbitmqConfig, link: &Arc<Link>) -> Option<()> {
    if !config.common.create {
        // Nothing may be made here, so what is there is all that can be looked at.
        let fix = |error: &Error| next(error, "create what is missing, or leave `create` out");
        return probe.stage("ensure", look(config, link), fix).await;
    }
    let base = config.exchange.as_deref().or(config.common.prefix.as_deref()).unwrap_or("trunkline");
    let canary = names::beside(base, &format!("probe.{}", MessageId::now()));
    let asks = format!("grant configure, write and read on names like '{canary}' in this virtual host");
    let channel = link.channel().await.ok()?;
    probe.stage("permissions", exchange(&channel, &canary), |error| next(error, &asks)).await?;
    probe.stage("ensure", queue(&channel, &canary), |error| next(error, &asks)).await?;
    probe.stage("round_trip", round_trip(link, &channel, &canary), |error| next(error, &asks)).await
}

fn next(error: &Error, otherwise: &str) -> String {
    error.details().get("next").and_then(|next| next.as_str()).unwrap_or(otherwise).to_owned()
}

async fn look(config: &RabbitmqConfig, link: &Arc<Link>) -> Result<()> {
    if let Some(exchange) = &config.exchange {
        let options = ExchangeDeclareOptions { passive: true, ..Default::default() };
        let channel = link.channel().await?;
        let there = channel.exchange_declare(exchange.as_str().into(), ExchangeKind::Topic, options, FieldTable::default());
        within("looking at the exchange", ANSWER, there).await?;
    }
    Ok(())
}

async fn exchange(channel: &Channel, name: &str) -> Result<()> {
    let options = ExchangeDeclareOptions { auto_delete: true, ..Default::default() };
    within("creating an exchange", ANSWER, channel.exchange_declare(name.into(), ExchangeKind::Topic, options, FieldTable::default())).await
}

async fn queue(channel: &Channel, name: &str) -> Result<()> {
    let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
    within("creating a queue", ANSWER, channel.queue_declare(name.into(), options, FieldTable::default())).await?;
    let bound = channel.queue_bind(name.into(), name.into(), name.into(), QueueBindOptions::default(), FieldTable::default());
    within("binding a queue", ANSWER, bound).await
}

async fn round_trip(link: &Arc<Link>, channel: &LinkChannel, name: &str) -> Result<()> {
    let consume =
        channel.basic_consume(name.into(), "".into(), BasicConsumeOptions { no_ack: true, ..Default::default() }, FieldTable::default());
    let mut consumer = within("consuming", ANSWER, consume).await?;
    if *link.blocked().borrow() {
        return Err(Error::new(Code::PublishFailed, "the server takes no messages").reason("broker_blocked"));
    }
    publish_one(link, name, name, name.as_bytes(), ANSWER).await?;
    match tokio::time::timeout(ANSWER, consumer.next()).await {
        Ok(Some(Ok(message))) if message.data == name.as_bytes() => Ok(()),
        Ok(Some(Err(failed))) => Err(super::error::of("consuming the canary", &failed)),
        Ok(_) => Err(Error::new(Code::ConnectionFailed, "the canary did not come back as it was sent")),
        Err(_) => Err(Error::new(Code::Timeout, "the canary was confirmed and did not come back")),
    }
}
