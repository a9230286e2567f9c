//! Core NATS: a message goes to one member of each queue group that listens now, and to nobody else. Nothing is kept, so
//! there is nothing to settle.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use async_nats::{Message, Subscriber};
use async_trait::async_trait;
use futures_util::StreamExt as _;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::api;
use super::envelope;
use super::error;
use super::link::{Link, denied};
use super::place::Place;
use super::{DROPPED, Shared};
use crate::delivery::{Deliveries, Delivery, Position, Settle, Settled, Token};
use crate::error::{Error, Result};
use crate::message::now_ms;
use crate::provider::net::slab::Slab;
use crate::provider::{GroupSpec, Prefetch, Signal, SubscribeOptions, Subscription, SubscriptionState, TopicSpec};

#[derive(Debug)]
struct Live {
    shared: Arc<Shared>,
    link: Arc<Link>,
    prefetch: Prefetch,
    state: Mutex<State>,
    some: Notify,
    end: CancellationToken,
    tasks: TaskTracker,
}

#[derive(Debug, Default)]
struct State {
    buffer: VecDeque<(usize, Message)>,
    bytes: usize,
    /// What the core has in hand: only to know what is stale.
    held: Slab<()>,
    dead: Option<Error>,
    paused: bool,
    /// Whether a message was dropped since the last call.
    dropped: bool,
    degraded: bool,
}

/// Joins the queue group of each subject; live when the server has read it.
pub(super) async fn subscribe(
    shared: &Arc<Shared>,
    link: Arc<Link>,
    routes: &[TopicSpec],
    group: &GroupSpec,
    options: &SubscribeOptions,
) -> Result<Arc<dyn Subscription>> {
    let live = Arc::new(Live {
        shared: shared.clone(),
        prefetch: options.prefetch,
        state: Mutex::default(),
        some: Notify::new(),
        end: shared.closed.child_token(),
        tasks: TaskTracker::new(),
        link,
    });
    let subscription = Arc::new(CoreSubscription { live: live.clone() });
    let mut denials = live.link.denials();
    let mut subjects = Vec::with_capacity(routes.len());
    for (route, topic) in routes.iter().enumerate() {
        let subject = Place::of(&shared.config, topic).subject(0);
        let joined = live.link.client.queue_subscribe(subject.clone(), group.name.to_string()).await;
        let from = joined.map_err(|_| error::dead("the connection was lost"))?;
        live.tasks.spawn(read(live.clone(), route, from));
        subjects.push(subject);
    }
    tokio::select! {
        biased;
        subject = denied(&mut denials, &subjects) => return Err(error::denied(&subject)),
        heard = live.link.echo(api::WITHIN) => heard.map_err(|missed| missed.into_error("subscribing", &group.name))?,
    }
    // A refusal comes before the echo.
    match std::iter::from_fn(|| denials.try_recv().ok()).find_map(|text| super::link::named(&text, &subjects)) {
        Some(subject) => Err(error::denied(&subject)),
        None => Ok(subscription),
    }
}

async fn read(live: Arc<Live>, route: usize, mut from: Subscriber) {
    let died = loop {
        tokio::select! {
            message = from.next() => match message {
                Some(message) => live.take(route, message),
                None => break true,
            },
            () = live.link.died() => break true,
            () = live.end.cancelled() => break false,
        }
    };
    if died {
        live.state.lock().dead.get_or_insert_with(|| error::dead("the connection was lost"));
        live.some.notify_waiters();
    }
}

impl Live {
    fn take(&self, route: usize, message: Message) {
        {
            let mut state = self.state.lock();
            let full = state.buffer.len() >= self.prefetch.count.max(1)
                || (!state.buffer.is_empty() && state.bytes + message.length > self.prefetch.bytes);
            if full {
                // Nobody keeps it for us: it is lost, and that is said.
                state.dropped = true;
            } else {
                state.bytes += message.length;
                state.buffer.push_back((route, message));
            }
        }
        self.some.notify_waiters();
    }

