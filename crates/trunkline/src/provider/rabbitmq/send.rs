//! Producing: one batch on one channel, its confirms polled together.
//!
//! A message is confirmed by an ack that no return came before. The client ties returns to confirms as it finds them, so
//! they are matched by the id and place they carry; a channel is used by one batch at a time, so they are of this batch.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::poll;
use lapin::Confirmation;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::connection::{ANSWER, Link, LinkChannel};
use super::envelope::{self, Mark, Places};
use super::error::{self, closed, of, reply, within};
use super::layout::Layout;
use super::links::Links;
use crate::delivery::Position;
use crate::error::{Code, Error, Result};
use crate::provider::{Outgoing, SendError, TopicSpec};

/// How long confirms may take.
const CONFIRM: Duration = Duration::from_secs(30);
/// How long a server that takes no messages is waited for.
const BLOCKED: Duration = Duration::from_secs(5);
/// How long a channel may take to close.
const CLOSE: Duration = Duration::from_secs(2);
/// Channels that are kept for the next batch.
const IDLE: usize = 8;
/// What a message takes of its frame beside the header table.
const FRAME_EXTRA: usize = 512;

type Answer = Result<Position, SendError>;

/// See the module.
#[derive(Debug)]
pub(super) struct Publisher {
    links: Arc<Links>,
    idle: Mutex<Vec<LinkChannel>>,
    topics: Mutex<HashMap<Arc<str>, Arc<Topic>>>,
    /// The largest message, in bytes; what the server says when it refuses one counts from then on.
    max_bytes: AtomicUsize,
}

/// What is remembered of a topic that is produced to.
#[derive(Debug, Default)]
struct Topic {
    places: Places,
    /// Where a message without a shard goes next.
    spread: AtomicUsize,
    /// Held while a batch of an ordered topic is under way, so that places and order agree.
    turn: tokio::sync::Mutex<()>,
}

impl Publisher {
    pub(super) fn new(links: Arc<Links>, max_bytes: usize) -> Self {
        Publisher { links, idle: Mutex::default(), topics: Mutex::default(), max_bytes: AtomicUsize::new(max_bytes) }
    }

    pub(super) fn max_bytes(&self) -> usize {
        self.max_bytes.load(Ordering::Relaxed)
    }

    pub(super) async fn send(&self, spec: &TopicSpec, batch: &[Outgoing]) -> Vec<Answer> {
        if batch.is_empty() {
            return Vec::new();
        }
        if self.links.is_closed() {
            return batch.iter().map(|_| Err(unsent(closed()))).collect();
        }
        let topic = self.topics.lock().entry(spec.name.clone()).or_default().clone();
        let _turn = if spec.ordered { Some(topic.turn.lock().await) } else { None };
        let channel = match self.channel().await {
            Ok(channel) => channel,
            Err(error) => return batch.iter().map(|_| Err(unsent(error.clone()))).collect(),
        };
        let mut answers = Batch::new(self, &topic, spec, batch, channel.link().frame_max());
        let clean = answers.publish(&channel).await;
        let answers = answers.answers;
        self.done_with(channel, clean).await;
        if answers.iter().any(Result::is_ok) {
            self.links.synced(&spec.name).await;
        }
        answers
    }

    /// A channel in confirm mode that nobody else uses, on a connection that takes messages.
    async fn channel(&self) -> Result<LinkChannel> {
        let link = self.links.publishing().await?;
        let mut blocked = link.blocked();
        let refuses = tokio::time::timeout(BLOCKED, blocked.wait_for(|blocked| !blocked)).await.is_err();
        if refuses {
            return Err(refusing());
        }
        {
            let mut idle = self.idle.lock();
            idle.retain(|channel| channel.link().lives() && channel.status().connected());
            if let Some(channel) = idle.pop() {
                return Ok(channel);
            }
        }
        let channel = link.channel().await?;
        within("asking for confirms", ANSWER, channel.confirm_select(ConfirmSelectOptions::default())).await?;
        Ok(channel)
    }

    /// Keeps a channel on which everything was answered. Another one is closed, and its close awaited: what is sent again
    /// must not be overtaken by what the server had not yet read.
    async fn done_with(&self, channel: LinkChannel, clean: bool) {
        if clean {
            let mut idle = self.idle.lock();
            if idle.len() < IDLE {
                idle.push(channel);
            }
        } else if channel.status().connected() {
            // A server that takes no messages does not read the good-bye either.
            let deaf = *channel.link().blocked().borrow();
            if deaf || !channel.close(CLOSE).await {
                channel.link().abort();
            }
        }
    }

