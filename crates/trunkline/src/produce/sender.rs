//! The sender of a route: gathers what is produced at the same time into batches, and is the only place that sends again.
//!
//! A broker that commits in groups gets its groups by itself: while one batch is being confirmed, the next one gathers.
//! When it is confirmed the next one leaves first, and only then are the callers told: the broker does not wait for that.
//! On ordered topics one batch is at the broker at a time, so that nothing overtakes a message that is sent again; on the
//! others a batch that has grown as large as the one before leaves beside it, so that the broker does not wait for the
//! sender to be woken; and while only a few messages are at the broker, the next one leaves at once: it would wait for an
//! answer that is none of its business.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesOrdered;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::delivery::Position;
use crate::error::{Code, Error, Result};
use crate::history::{self, Failure, Filed, Mark, Produced};
use crate::message::Millis;
use crate::provider::{Outgoing, Provider, SendError, TopicSpec};
use crate::tracker::Tracker;

/// A batch holds at most this many messages and about this many bytes.
const BATCH: (usize, usize) = (4_096, 4 << 20);
/// At least so many messages, or about so many bytes, are sent beside a batch that is at the broker.
const ENOUGH: (usize, usize) = (64, 1 << 20);
/// While fewer messages are at the broker, whatever comes is sent beside them.
const FEW: usize = 16;
/// What waits for a route is bounded: a produce beyond it waits for room.
const QUEUE_BYTES: usize = 64 << 20;
/// The pause before a failed message is sent again, growing from the first to the last.
const AGAIN: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(2));

/// Who waits for the confirm of a message, and until when.
#[derive(Debug)]
struct Wait {
    since: Instant,
    deadline: Instant,
    produced_at: Millis,
    mark: Option<Box<Mark>>,
    /// Taken when it is answered.
    done: Option<oneshot::Sender<Result<Position>>>,
    /// Whether an earlier try may have reached the broker.
    ambiguous: bool,
    /// Why the last try that was answered failed.
    last: Option<Error>,
}

/// Whoever was not answered before the sender was ended is told whether the broker may have the message.
impl Drop for Wait {
    fn drop(&mut self) {
        if let Some(done) = self.done.take() {
            let _ = done.send(Err(closed(self.ambiguous)));
        }
    }
}

/// The callers of a batch that is at the broker: if it is dropped there, the broker may have it all.
struct InFlight(Vec<Wait>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.iter_mut().for_each(|wait| wait.ambiguous = true);
    }
}

/// Messages beside those who wait for them, one for one: so that a batch is handed on without touching its messages.
#[derive(Debug, Default)]
struct Batch {
    messages: Vec<Outgoing>,
    waits: Vec<Wait>,
}

impl Batch {
    fn with_capacity(n: usize) -> Self {
        Batch { messages: Vec::with_capacity(n), waits: Vec::with_capacity(n) }
    }

    fn is_empty(&self) -> bool {
        self.waits.is_empty()
    }

    fn append(&mut self, mut other: Batch) {
        self.messages.append(&mut other.messages);
        self.waits.append(&mut other.waits);
    }

    fn push(&mut self, message: Outgoing, wait: Wait) {
        self.messages.push(message);
        self.waits.push(wait);
    }
}

/// When a message came, and when its caller gives up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Times {
    /// By the wall clock.
    pub(crate) produced_at: Millis,
    /// The same moment.
    pub(crate) since: Instant,
    /// Confirmed until then, or failed.
    pub(crate) deadline: Instant,
}

/// Where the answer to a message comes.
pub(crate) type Answer = oneshot::Receiver<Result<Position>>;

/// See the module.
#[derive(Debug)]
pub(crate) struct Sender {
    shared: Arc<Shared>,
    task: Mutex<Option<JoinHandle<()>>>,
}

/// What waits to be taken into a batch.
#[derive(Debug, Default)]
struct Queue {
    batch: Batch,
    bytes: usize,
    /// Messages that are not answered, at the broker or here.
    pending: usize,
    /// So many messages are worth a batch beside the one that is at the broker.
    enough: usize,
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
    enough: Notify,
    /// Batches that may be at the broker at the same time.
    depth: usize,
    room: Notify,
    end: CancellationToken,
    confirmed: AtomicU64,
}

/// What the provider said to a batch.
type Results = Vec<Result<Position, SendError>>;

