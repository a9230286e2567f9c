//! Receiving: long polls, as many at a time as bring something, never for more than there is room.

use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_sdk_sqs::types::{Message, MessageSystemAttributeName as System};
use tokio::task::JoinSet;

use super::error::{Failure, Kind, failure};
use super::lease::Held;
use super::message::{Decoded, decode};
use super::provider::{LIMIT, shard_of};
use super::subscription::{Ready, Room, Shared};
use super::topics::GONE;
use crate::delivery::{Deliveries, Delivery, EnvelopeId, Position};
use crate::message::MessageId;
use crate::provider::Prefetch;

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
                let Some(count) = self.reserve(route) else { break };
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
    fn reserve(&self, route: usize) -> Option<usize> {
        let mut state = self.state.lock();
        if state.paused {
            return None;
        }
        let routes = self.routes.len().max(1);
        let share = Prefetch { count: (self.prefetch.count / routes).max(1), bytes: (self.prefetch.bytes / routes).max(1) };
        let count = places(&state.rooms[route], share)?;
        state.rooms[route].reserved += count;
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
                self.state.lock().rooms[route].reserved -= count;
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
        state.rooms[route].reserved -= reserved;
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
            state.push(Ready { token, route, delivery });
        }
        drop(state);
        self.arrived.notify_waiters();
        back
    }
}

/// How many messages a receive may ask for.
fn places(room: &Room, share: Prefetch) -> Option<usize> {
    let full = CALL.min(share.count);
    let usual = if room.usual_size == 0 { LIMIT } else { room.usual_size };
    let taken = room.ready + room.reserved;
    let bytes = room.bytes + room.reserved * usual;
    let by_bytes = (share.bytes.saturating_sub(bytes) / usual).min(CALL);
    let free = share.count.saturating_sub(taken).min(by_bytes);
    // Half empty receives would cost twice as much: better wait until a whole one fits.
    if free >= full || (free > 0 && (by_bytes < full || taken == 0)) {
        return Some(free.min(full));
    }
    // One message may pass the bytes, so that a large one gets through.
    (taken == 0).then_some(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOMY: Prefetch = Prefetch { count: 100, bytes: 8 << 20 };

    fn room(ready: usize, bytes: usize, reserved: usize, usual_size: usize) -> Room {
        Room { ready, bytes, reserved, usual_size }
    }

    #[test]
    fn receives_are_whole_where_they_can_be() {
        assert_eq!(places(&room(0, 0, 0, 100), ROOMY), Some(10));
        assert_eq!(places(&room(90, 9_000, 0, 100), ROOMY), Some(10));
        assert_eq!(places(&room(91, 9_100, 0, 100), ROOMY), None);
        assert_eq!(places(&room(0, 0, 0, 100), Prefetch { count: 4, ..ROOMY }), Some(4));
    }

    #[test]
    fn bytes_bound_a_receive_and_one_message_may_pass_them() {
        // Nothing is known yet: a message may be as large as SQS takes.
        assert_eq!(places(&room(0, 0, 0, 0), ROOMY), Some(8));
        assert_eq!(places(&room(0, 0, 8, 0), ROOMY), None);
        assert_eq!(places(&room(3, 3 << 20, 4, 1 << 20), ROOMY), Some(1));
        assert_eq!(places(&room(0, 0, 0, 1 << 20), Prefetch { bytes: 1_000, ..ROOMY }), Some(1));
        assert_eq!(places(&room(1, 1 << 20, 0, 1 << 20), Prefetch { bytes: 1_000, ..ROOMY }), None);
    }
}
