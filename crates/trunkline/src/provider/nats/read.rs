//! Looks at messages without consuming them: through a consumer of a moment that acks nothing.

use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use serde_json::json;

use super::api::{self, ConsumerInfo, Refused};
use super::envelope;
use super::error;
use super::feed::mark;
use super::link::Link;
use super::place::Place;
use crate::delivery::{EnvelopeId, Position};
use crate::error::{Code, Error, Result};
use crate::provider::{ReadFrom, Start, Stored};

/// How long the server keeps a consumer that nobody asks any more.
const INACTIVE: Duration = Duration::from_secs(5);
/// At most so many are asked for at once.
const PAGE: usize = 1_000;

pub(super) async fn read(link: &Link, place: &Place, from: ReadFrom, max: usize) -> Result<Vec<Stored>> {
    let shard = match from {
        ReadFrom::Position(position) => position.shard,
        ReadFrom::Time { shard, .. } => shard,
    };
    if max == 0 || shard >= place.shards {
        return Ok(Vec::new());
    }
    let doing = format!("reading '{}'", place.subject(shard));
    let start = match from {
        ReadFrom::Position(position) => Start::Position { shard, offset: position.offset },
        ReadFrom::Time { at, .. } => Start::Time(at),
    };
    let (name, info) = moment(link, place, shard, &start).await.map_err(|e| e.into_error(&doing))?;
    let wanted = usize::try_from(info.num_pending).unwrap_or(usize::MAX).min(max);
    let stored = fetch(link, place, shard, &name, wanted, &doing).await;
    // It would go by itself a little later.
    let _ = api::consumer_delete(link, &place.stream, &name).await;
    stored
}

/// How many messages of a shard lie from a place on. A group's own consumer knows of a message only a moment after its
/// confirm; one that is made now counts what is there.
pub(super) async fn count(link: &Link, place: &Place, shard: u32, from: u64) -> Result<u64, Refused> {
    let (name, info) = moment(link, place, shard, &Start::Position { shard, offset: from }).await?;
    let _ = api::consumer_delete(link, &place.stream, &name).await;
    Ok(info.num_pending)
}

/// Makes a consumer that acks nothing and goes by itself when nobody asks it.
async fn moment(link: &Link, place: &Place, shard: u32, start: &Start) -> Result<(String, ConsumerInfo), Refused> {
    let name = format!("read-{}", crate::message::MessageId::now().to_text());
    let mut config = json!({
        "name": name,
        "ack_policy": "none",
        "filter_subject": place.subject(shard).as_str(),
        "inactive_threshold": INACTIVE.as_nanos() as u64,
        "mem_storage": true,
        "num_replicas": 1,
    });
    super::admin::start_at(&mut config, start);
    let info = api::consumer_create(link, &place.stream, config).await?;
    Ok((name, info))
}

async fn fetch(link: &Link, place: &Place, shard: u32, consumer: &str, wanted: usize, doing: &str) -> Result<Vec<Stored>> {
    let mut stored = Vec::with_capacity(wanted.min(PAGE));
    if wanted == 0 {
        return Ok(stored);
    }
    let lost = || error::dead(&format!("{doing}: the connection was lost"));
    let inbox = link.client.new_inbox();
    let mut from = link.client.subscribe(inbox.clone()).await.map_err(|_| lost())?;
    let next = format!("$JS.API.CONSUMER.MSG.NEXT.{}.{consumer}", place.stream);
    while stored.len() < wanted {
        let batch = (wanted - stored.len()).min(PAGE);
        let body = json!({ "batch": batch, "expires": api::WITHIN.as_nanos() as u64, "no_wait": true }).to_string();
        link.client.publish_with_reply(next.clone(), inbox.clone(), body.into()).await.map_err(|_| lost())?;
        let end = Instant::now() + api::WITHIN;
        for _ in 0..batch {
            let message = tokio::select! {
                message = from.next() => message.ok_or_else(lost)?,
                () = link.died() => return Err(lost()),
                () = tokio::time::sleep_until(end.into()) => return Err(error::late(doing)),
            };
            if let Some(status) = message.status {
                return match status.as_u16() {
                    // Removed meanwhile, by age or by hand.
                    404 | 408 => Ok(stored),
                    code => {
                        let said = message.description.unwrap_or_default();
                        Err(Error::new(Code::SubscribeFailed, format!("{doing}: the server answered {code} {said}")))
                    }
                };
            }
            let Some(mark) = message.reply.as_deref().and_then(mark) else { continue };
            let envelope = envelope::decode(message.headers);
            stored.push(Stored {
                position: Position { shard, offset: mark.stream_seq },
                id: if let EnvelopeId::Id(id) = envelope.id { Some(id) } else { None },
                key: envelope.key,
                headers: envelope.headers,
                payload: message.payload,
                stored_at: mark.stored_at,
            });
        }
    }
    Ok(stored)
}
