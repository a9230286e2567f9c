//! A worker is one slot: it takes what may start, runs the handler, and says what comes of it.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::consume::engine::Engine;
use crate::consume::handler::{Context, Delivered, Fence, Handler, Verdict};
use crate::consume::lanes::{Idle, Source, Work};
use crate::consume::settle::{Finished, Then};
use crate::consume::state::Cause;
use crate::history::{Attempt, Step};
use crate::message::{millis, now_ms};
use crate::policy::{Decision, Outcome, Standing, decide};
use crate::store::LotState;

/// After so many messages without a pause the worker lets others run, even if the handler never waits.
const YIELD_EVERY: u32 = 64;

/// How one run ended.
struct Run {
    outcome: Outcome,
    error: Option<String>,
    /// Counts for the breaker: a success or a failure, not a verdict.
    counts: Option<bool>,
    dropped: bool,
}

impl Run {
    /// `cancelled`: the handler had been told to stop.
    fn of(verdict: Verdict, cancelled: bool) -> Self {
        let (outcome, error, counts, dropped) = match verdict {
            Verdict::Done => (Outcome::Ok, None, Some(true), false),
            Verdict::Failed(error) => (Outcome::Failed, Some(cut(error)), Some(false), false),
            Verdict::RetryAfter(after) => (Outcome::RetryAfter(after), None, None, false),
            Verdict::Bury(reason) => (Outcome::Bury(cut(reason)), None, None, false),
            Verdict::Drop => (Outcome::Drop, None, None, true),
            Verdict::Cancelled if cancelled => (Outcome::Cancelled, None, None, false),
            Verdict::Cancelled => (Outcome::Failed, Some("cancelled: nobody had told the handler to stop".into()), Some(false), false),
        };
        Run { outcome, error, counts, dropped }
    }
}

