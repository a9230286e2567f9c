//! The sender of a route: gathers what is produced at the same time into batches, and is the only place that sends again.
//!
//! One batch is under way at a time, so order is kept and a broker that commits in groups gets its groups by itself:
//! while one batch is being confirmed, the next one gathers.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::delivery::Position;
use crate::error::{Code, Error, Result};
use crate::history::{Batch, Failure, Filed, Produced, SessionMark};
use crate::message::{MessageId, Millis};
use crate::provider::{Outgoing, Provider, TopicSpec};
use crate::tracker::Tracker;

/// A batch holds at most this many messages and about this many bytes.
const BATCH: (usize, usize) = (4_096, 4 << 20);
/// What waits for a route is bounded: a produce beyond it waits for room.
const QUEUE_BYTES: usize = 64 << 20;
/// The pause before a failed message is sent again, growing from the first to the last.
const AGAIN: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(2));

/// A message that waits for its confirm.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) outgoing: Outgoing,
    pub(crate) deadline: Instant,
    pub(crate) produced_at: Millis,
    pub(crate) since: Instant,
    pub(crate) mark: Option<Box<Mark>>,
    pub(crate) done: oneshot::Sender<Result<Position>>,
    /// Whether an earlier try may have reached the broker.
    pub(crate) ambiguous: bool,
    /// Why the last try failed.
    pub(crate) last: Option<Error>,
}

/// What the record says beside the message, where it says anything.
#[derive(Debug, Default)]
pub(crate) struct Mark {
    pub(crate) session: Option<Arc<SessionMark>>,
    pub(crate) idempotency_key: Option<Arc<str>>,
    pub(crate) replay_of: Option<MessageId>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Sender {
    shared: Arc<Shared>,
    task: Mutex<Option<JoinHandle<()>>>,
}

/// What waits to be taken into a batch.
#[derive(Debug, Default)]
struct Queue {
    items: VecDeque<Pending>,
    bytes: usize,
    /// Callers that wait for room.
    waiting: usize,
}

#[derive(Debug)]
struct Shared {
    provider: Arc<dyn Provider>,
    topic: TopicSpec,
    filed: Arc<Filed>,
    producer: Arc<str>,
    tracker: Tracker,
    queue: Mutex<Queue>,
    some: Notify,
    room: Notify,
    end: CancellationToken,
    confirmed: AtomicU64,
}

impl Sender {
    pub(crate) fn new(provider: Arc<dyn Provider>, topic: TopicSpec, filed: Arc<Filed>, producer: Arc<str>, tracker: Tracker) -> Self {
        let shared = Arc::new(Shared {
            provider,
            topic,
            filed,
            producer,
            tracker,
            queue: Mutex::default(),
            some: Notify::new(),
            room: Notify::new(),
            end: CancellationToken::new(),
            confirmed: AtomicU64::new(0),
        });
        let task = tokio::spawn(shared.clone().run());
        Sender { shared, task: Mutex::new(Some(task)) }
    }

    /// Messages confirmed so far.
    pub(crate) fn confirmed(&self) -> u64 {
        self.shared.confirmed.load(Ordering::Relaxed)
    }

    /// Messages that wait for their confirm.
    pub(crate) fn waiting(&self) -> usize {
        self.shared.queue.lock().items.len()
    }

    /// Hands a message over and waits for its confirm, or for the deadline.
    pub(crate) async fn send(
        &self,
        outgoing: Outgoing,
        produced_at: Millis,
        since: Instant,
        deadline: Instant,
        mark: Option<Box<Mark>>,
    ) -> Result<Position> {
        let shared = &self.shared;
        let size = outgoing.size();
        let (done, answer) = oneshot::channel();
        let mut pending = Pending { outgoing, deadline, produced_at, since, mark, done, ambiguous: false, last: None };
        loop {
            let room = shared.room.notified();
            match shared.push(pending, size)? {
                None => break,
                Some(back) => pending = back,
            }
            let waited = tokio::time::timeout_at(deadline.into(), room).await;
            shared.queue.lock().waiting -= 1;
            waited.map_err(|_| unsent("the queue of this topic stayed full until the deadline").reason("queue_full"))?;
        }
        // The task answers everything it takes; it only drops what it could not send before it was ended.
        answer.await.unwrap_or_else(|_| Err(closed()))
    }

