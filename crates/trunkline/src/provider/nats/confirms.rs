//! The confirms of publishes: one inbox for all of a connection, where each batch has a number and each message its place.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_nats::{Client, Message, StatusCode, Subject, Subscriber};
use futures_util::{FutureExt as _, StreamExt as _};
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;

use super::error::{self, ApiError};
use crate::error::{Code, Error, Result};
use crate::provider::SendError;

/// At most this many publishes of one connection wait for their confirm: far fewer than its channel holds.
const MOST: usize = 16_384;

/// What the server says to a publish.
#[derive(Debug)]
pub(super) enum Confirm {
    /// Stored, or stored before under the same id.
    Stored { stream: Box<str>, seq: u64 },
    /// No stream takes this subject.
    NoStream,
    /// Not confirmed.
    Failed(SendError),
}

#[derive(Deserialize)]
struct PubAck<'a> {
    #[serde(default, borrow)]
    stream: Option<std::borrow::Cow<'a, str>>,
    #[serde(default)]
    seq: u64,
    #[serde(default)]
    error: Option<ApiError>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Confirms {
    inbox: String,
    next: AtomicU64,
    waiting: Mutex<HashMap<u64, Arc<Pending>>>,
    permits: Arc<Semaphore>,
}

/// The confirms of one batch.
#[derive(Debug)]
pub(super) struct Pending {
    slots: Mutex<(Vec<Option<Confirm>>, usize)>,
    complete: Notify,
}

/// A batch that waits. Dropping it forgets it; what is confirmed later is passed over.
#[derive(Debug)]
pub(super) struct Ticket {
    confirms: Arc<Confirms>,
    number: u64,
    pending: Arc<Pending>,
    prefix: String,
    _room: tokio::sync::OwnedSemaphorePermit,
}

impl Confirms {
    /// Subscribes, and reads until the connection is dead.
    pub(super) async fn start(client: &Client, dead: &CancellationToken) -> Result<Arc<Confirms>> {
        let inbox = client.new_inbox();
        let subscriber = client.subscribe(format!("{inbox}.*.*")).await.map_err(|_| error::dead("the connection was lost"))?;
        let confirms =
            Arc::new(Confirms { inbox, next: AtomicU64::new(0), waiting: Mutex::default(), permits: Arc::new(Semaphore::new(MOST)) });
        let reading = confirms.clone().read(subscriber);
        let dead = dead.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = reading => dead.cancel(),
                () = dead.cancelled() => {}
            }
        });
        Ok(confirms)
    }

    /// Room for a batch of `n`, in the order of the calls.
    pub(super) async fn ticket(self: &Arc<Self>, n: usize) -> Ticket {
        let room = u32::try_from(n.min(MOST)).unwrap_or(u32::MAX);
        // Never closed.
        let permit = self.permits.clone().acquire_many_owned(room).await.expect("the semaphore is never closed");
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let slots = std::iter::repeat_with(|| None).take(n).collect();
        let pending = Arc::new(Pending { slots: Mutex::new((slots, n)), complete: Notify::new() });
        self.waiting.lock().insert(number, pending.clone());
        Ticket { confirms: self.clone(), number, pending, prefix: format!("{}.{number}.", self.inbox), _room: permit }
    }

    async fn read(self: Arc<Self>, mut from: Subscriber) {
        let mut last: Option<(u64, Arc<Pending>)> = None;
        while let Some(message) = from.next().await {
            self.take(&message, &mut last);
            while let Some(Some(message)) = from.next().now_or_never() {
                self.take(&message, &mut last);
            }
            last = None;
        }
    }

    fn take(&self, message: &Message, last: &mut Option<(u64, Arc<Pending>)>) {
        let Some((number, place)) = message.subject.get(self.inbox.len() + 1..).and_then(|rest| rest.split_once('.')) else { return };
        let (Ok(number), Ok(place)) = (number.parse::<u64>(), place.parse::<usize>()) else { return };
        if last.as_ref().is_none_or(|(of, _)| *of != number) {
            *last = self.waiting.lock().get(&number).map(|pending| (number, pending.clone()));
        }
        if let Some((_, pending)) = last {
            pending.put(place, read(message));
        }
    }
}

impl Pending {
    fn put(&self, place: usize, confirm: Confirm) {
        let mut slots = self.slots.lock();
        let (list, left) = &mut *slots;
        if let Some(slot) = list.get_mut(place).filter(|slot| slot.is_none()) {
            *slot = Some(confirm);
            *left -= 1;
            if *left == 0 {
                self.complete.notify_one();
            }
        }
    }
}

impl Ticket {
    /// Where the confirm of a message of the batch is to go.
    pub(super) fn reply(&self, place: usize) -> Subject {
        use std::fmt::Write as _;
        let mut reply = String::with_capacity(self.prefix.len() + 5);
        reply.push_str(&self.prefix);
        // Writing to a string does not fail.
        let _ = write!(reply, "{place}");
        Subject::from(reply)
    }

    /// A message that did not leave.
    pub(super) fn fail(&self, place: usize, error: SendError) {
        self.pending.put(place, Confirm::Failed(error));
    }

    /// Done when each message has its confirm.
    pub(super) async fn complete(&self) {
        loop {
            let told = self.pending.complete.notified();
            if self.pending.slots.lock().1 == 0 {
                return;
            }
            told.await;
        }
    }

    /// What came so far.
    pub(super) fn take(&self) -> Vec<Option<Confirm>> {
        std::mem::take(&mut self.pending.slots.lock().0)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.confirms.waiting.lock().remove(&self.number);
    }
}

fn read(message: &Message) -> Confirm {
    if message.status == Some(StatusCode::NO_RESPONDERS) {
        return Confirm::NoStream;
    }
    match serde_json::from_slice::<PubAck<'_>>(&message.payload) {
        Ok(PubAck { error: Some(error), .. }) => Confirm::Failed(error.into_send_error()),
        Ok(PubAck { stream: Some(stream), seq, .. }) if seq > 0 => Confirm::Stored { stream: stream.into(), seq },
        _ => Confirm::Failed(error::unconfirmed(
            Error::new(Code::PublishFailed, "something that is not JetStream answered the publish").reason("foreign_answer"),
        )),
    }
}