/// Errors are kept up to 4 KiB.
fn cut(mut text: String) -> String {
    if text.len() > 4_096 {
        let end = (0..=4_096).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

impl Engine {
    /// Works until the engine closes.
    pub(crate) async fn work<H: Handler>(self: Arc<Self>, slot: usize, handler: Arc<H>) {
        let (most, wait) = handler.batch();
        let mut streak = 0;
        let mut token = CancellationToken::new();
        while let Some((work, probe)) = self.next_work().await {
            let mut batch = vec![work];
            if most > 1 && !probe {
                self.fill(&mut batch, most, wait).await;
            }
            if token.is_cancelled() {
                token = CancellationToken::new();
            }
            self.set_running(slot, Some((batch[0].position.shard, token.clone())));
            self.run(handler.as_ref(), batch, probe, &token).await;
            self.set_running(slot, None);
            streak += 1;
            if streak % YIELD_EVERY == 0 {
                tokio::task::yield_now().await;
            }
        }
    }

    async fn next_work(&self) -> Option<(Work, bool)> {
        loop {
            let until = {
                let mut lanes = self.lanes.lock();
                match lanes.start() {
                    Ok(started) => {
                        // Wake the next one only when there is more: no herd.
                        if lanes.ready() > 0 && lanes.idle > 0 {
                            self.work.notify_one();
                        }
                        return Some(started);
                    }
                    Err(Idle::Closed) => return None,
                    Err(Idle::Until(at)) => {
                        lanes.idle += 1;
                        Some(at)
                    }
                    Err(Idle::Empty) => {
                        lanes.idle += 1;
                        None
                    }
                }
            };
            match until {
                Some(at) => drop(tokio::time::timeout_at(at.into(), self.work.notified()).await),
                None => self.work.notified().await,
            }
            self.lanes.lock().idle -= 1;
        }
    }

    async fn fill(&self, batch: &mut Vec<Work>, most: usize, wait: Duration) {
        let until = tokio::time::Instant::now() + wait;
        loop {
            {
                let mut lanes = self.lanes.lock();
                while batch.len() < most && !lanes.breaker.is_open() {
                    match lanes.start() {
                        Ok((work, _)) => batch.push(work),
                        Err(_) => break,
                    }
                }
                if batch.len() >= most || lanes.closing {
                    return;
                }
                lanes.idle += 1;
            }
            let more = tokio::time::timeout_at(until, self.work.notified()).await;
            self.lanes.lock().idle -= 1;
            if more.is_err() {
                return;
            }
        }
    }

    fn deliver(&self, work: &Work, token: &CancellationToken) -> Delivered {
        Delivered {
            payload: work.payload.clone(),
            context: Context {
                process_id: work.id,
                event: self.filed.address.event.clone(),
                group: self.group.clone(),
                attempt: work.attempts + 1,
                key: work.key.clone(),
                headers: work.headers.clone(),
                produced_at: work.produced_at,
                fence: Fence {
                    shard: work.position.shard,
                    // Without owners the position alone says which of two runs is later.
                    epoch: if self.options.never_wait { 0 } else { work.epoch },
                    position: work.position.offset,
                },
                signal: token.clone(),
            },
        }
    }

    async fn run<H: Handler>(&self, handler: &H, mut batch: Vec<Work>, probe: bool, token: &CancellationToken) {
        let started_at = now_ms();
        let start = Instant::now();
        // What expired while it waited is not handled.
        let mut at = 0;
        while at < batch.len() {
            if batch[at].expires_at.is_some_and(|expires| expires <= started_at) {
                let work = batch.remove(at);
                let run = Run { outcome: Outcome::Expired, error: None, counts: None, dropped: false };
                self.finish(work, run, started_at, 0, probe);
            } else {
                at += 1;
            }
        }
        if batch.is_empty() {
            return;
        }
        let verdicts = if batch.len() == 1 && handler.batch().0 == 1 {
            let future = AssertUnwindSafe(handler.one(self.deliver(&batch[0], token))).catch_unwind();
            match self.within(future, token).await {
                Ok(verdict) => vec![Some(verdict)],
                Err(run) => vec![run],
            }
        } else {
            let delivered = batch.iter().map(|work| self.deliver(work, token)).collect();
            let future = AssertUnwindSafe(handler.many(delivered)).catch_unwind();
            match self.within(future, token).await {
                Ok(verdicts) => verdicts.into_iter().map(Some).collect(),
                Err(verdict) => vec![verdict; batch.len()],
            }
        };
        let run_us = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
        for (work, verdict) in batch.into_iter().zip(verdicts) {
            let run = match verdict {
                Some(verdict) => Run::of(verdict, token.is_cancelled()),
                None => Run { outcome: Outcome::Cancelled, error: None, counts: None, dropped: false },
            };
            self.finish(work, run, started_at, run_us, probe);
        }
    }

    /// Runs the handler's future under its timeout: past it the handler is told to stop and keeps its slot and its key
    /// until it returns, at most one grace period. `Err(None)`: cancelled, not failed.
    async fn within<V>(
        &self,
        future: impl Future<Output = Result<V, Box<dyn std::any::Any + Send>>>,
        token: &CancellationToken,
    ) -> Result<V, Option<Verdict>> {
        let mut future = std::pin::pin!(future);
        let ended = match timeout(self.options.timeout, self.unless_given_up(&mut future, token)).await {
            Ok(Some(ended)) => ended,
            Ok(None) => return Err(None),
            Err(_) => {
                token.cancel();
                if timeout(self.options.grace, &mut future).await.is_err() {
                    self.note(Cause::StuckHandler, true);
                }
                return Err(Some(Verdict::Failed(format!("timeout: the handler ran longer than {} ms", millis(self.options.timeout)))));
            }
        };
        if self.health.is(Cause::StuckHandler) {
            self.note(Cause::StuckHandler, false);
        }
        ended.map_err(|panic| {
            let text = panic.downcast_ref::<&str>().map(ToString::to_string).or_else(|| panic.downcast_ref::<String>().cloned());
            Some(Verdict::Failed(format!("panic: {}", text.unwrap_or_else(|| "the handler panicked".into()))))
        })
    }

    /// The future's end, or `None` if the message was taken away from it (the shard is lost, or the close's deadline
    /// passed) and it did not return by itself within a moment.
    async fn unless_given_up<T>(&self, future: &mut (impl Future<Output = T> + Unpin), token: &CancellationToken) -> Option<T> {
        tokio::select! {
            biased;
            ended = &mut *future => Some(ended),
            () = token.cancelled() => timeout(Duration::from_millis(200), future).await.ok(),
        }
    }

    fn finish(&self, work: Work, run: Run, started_at: u64, run_us: u64, probe: bool) {
        let now = Instant::now();
        let mut finished = Vec::with_capacity(1);
        let mut wake_timer = false;
        {
            let mut lanes = self.lanes.lock();
            lanes.running -= 1;
            let counted = !lanes.breaker.is_open();
            match run.counts {
                Some(ok) if lanes.breaker.outcome(now, ok, probe) => self.share.changed(),
                Some(_) if probe => self.share.probe_over(),
                None if probe && lanes.breaker.probe_ended() => self.share.probe_over(),
                _ => {}
            }
            let broker = matches!(work.source, Source::Broker(..));
            let standing = Standing {
                attempts: work.attempts,
                deliveries: work.deliveries,
                counted,
                may_hold: lanes.may_hold(),
                never_wait: self.options.never_wait && broker && work.lane.is_some(),
            };
            let decision = decide(&self.options.schedule, standing, &run.outcome, rand::random());
            let attempt = self.attempt(&work, &run, &decision, started_at, run_us);
            match decision {
                Decision::Done => {
                    if broker {
                        lanes.release_lane(work.lane);
                    }
                    finished.push(Finished::of(&work, Then::Done, attempt, self.dedupe.is_some()));
                }
                Decision::Release => {
                    if broker {
                        lanes.release_lane(work.lane);
                    }
                    finished.push(Finished::of(&work, Then::Release, None, false));
                }
                Decision::Hold { after, attempts } => {
                    if attempt.is_some() {
                        finished.push(Finished::of(&work, Then::Record, attempt, false));
                    }
                    let mut work = work;
                    work.attempts = attempts;
                    work.first = false;
                    if after.is_zero() {
                        lanes.back(work);
                    } else {
                        lanes.hold(now + after, work);
                        wake_timer = true;
                    }
                }
                Decision::Wait { after, attempts } => {
                    let due = self.store.now() + millis(after);
                    let entry = self.entry(&work, LotState::Waiting, due, attempts, None, run.error);
                    finished.push(Finished::of(&work, Then::Lot(Box::new(entry)), attempt, false));
                    if let (true, Some(lane)) = (broker, work.lane) {
                        // What came behind it on the same key must follow it into the lot, in order.
                        for behind in lanes.begin_chain(work.position.shard, lane) {
                            finished.push(self.behind(&behind));
                        }
                    }
                }
                Decision::Bury { reason, attempts } => {
                    if broker {
                        lanes.release_lane(work.lane);
                    }
                    let entry = self.entry(&work, LotState::Dead, now_ms(), attempts, Some(reason), run.error);
                    finished.push(Finished::of(&work, Then::Lot(Box::new(entry)), attempt, false));
                }
            }
            if lanes.ready() > 0 && lanes.idle > 0 {
                self.work.notify_one();
            }
        }
        if wake_timer {
            self.held_some.notify_one();
        }
        self.hand_over(finished);
    }

    /// A message that goes to the lot unhandled, behind an earlier one of its key.
    pub(crate) fn behind(&self, work: &Work) -> Finished {
        let entry = self.entry(work, LotState::Waiting, 0, work.attempts, None, None);
        Finished::of(work, Then::Lot(Box::new(entry)), None, false)
    }

    fn attempt(&self, work: &Work, run: &Run, decision: &Decision, started_at: u64, run_us: u64) -> Option<Attempt> {
        let (step, attempts) = match decision {
            Decision::Done if run.dropped => (Step::Dropped, work.attempts),
            Decision::Done => (Step::Delivered, work.attempts),
            Decision::Release => return None,
            // A failure that the breaker does not count leaves no attempt.
            Decision::Hold { attempts, .. } if run.counts.is_some() && *attempts == work.attempts => return None,
            Decision::Hold { attempts, .. } => (Step::Held, *attempts),
            Decision::Wait { attempts, .. } => (Step::Waiting, *attempts),
            Decision::Bury { attempts, .. } => (Step::Dead, *attempts),
        };
        let error = match (&run.error, decision) {
            (Some(error), _) => Some(error.as_str()),
            (None, Decision::Bury { reason, .. }) => Some(reason.as_str()),
            _ => None,
        };
        Some(Attempt {
            id: work.id,
            produced_at: work.produced_at,
            step,
            attempts,
            started_at,
            wait_us: if work.first { started_at.saturating_sub(work.produced_at) * 1_000 } else { 0 },
            run_us,
            error: error.map(Into::into),
            key: work.key.clone(),
            position: work.position,
        })
    }
}