    /// Sends what waits, until the deadline, and ends.
    pub(crate) async fn close(&self, deadline: Instant) {
        self.shared.end.cancel();
        let task = self.task.lock().take();
        if let Some(mut task) = task
            && tokio::time::timeout_at(deadline.into(), &mut task).await.is_err()
        {
            task.abort();
        }
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.shared.end.cancel();
    }
}

fn closed() -> Error {
    Error::new(Code::Closed, "this instance is closed").detail("ambiguous", false)
}

fn unsent(message: &str) -> Error {
    Error::new(Code::PublishFailed, message).detail("ambiguous", false)
}

impl Shared {
    /// Queues a message, or gives it back if the queue is full (and counts the caller as waiting).
    fn push(&self, pending: Pending, size: usize) -> Result<Option<Pending>> {
        let mut queue = self.queue.lock();
        if self.end.is_cancelled() {
            return Err(closed());
        }
        if queue.bytes > 0 && queue.bytes + size > QUEUE_BYTES {
            queue.waiting += 1;
            return Ok(Some(pending));
        }
        queue.bytes += size;
        queue.items.push_back(pending);
        let first = queue.items.len() == 1;
        drop(queue);
        if first {
            self.some.notify_one();
        }
        Ok(None)
    }

    async fn run(self: Arc<Self>) {
        let mut again: VecDeque<Pending> = VecDeque::new();
        let mut pause = AGAIN.0;
        loop {
            let batch = self.gather(&mut again);
            if batch.is_empty() {
                if self.end.is_cancelled() {
                    return;
                }
                tokio::select! {
                    () = self.some.notified() => {}
                    () = self.end.cancelled() => {}
                }
                continue;
            }
            again = self.send(batch).await;
            if again.is_empty() {
                pause = AGAIN.0;
            } else {
                self.pause(&again, pause).await;
                pause = (pause * 2).min(AGAIN.1);
                self.give_up_late(&mut again);
            }
        }
    }

    /// The next batch. What must be sent again goes alone and first: on ordered topics a later message of the same key
    /// must not overtake it, and on the others there is no hurry while the broker refuses.
    fn gather(&self, again: &mut VecDeque<Pending>) -> Vec<Pending> {
        if !again.is_empty() {
            return again.drain(..).collect();
        }
        let mut queue = self.queue.lock();
        let mut bytes = 0;
        let mut n = 0;
        for pending in queue.items.iter().take(BATCH.0) {
            let size = pending.outgoing.size();
            if n > 0 && bytes + size > BATCH.1 {
                break;
            }
            bytes += size;
            n += 1;
        }
        queue.bytes -= bytes;
        if queue.waiting > 0 {
            self.room.notify_waiters();
        }
        queue.items.drain(..n).collect()
    }

    /// Waits before the next try, not past the first deadline.
    async fn pause(&self, again: &VecDeque<Pending>, pause: Duration) {
        let first = again.iter().map(|pending| pending.deadline).min();
        let until = first.map_or(Instant::now() + pause, |deadline| deadline.min(Instant::now() + pause));
        tokio::time::sleep_until(until.into()).await;
    }

    /// Answers those whose deadline has come with why their last try failed.
    fn give_up_late(&self, again: &mut VecDeque<Pending>) {
        let soon = Instant::now() + AGAIN.0;
        let mut records = Vec::new();
        for mut pending in std::mem::take(again) {
            match pending.last.take_if(|_| pending.deadline <= soon) {
                Some(error) => {
                    let answer = Err(given_up(error, pending.ambiguous));
                    records.push(record(&pending, Instant::now(), &answer));
                    let _ = pending.done.send(answer);
                }
                None => again.push_back(pending),
            }
        }
        if !records.is_empty() {
            self.tracker.record(Batch::Produced { filed: self.filed.clone(), producer: self.producer.clone(), items: records });
        }
    }

