//! What a subscription holds: messages that wait to be handed out, those that are handed out, and what is to be told.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::feed::Feed;
use crate::delivery::{Delivery, Token};
use crate::error::{Error, Result};
use crate::provider::Signal;
use crate::provider::net::slab::Slab;

/// A delivery that is held.
#[derive(Debug)]
struct Held {
    feed: u64,
    tag: u64,
}

#[derive(Debug, Default)]
struct State {
    feeds: HashMap<u64, Arc<Feed>>,
    held: Slab<Held>,
    ready: VecDeque<(u64, Delivery)>,
    signals: VecDeque<Signal>,
    paused: bool,
    /// Why nothing comes any more.
    end: Option<Error>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    state: Mutex<State>,
    some: Notify,
}

/// What a token leads to.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) feed: Arc<Feed>,
    pub(super) tag: u64,
}

impl Inbox {
    /// From now on deliveries of this feed are taken.
    pub(super) fn add(&self, feed: Arc<Feed>, signal: Option<Signal>) {
        let mut state = self.state.lock();
        state.feeds.insert(feed.number, feed);
        state.signals.extend(signal);
        drop(state);
        self.some.notify_one();
    }

    /// Forgets a feed: what it held is stale, and what waited is not handed out.
    pub(super) fn forget(&self, feed: u64) {
        let mut state = self.state.lock();
        if state.feeds.remove(&feed).is_none() {
            return;
        }
        state.ready.retain(|(of, _)| *of != feed);
        let gone: Vec<Token> = state.held.iter().filter(|(_, held)| held.feed == feed).map(|(token, _)| token).collect();
        for token in gone {
            state.held.remove(token);
        }
    }

    /// Takes back what waits and was not handed out; the delivery tags of it.
    pub(super) fn take_back(&self, feed: &Feed) -> Vec<u64> {
        let mut state = self.state.lock();
        let (back, kept): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut state.ready).into_iter().partition(|(of, _)| *of == feed.number);
        state.ready = kept;
        let tags: Vec<u64> = back.into_iter().filter_map(|(_, delivery)| state.held.remove(delivery.token)).map(|held| held.tag).collect();
        feed.taken_back(tags.len());
        tags
    }

    pub(super) fn tell(&self, signal: Signal) {
        self.state.lock().signals.push_back(signal);
        self.some.notify_one();
    }

    /// Takes over what a feed received.
    pub(super) fn put(&self, feed: &Feed, batch: &mut Vec<(u64, Delivery)>) {
        if batch.is_empty() {
            return;
        }
        {
            let mut state = self.state.lock();
            // Of a feed that was stopped, what arrives late goes back with its channel.
            if state.end.is_some() || feed.stop.is_cancelled() || !state.feeds.contains_key(&feed.number) {
                batch.clear();
                return;
            }
            feed.came(batch.len());
            for (tag, mut delivery) in batch.drain(..) {
                delivery.token = state.held.insert(Held { feed: feed.number, tag });
                state.ready.push_back((feed.number, delivery));
            }
        }
        self.some.notify_one();
    }

    /// Nothing comes any more; the first reason counts.
    pub(super) fn end(&self, why: Error) {
        let mut state = self.state.lock();
        state.end.get_or_insert(why);
        state.ready.clear();
        drop(state);
        self.some.notify_one();
    }

    pub(super) fn has_ended(&self) -> bool {
        self.state.lock().end.is_some()
    }

    pub(super) fn set_paused(&self, paused: bool) {
        self.state.lock().paused = paused;
        self.some.notify_one();
    }

    /// The feeds there are.
    pub(super) fn feeds(&self) -> Vec<Arc<Feed>> {
        self.state.lock().feeds.values().cloned().collect()
    }

    pub(super) async fn next(&self, max: usize, max_bytes: usize, wait: Duration) -> Result<Vec<Signal>> {
        let until = tokio::time::Instant::now() + wait;
        loop {
            let signals = self.look(max, max_bytes)?;
            if !signals.is_empty() || tokio::time::timeout_at(until, self.some.notified()).await.is_err() {
                return Ok(signals);
            }
        }
    }

    fn look(&self, max: usize, max_bytes: usize) -> Result<Vec<Signal>> {
        let mut state = self.state.lock();
        if let Some(error) = &state.end {
            // Every caller that waits is to hear it.
            self.some.notify_one();
            return Err(error.clone());
        }
        let mut signals: Vec<Signal> = state.signals.drain(..).collect();
        let (mut count, mut bytes) = (0, 0);
        let mut current: Option<(u64, Vec<Delivery>)> = None;
        while count < max && bytes < max_bytes.max(1) && !state.paused {
            let Some((feed, delivery)) = state.ready.pop_front() else { break };
            count += 1;
            bytes += delivery.size();
            match &mut current {
                Some((of, items)) if *of == feed => items.push(delivery),
                _ => {
                    if let Some((of, items)) = current.replace((feed, vec![delivery])) {
                        signals.extend(state.deliveries(of, items));
                    }
                }
            }
        }
        if let Some((of, items)) = current {
            signals.extend(state.deliveries(of, items));
        }
        if !state.ready.is_empty() && !state.paused {
            self.some.notify_one();
        }
        Ok(signals)
    }

    /// Takes each token out, if it is held. `keep` leaves it where it is.
    pub(super) fn take(&self, tokens: impl Iterator<Item = (Token, bool)>) -> Vec<Option<Found>> {
        let mut state = self.state.lock();
        let ended = state.end.is_some();
        tokens
            .map(|(token, keep)| {
                if ended {
                    return None;
                }
                let held = state.held.get(token)?;
                let found = Found { feed: state.feeds.get(&held.feed)?.clone(), tag: held.tag };
                if !keep {
                    state.held.remove(token);
                }
                Some(found)
            })
            .collect()
    }

    /// Whether each is held.
    pub(super) fn holds(&self, tokens: &[Token]) -> Vec<bool> {
        let state = self.state.lock();
        tokens.iter().map(|token| state.end.is_none() && state.held.get(*token).is_some()).collect()
    }
}

impl State {
    fn deliveries(&self, feed: u64, items: Vec<Delivery>) -> Option<Signal> {
        let feed = self.feeds.get(&feed)?;
        feed.handed_out(items.len());
        Some(Signal::Deliveries { route: feed.route, shard: feed.shard, epoch: feed.epoch, items })
    }
}
