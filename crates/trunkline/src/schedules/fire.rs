//! Firing what is due: claim, produce with the derived id, note. A process that dies in between is followed by another one,
//! which produces the same message with the same id.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;

use super::timing::Plan;
use crate::error::{Code, Error, Result};
use crate::inner::Inner;
use crate::message::{MessageId, Millis, now_ms};
use crate::produce::{ProduceOptions, Receipt};
use crate::store::schedule::{ScheduleRecord, ScheduleSettle};
use crate::trunkline::Env;

/// Schedules of other processes are seen within this.
const LOOK: Duration = Duration::from_secs(1);
/// So many firings may be under way in this process.
const AT_ONCE: usize = 64;
/// The pause after a look that found nothing to claim although something is due.
const AGAIN: Duration = Duration::from_millis(20);
/// A claimed firing that is not noted within this is claimed again; longer than a produce takes.
const CLAIM: Duration = Duration::from_secs(45);
/// The first and the longest pause before a failed firing is tried again (ms).
const RETRY: (u64, u64) = (1_000, 60_000);
/// So much of an error is kept.
const ERROR_MOST: usize = 1_024;

/// The id of the message of a due time: always the same.
pub(crate) fn message_id(schedule: MessageId, due: Millis) -> MessageId {
    MessageId::derived(due, &[b"schedule", schedule.as_bytes(), &due.to_le_bytes()])
}

/// Fires schedules when they are due, whatever process dispatched them, for as long as the instance is open.
pub(crate) async fn fire_schedules(inner: Weak<Inner>, end: CancellationToken, changed: Arc<Notify>) {
    let room = Arc::new(Semaphore::new(AT_ONCE));
    loop {
        let Some(strong) = inner.upgrade() else { return };
        let wait = match strong.fire_due(&room).await {
            Ok(wait) => wait,
            Err(error) if error.code() == Code::Closed => LOOK,
            Err(error) => {
                tracing::warn!(%error, "due schedules cannot be looked up");
                LOOK
            }
        };
        drop(strong);
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = changed.notified() => {}
            () = end.cancelled() => return,
        }
    }
}

impl Inner {
    /// Starts firing what is due; how long until the next look. A firing that takes long, because its broker is away, holds up no
    /// other.
    async fn fire_due(self: &Arc<Self>, room: &Arc<Semaphore>) -> Result<Duration> {
        self.check_open()?;
        // A look costs a read; only what is due is claimed.
        let next = self.store.schedule_next().await?;
        let wait = next.map_or(LOOK, |at| Duration::from_millis(at.saturating_sub(now_ms())));
        if !wait.is_zero() {
            return Ok(wait.min(LOOK));
        }
        let free = room.available_permits();
        let due = if free > 0 { self.store.schedule_claim(free, &self.process, CLAIM).await? } else { Vec::new() };
        if due.is_empty() {
            // As much as may is being fired, another one was faster, or the store's wall clock is a little behind this host's.
            return Ok(AGAIN);
        }
        for (record, taken_over) in due {
            let (inner, place) = (self.clone(), room.clone().acquire_owned().await);
            self.tasks.spawn(async move {
                if let Err(error) = inner.fire(record, taken_over).await {
                    tracing::warn!(%error, "a firing could not be noted; it is fired again, with the same id");
                }
                drop(place);
                // It may be due again before the next look.
                inner.scheduled.notify_one();
            });
        }
        Ok(Duration::ZERO)
    }

    async fn fire(self: &Arc<Self>, record: ScheduleRecord, taken_over: bool) -> Result<()> {
        let now = now_ms();
        let Some(mut due) = record.firing_at.or(record.next_at) else { return Ok(()) };
        let settle = match Plan::stored(&record.timing, now) {
            Ok(plan) => {
                // What an owner that died was firing goes first: it may be with the broker already.
                let (latest, missed) = if taken_over { (due, 0) } else { plan.latest(due, now) };
                if missed > 0 {
                    if !self.store.schedule_skip(record.id, &self.process, latest, missed).await? {
                        return Ok(());
                    }
                    tracing::warn!(schedule = %record.id, missed, "firings were missed; the latest one is made up for");
                    due = latest;
                }
                match self.produce_due(&record, due).await {
                    Ok(receipt) => ScheduleSettle::Fired { id: receipt.process_id, next_at: plan.follow(due, record.fired + 1) },
                    // Whoever is open goes on with it at once.
                    Err(_) if self.check_open().is_err() => ScheduleSettle::Release,
                    Err(error) => failed(&record, &error, plan.next_after(due), now_ms(), missed > 0),
                }
            }
            Err(error) => failed(&record, &error, None, now, false),
        };
        // Not ours any more: another one went on with it, or it was cancelled.
        self.store.schedule_settle(record.id, &self.process, settle).await.map(drop)
    }

    pub(super) async fn produce_due(self: &Arc<Self>, record: &ScheduleRecord, due: Millis) -> Result<Receipt> {
        let (address, message) = (&record.address, &record.message);
        let env = Env::new(self.clone(), &address.product, &address.env);
        let options = ProduceOptions {
            key: message.key.clone(),
            headers: message.headers.clone(),
            cache: message.cache.clone(),
            id: Some(message_id(record.id, due)),
            ..ProduceOptions::default()
        };
        let event = address.event.as_str();
        env.produce_on(env.route(event).await?, event, message.payload.clone(), options).await
    }
}

/// It is tried again after a pause that grows, or when the next is due.
fn failed(record: &ScheduleRecord, error: &Error, next: Option<Millis>, now: Millis, fresh: bool) -> ScheduleSettle {
    let failures = if fresh { 0 } else { record.failures };
    tracing::warn!(%error, schedule = %record.id, address = %record.address, failures = failures + 1, "a schedule could not be fired");
    let again = now + RETRY.0.saturating_mul(1 << failures.min(16)).min(RETRY.1);
    let mut text = error.to_string();
    let end = (0..=text.len().min(ERROR_MOST)).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    text.truncate(end);
    ScheduleSettle::Failed { error: text, retry_at: next.filter(|next| *next > now).map_or(again, |next| again.min(next)) }
}
