//! Producing to streams: one pipeline for a batch, and an answer for each message.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use redis::{Cmd, Pipeline, Value};

use super::Core;
use super::error::{self, Failed};
use super::id::EntryId;
use super::{envelope, keys};
use crate::delivery::Position;
use crate::error::{Code, Error};
use crate::provider::{Outgoing, SendError, TopicSpec};

pub(super) type Sent = Result<Position, SendError>;

impl Core {
    /// A batch to an unordered topic is one pipeline; each message stands for itself. To an ordered one it is one transaction:
    /// all of it is stored or nothing, so that a message which is refused is not overtaken by those behind it.
    pub(super) async fn send_to_streams(&self, topic: &TopicSpec, batch: &[Outgoing]) -> Vec<Sent> {
        let most = self.facts.load().max_message_bytes;
        let streams = self.streams_of(topic);
        let mut pipeline = Pipeline::with_capacity(batch.len());
        // Which of the batch go, and to which shard.
        let mut going = Vec::with_capacity(batch.len());
        for (at, message) in batch.iter().enumerate() {
            if message.size() > most {
                continue;
            }
            let shard = match message.shard {
                Some(shard) => shard,
                None if topic.shards <= 1 => 0,
                None => self.spread.fetch_add(1, Ordering::Relaxed) % topic.shards,
            };
            let Some(stream) = streams.get(shard as usize) else { continue };
            pipeline.add_command(xadd(stream, message));
            going.push((at, shard));
        }
        let mut sent: Vec<Sent> = Vec::with_capacity(batch.len());
        let mut answers = if going.is_empty() { Ok(Vec::new()) } else { self.stored(topic, pipeline).await }.map(Vec::into_iter);
        let mut going = going.into_iter().peekable();
        let mut missing = false;
        for (at, message) in batch.iter().enumerate() {
            let Some((_, shard)) = going.next_if(|(went, _)| *went == at) else {
                sent.push(Err(refused(message, most, topic)));
                continue;
            };
            sent.push(match &mut answers {
                Ok(answers) => answered(answers.next(), shard).inspect_err(|error| missing |= error.error.code() == Code::TopicNotFound),
                Err(failed) => Err(SendError { retryable: failed.error.retryable(), error: failed.error.clone(), ambiguous: failed.sent }),
            });
        }
        if missing {
            self.explain_missing(topic, &mut sent).await;
        }
        if sent.iter().any(|result| matches!(result, Err(error) if error.error.detail_str("reason") == Some("server_full"))) {
            self.make_room(&streams).await;
        }
        sent
    }

    async fn stored(&self, topic: &TopicSpec, mut pipeline: Pipeline) -> Result<Vec<Value>, Failed> {
        if !topic.ordered || pipeline.len() == 1 {
            return self.produce.send(&pipeline).await;
        }
        pipeline.atomic();
        match self.produce.send(&pipeline).await?.pop() {
            Some(Value::Array(answers)) => Ok(answers),
            Some(Value::ServerError(refused)) => Err(Failed::before(error::server(&refused, Code::PublishFailed))),
            _ => Err(Failed { error: super::link::strange("a transaction"), sent: true }),
        }
    }

    /// The streams of a topic, by shard; made once.
    pub(super) fn streams_of(&self, topic: &TopicSpec) -> Arc<[Arc<str>]> {
        if let Some(known) = self.known.lock().get(&topic.name)
            && known.streams.len() == topic.shards.max(1) as usize
        {
            return Arc::clone(&known.streams);
        }
        keys::streams(topic).into()
    }

    /// A stream that was there is gone: removed by somebody, or lost by a server that died. After a new connection it is taken
    /// for lost, and made again with its groups; nothing is sent again here.
    async fn explain_missing(&self, topic: &TopicSpec, sent: &mut [Sent]) {
        let revived = self.revive(topic).await;
        for result in sent.iter_mut() {
            let Err(failed) = result else { continue };
            if failed.error.code() != Code::TopicNotFound {
                continue;
            }
            if revived {
                failed.error = Error::new(Code::PublishFailed, format!("'{}' was gone from the server and was made again", topic.name))
                    .reason("data_gone")
                    .next("the server lost its data: check its persistence (`appendonly`)");
                failed.retryable = true;
            } else {
                failed.error = super::admin::missing(&topic.name);
            }
        }
    }
}

/// `NOMKSTREAM`: a topic that somebody removed must not come back without its groups.
fn xadd(stream: &str, message: &Outgoing) -> Cmd {
    let (arguments, bytes) = envelope::room(message);
    let mut cmd = Cmd::with_capacity(4 + arguments, 16 + stream.len() + bytes);
    cmd.arg("XADD").arg(stream).arg("NOMKSTREAM").arg("*");
    envelope::write(&mut cmd, message);
    cmd
}

fn answered(answer: Option<Value>, shard: u32) -> Sent {
    let failed = |error: Error| SendError { retryable: error.retryable(), error, ambiguous: false };
    match answer {
        Some(Value::Nil) => Err(failed(super::admin::missing(""))),
        Some(Value::ServerError(refused)) => Err(failed(error::server(&refused, Code::PublishFailed))),
        Some(value) => match EntryId::of(&value) {
            Some(id) => Ok(Position { shard, offset: id.offset() }),
            None => Err(SendError { ambiguous: true, ..failed(super::link::strange("a message")) }),
        },
        None => Err(SendError { ambiguous: true, ..failed(super::link::strange("a batch")) }),
    }
}

/// What never left: too large, or of a shard that the topic does not have.
fn refused(message: &Outgoing, most: usize, topic: &TopicSpec) -> SendError {
    let error = if message.size() > most {
        too_large(message.size(), most)
    } else {
        Error::new(Code::PublishFailed, format!("the topic has {} shards, and the message is for another", topic.shards))
            .with_retryable(false)
    };
    SendError { retryable: false, error, ambiguous: false }
}

pub(super) fn too_large(size: usize, most: usize) -> Error {
    Error::new(Code::PayloadTooLarge, format!("the message has {size} bytes; at most {most} are taken"))
        .detail("size", size)
        .detail("max", most)
        .next("send a reference to the payload instead")
}
