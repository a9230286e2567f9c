//! The recorder: takes batches on the hot paths and never waits; one thread makes blocks of them.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use crate::error::{Code, Error, Result};

use super::Batch;
use super::index::Gap;
use super::open::Options;
use super::row::{Queued, len};
use super::sink::{Builder, Sink, Work};
use super::spill::Spill;

/// Records the queue holds at most.
pub(super) const CAPACITY: usize = 16_384;
/// Records of a block.
const BLOCK: usize = 1_000;
/// Records of a block when they come faster than blocks of the usual size are made.
const BLOCK_BUSY: usize = 4_000;
/// What a crash may cost, at most.
const WINDOW: Duration = Duration::from_millis(250);
/// How soon a write that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// How soon to look whether a day is over, without anything to do.
const REST: Duration = Duration::from_secs(60);

type Flushed = oneshot::Sender<Result<()>>;

#[derive(Debug, Default)]
struct Queue {
    batches: Vec<Queued>,
    records: usize,
    bytes: usize,
    since: Option<Instant>,
    lost: Option<Gap>,
    flushes: Vec<Flushed>,
    closing: bool,
    ended: bool,
}

#[derive(Debug)]
pub(super) struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
    /// Gaps that are not in the index yet.
    unsaved: Mutex<Vec<Gap>>,
    /// What waits in the spill, as the gap that it is until then.
    spilled: Mutex<Vec<Gap>>,
    options: Options,
}

/// Takes what happened to messages. Clones share one queue.
#[derive(Debug, Clone)]
pub struct Recorder(pub(super) Arc<Shared>);

impl Recorder {
    /// Starts the thread.
    pub(super) fn start(root: PathBuf, process: String, options: Options) -> Result<Self> {
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            wake: Condvar::new(),
            unsaved: Mutex::default(),
            spilled: Mutex::default(),
            options,
        });
        let writer = Writer {
            shared: shared.clone(),
            spill: Spill::new(&root, &process, shared.options.max_spill_bytes),
            builder: Builder::new()?,
            sink: None,
            waiting: true,
            root,
            process,
        };
        std::thread::Builder::new()
            .name("trunkline-history".into())
            .spawn(move || writer.run())
            .map_err(|e| Error::store(format!("the recorder's thread cannot be started: {e}")))?;
        Ok(Recorder(shared))
    }

    /// Takes a batch. Never waits: what does not fit is counted and shown as a gap.
    pub fn record(&self, batch: Batch) {
        let records = len(&batch);
        if records == 0 {
            return;
        }
        let bytes = match &batch {
            Batch::Produced { messages, .. } => messages.iter().map(|message| message.payload.len()).sum(),
            _ => 0,
        };
        let mut queued = Queued { batch, sizes: None };
        let mut queue = self.0.queue.lock();
        if queue.closing || queue.records + records > CAPACITY {
            self.0.lose(&mut queue, records as u64);
            drop(queue);
            return;
        }
        if queue.bytes + bytes > self.0.options.queue_bytes {
            // The payloads do not fit, all else does: kept as if only metadata were asked for.
            let_go(&mut queued);
        } else {
            queue.bytes += bytes;
        }
        let before = queue.records;
        queue.records += records;
        queue.batches.push(queued);
        let wake = before == 0 || (before < BLOCK && queue.records >= BLOCK);
        if before == 0 {
            queue.since = Some(Instant::now());
        }
        drop(queue);
        if wake {
            self.0.wake.notify_one();
        }
    }

    /// Returns when all that was recorded before can be queried.
    ///
    /// # Errors
    /// `STORE_FAILED` if it could not be written: then it waits in the spill, or is a gap. `CLOSED` after [`Recorder::close`].
    pub async fn flush(&self) -> Result<()> {
        self.ask(false).await
    }

    /// Writes what is left and ends the thread. What is recorded after that is a gap.
    ///
    /// # Errors
    /// As [`Recorder::flush`].
    pub async fn close(&self) -> Result<()> {
        match self.ask(true).await {
            Err(e) if e.code() == Code::Closed => Ok(()),
            other => other,
        }
    }

    async fn ask(&self, closing: bool) -> Result<()> {
        let (sender, receiver) = oneshot::channel();
        {
            let mut queue = self.0.queue.lock();
            // A close that is under way answers nobody but those who close.
            if queue.ended || (queue.closing && !closing) {
                return Err(Error::new(Code::Closed, "the recorder is closed"));
            }
            queue.closing |= closing;
            queue.flushes.push(sender);
        }
        self.0.wake.notify_one();
        receiver.await.unwrap_or_else(|_| Err(Error::new(Code::Closed, "the recorder is closed")))
    }

    /// Tells the thread to write what is left and end, without waiting for it.
    pub(super) fn end(&self) {
        self.0.queue.lock().closing = true;
        self.0.wake.notify_one();
    }

    /// Gaps that are not in the index yet.
    pub(super) fn unsaved(&self) -> Vec<Gap> {
        let mut gaps = self.0.unsaved.lock().clone();
        gaps.extend(self.0.spilled.lock().iter().cloned());
        gaps.extend(self.0.queue.lock().lost.clone());
        gaps
    }
}