    /// Lets go of what is kept.
    pub(super) fn close(&self) {
        self.idle.lock().clear();
    }
}

/// The server has an alarm: out of memory or disk.
fn refusing() -> Error {
    Error::new(Code::PublishFailed, "RabbitMQ takes no messages: it is out of memory or disk space (connection.blocked)")
        .reason("broker_blocked")
        .next("free memory or disk on the server, or let consumers catch up (`rabbitmqctl alarms` says which)")
}

fn unsent(error: Error) -> SendError {
    SendError { retryable: error.retryable(), error, ambiguous: false }
}

/// The server may have it.
fn unknown(error: Error) -> SendError {
    SendError { error, retryable: true, ambiguous: true }
}

type Pending<'a> = Pin<Box<dyn Future<Output = lapin::Result<Confirmation>> + Send + 'a>>;

/// A message that was handed to the connection.
struct Sent<'a> {
    at: usize,
    confirm: Option<Pending<'a>>,
    answer: Option<lapin::Result<Confirmation>>,
}

/// A batch on its way.
struct Batch<'a> {
    publisher: &'a Publisher,
    layout: Layout,
    messages: &'a [Outgoing],
    /// Where each lies once it is confirmed.
    positions: Vec<Position>,
    answers: Vec<Answer>,
}

impl<'a> Batch<'a> {
    /// Places every message, and refuses those that cannot be sent at all.
    fn new(publisher: &'a Publisher, topic: &Topic, spec: &TopicSpec, messages: &'a [Outgoing], frame: usize) -> Self {
        let first = topic.places.take(messages.len());
        let shards = spec.shards.max(1);
        let spread = || (topic.spread.fetch_add(1, Ordering::Relaxed) % shards as usize) as u32;
        let positions = messages.iter().zip(first..).map(|(message, offset)| Position {
            shard: if spec.ordered { message.shard.unwrap_or_else(spread).min(shards - 1) } else { 0 },
            offset,
        });
        let positions: Vec<Position> = positions.collect();
        let most = publisher.max_bytes();
        let answers = messages.iter().zip(&positions).map(|(message, position)| fits(message, most, frame).map(|()| *position));
        Batch { answers: answers.collect(), publisher, layout: Layout::of(spec), messages, positions }
    }

    /// Publishes and waits for all answers. `false` if the channel cannot be used again.
    async fn publish(&mut self, channel: &LinkChannel) -> bool {
        let keys: Vec<String> = (0..self.layout.shards.unwrap_or(1)).map(|shard| self.layout.routing_key(shard)).collect();
        let mut sent: Vec<Sent<'_>> = Vec::with_capacity(self.messages.len());
        for (at, answer) in self.answers.iter().enumerate() {
            let Ok(position) = *answer else { continue };
            let message = &self.messages[at];
            let (exchange, key) = (self.layout.exchange.as_str().into(), keys[position.shard as usize].as_str().into());
            let properties = envelope::encode(message, position.offset);
            let options = BasicPublishOptions { mandatory: true, immediate: false };
            let mut confirm: Pending<'_> =
                Box::pin(async move { channel.basic_publish(exchange, key, options, &message.payload, properties).await?.await });
            // The first poll hands the frames to the connection, in this order.
            sent.push(match poll!(&mut confirm) {
                Poll::Pending => Sent { at, confirm: Some(confirm), answer: None },
                Poll::Ready(answer) => Sent { at, confirm: None, answer: Some(answer) },
            });
        }
        self.settle(channel, sent).await
    }

