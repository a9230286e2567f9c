//! Receiving: long polls, as many at a time as bring something, never for more than there is room.

use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_sdk_sqs::types::{Message, MessageSystemAttributeName as System};
use tokio::task::JoinSet;

use super::error::{Failure, Kind, failure};
use super::lease::Held;
use super::message::{Decoded, decode};
use super::provider::{LIMIT, shard_of};
use super::subscription::Shared;
use super::topics::GONE;
use crate::delivery::{Deliveries, Delivery, EnvelopeId, Position};
use crate::message::MessageId;

/// Messages of one receive.
const CALL: usize = 10;
/// Receives of one queue at a time.
const POLLS: usize = 16;
/// How long the ones beyond the first wait at the server.
const SHORT: Duration = Duration::from_secs(1);
/// The pause after a receive that failed, growing from the first to the last.
const AGAIN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

/// How one receive ended.
enum Ended {
    /// With as many messages, of so many asked for.
    Came(usize, usize),
    Failed(Failure),
}

impl Shared {
    /// Receives from the queue of one route until stopped.
    pub(super) async fn receive(self: Arc<Self>, route: usize) {
        let mut polls = JoinSet::new();
        let (mut wanted, mut pause, mut failing_since) = (1, AGAIN.0, None::<Instant>);
        let mut attempt = None;
        loop {
            let room = self.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            while polls.len() < wanted && !self.stop.is_cancelled() {
                let Some(count) = self.reserve() else { break };
                let wait = if polls.is_empty() { self.options.wait } else { SHORT.min(self.options.wait) };
                // FIFO: if the answer to a receive is lost, the next one with its name brings the same messages again.
                let name = attempt.take().unwrap_or_else(|| MessageId::now().to_text());
                polls.spawn(self.tasks.track_future(self.clone().poll(route, count, wait, name)));
            }
            let ended = tokio::select! {
                () = self.stop.cancelled() => {
                    polls.detach_all();
                    return;
                }
                ended = polls.join_next(), if !polls.is_empty() => ended,
                () = room, if polls.len() < wanted => continue,
            };
            let Some(Ok((name, begun, ended))) = ended else { continue };
            match ended {
                Ended::Came(came, asked) => {
                    (pause, failing_since) = (AGAIN.0, None);
                    self.fares(None);
                    wanted = match came {
                        0 => 1,
                        _ if came == asked && asked == CALL => (wanted * 2).min(POLLS),
                        _ => (wanted - 1).max(1),
                    };
                    // A server that does not wait must not be asked all the time.
                    if came == 0 && polls.is_empty() && begun.elapsed() < AGAIN.0 {
                        self.unless_stopped(AGAIN.0).await;
                    }
                    // Few came: a moment later there are more for the same call.
                    if came > 0 && came < asked && polls.is_empty() {
                        self.unless_stopped(self.options.linger / 2).await;
                    }
                }
                Ended::Failed(failed) => {
                    wanted = 1;
                    attempt = failed.ambiguous.then_some(name);
                    let since = *failing_since.get_or_insert_with(Instant::now);
                    match failed.kind {
                        Kind::Throttled => self.fares(Some("throttled")),
                        Kind::OverLimit => self.fares(Some("over_limit")),
                        Kind::Unreachable if since.elapsed() < GONE => self.fares(Some("unreachable")),
                        Kind::Missing if since.elapsed() < GONE => self.fares(Some("no_queue")),
                        _ => {
                            polls.detach_all();
                            return self.die(failed.error);
                        }
                    }
                    self.unless_stopped(pause).await;
                    pause = (pause * 2).min(AGAIN.1);
                }
            }
        }
    }