    /// Sends a batch, answers what is final, returns what may be sent again before its deadline.
    async fn send(&self, batch: Vec<Pending>) -> VecDeque<Pending> {
        let outgoing: Vec<Outgoing> = batch.iter().map(|pending| pending.outgoing.clone()).collect();
        let until = batch.iter().map(|pending| pending.deadline).max().unwrap_or_else(Instant::now);
        let results = match tokio::time::timeout_at(until.into(), self.provider.send(&self.topic, outgoing)).await {
            Ok(results) => results,
            Err(_) => {
                let late = || crate::provider::SendError {
                    error: Error::new(Code::PublishFailed, "the broker did not confirm before the deadline").reason("timeout"),
                    retryable: true,
                    ambiguous: true,
                };
                batch.iter().map(|_| Err(late())).collect()
            }
        };
        let now = Instant::now();
        let mut again = VecDeque::new();
        let mut records = Vec::with_capacity(batch.len());
        let mut results = results.into_iter();
        for mut pending in batch {
            let result = results.next().unwrap_or_else(|| {
                Err(crate::provider::SendError {
                    error: Error::new(Code::PublishFailed, "the provider gave no answer for this message"),
                    retryable: false,
                    ambiguous: true,
                })
            });
            let answer = match result {
                Ok(position) => Ok(position),
                Err(failed) => {
                    pending.ambiguous |= failed.ambiguous;
                    if failed.retryable && now + AGAIN.0 < pending.deadline {
                        pending.last = Some(failed.error);
                        again.push_back(pending);
                        continue;
                    }
                    Err(given_up(failed.error, pending.ambiguous))
                }
            };
            records.push(record(&pending, now, &answer));
            // The caller may have gone; the message is confirmed all the same.
            let _ = pending.done.send(answer);
        }
        self.confirmed.fetch_add(records.iter().filter(|r| r.failure.is_none()).count() as u64, Ordering::Relaxed);
        if !records.is_empty() {
            self.tracker.record(Batch::Produced { filed: self.filed.clone(), producer: self.producer.clone(), items: records });
        }
        again
    }
}

/// The final failure: the provider's own code where it is more precise, with what the broker may have.
fn given_up(error: Error, ambiguous: bool) -> Error {
    let error = match error.code() {
        Code::PublishFailed | Code::PayloadTooLarge | Code::AuthenticationFailed | Code::CapabilityUnsupported | Code::Closed => error,
        code => {
            let mut failed = Error::new(Code::PublishFailed, error.message().to_owned()).detail("cause", code.as_str());
            for (name, value) in error.details() {
                failed = failed.detail(name, value.clone());
            }
            failed
        }
    };
    error.detail("ambiguous", ambiguous)
}

fn record(pending: &Pending, now: Instant, answer: &Result<Position>) -> Produced {
    let outgoing = &pending.outgoing;
    let mark = pending.mark.as_deref();
    Produced {
        id: outgoing.id,
        key: outgoing.key.clone(),
        headers: outgoing.headers.clone(),
        payload: outgoing.payload.clone(),
        produced_at: pending.produced_at,
        confirm_us: u32::try_from(now.duration_since(pending.since).as_micros()).unwrap_or(u32::MAX),
        position: answer.as_ref().ok().copied(),
        failure: answer.as_ref().err().map(|error| Box::new(Failure { code: error.code().as_str(), message: error.message().to_owned() })),
        session: mark.and_then(|mark| mark.session.clone()),
        idempotency_key: mark.and_then(|mark| mark.idempotency_key.clone()),
        replay_of: mark.and_then(|mark| mark.replay_of),
    }
}