    /// Waits for the confirms, at most [`CONFIRM`], and at most [`BLOCKED`] while the server takes no messages.
    async fn settle(&mut self, channel: &LinkChannel, mut sent: Vec<Sent<'_>>) -> bool {
        let all = join_all(sent.iter_mut().filter_map(|sent| {
            let Sent { confirm, answer, .. } = sent;
            confirm.as_mut().map(|confirm| async move { *answer = Some(confirm.await) })
        }));
        let late = tokio::select! {
            biased;
            _ = all => None,
            () = stays_blocked(channel.link().blocked()) => Some(refusing()),
            () = tokio::time::sleep(CONFIRM) => {
                Some(Error::new(Code::PublishFailed, format!("the server did not confirm within {CONFIRM:?}")).reason("timeout"))
            }
        };
        let mut clean = late.is_none();
        let alone = sent.len() == 1;
        let mut returned: Vec<(Option<Mark>, u16)> = Vec::new();
        for Sent { at, answer, .. } in sent {
            match answer {
                Some(Ok(Confirmation::Ack(back))) => {
                    returned.extend(back.map(|back| (envelope::mark_of(&back.properties), back.reply_code)))
                }
                Some(Ok(Confirmation::Nack(back))) => {
                    returned.extend(back.map(|back| (envelope::mark_of(&back.properties), back.reply_code)));
                    self.answers[at] = Err(unknown(
                        Error::new(Code::PublishFailed, "a queue of this topic refused the message")
                            .reason("queue_refused")
                            .next("look for a length limit on the queue, or for a queue without a leader"),
                    ));
                }
                Some(Ok(Confirmation::NotRequested)) => {
                    clean = false;
                    self.answers[at] = Err(unknown(Error::new(Code::PublishFailed, "the server was not asked to confirm")));
                }
                Some(Err(failed)) => {
                    clean = false;
                    let error = self.failure(channel, &failed);
                    self.answers[at] = Err(self.after_failure(at, error, alone && error::said(&failed).is_some()));
                }
                None => self.answers[at] = Err(unknown(late.clone().unwrap_or_else(closed))),
            }
        }
        self.unroutable(&returned);
        clean
    }

    /// Those that came back lie in no queue.
    fn unroutable(&mut self, returned: &[(Option<Mark>, u16)]) {
        if returned.is_empty() {
            return;
        }
        let mut by_mark: HashMap<Mark, Vec<usize>> = HashMap::new();
        for (at, (message, position)) in self.messages.iter().zip(&self.positions).enumerate() {
            by_mark.entry(envelope::mark(&message.id, position.offset)).or_default().push(at);
        }
        for (mark, code) in returned {
            let these = mark.and_then(|mark| by_mark.get(&mark));
            // A return that is none of ours cannot be: but if it were, nothing of the batch could be said to be confirmed.
            let all: Vec<usize> = (0..self.messages.len()).collect();
            for at in these.unwrap_or(&all) {
                if self.answers[*at].is_ok() {
                    let key = self.layout.routing_key(self.positions[*at].shard);
                    let error = Error::new(
                        Code::PublishFailed,
                        format!("no queue is bound to exchange '{}' with '{key}': the message lies nowhere", self.layout.exchange),
                    )
                    .reason("unroutable")
                    .with_retryable(false)
                    .detail("replyCode", *code)
                    .next("start a consumer, or create a group: a topic of RabbitMQ keeps messages only in the queues of its groups");
                    self.answers[*at] = Err(unsent(error));
                }
            }
        }
    }

    fn failure(&self, channel: &LinkChannel, failed: &lapin::Error) -> Error {
        if let Some(most) = limit_said(failed) {
            self.publisher.max_bytes.store(most, Ordering::Relaxed);
        }
        if error::is(failed, reply::NOT_FOUND) {
            return Error::new(Code::TopicNotFound, format!("exchange '{}' does not exist", self.layout.exchange))
                .next(format!("create it as a durable topic exchange, with queues bound by '{}'", self.layout.key));
        }
        if self.publisher.links.is_closed() {
            return closed();
        }
        let error = of("producing", failed);
        if error.code() == Code::ConnectionFailed && channel.link().lives() && error::said(failed).is_none() {
            return Error::new(Code::ConnectionFailed, "producing: the channel was closed");
        }
        error
    }

    /// What a failure of the channel means for one message. Only where nothing else was under way is it certain that the
    /// server has refused this very one.
    fn after_failure(&self, at: usize, error: Error, lone: bool) -> SendError {
        let most = self.publisher.max_bytes();
        if self.messages[at].payload.len() > most {
            return unsent(too_large(self.messages[at].size(), most));
        }
        if lone { unsent(error) } else { SendError { retryable: error.retryable() || !refuses(&error), error, ambiguous: true } }
    }
}

/// Whether sending it again meets the same refusal.
fn refuses(error: &Error) -> bool {
    matches!(error.code(), Code::AuthenticationFailed | Code::TopicNotFound | Code::Closed)
}

