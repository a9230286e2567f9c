//! Receiving: a stream for each route, opened again when the server closes it, which it does by design.

use std::sync::Arc;
use std::time::{Duration, Instant};

use googleapis_tonic_google_pubsub_v1::google::pubsub::v1::{ReceivedMessage, StreamingPullRequest, StreamingPullResponse};
use tokio::sync::mpsc;
use tonic::Streaming;

use super::error::{Failure, Kind, failure};
use super::lease::Held;
use super::message::{Decoded, decode};
use super::provider::shard_of;
use super::subscription::{Route, Shared};
use crate::delivery::{Deliveries, Delivery, EnvelopeId, Position};
use crate::error::{Code, Error};
use crate::message::MessageId;

/// Half of what may be outstanding is in the hands of who asked for it, the other half waits here.
const HALVES: usize = 2;
/// Google closes a stream on which the client says nothing for 90 s.
const ALIVE: Duration = Duration::from_secs(30);
/// How long a stream that is given up may still bring what was under way.
const DRAIN: Duration = Duration::from_millis(500);
/// A stream that stands this long without failing works: servers answer with the first message only.
const WORKS: Duration = Duration::from_secs(1);
/// The pause after a stream that failed, growing from the first to the last.
const AGAIN: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// A server that does not answer for so long is gone: the subscription is made anew.
const GONE: Duration = Duration::from_secs(10);

/// How a stream ended.
enum Ended {
    /// By us: it is paused, or the subscription is closed.
    Stopped,
    /// By the server, as it does now and then.
    Closed,
    Failed(Failure),
}

impl Shared {
    /// Receives from the subscription of one route until stopped.
    pub(super) async fn receive(self: Arc<Self>, route: usize) {
        let mut paused = self.paused.subscribe();
        let (mut pause, mut failing_since) = (AGAIN.0, None::<Instant>);
        loop {
            tokio::select! {
                going = async { paused.wait_for(|paused| !paused).await.map(drop) } => if going.is_err() { return },
                () = self.stop.cancelled() => return,
            }
            let begun = Instant::now();
            let ended = tokio::select! {
                ended = self.stream(route) => ended,
                () = self.end.cancelled() => return,
            };
            if begun.elapsed() > WORKS {
                (pause, failing_since) = (AGAIN.0, None);
            }
            match ended {
                Ended::Stopped if self.stop.is_cancelled() => return,
                Ended::Stopped => continue,
                // A server that closes at once must not be asked all the time.
                Ended::Closed if begun.elapsed() > WORKS => continue,
                Ended::Closed => {}
                Ended::Failed(failed) => {
                    let since = *failing_since.get_or_insert_with(Instant::now);
                    tracing::debug!(error = %failed.error, subscription = %self.routes[route].path, "a stream ended");
                    let alive = match failed.kind {
                        Kind::Throttled => self.degraded("throttled"),
                        // A server that closes a stream says so; whether it answers at all shows in a call that must.
                        Kind::Unreachable | Kind::Passing => self.answers(route, since).await,
                        _ => false,
                    };
                    if !alive {
                        return self.die(dead(failed, &self.routes[route]));
                    }
                }
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(AGAIN.1),
                () = self.stop.cancelled() => return,
            }
        }
    }

    fn degraded(&self, word: &'static str) -> bool {
        self.fares(Some(word));
        true
    }

    /// Whether the server answers, which it is given until a while after `since` for.
    async fn answers(&self, route: usize, since: Instant) -> bool {
        let mut pause = AGAIN.0;
        loop {
            // Any answer will do, also one that it is not allowed.
            match super::topics::look(&self.link, &self.routes[route].path).await {
                Err(failed) if matches!(failed.kind, Kind::Unreachable | Kind::Passing) && since.elapsed() < GONE => {
                    self.fares(Some("unreachable"));
                }
                Err(failed) if matches!(failed.kind, Kind::Unreachable | Kind::Passing | Kind::Missing | Kind::Tls | Kind::Unknown) => {
                    return false;
                }
                _ => return true,
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(AGAIN.1),
                () = self.stop.cancelled() => return true,
            }
        }
    }