impl Sender {
    pub(crate) fn new(provider: Arc<dyn Provider>, topic: TopicSpec, filed: Arc<Filed>, producer: Arc<str>, tracker: Tracker) -> Self {
        // On ordered topics nothing leaves while an earlier message may have to be sent again.
        let depth = if topic.ordered { 1 } else { provider.sends_at_once().max(1) };
        let shared = Arc::new(Shared {
            provider,
            topic,
            filed,
            producer,
            tracker,
            queue: Mutex::default(),
            some: Notify::new(),
            enough: Notify::new(),
            depth,
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
    pub(crate) fn pending(&self) -> usize {
        self.shared.queue.lock().pending
    }

    /// Queues a message if there is room and the sender is not closed; gives it back if not.
    pub(crate) fn offer(&self, message: Outgoing, times: Times) -> Result<Answer, Outgoing> {
        let size = message.size();
        match self.shared.push((message, None), size, times, false) {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err((message, _))) | Err((message, _)) => Err(message),
        }
    }

    /// Hands a message over and waits for its confirm, or for the deadline.
    pub(crate) async fn send(&self, message: Outgoing, times: Times, mark: Option<Box<Mark>>) -> Result<Position> {
        let shared = &self.shared;
        let size = message.size();
        let mut offer = (message, mark);
        let answer = loop {
            let room = shared.room.notified();
            match shared.push(offer, size, times, true).map_err(|_| closed(false))? {
                Ok(answer) => break answer,
                Err(back) => offer = back,
            }
            let waited = tokio::time::timeout_at(times.deadline.into(), room).await;
            shared.queue.lock().waiting -= 1;
            waited.map_err(|_| unsent("the queue of this topic stayed full until the deadline").reason("queue_full"))?;
        };
        answered(answer.await)
    }

    /// Sends what waits, until the deadline, and ends.
    pub(crate) async fn close(&self, deadline: Instant) {
        self.shared.end.cancel();
        let task = self.task.lock().take();
        if let Some(mut task) = task
            && tokio::time::timeout_at(deadline.into(), &mut task).await.is_err()
        {
            task.abort();
            // Whoever is not answered when it is gone never will be: what it had taken is answered as it is dropped, and
            // nothing can be queued any more.
            let _ = task.await;
            drop(std::mem::take(&mut self.shared.queue.lock().batch));
        }
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.shared.end.cancel();
    }
}

/// A message that is offered, with what the record says beside it.
pub(crate) type Offer = (Outgoing, Option<Box<Mark>>);

/// What an [`Answer`] came to: everything that was queued is answered, at the latest when it is dropped.
pub(crate) fn answered(answer: Result<Result<Position>, oneshot::error::RecvError>) -> Result<Position> {
    answer.unwrap_or_else(|_| Err(closed(true)))
}

fn closed(ambiguous: bool) -> Error {
    let error = Error::new(Code::Closed, "this instance is closed").detail("ambiguous", ambiguous);
    if ambiguous { error.next("the broker may have the message: look it up before it is produced again") } else { error }
}

fn unsent(message: &str) -> Error {
    Error::new(Code::PublishFailed, message).detail("ambiguous", false)
}

impl Shared {
    /// Queues a message, or gives it back if the queue is full (and counts the caller as waiting, if it `waits`), or (the
    /// outer error) if the sender is closed.
    fn push(&self, offer: Offer, size: usize, times: Times, waits: bool) -> Result<Result<Answer, Offer>, Offer> {
        let mut queue = self.queue.lock();
        if self.end.is_cancelled() {
            return Err(offer);
        }
        if queue.bytes > 0 && queue.bytes + size > QUEUE_BYTES {
            queue.waiting += usize::from(waits);
            return Ok(Err(offer));
        }
        queue.bytes += size;
        queue.pending += 1;
        let first = queue.batch.is_empty();
        let enough = queue.batch.waits.len() + 1 == queue.enough || (queue.bytes >= ENOUGH.1 && queue.bytes - size < ENOUGH.1);
        let (done, answer) = oneshot::channel();
        let Times { produced_at, since, deadline } = times;
        let (message, mark) = offer;
        queue.batch.push(message, Wait { since, deadline, produced_at, mark, done: Some(done), ambiguous: false, last: None });
        drop(queue);
        if first {
            self.some.notify_one();
        }
        if enough && self.depth > 1 {
            self.enough.notify_one();
        }
        Ok(Ok(answer))
    }

    async fn run(self: Arc<Self>) {
        let mut pause = AGAIN.0;
        loop {
            let batch = self.gather();
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
            // What must be sent again goes alone and first: on ordered topics a later message of the same key must not
            // overtake it, and on the others there is no hurry while the broker refuses.
            let mut again = self.stream(batch).await;
            while !again.is_empty() {
                self.pause(&again, pause).await;
                pause = (pause * 2).min(AGAIN.1);
                again = self.give_up_late(again);
                if !again.is_empty() {
                    let (batch, results) = self.send(again).await;
                    again = self.settle(batch, results);
                }
            }
            pause = AGAIN.0;
        }
    }

    /// Sends batch after batch while there are some and all is confirmed; returns what must be sent again.
    async fn stream(&self, batch: Batch) -> Batch {
        let (mut again, mut early) = (Batch::default(), None);
        let mut flying = FuturesOrdered::new();
        let mut there = batch.waits.len();
        flying.push_back(self.send(batch));
        loop {
            let all_well = again.is_empty();
            let few = self.depth > 1 && there < FEW;
            let sent = match early.take() {
                Some(sent) => Some(sent),
                None if all_well && (few || flying.len() < self.depth) => tokio::select! {
                    biased;
                    sent = flying.next() => sent,
                    () = self.enough.notified() => {
                        if let Some(next) = self.gather_enough() {
                            there += next.waits.len();
                            flying.push_back(self.send(next));
                        }
                        continue;
                    }
                    () = self.some.notified(), if few => {
                        let next = self.gather();
                        if !next.is_empty() {
                            there += next.waits.len();
                            flying.push_back(self.send(next));
                        }
                        continue;
                    }
                },
                None => flying.next().await,
            };
            let Some((batch, results)) = sent else { return again };
            there -= batch.waits.len();
            let confirmed = results.len() == batch.waits.len() && results.iter().all(Result::is_ok);
            if confirmed && all_well {
                let any = flying.is_empty() || (self.depth > 1 && there < FEW);
                let next = if any { Some(self.gather()).filter(|next| !next.is_empty()) } else { self.gather_enough() };
                if let Some(next) = next {
                    there += next.waits.len();
                    flying.push_back(self.send(next));
                    if let Poll::Ready(sent) = futures_util::poll!(flying.next()) {
                        early = sent;
                    }
                }
            }
            again.append(self.settle(batch, results));
        }
    }

    /// The next batch, if it is worth sending beside the one that is at the broker: as large as that one was.
    fn gather_enough(&self) -> Option<Batch> {
        let enough = {
            let queue = self.queue.lock();
            queue.batch.waits.len() >= queue.enough || queue.bytes >= ENOUGH.1
        };
        enough.then(|| self.gather())
    }

    /// The next batch.
    fn gather(&self) -> Batch {
        let mut queue = self.queue.lock();
        if queue.waiting > 0 && !queue.batch.is_empty() {
            self.room.notify_waiters();
        }
        let n = queue.batch.waits.len();
        queue.enough = n.clamp(ENOUGH.0, BATCH.0);
        if n <= BATCH.0 && queue.bytes <= BATCH.1 {
            queue.bytes = 0;
            // The next one will be about as long.
            return std::mem::replace(&mut queue.batch, Batch::with_capacity(n));
        }
        let (mut bytes, mut n) = (0, 0);
        for message in queue.batch.messages.iter().take(BATCH.0) {
            let size = message.size();
            if n > 0 && bytes + size > BATCH.1 {
                break;
            }
            bytes += size;
            n += 1;
        }
        queue.bytes -= bytes;
        let Batch { messages, waits } = &mut queue.batch;
        let later = Batch { messages: messages.split_off(n), waits: waits.split_off(n) };
        std::mem::replace(&mut queue.batch, later)
    }

    /// Waits before the next try, not past the first deadline.
    async fn pause(&self, again: &Batch, pause: Duration) {
        let first = again.waits.iter().map(|wait| wait.deadline).min();
        let until = first.map_or(Instant::now() + pause, |deadline| deadline.min(Instant::now() + pause));
        tokio::time::sleep_until(until.into()).await;
    }

    /// Answers those whose deadline has come with why their last try failed; returns the others.
    fn give_up_late(&self, again: Batch) -> Batch {
        let soon = Instant::now() + AGAIN.0;
        let (mut kept, mut late) = (Batch::default(), Finals::default());
        for (message, mut wait) in again.messages.into_iter().zip(again.waits) {
            match wait.last.take_if(|_| wait.deadline <= soon) {
                Some(error) => {
                    let answer = Err(given_up(error, wait.ambiguous));
                    late.push(message, wait, answer);
                }
                None => kept.push(message, wait),
            }
        }
        self.end(late);
        kept
    }

    /// Sends a batch once.
    async fn send(&self, batch: Batch) -> (Batch, Results) {
        let Batch { messages, waits } = batch;
        let messages = Arc::new(messages);
        let mut flight = InFlight(waits);
        let waits = &flight.0;
        let until = waits.iter().map(|wait| wait.deadline).max().unwrap_or_else(Instant::now);
        let sent = tokio::time::timeout_at(until.into(), self.provider.send(&self.topic, messages.clone())).await;
        let results = sent.unwrap_or_else(|_| {
            let late = || Error::new(Code::PublishFailed, "the broker did not confirm before the deadline").reason("timeout");
            // Why an earlier try failed says more than that this one got no answer.
            let why = |wait: &Wait| wait.last.clone().unwrap_or_else(late);
            waits.iter().map(|wait| Err(SendError { error: why(wait), retryable: true, ambiguous: true })).collect()
        });
        // A provider has let go of the batch when it answers; after a deadline it may still hold it.
        (Batch { messages: Arc::unwrap_or_clone(messages), waits: std::mem::take(&mut flight.0) }, results)
    }

    /// Answers what is final, returns what may be sent again before its deadline.
    fn settle(&self, batch: Batch, results: Results) -> Batch {
        let Batch { messages, waits } = batch;
        let mut again = Batch::default();
        if results.len() == waits.len() && results.iter().all(Result::is_ok) {
            let answers = results.into_iter().map(|result| result.map_err(|failed| failed.error)).collect();
            self.end(Finals { messages, waits, answers });
            return again;
        }
        let now = Instant::now();
        let mut finals = Finals::default();
        let mut results = results.into_iter();
        for (message, mut wait) in messages.into_iter().zip(waits) {
            let result = results.next().unwrap_or_else(|| {
                Err(SendError {
                    error: Error::new(Code::PublishFailed, "the provider gave no answer for this message"),
                    retryable: false,
                    ambiguous: true,
                })
            });
            let answer = match result {
                Ok(position) => Ok(position),
                Err(failed) => {
                    wait.ambiguous |= failed.ambiguous;
                    if failed.retryable && now + AGAIN.0 < wait.deadline {
                        wait.last = Some(failed.error);
                        again.push(message, wait);
                        continue;
                    }
                    Err(given_up(failed.error, wait.ambiguous))
                }
            };
            finals.push(message, wait, answer);
        }
        self.end(finals);
        again
    }

    /// Records what became of messages, then tells their callers: who asks the history after a confirm finds the message.
    fn end(&self, finals: Finals) {
        let Finals { messages, mut waits, answers } = finals;
        if waits.is_empty() {
            return;
        }
        let now = Instant::now();
        let items: Vec<_> = waits.iter_mut().zip(&answers).map(|(wait, answer)| wait.item(answer, now)).collect();
        self.confirmed.fetch_add(items.iter().filter(|item| item.failure.is_none()).count() as u64, Ordering::Relaxed);
        let (filed, producer) = (self.filed.clone(), self.producer.clone());
        self.tracker.record(history::Batch::Produced { filed, producer, messages, items });
        self.queue.lock().pending -= waits.len();
        for (mut wait, answer) in waits.into_iter().zip(answers) {
            if let Some(done) = wait.done.take() {
                // The caller may have gone; the message is confirmed all the same.
                let _ = done.send(answer);
            }
        }
    }
}

/// What is final, one for one: messages, who waits for them, and what each is told.
#[derive(Debug, Default)]
struct Finals {
    messages: Vec<Outgoing>,
    waits: Vec<Wait>,
    answers: Vec<Result<Position>>,
}

impl Finals {
    fn push(&mut self, message: Outgoing, wait: Wait, answer: Result<Position>) {
        self.messages.push(message);
        self.waits.push(wait);
        self.answers.push(answer);
    }
}

impl Wait {
    /// What became of the message, for its record.
    fn item(&mut self, answer: &Result<Position>, now: Instant) -> Produced {
        let failure = answer.as_ref().err();
        Produced {
            produced_at: self.produced_at,
            confirm_us: u32::try_from(now.duration_since(self.since).as_micros()).unwrap_or(u32::MAX),
            position: answer.as_ref().ok().copied(),
            failure: failure.map(|error| Box::new(Failure { code: error.code().as_str(), message: error.message().to_owned() })),
            mark: self.mark.take(),
        }
    }
}

/// The final failure: the provider's own code where it is more precise, with what the broker may have.
fn given_up(error: Error, ambiguous: bool) -> Error {
    let error = match error.code() {
        Code::PublishFailed | Code::PayloadTooLarge | Code::AuthenticationFailed | Code::CapabilityUnsupported | Code::Closed => error,
        code => {
            let mut failed = Error::new(Code::PublishFailed, error.message().to_owned())
                .detail("cause", code.as_str())
                .with_retryable(error.retryable());
            for (name, value) in error.details() {
                failed = failed.detail(name, value.clone());
            }
            failed
        }
    };
    error.detail("ambiguous", ambiguous)
}