    fn look(&self, max: usize, max_bytes: usize) -> Result<Vec<Signal>> {
        let mut state = self.state.lock();
        if let Some(error) = &state.dead {
            return Err(error.clone());
        }
        let mut signals = Vec::new();
        let dropped = std::mem::take(&mut state.dropped);
        if dropped != state.degraded {
            state.degraded = dropped;
            let now = if dropped { SubscriptionState::Degraded(DROPPED) } else { SubscriptionState::Live };
            signals.push(Signal::State(now));
        }
        if state.paused {
            return Ok(signals);
        }
        let (mut left, mut bytes) = (max, 0);
        while left > 0 && bytes < max_bytes {
            let Some((route, message)) = state.buffer.pop_front() else { break };
            state.bytes = state.bytes.saturating_sub(message.length);
            let envelope = envelope::decode(message.headers);
            let delivery = Delivery {
                token: state.held.insert(()),
                // A message has no place of its own here; the number only tells those of this process apart.
                position: Position { shard: 0, offset: self.shared.numbers.fetch_add(1, Ordering::Relaxed) },
                id: envelope.id,
                key: envelope.key,
                payload: Some(message.payload),
                headers: envelope.headers,
                deliveries: Deliveries::Unknown,
                stored_at: now_ms(),
                lease_end: None,
            };
            left -= 1;
            bytes += delivery.size();
            match signals.last_mut() {
                Some(Signal::Deliveries { route: of, items, .. }) if *of == route => items.push(delivery),
                _ => signals.push(Signal::Deliveries { route, shard: 0, epoch: 0, items: vec![delivery] }),
            }
        }
        Ok(signals)
    }
}

#[derive(Debug)]
struct CoreSubscription {
    live: Arc<Live>,
}

impl Drop for CoreSubscription {
    fn drop(&mut self) {
        self.live.end.cancel();
    }
}

#[async_trait]
impl Subscription for CoreSubscription {
    async fn next(&self, max: usize, max_bytes: usize, wait: Duration) -> Result<Vec<Signal>> {
        let live = &self.live;
        let end = Instant::now() + wait;
        loop {
            let some = live.some.notified();
            tokio::pin!(some);
            some.as_mut().enable();
            if live.end.is_cancelled() {
                return Err(error::closed());
            }
            let signals = live.look(max, max_bytes)?;
            if !signals.is_empty() || Instant::now() >= end {
                return Ok(signals);
            }
            tokio::select! {
                () = some => {}
                () = live.end.cancelled() => {}
                () = tokio::time::sleep_until(end.into()) => {}
            }
        }
    }

    /// There is nothing that could be given back: `Done` is all that can be said.
    async fn settle(&self, items: &[(Token, Settle)]) -> Vec<Settled> {
        let mut state = self.live.state.lock();
        let mut one = |token: Token, how: Settle| match how {
            Settle::Done => state.held.remove(token).map_or(Settled::Stale, |()| Settled::Settled),
            Settle::Retry { .. } if state.held.get(token).is_some() => Settled::Unknown,
            Settle::Release | Settle::Retry { .. } => state.held.remove(token).map_or(Settled::Stale, |()| Settled::Unknown),
        };
        items.iter().map(|(token, how)| one(*token, *how)).collect()
    }

    async fn extend(&self, tokens: &[Token]) -> Vec<bool> {
        let state = self.live.state.lock();
        tokens.iter().map(|token| state.held.get(*token).is_some()).collect()
    }

    async fn yield_shard(&self, _: usize, _: u32) {}

    async fn pause(&self) {
        self.live.state.lock().paused = true;
    }

    async fn resume(&self) {
        self.live.state.lock().paused = false;
        self.live.some.notify_waiters();
    }

    async fn close(&self, deadline: Instant) {
        self.live.end.cancel();
        self.live.tasks.close();
        let _ = tokio::time::timeout_at(deadline.into(), self.live.tasks.wait()).await;
        self.live.some.notify_waiters();
    }
}
