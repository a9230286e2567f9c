//! Acks and their like. All of one consumer leave together; the server does them in order, so its answer to the last one
//! is its answer to all.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::Subject;
use bytes::Bytes;

use super::LONGEST_RETRY_MS;
use super::feed::{Consequence, Phase};
use super::link::Missed;
use super::reader::follow;
use super::subscription::{Live, State};
use crate::delivery::{Settle, Settled, Token};
use crate::message::millis;

/// How long the server may take to answer.
const WITHIN: Duration = Duration::from_secs(5);
/// At most this share of what a consumer may have in hand may be waiting for a delayed redelivery: it takes up room there.
const DELAYED_SHARE: usize = 4;

const ACK: &[u8] = b"";
const NAK: &[u8] = b"-NAK";

/// What leaves for one consumer, in order.
#[derive(Debug, Default)]
struct Order {
    messages: Vec<(Subject, Bytes)>,
    /// Which of the items wait for the answer.
    items: Vec<usize>,
}

/// See [`crate::provider::Subscription::settle`].
pub(super) async fn settle(live: &Arc<Live>, items: &[(Token, Settle)]) -> Vec<Settled> {
    let mut answers = vec![Settled::Stale; items.len()];
    let mut orders: HashMap<usize, Order> = HashMap::new();
    let mut again = Vec::new();
    {
        let mut state = live.state.lock();
        let now = Instant::now();
        for (at, (token, how)) in items.iter().enumerate() {
            settle_one(&mut state, now, at, *token, *how, &mut answers, &mut orders, &mut again);
        }
        state.dirty.extend(orders.keys().copied());
    }
    let sent = futures_util::future::join_all(orders.into_values().map(|order| async {
        let answer = leave(live, order.messages).await;
        (order.items, answer)
    }));
    for (of, answer) in sent.await {
        for at in of {
            answers[at] = answer;
        }
    }
    // What goes back on an ordered shard comes again before what follows it.
    for feed in again {
        follow(live, feed, Consequence::Resync);
    }
    live.room.notify_one();
    answers
}

#[expect(clippy::too_many_arguments, reason = "the body of one loop, under one lock")]
fn settle_one(
    state: &mut State,
    now: Instant,
    at: usize,
    token: Token,
    how: Settle,
    answers: &mut [Settled],
    orders: &mut HashMap<usize, Order>,
    again: &mut Vec<usize>,
) {
    let Some(held) = state.held.get(token).filter(|held| held.out) else { return };
    let (feed, seq) = (held.feed, held.seq);
    let lost = held.until <= now || !state.is_sure(feed, now);
    if let Settle::Retry { after, .. } = how
        && !lost
    {
        let feed = &mut state.feeds[feed];
        feed.delayed.retain(|due| *due > now);
        let full = !after.is_zero() && feed.delayed.len() >= feed.max_ack_pending / DELAYED_SHARE;
        if millis(after) > LONGEST_RETRY_MS || (feed.ordered && !after.is_zero()) || full {
            // It stays in hand: the core finds another way.
            answers[at] = Settled::Unknown;
            return;
        }
        if !after.is_zero() {
            feed.delayed.push(now + after);
        }
    }
    let Some(held) = state.held.remove(token) else { return };
    let of = &mut state.feeds[feed];
    of.by_seq.remove(&seq);
    if lost {
        return;
    }
    let goes_back = how != Settle::Done;
    if of.ordered && goes_back {
        answers[at] = Settled::Settled;
        // While a shard is given up it goes to its next owner, who collects what is left in order.
        if of.phase == Phase::Live && !again.contains(&feed) {
            again.push(feed);
        }
        return;
    }
    let order = orders.entry(feed).or_default();
    order.messages.push((held.ack, body(how)));
    order.items.push(at);
}

fn body(how: Settle) -> Bytes {
    match how {
        Settle::Done => Bytes::from_static(ACK),
        Settle::Retry { after, .. } if !after.is_zero() => format!("-NAK {{\"delay\": {}}}", after.as_nanos()).into(),
        Settle::Retry { .. } | Settle::Release => Bytes::from_static(NAK),
    }
}

/// Sends them, and waits for the answer to the last.
async fn leave(live: &Live, messages: Vec<(Subject, Bytes)>) -> Settled {
    let mut messages = messages.into_iter();
    let Some((last, last_body)) = messages.next_back() else { return Settled::Settled };
    for (subject, body) in messages {
        if live.link.client.publish(subject, body).await.is_err() {
            return Settled::Unknown;
        }
    }
    match live.link.request(&last, last_body, WITHIN).await {
        Ok(_) => Settled::Settled,
        // The consumer is gone, and with it what it knew.
        Err(Missed::NoResponders) => Settled::Stale,
        Err(Missed::Denied) => {
            live.die(super::error::denied(&last));
            Settled::Unknown
        }
        Err(Missed::Dead | Missed::Late) => Settled::Unknown,
    }
}

/// Gives everything back that is in hand, oldest first.
pub(super) async fn give_back(live: &Live) {
    let orders: Vec<Vec<(Subject, Bytes)>> = {
        let mut state = live.state.lock();
        let State { feeds, held, .. } = &mut *state;
        let back = feeds.iter_mut().map(|feed| {
            feed.forget_pulls();
            let messages = feed.by_seq.values().filter_map(|token| held.remove(*token));
            let messages = messages.map(|held| (held.ack, Bytes::from_static(NAK))).collect();
            feed.by_seq.clear();
            feed.buffer.clear();
            messages
        });
        back.collect()
    };
    futures_util::future::join_all(orders.into_iter().map(|order| leave(live, order))).await;
}
