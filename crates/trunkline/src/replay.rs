//! Replay: a recorded message produced anew, to everyone or to one group.

use bytes::Bytes;
use serde::Serialize;

use crate::access::Call;
use crate::error::{Code, Error, Result};
use crate::history::Batch;
use crate::history::{Record, Status};
use crate::lot::Lot;
use crate::message::{Headers, MessageId, header, now_ms};
use crate::produce::{ProduceOptions, produce};
use crate::provider::ReadFrom;
use crate::store::{LotEntry, LotMessage, LotState, erased};
use crate::trunkline::Env;

/// How a replay is done.
#[derive(Debug, Clone, Default)]
pub struct Replay {
    /// Also a message that was replayed before, or that is still pending or retrying.
    pub force: bool,
    /// Only to this group.
    pub group: Option<String>,
    /// This payload instead of the recorded one.
    pub payload: Option<Bytes>,
}

/// What a replay came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Replayed {
    /// Always true: a failure is an error.
    pub success: bool,
    /// The new message.
    pub process_id: MessageId,
    /// The message it replays.
    #[serde(rename = "replayOf")]
    pub replay_of: MessageId,
}

impl Env {
    /// Produces a recorded message anew: same payload and headers, a new id that says which one it replays.
    ///
    /// # Errors
    /// `MESSAGE_NOT_FOUND` (`details.reason: payload_not_kept` if only the payload is gone, `erased` if its subject is), `ALREADY_REPLAYED` and, for a
    /// message that is still pending or retrying, `INPUT_INVALID` — the last two unless `force`.
    pub async fn replay(&self, id: MessageId, how: Replay) -> Result<Replayed> {
        let target = format!("{}/{}/{id}", self.product_tag(), self.slug());
        self.inner().access.audited(Call::Replay, &target, self.replay_now(id, how)).await
    }

    async fn replay_now(&self, id: MessageId, how: Replay) -> Result<Replayed> {
        let record = self.record(id).await?.ok_or_else(|| {
            Error::new(Code::MessageNotFound, format!("no message {id} in {}/{}", self.product_tag(), self.slug()))
                .field("eventId")
                .next("list messages with `trunkline messages query`")
        })?;
        if !how.force {
            if let Some(by) = record.replayed_by {
                return Err(Error::new(Code::AlreadyReplayed, format!("message {id} was replayed as {by}"))
                    .detail("replayedBy", by.to_string())
                    .next("pass `force` to replay it once more"));
            }
            if matches!(record.status, Status::Pending | Status::Retrying) {
                return Err(Error::input("force", format!("message {id} is not settled yet: a replay would double it"))
                    .next("pass `force` to replay it all the same"));
            }
        }
        if record.erased {
            return Err(erased(id));
        }
        let route = self.inner().route(self.product_tag(), self.slug(), &record.event).await?;
        let recorded = (record.headers.clone(), record.key.as_ref().map(|key| key.0.clone()));
        let (payload, (headers, key)) = match (how.payload, &record.payload) {
            (Some(edited), _) => (edited, recorded),
            (None, Some(payload)) => (payload.0.clone(), recorded),
            (None, None) => self.read_back(&route, &record).await?,
        };
        // Whose message it is stays with it.
        let stays = |name: &str| !name.starts_with(header::PREFIX) || name == header::SESSION;
        let headers: Headers = headers.iter().filter(|(name, _)| stays(name)).map(|(n, v)| (n, v.clone())).collect();
        let new = MessageId::now();
        match how.group {
            None => {
                let options =
                    ProduceOptions { key, headers, replay_of: Some(id), id: Some(new), trusted: true, ..ProduceOptions::default() };
                produce(&route, payload, options).await?;
            }
            Some(group) => {
                let mut headers = headers;
                headers.set(header::REPLAY_OF, Bytes::copy_from_slice(id.as_bytes()));
                let now = now_ms();
                let message =
                    LotMessage { id: new, key, headers, payload, produced_at: now, position: crate::delivery::Position::default() };
                let entry = LotEntry {
                    seq: 0,
                    state: LotState::Waiting,
                    address: route.filed.address.clone(),
                    group: group.into(),
                    chain: None,
                    due_at: now,
                    attempts: 0,
                    reason: None,
                    error: None,
                    died_at: None,
                    job: None,
                    deliveries: 0,
                    message,
                };
                match route.lot_of(&entry.group) {
                    Some(lot) => {
                        lot.ensure().await?;
                        lot.put(vec![entry]).await?;
                    }
                    None => self.inner().store.lot_put(vec![entry]).await?,
                }
            }
        }
        self.inner().record(Batch::Replayed { filed: route.filed.clone(), id, by: new, at: now_ms() });
        Ok(Replayed { success: true, process_id: new, replay_of: id })
    }

    /// A payload that was not captured is read from the broker by position, where it still lies.
    async fn read_back(&self, route: &crate::route::Route, record: &Record) -> Result<(Bytes, (Headers, Option<Bytes>))> {
        let gone = || {
            Error::new(Code::MessageNotFound, "the payload of this message was not kept, and it no longer lies on the broker")
                .reason("payload_not_kept")
                .next("set the topic's `capture` to `full` for the messages to come")
        };
        let position = record.position.filter(|_| route.capabilities.keeps_messages).ok_or_else(gone)?;
        let found = route.provider.read(&route.topic, ReadFrom::Position(position), 1).await?;
        let stored =
            found.into_iter().find(|stored| stored.position == position && stored.id == Some(record.process_id)).ok_or_else(gone)?;
        Ok((stored.payload, (stored.headers, stored.key)))
    }
}
