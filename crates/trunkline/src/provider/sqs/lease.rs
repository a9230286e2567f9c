//! What was received and is not settled: its receipt, and its lease, which is renewed from the moment of receipt until the
//! settle, whether the message waits here or is being handled.

use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_sdk_sqs::Client;
use aws_sdk_sqs::types::ChangeMessageVisibilityBatchRequestEntry as Change;
use aws_sdk_sqs::types::DeleteMessageBatchRequestEntry as Delete;
use futures_util::future::join_all;
use tokio::sync::Semaphore;

use super::error::{Failure, Kind, failure, of_code};

/// Messages of one call.
pub(super) const CALL: usize = 10;
/// SQS hides a message at most this long, counted from its receipt.
pub(super) const LONGEST: Duration = Duration::from_secs(12 * 3_600);

/// A message that this member holds.
#[derive(Debug, Clone)]
pub(super) struct Held {
    pub(super) route: usize,
    pub(super) shard: u32,
    pub(super) receipt: Arc<str>,
    pub(super) received: Instant,
    pub(super) lease_end: Instant,
}

impl Held {
    /// How long a lease from now on may be, in whole seconds; 0 when its twelve hours are over.
    pub(super) fn longest(&self, now: Instant) -> u64 {
        LONGEST.saturating_sub(now - self.received).as_secs()
    }
}

/// One queue, for deletes and changes of leases.
#[derive(Debug, Clone)]
pub(super) struct Handles {
    pub(super) client: Client,
    pub(super) url: Arc<str>,
    pub(super) calls: Arc<Semaphore>,
}

impl Handles {
    /// Deletes; an answer for each, in order.
    pub(super) async fn delete(&self, receipts: &[Arc<str>]) -> Vec<Result<(), Failure>> {
        let calls = receipts.chunks(CALL).map(async |receipts| {
            let _permit = self.calls.acquire().await;
            let entries = receipts.iter().enumerate().map(|(n, receipt)| {
                let entry = Delete::builder().id(n.to_string()).receipt_handle(&**receipt).build();
                entry.unwrap_or_else(|_| unreachable!("the required fields are set"))
            });
            let call = self.client.delete_message_batch().queue_url(&*self.url).set_entries(Some(entries.collect()));
            match call.send().await {
                Ok(answer) => {
                    let done = answer.successful.into_iter().map(|done| done.id);
                    answers(receipts.len(), "acking", done, answer.failed)
                }
                Err(error) => vec![Err(failure("acking", &error)); receipts.len()],
            }
        });
        join_all(calls).await.into_iter().flatten().collect()
    }

    /// Hides each message for so many seconds from now on; an answer for each, in order.
    pub(super) async fn hide(&self, items: &[(Arc<str>, u64)]) -> Vec<Result<(), Failure>> {
        let calls = items.chunks(CALL).map(async |items| {
            let _permit = self.calls.acquire().await;
            let entries = items.iter().enumerate().map(|(n, (receipt, seconds))| {
                let seconds = i32::try_from(*seconds).unwrap_or(i32::MAX);
                let entry = Change::builder().id(n.to_string()).receipt_handle(&**receipt).visibility_timeout(seconds).build();
                entry.unwrap_or_else(|_| unreachable!("the required fields are set"))
            });
            let call = self.client.change_message_visibility_batch().queue_url(&*self.url).set_entries(Some(entries.collect()));
            match call.send().await {
                Ok(answer) => {
                    let done = answer.successful.into_iter().map(|done| done.id);
                    answers(items.len(), "keeping a lease", done, answer.failed)
                }
                Err(error) => vec![Err(failure("keeping a lease", &error)); items.len()],
            }
        });
        join_all(calls).await.into_iter().flatten().collect()
    }
}

/// The entries of a batch's answer in the order they were asked; one that is not mentioned is unknown.
fn answers(
    n: usize,
    doing: &str,
    done: impl Iterator<Item = String>,
    failed: Vec<aws_sdk_sqs::types::BatchResultErrorEntry>,
) -> Vec<Result<(), Failure>> {
    let mut all = vec![Err(of_code(doing, "InternalError", "no answer", 500)); n];
    for id in done {
        if let Some(place) = id.parse::<usize>().ok().and_then(|at| all.get_mut(at)) {
            *place = Ok(());
        }
    }
    for entry in failed {
        if let Some(place) = entry.id.parse::<usize>().ok().and_then(|at| all.get_mut(at)) {
            let status = if entry.sender_fault { 400 } else { 500 };
            let mut failed = of_code(doing, &entry.code, entry.message.as_deref().unwrap_or_default(), status);
            // Nothing but the handle can be wrong with what we ask here.
            if entry.sender_fault && failed.kind == Kind::Other {
                failed.kind = Kind::Stale;
            }
            *place = Err(failed);
        }
    }
    all
}