/// Ends when the server has taken no messages for [`BLOCKED`].
async fn stays_blocked(mut blocked: watch::Receiver<bool>) {
    loop {
        if blocked.wait_for(|blocked| *blocked).await.is_err() {
            return std::future::pending().await;
        }
        if tokio::time::timeout(BLOCKED, blocked.wait_for(|blocked| !blocked)).await.is_err() {
            return;
        }
    }
}

fn fits(message: &Outgoing, most: usize, frame: usize) -> Result<(), SendError> {
    let size = message.size();
    if size > most {
        return Err(unsent(too_large(size, most)));
    }
    if let Some(len) = envelope::bad_name(message) {
        let text = format!("a header's name has {len} bytes; AMQP takes 255");
        return Err(unsent(Error::input("headers", text).next("shorten the name")));
    }
    let table = envelope::table_size(message) + FRAME_EXTRA;
    if table > frame {
        let text = format!("key and headers take {table} bytes; one AMQP frame takes {frame}");
        return Err(unsent(
            Error::new(Code::PayloadTooLarge, text).reason("headers_too_large").next("move what is large into the payload"),
        ));
    }
    Ok(())
}

fn too_large(size: usize, most: usize) -> Error {
    Error::new(Code::PayloadTooLarge, format!("the message has {size} bytes; the server takes {most}"))
        .detail("size", size)
        .detail("max", most)
        .next("send less, or raise `max_message_size` on the server")
}

/// `PRECONDITION_FAILED - message size 9 is larger than configured max size 8`
fn limit_said(error: &lapin::Error) -> Option<usize> {
    let (code, text) = error::said(error)?;
    let number = text.split_once("configured max size ")?.1;
    let number: String = number.chars().take_while(char::is_ascii_digit).collect();
    (code == reply::PRECONDITION_FAILED).then(|| number.parse().ok()).flatten()
}

/// Publishes one message and waits until it lies in a queue; for what is not a user's message.
pub(super) async fn publish_one(link: &Arc<Link>, exchange: &str, key: &str, body: &[u8], limit: Duration) -> Result<()> {
    let channel = link.channel().await?;
    within("asking for confirms", limit, channel.confirm_select(ConfirmSelectOptions::default())).await?;
    let options = BasicPublishOptions { mandatory: true, immediate: false };
    let properties = lapin::BasicProperties::default().with_delivery_mode(2);
    let sent = async { channel.basic_publish(exchange.into(), key.into(), options, body, properties).await?.await };
    let confirm = within("publishing", limit, sent).await?;
    channel.close(limit).await;
    match confirm {
        Confirmation::Ack(None) => Ok(()),
        _ => Err(Error::new(Code::PublishFailed, format!("no queue is bound to exchange '{exchange}' with '{key}'")).reason("unroutable")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::MessageId;

    #[test]
    fn the_limit_is_read_from_the_servers_refusal() {
        let of = |code, text: &str| {
            let error = lapin::protocol::AMQPError::from_id(code, text.into()).expect("a code");
            limit_said(&lapin::ErrorKind::ProtocolError(error).into())
        };
        assert_eq!(of(406, "PRECONDITION_FAILED - message size 9000 is larger than configured max size 4096"), Some(4096));
        assert_eq!(of(406, "PRECONDITION_FAILED - inequivalent arg"), None);
        assert_eq!(of(404, "configured max size 1"), None);
    }

    #[test]
    fn what_cannot_be_sent_is_refused_before_it_is() {
        let message = |payload: usize, name: usize, value: usize| Outgoing {
            id: MessageId::now(),
            shard: None,
            key: None,
            headers: [("n".repeat(name), vec![b'x'; value])].into_iter().collect(),
            payload: vec![0; payload].into(),
        };
        let code = |message: &Outgoing| fits(message, 1000, 4096).map_err(|failed| (failed.error.code(), failed.ambiguous));
        assert_eq!(code(&message(900, 1, 1)), Ok(()));
        assert_eq!(code(&message(1000, 1, 1)), Err((Code::PayloadTooLarge, false)));
        assert_eq!(code(&message(1, 256, 1)), Err((Code::InputInvalid, false)));
        assert!(fits(&message(1, 1, 4000), 1 << 20, 4096).is_err());
    }
}
