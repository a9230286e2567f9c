//! Keeps the leases of what is in hand, buffered or handed out, and notices a server that has forgotten about us.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::Subject;
use bytes::Bytes;

use super::DROPPED;
use super::api;
use super::error;
use super::feed::{Consequence, HEARTBEAT, Phase};
use super::place::Place;
use super::reader::follow;
use super::subscription::Live;
use crate::delivery::Token;
use crate::error::{Code, Error};
use crate::provider::{Signal, SubscriptionState};

/// `in progress`: the lease starts anew.
const PROGRESS: &[u8] = b"+WPI";
/// A sync of a shard that is not over by then starts again.
const BARRIER: Duration = Duration::from_secs(2);

/// Runs until the subscription ends.
pub(super) async fn keep(live: Arc<Live>) {
    let mut beat = tokio::time::interval((live.lease / 6).max(Duration::from_millis(20)));
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut looked = Instant::now();
    loop {
        beat.tick().await;
        let worn: Vec<Token> = {
            let state = live.state.lock();
            let now = Instant::now();
            let worn = |until: Instant| until.saturating_duration_since(now) < live.lease * 2 / 3;
            state.held.iter().filter(|(_, held)| worn(held.until)).map(|(token, _)| token).collect()
        };
        renew(&live, &worn).await;
        lose(&live);
        check(&live);
        if looked.elapsed() > live.lease {
            looked = Instant::now();
            incarnations(&live).await;
        }
    }
}

/// See [`crate::provider::Subscription::extend`].
pub(super) async fn extend(live: &Arc<Live>, tokens: &[Token]) -> Vec<bool> {
    let since = Instant::now();
    renew(live, tokens).await;
    let state = live.state.lock();
    // Kept: its lease ends later than any that started before this call.
    let kept = |token: &Token| {
        state.held.get(*token).is_some_and(|held| held.out && held.until >= since + live.lease && state.is_sure(held.feed, since))
    };
    tokens.iter().map(kept).collect()
}

/// Renews leases. All of one consumer leave together, and the answer to the last one counts for all.
async fn renew(live: &Live, tokens: &[Token]) {
    let mut orders: HashMap<usize, Vec<(Token, Subject)>> = HashMap::new();
    {
        let state = live.state.lock();
        for token in tokens {
            if let Some(held) = state.held.get(*token) {
                orders.entry(held.feed).or_default().push((*token, held.ack.clone()));
            }
        }
    }
    let renewed = orders.into_values().map(|order| async move {
        let since = Instant::now();
        let (last, others) = order.split_last()?;
        for (_, ack) in others {
            live.link.client.publish(ack.clone(), Bytes::from_static(PROGRESS)).await.ok()?;
        }
        live.link.request(&last.1, Bytes::from_static(PROGRESS), live.lease / 3).await.ok()?;
        let mut state = live.state.lock();
        for (token, _) in &order {
            if let Some(held) = state.held.get_mut(*token) {
                held.until = held.until.max(since + live.lease);
            }
        }
        Some(())
    });
    futures_util::future::join_all(renewed).await;
}

/// Forgets what the server has taken back.
fn lose(live: &Live) {
    let mut state = live.state.lock();
    let now = Instant::now();
    let lost: Vec<Token> = state.held.iter().filter(|(_, held)| held.until <= now).map(|(token, _)| token).collect();
    for token in lost {
        if let Some(held) = state.held.remove(token) {
            let feed = &mut state.feeds[held.feed];
            feed.by_seq.remove(&held.seq);
            if !held.out {
                feed.buffer.retain(|ready| ready.token != token);
                feed.buffered_bytes = feed.buffer.iter().map(|ready| ready.message.length).sum();
            }
        }
    }
}

/// A request that is open and of which the server says nothing is lost; a shard that does not get in order starts again.
fn check(live: &Arc<Live>) {
    let mut stuck = Vec::new();
    {
        let state = live.state.lock();
        let silent = state.feeds.iter().find(|feed| feed.is_asking() && feed.heard.elapsed() > HEARTBEAT * 2 + Duration::from_secs(1));
        if let Some(feed) = silent {
            let what = format!("consumer '{}' gave no sign of life", feed.consumer);
            drop(state);
            return live.die(Error::new(Code::SubscribeFailed, what).reason("no_heartbeat"));
        }
        for (at, feed) in state.feeds.iter().enumerate() {
            if feed.barrier.as_ref().is_some_and(|barrier| barrier.since.elapsed() > BARRIER) {
                stuck.push(at);
            }
        }
    }
    stuck.into_iter().for_each(|at| follow(live, at, Consequence::Resync));
}

/// Says where a limit of a stream has dropped messages that the group has not settled, as long as it is behind there. Only of
/// streams of one subject: elsewhere what is missing may have been another subject's. Runs until the subscription ends.
pub(super) async fn watch_drops(live: Arc<Live>) {
    let alone = |place: &&Place| !place.ordered && !place.shared && live.shared.facts(&place.topic).drops;
    let mut watched: Vec<(&Place, u64)> = live.places.iter().filter(alone).map(|place| (place, 0)).collect();
    let mut before = false;
    while !watched.is_empty() {
        let mut now = false;
        for (place, seen) in &mut watched {
            let consumer = place.consumer(&live.group, 0);
            let asked = tokio::join!(api::stream_info(&live.link, &place.stream), api::consumer_info(&live.link, &place.stream, &consumer));
            let (Ok(Some(stream)), Ok(Some(consumer))) = asked else {
                now |= before;
                continue;
            };
            let first = stream.state.first_seq;
            let behind = consumer.num_pending + consumer.num_ack_pending > 0;
            now |= first > consumer.ack_floor.stream_seq + 1 && (behind || first > *seen);
            *seen = first;
        }
        if now != before {
            before = now;
            let word = if now { SubscriptionState::Degraded(DROPPED) } else { SubscriptionState::Live };
            live.state.lock().signals.push_back(Signal::State(word));
            live.some.notify_waiters();
        }
        tokio::time::sleep(live.lease / 6).await;
    }
}

/// Consumers that were made again while no request was open, so that nobody told us.
async fn incarnations(live: &Arc<Live>) {
    let quiet: Vec<(usize, String, String, String)> = {
        let state = live.state.lock();
        let quiet = state.feeds.iter().enumerate().filter(|(_, feed)| feed.phase == Phase::Live && !feed.is_asking());
        quiet.map(|(at, feed)| (at, feed.stream.clone(), feed.consumer.clone(), feed.created.clone())).collect()
    };
    for (at, stream, consumer, created) in quiet {
        match api::consumer_info(&live.link, &stream, &consumer).await {
            Ok(Some(info)) if info.created == created => {}
            Ok(_) => follow(live, at, Consequence::Gone),
            Err(refused) => {
                let error = refused.into_error("looking after a consumer");
                if !error.retryable() {
                    return live.die(error);
                }
                if live.link.is_dead() {
                    return live.die(error::dead("the connection was lost"));
                }
            }
        }
    }
}
