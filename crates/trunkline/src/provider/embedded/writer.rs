//! Group commit: one thread per topic merges all that waits into one write and one fsync.
//!
//! The thread starts with the first message and ends after a while without any.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tokio::sync::{Semaphore, oneshot};

use super::encode::{Encoder, NOWHERE};
use super::error;
use super::topic::Topic;
use crate::delivery::Position;
use crate::error::{Code, Error};
use crate::provider::{Outgoing, SendError};

type Answer = Vec<Result<Position, SendError>>;

/// Bytes in units of a KiB that may wait.
const WAITING: u32 = 64 * 1024;
/// Bytes that are written at once, as far as whole calls of `send` allow.
const ROUND: usize = 8 << 20;
const IDLE: Duration = Duration::from_secs(10);

/// What waits to be written.
#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    filled: Condvar,
    room: Semaphore,
}

#[derive(Debug, Default)]
struct State {
    jobs: VecDeque<Job>,
    running: bool,
}

#[derive(Debug)]
struct Job {
    batch: Arc<Vec<Outgoing>>,
    bytes: usize,
    answer: oneshot::Sender<Answer>,
}

impl Default for Queue {
    fn default() -> Self {
        Queue { state: Mutex::default(), filled: Condvar::new(), room: Semaphore::new(WAITING as usize) }
    }
}

impl Topic {
    /// Writes the batch and waits until it is confirmed.
    pub(super) async fn send(self: &Arc<Self>, batch: Arc<Vec<Outgoing>>) -> Answer {
        let (answer, answered) = oneshot::channel();
        let n = batch.len();
        let bytes = batch.iter().map(|message| message.size() + 64).sum::<usize>();
        let units = u32::try_from(bytes / 1024).unwrap_or(u32::MAX).clamp(1, WAITING);
        // Held until the answer is there; a caller that goes away gives it back early, at worst.
        let Ok(_room) = self.queue.room.acquire_many(units).await else { return vec![Err(gone()); n] };
        let start = {
            let mut state = self.queue.state.lock();
            state.jobs.push_back(Job { batch, bytes, answer });
            !std::mem::replace(&mut state.running, true)
        };
        if start {
            let topic = Arc::clone(self);
            let spawned = std::thread::Builder::new().name("trunkline-log".into()).spawn(move || topic.write());
            if spawned.is_err() {
                let mut state = self.queue.state.lock();
                state.running = false;
                state.jobs.clear();
            }
        } else {
            self.queue.filled.notify_one();
        }
        answered.await.unwrap_or_else(|_| vec![Err(gone()); n])
    }

    /// The writer's thread.
    fn write(&self) {
        let _running = Running(&self.queue);
        let mut encoder = Encoder::new(self.shards);
        let mut jobs = Vec::new();
        let limit = ROUND.min(usize::try_from(self.host.options.segment_limit() / 2).unwrap_or(ROUND));
        while self.queue.take(&mut jobs, limit) {
            self.round(&mut encoder, &mut jobs);
            encoder.shrink();
        }
    }

    fn round(&self, encoder: &mut Encoder, jobs: &mut Vec<Job>) {
        let (shards, max) = (self.shards, self.host.options.max_payload);
        let takes = |message: &Outgoing| message.shard.is_none_or(|shard| shard < shards) && message.size() <= max;
        encoder.encode(jobs.iter().flat_map(|job| job.batch.iter()), takes);
        let mut outcome = Ok(Vec::new());
        if !encoder.bytes().is_empty() {
            outcome = self.append(encoder).and_then(|written| self.commit(&written).map(|()| written.first));
        }
        let mut assigned = encoder.assigned().iter();
        for job in jobs.drain(..) {
            let mut answer = Vec::with_capacity(job.batch.len());
            for (message, shard) in job.batch.iter().zip(&mut assigned) {
                answer.push(match &mut outcome {
                    _ if *shard == NOWHERE => Err(self.refusal(message)),
                    Ok(next) => {
                        let offset = next[*shard as usize];
                        next[*shard as usize] += 1;
                        Ok(Position { shard: *shard, offset })
                    }
                    Err(error) => Err(error.clone()),
                });
            }
            let Job { batch, answer: caller, .. } = job;
            drop(batch);
            // A caller that went away does not want to know.
            let _ = caller.send(answer);
        }
    }

    /// Why a message is not written.
    fn refusal(&self, message: &Outgoing) -> SendError {
        let (size, max) = (message.size(), self.host.options.max_payload);
        if size > max {
            let text = format!("the message has {size} bytes, the embedded broker takes {max}");
            return error::refused(Error::new(Code::PayloadTooLarge, text).detail("bytes", size).detail("max", max));
        }
        let text = format!("topic '{}' has {} shards", self.name, self.shards);
        error::refused(Error::input("shard", text).reason("shards"))
    }
}

/// Whoever waits is told when the thread ends by a panic, and the next message starts another.
struct Running<'a>(&'a Queue);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let mut state = self.0.state.lock();
            state.running = false;
            state.jobs.clear();
        }
    }
}

impl Queue {
    /// Takes what waits, up to about `limit` bytes; `false` if nothing came for a while.
    fn take(&self, jobs: &mut Vec<Job>, limit: usize) -> bool {
        let mut state = self.state.lock();
        while state.jobs.is_empty() {
            if self.filled.wait_for(&mut state, IDLE).timed_out() && state.jobs.is_empty() {
                state.running = false;
                return false;
            }
        }
        let mut bytes = 0;
        while let Some(job) = state.jobs.front() {
            if bytes > 0 && bytes + job.bytes > limit {
                break;
            }
            bytes += job.bytes;
            jobs.extend(state.jobs.pop_front());
        }
        true
    }
}

fn gone() -> SendError {
    let error = Error::new(Code::PublishFailed, "the thread that writes the log ended").reason("io").detail("ambiguous", true);
    SendError { error, retryable: true, ambiguous: true }
}
