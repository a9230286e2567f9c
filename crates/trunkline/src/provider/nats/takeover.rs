//! Makes a shard's messages come in order to its owner, whoever had some of them before; and finds a consumer again that
//! was removed and made anew.
//!
//! JetStream hands out again what was not acked when its time is over, behind what is new. So the new owner takes the pin,
//! asks for all that is still out at once, and hands nothing out before it has all of that, sorted.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::api;
use super::error;
use super::feed::{Barrier, Phase};
use super::link::Missed;
use super::place::PIN_GROUP;
use super::reader::listen;
use super::subscription::Live;
use super::{admin, error as errors};
use crate::error::{Error, Result};

/// How long a consumer that was removed may be away before the group counts as removed.
const AWAY: Duration = Duration::from_secs(3);
const LOOK: Duration = Duration::from_millis(50);

/// Brings a feed whose phase is `Syncing` to `Live`, or ends the subscription.
pub(super) async fn again(live: Arc<Live>, at: usize) {
    let until = Instant::now() + AWAY;
    loop {
        let round = {
            let state = live.state.lock();
            if state.feeds[at].phase != Phase::Syncing {
                return;
            }
            state.feeds[at].round
        };
        let error = match sync(&live, at, round).await {
            Ok(()) => {
                live.room.notify_one();
                return live.some.notify_waiters();
            }
            Err(error) => error,
        };
        if live.link.is_dead() {
            return live.die(errors::dead("the connection was lost"));
        }
        if Instant::now() >= until {
            return live.die(error);
        }
        tokio::time::sleep(LOOK).await;
    }
}

struct Target {
    stream: String,
    consumer: String,
    ordered: bool,
    /// What the core still has in hand.
    out: Vec<u64>,
}

async fn sync(live: &Arc<Live>, at: usize, round: u64) -> Result<()> {
    let target = {
        let state = live.state.lock();
        let feed = &state.feeds[at];
        Target {
            stream: feed.stream.clone(),
            consumer: feed.consumer.clone(),
            ordered: feed.ordered,
            out: feed.by_seq.keys().copied().collect(),
        }
    };
    if target.ordered {
        let unpinned = api::consumer_unpin(&live.link, &target.stream, &target.consumer, PIN_GROUP).await;
        // A consumer that somebody made without pins has none to take.
        unpinned.or_else(|refused| {
            if matches!(&refused, api::Refused::Api(error) if error.code < 500 && error.err_code != error::CONSUMER_NOT_FOUND) {
                Ok(())
            } else {
                Err(refused.into_error("taking the pin"))
            }
        })?;
    }
    let mut info = look(live, &target).await?;
    let mut barrier = None;
    if target.ordered && info.num_ack_pending > 0 {
        let last = info.delivered;
        call_back(live, &target, info.ack_floor.stream_seq + 1, last.stream_seq, last.consumer_seq).await?;
        info = look(live, &target).await?;
        let left = info.num_ack_pending.saturating_sub(target.out.len() as u64);
        barrier = (left > 0).then(|| Barrier { upto: info.delivered.stream_seq, left, since: Instant::now() });
    }
    listen(live, at).await?;
    let mut state = live.state.lock();
    let feed = &mut state.feeds[at];
    if feed.phase == Phase::Syncing && feed.round == round {
        feed.created = info.created;
        feed.max_ack_pending = usize::try_from(info.config.max_ack_pending).unwrap_or(usize::MAX);
        feed.expect = info.delivered.consumer_seq + 1;
        feed.barrier = barrier;
        feed.phase = Phase::Live;
        state.dirty.push(at);
    }
    Ok(())
}

async fn look(live: &Live, target: &Target) -> Result<api::ConsumerInfo> {
    let doing = format!("consumer '{}'", target.consumer);
    let info = api::consumer_info(&live.link, &target.stream, &target.consumer).await.map_err(|e| e.into_error(&doing))?;
    info.ok_or_else(|| admin::no_group(&live.group))
}

/// Asks for what is still out between two places of the stream. What was acked, or is of another shard, the server passes
/// over.
async fn call_back(live: &Live, target: &Target, from: u64, to: u64, consumer_seq: u64) -> Result<()> {
    let subject = |seq: u64| format!("$JS.ACK.{}.{}.1.{seq}.{consumer_seq}.0.0", target.stream, target.consumer);
    let nak = Bytes::from_static(b"-NAK");
    let lost = |_| -> Error { errors::dead("the connection was lost") };
    let mut last = None;
    for seq in (from..=to).filter(|seq| !target.out.contains(seq)) {
        if let Some(before) = last.replace(subject(seq)) {
            live.link.client.publish(before, nak.clone()).await.map_err(lost)?;
        }
    }
    let Some(last) = last else { return Ok(()) };
    let last = last.into();
    match live.link.request(&last, nak, api::WITHIN).await {
        Ok(_) => Ok(()),
        Err(Missed::NoResponders) => Err(admin::no_group(&live.group)),
        Err(missed) => Err(missed.into_error("calling messages back", &last)),
    }
}