    async fn unless_stopped(&self, pause: Duration) {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = self.stop.cancelled() => {}
        }
    }

    /// Sets places aside for a receive: ten, if there is ever room for ten; none while there is no room, or in a pause.
    fn reserve(&self) -> Option<usize> {
        let mut state = self.state.lock();
        if state.paused {
            return None;
        }
        let full = CALL.min(self.prefetch.count).max(1);
        let usual = if state.usual_size == 0 { LIMIT } else { state.usual_size };
        let taken = state.ready.len() + state.reserved;
        let bytes = state.ready_bytes + state.reserved * usual;
        let by_bytes = (self.prefetch.bytes.saturating_sub(bytes) / usual).min(CALL);
        let room = self.prefetch.count.saturating_sub(taken).min(by_bytes);
        // One message may pass the bytes, so that a large one gets through.
        let alone = taken == 0;
        // Half empty receives would cost twice as much: better wait until a whole one fits.
        let enough = room >= full || (room > 0 && (by_bytes < full || alone));
        let count = if enough {
            room.min(full)
        } else if alone {
            1
        } else {
            return None;
        };
        state.reserved += count;
        Some(count)
    }

    /// One receive. What comes when nobody wants it any more is given back.
    async fn poll(self: Arc<Self>, route: usize, count: usize, wait: Duration, name: String) -> (String, Instant, Ended) {
        let begun = Instant::now();
        let on = &self.routes[route];
        let mut call = self
            .clients
            .poll
            .receive_message()
            .queue_url(&*on.handles.url)
            .max_number_of_messages(i32::try_from(count).unwrap_or(1))
            .wait_time_seconds(i32::try_from(wait.as_secs()).unwrap_or(1))
            .visibility_timeout(i32::try_from(self.options.lease.as_secs()).unwrap_or(30))
            .message_attribute_names("All")
            .message_system_attribute_names(System::ApproximateReceiveCount)
            .message_system_attribute_names(System::SentTimestamp);
        if on.fifo {
            call = call
                .receive_request_attempt_id(&name)
                .message_system_attribute_names(System::MessageGroupId)
                .message_system_attribute_names(System::SequenceNumber);
        }
        let answer = tokio::select! {
            answer = call.send() => answer,
            () = self.end.cancelled() => return (name, begun, Ended::Came(0, count)),
        };
        let messages = match answer {
            Ok(answer) => answer.messages.unwrap_or_default(),
            Err(error) => {
                self.state.lock().reserved -= count;
                return (name, begun, Ended::Failed(failure("receiving", &error)));
            }
        };
        let came = messages.len();
        let back = self.keep(route, messages, count);
        if !back.is_empty() {
            self.release(back).await;
        }
        (name, begun, Ended::Came(came, count))
    }

    /// Takes what came into hand. Returns what must be given back.
    fn keep(&self, route: usize, messages: Vec<Message>, reserved: usize) -> Vec<Held> {
        let on = &self.routes[route];
        let now = Instant::now();
        // The lease began when the server answered, which is a while ago.
        let lease_end = now + self.options.lease - self.options.lease / 8;
        let mut back = Vec::new();
        let mut state = self.state.lock();
        state.reserved -= reserved;
        for mut message in messages {
            let Some(receipt) = message.receipt_handle.take() else { continue };
            let decoded = decode(&mut message);
            let shard = match decoded.id {
                EnvelopeId::Id(id) => shard_of(&on.topic, None, decoded.key.as_deref(), id),
                _ => shard_of(&on.topic, None, decoded.key.as_deref(), MessageId::derived(0, &[&decoded.offset.to_le_bytes()])),
            };
            let held = Held { route, shard, receipt: receipt.into(), received: now, lease_end };
            if state.paused || self.stop.is_cancelled() {
                back.push(held);
                continue;
            }
            let token = state.held.insert(held);
            let Decoded { id, key, payload, headers, receives, stored_at, offset } = decoded;
            let delivery = Delivery {
                token,
                position: Position { shard, offset },
                id,
                key,
                payload,
                headers,
                deliveries: Deliveries::UpperBound(receives),
                stored_at,
                lease_end: Some(lease_end),
            };
            let size = delivery.size();
            state.usual_size = if state.usual_size == 0 { size } else { state.usual_size - state.usual_size / 8 + size / 8 }.max(1);
            state.ready_bytes += size;
            state.ready.push_back((token, delivery));
        }
        drop(state);
        self.arrived.notify_waiters();
        back
    }
}