    /// One stream, from its opening to its end.
    async fn stream(self: &Arc<Self>, route: usize) -> Ended {
        let on = &self.routes[route];
        let (say, said) = mpsc::channel(1);
        let most = |n: usize| i64::try_from(n.saturating_mul(HALVES)).unwrap_or(i64::MAX);
        let first = StreamingPullRequest {
            subscription: on.path.clone(),
            stream_ack_deadline_seconds: i32::try_from(self.link.options().lease.as_secs()).unwrap_or(600),
            client_id: self.client.clone(),
            max_outstanding_messages: most(self.prefetch.count.max(1)),
            max_outstanding_bytes: most(self.prefetch.bytes.max(1)),
            ..StreamingPullRequest::default()
        };
        let requests = futures_util::stream::unfold((Some(first), said), async |(first, mut said)| match first {
            Some(first) => Some((first, (None, said))),
            None => said.recv().await.map(|request| (request, (None, said))),
        });
        let about = format!("subscription={}", on.path);
        let (mut client, request) = match self.link.subscriber() {
            Ok(client) => match self.link.request("receiving", &about, requests).await {
                Ok(request) => (client, request),
                Err(failed) => return Ended::Failed(failed),
            },
            Err(failed) => return Ended::Failed(failed),
        };
        let opening = client.streaming_pull(request);
        tokio::pin!(opening);
        let mut stream: Option<Streaming<StreamingPullResponse>> = None;
        let mut paused = self.paused.subscribe();
        let mut alive = tokio::time::interval_at(tokio::time::Instant::now() + ALIVE, ALIVE);
        let works = tokio::time::sleep(WORKS);
        tokio::pin!(works);
        let mut proven = false;
        loop {
            let room = self.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            let (opens, reads) = (stream.is_none(), stream.is_some() && self.has_room());
            let message = async {
                match &mut stream {
                    Some(stream) => stream.message().await,
                    None => std::future::pending().await,
                }
            };
            let message = tokio::select! {
                () = self.stop.cancelled() => return self.drain(route, stream, say).await,
                _ = async { paused.wait_for(|paused| *paused).await.map(drop) } => return self.drain(route, stream, say).await,
                _ = alive.tick() => {
                    let _ = say.try_send(StreamingPullRequest::default());
                    continue;
                }
                () = &mut works, if !proven => {
                    proven = true;
                    self.fares(None);
                    continue;
                }
                () = room, if !reads => continue,
                opened = &mut opening, if opens => match opened {
                    Ok(opened) => {
                        stream = Some(opened.into_inner());
                        continue;
                    }
                    Err(status) => Err(status),
                },
                message = message, if reads => message,
            };
            match message {
                Ok(Some(response)) => {
                    if !proven {
                        proven = true;
                        self.fares(None);
                    }
                    let back = self.keep(route, response.received_messages);
                    if !back.is_empty() {
                        self.release(back).await;
                    }
                }
                Ok(None) => return Ended::Closed,
                Err(status) => return Ended::Failed(failure("receiving", &status)),
            }
        }
    }

    /// Says that no more is wanted, and gives back what still comes.
    async fn drain(
        &self,
        route: usize,
        stream: Option<Streaming<StreamingPullResponse>>,
        say: mpsc::Sender<StreamingPullRequest>,
    ) -> Ended {
        drop(say);
        let Some(mut stream) = stream else { return Ended::Stopped };
        let mut back = Vec::new();
        let rest = async {
            while let Ok(Some(response)) = stream.message().await {
                back.extend(self.keep(route, response.received_messages));
            }
        };
        let _ = tokio::time::timeout(DRAIN, rest).await;
        self.release(back).await;
        Ended::Stopped
    }

    /// The server keeps the limits of a stream; one that does not is not read from while there is no room.
    fn has_room(&self) -> bool {
        let state = self.state.lock();
        let bytes = self.prefetch.bytes.saturating_mul(HALVES);
        state.ready.is_empty() || (state.ready.len() < self.prefetch.count.saturating_mul(HALVES) && state.ready_bytes < bytes)
    }

    /// Takes what came into hand. Returns what must be given back.
    fn keep(&self, route: usize, messages: Vec<ReceivedMessage>) -> Vec<Held> {
        let on = &self.routes[route];
        let lease = self.link.options().lease;
        // The lease began when the server sent it, which is a while ago.
        let lease_end = Instant::now() + lease - lease / 8;
        let mut back = Vec::new();
        let mut state = self.state.lock();
        let unwanted = *self.paused.borrow() || self.stop.is_cancelled();
        for ReceivedMessage { ack_id, message, delivery_attempt } in messages {
            let Decoded { id, key, payload, headers, stored_at, offset } = decode(message.unwrap_or_default());
            let stable = match id {
                EnvelopeId::Id(id) => id,
                _ => MessageId::derived(0, &[&offset.to_le_bytes()]),
            };
            let shard = shard_of(&on.topic, None, key.as_deref(), stable);
            state.places += 1;
            let held = Held { route, shard, place: state.places, ack: ack_id.into(), lease_end };
            if unwanted {
                back.push(held);
                continue;
            }
            let token = state.held.insert(held);
            // Counted only where the subscription has a dead letter policy.
            let deliveries = u32::try_from(delivery_attempt).ok().filter(|n| *n > 0).map_or(Deliveries::Unknown, Deliveries::UpperBound);
            let delivery = Delivery {
                token,
                position: Position { shard, offset },
                id,
                key,
                payload,
                headers,
                deliveries,
                stored_at,
                lease_end: Some(lease_end),
            };
            state.ready_bytes += delivery.size();
            state.ready.push_back((token, delivery));
        }
        drop(state);
        self.arrived.notify_waiters();
        back
    }
}

/// What ends the subscription.
fn dead(failed: Failure, on: &Route) -> Error {
    match failed.kind {
        Kind::Missing => Error::new(Code::GroupNotFound, "the subscription of the group does not exist any more")
            .detail("subscription", super::names::tail(&on.path))
            .with_retryable(true),
        // By the provider's own close.
        Kind::Other if failed.error.code() == Code::Closed => failed.error,
        Kind::Other => Error::new(Code::SubscribeFailed, failed.error.message())
            .with_retryable(false)
            .reason("refused")
            .next("look at the subscription: one that pushes or exports its messages hands out none"),
        _ => failed.error,
    }
}