impl Shared {
    fn lose(&self, queue: &mut Queue, count: u64) {
        let now = self.options.clock.now();
        let lost = queue.lost.get_or_insert_with(|| Gap { from: now, to: now, count: 0, reason: "overflow".into() });
        lost.to = now;
        lost.count += count;
    }
}

/// Drops the payloads and remembers how large they were.
fn let_go(queued: &mut Queued) {
    if let Batch::Produced { messages, .. } = &mut queued.batch {
        let size = |payload: Bytes| u32::try_from(payload.len()).unwrap_or(u32::MAX);
        queued.sizes = Some(messages.iter_mut().map(|message| size(std::mem::take(&mut message.payload))).collect());
    }
}

/// The thread.
struct Writer {
    shared: Arc<Shared>,
    root: PathBuf,
    process: String,
    builder: Builder,
    sink: Option<Sink>,
    spill: Spill,
    /// Something may wait in the spill.
    waiting: bool,
}

struct Taken {
    batches: Vec<Queued>,
    flushes: Vec<Flushed>,
    lost: Option<Gap>,
    closing: bool,
}

impl Writer {
    fn run(mut self) {
        loop {
            let taken = self.take();
            let result = self.write(&taken.batches, taken.lost);
            if let Err(e) = &result {
                tracing::warn!(error = %e, "history cannot be written");
            }
            if taken.closing {
                // Who is told that it is closed finds no connection of it open.
                self.sink = None;
            }
            for flush in taken.flushes {
                let _ = flush.send(result.clone());
            }
            if taken.closing {
                let mut queue = self.shared.queue.lock();
                if queue.flushes.is_empty() {
                    queue.ended = true;
                    return;
                }
            }
        }
    }

    /// Waits until there is a block's worth, the window is over, or somebody asks.
    fn take(&self) -> Taken {
        let mut queue = self.shared.queue.lock();
        loop {
            let due = queue.since.map(|since| since + WINDOW);
            let is_due = due.is_some_and(|due| due <= Instant::now());
            if is_due || queue.closing || queue.records >= BLOCK || !queue.flushes.is_empty() {
                break;
            }
            let has_more = self.waiting || queue.lost.is_some() || !self.shared.unsaved.lock().is_empty();
            if let Some(due) = due {
                self.shared.wake.wait_until(&mut queue, due);
            } else if self.shared.wake.wait_for(&mut queue, if has_more { RETRY } else { REST }).timed_out() {
                break;
            }
        }
        (queue.records, queue.bytes, queue.since) = (0, 0, None);
        Taken {
            batches: std::mem::take(&mut queue.batches),
            flushes: std::mem::take(&mut queue.flushes),
            lost: queue.lost.take(),
            closing: queue.closing,
        }
    }

    fn write(&mut self, batches: &[Queued], lost: Option<Gap>) -> Result<()> {
        let now = self.shared.options.clock.now();
        if let Some(lost) = lost {
            merge(&mut self.shared.unsaved.lock(), lost);
        }
        let records: usize = batches.iter().map(Queued::len).sum();
        let gap = |reason: &str| Gap { from: now, to: now, count: records as u64, reason: reason.into() };
        let busy = records > CAPACITY / 2;
        let built = self.builder.build(batches, now, if busy { BLOCK_BUSY } else { BLOCK }, busy);
        let mut work = built.inspect_err(|_| merge(&mut self.shared.unsaved.lock(), gap("build")))?;
        work.gaps = self.shared.unsaved.lock().clone();
        let committed = self.commit(&work, now);
        match committed {
            Ok(()) => {
                self.shared.unsaved.lock().drain(..work.gaps.len());
                Ok(())
            }
            Err(_) if work.blocks.is_empty() && work.deltas.is_empty() => committed,
            Err(e) => {
                // Gaps stay in memory: they are few, and seen from there.
                work.gaps.clear();
                self.waiting = true;
                if !e.retryable() {
                    // Whatever is wrong with it: the next try begins with a new connection and new files.
                    self.sink = None;
                }
                match self.spill.keep(&work) {
                    Ok(()) => merge(&mut self.shared.spilled.lock(), gap("spilled")),
                    Err(_) => merge(&mut self.shared.unsaved.lock(), gap("spill_full")),
                }
                Err(e)
            }
        }
    }

    fn commit(&mut self, work: &Work, now: u64) -> Result<()> {
        let options = &self.shared.options;
        if self.sink.is_none() {
            self.sink = Some(Sink::open(&self.root, &self.process, options.max_bytes, options.busy)?);
        }
        let Some(sink) = &mut self.sink else { return Ok(()) };
        sink.idle(now);
        if self.waiting {
            self.spill.replay(sink, now)?;
            self.waiting = false;
            self.shared.spilled.lock().clear();
        }
        if !work.is_empty() {
            sink.commit(work, &[], None, now)?;
        }
        Ok(())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // Also when it ends by a bug: nobody is left waiting for an answer, and what comes is counted as lost.
        let mut queue = self.shared.queue.lock();
        (queue.closing, queue.ended) = (true, true);
        queue.flushes.clear();
    }
}

/// One gap for a run of losses of one reason.
fn merge(gaps: &mut Vec<Gap>, gap: Gap) {
    match gaps.last_mut() {
        Some(last) if last.reason == gap.reason => {
            last.to = gap.to;
            last.count += gap.count;
        }
        _ => gaps.push(gap),
    }
}
