//! Publishing: a whole batch leaves before the first confirm is waited for.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;

use super::confirms::{Confirm, Ticket};
use super::envelope;
use super::error;
use super::link::{Link, Missed, denied, named};
use super::place::Place;
use crate::delivery::Position;
use crate::error::{Code, Error, Result};
use crate::provider::{Outgoing, SendError};

/// So many leave at once; the channel of the confirms holds several times as many.
const CHUNK: usize = 8_192;
/// How long the server may take to confirm. A dead connection is noticed before.
const WITHIN: Duration = Duration::from_secs(15);
/// JetStream keeps the length of the headers in 16 bits.
const MOST_HEADER_BYTES: usize = 65_535;

pub(super) type Answer = Result<Position, SendError>;

/// Publishes to JetStream and waits for the confirm of each.
pub(super) async fn send(link: &Link, place: &Place, spread: &AtomicU32, most: usize, batch: &[Outgoing]) -> Vec<Answer> {
    let mut answers = Vec::with_capacity(batch.len());
    for chunk in batch.chunks(CHUNK) {
        answers.extend(send_chunk(link, place, spread, most, chunk).await);
    }
    answers
}

async fn send_chunk(link: &Link, place: &Place, spread: &AtomicU32, most: usize, batch: &[Outgoing]) -> Vec<Answer> {
    let ticket = link.confirms.ticket(batch.len()).await;
    // Before the first message leaves, so that no refusal is missed.
    let mut denials = link.denials();
    let subjects: Vec<_> = (0..place.shards).map(|shard| place.subject(shard)).collect();
    let mut shards = Vec::with_capacity(batch.len());
    for (at, message) in batch.iter().enumerate() {
        let shard = shard_of(place, spread, message);
        shards.push(shard);
        let (headers, bytes) = envelope::encode(message);
        if let Err(error) = fits(message, bytes, most, link.max_payload) {
            ticket.fail(at, error::unsent(error));
            continue;
        }
        let subject = subjects[shard as usize].clone();
        let sent = link.client.publish_with_reply_and_headers(subject, ticket.reply(at), headers, message.payload.clone()).await;
        if sent.is_err() || link.is_dead() {
            // What was queued on a dead connection may have left before it died.
            let error = error::dead("the connection was lost");
            ticket.fail(at, if sent.is_err() { error::unsent(error) } else { error::unconfirmed(error) });
        }
    }
    let missing = tokio::select! {
        () = ticket.complete() => error::unconfirmed(error::late("publishing")),
        () = link.died() => error::unconfirmed(error::dead("the connection was lost before the confirm")),
        // One refusal stands for all messages that are not confirmed: the subjects of a topic are allowed together.
        subject = denied(&mut denials, &subjects) => error::unsent(error::denied(&subject)),
        () = tokio::time::sleep(WITHIN) => error::unconfirmed(error::late("publishing")),
    };
    collect(&ticket, place, &shards, &missing)
}

fn collect(ticket: &Ticket, place: &Place, shards: &[u32], missing: &SendError) -> Vec<Answer> {
    let confirms = ticket.take().into_iter().zip(shards);
    confirms
        .map(|(confirm, shard)| match confirm {
            Some(Confirm::Stored { stream, seq }) if *stream == *place.stream => Ok(Position { shard: *shard, offset: seq }),
            Some(Confirm::Stored { stream, .. }) => Err(SendError {
                error: Error::new(Code::PublishFailed, format!("the message lies in stream '{stream}', not in '{}'", place.stream))
                    .reason("wrong_stream")
                    .next(format!("set `stream: {stream}`, or take the subject out of that stream")),
                retryable: false,
                ambiguous: true,
            }),
            Some(Confirm::NoStream) => Err(no_stream(place)),
            Some(Confirm::Failed(error)) => Err(error),
            None => Err(missing.clone()),
        })
        .collect()
}

/// Nobody took the message. A stream that has no leader right now looks the same, so another try may help.
fn no_stream(place: &Place) -> SendError {
    let error = Error::new(Code::TopicNotFound, format!("no stream takes '{}'", place.pattern()))
        .reason("no_stream")
        .next("the stream was removed, or has no leader right now: look at it with `nats stream info`")
        .with_retryable(true);
    SendError { retryable: true, error, ambiguous: false }
}

pub(super) fn shard_of(place: &Place, spread: &AtomicU32, message: &Outgoing) -> u32 {
    if place.shards == 1 {
        return 0;
    }
    message.shard.unwrap_or_else(|| spread.fetch_add(1, Ordering::Relaxed)) % place.shards
}

/// Refuses what the server or the stream would.
pub(super) fn fits(message: &Outgoing, header_bytes: usize, most: usize, max_payload: usize) -> Result<()> {
    let size = message.size();
    let wire = header_bytes + message.payload.len();
    if size <= most && wire <= max_payload && header_bytes <= MOST_HEADER_BYTES {
        return Ok(());
    }
    let what = if header_bytes > MOST_HEADER_BYTES {
        format!("{header_bytes} bytes of headers; JetStream takes at most {MOST_HEADER_BYTES}")
    } else {
        format!("{size} bytes ({wire} on the wire); at most {most} are taken")
    };
    Err(Error::new(Code::PayloadTooLarge, what)
        .detail("size", size)
        .detail("max", most)
        .next("send less, put the payload elsewhere and send where it is, or raise the server's `max_payload`"))
}

/// Publishes to core NATS. The server has the messages when it answers what was sent after them.
pub(super) async fn send_core(
    link: &Link,
    place: &Place,
    numbers: &std::sync::atomic::AtomicU64,
    most: usize,
    batch: &[Outgoing],
) -> Vec<Answer> {
    let mut denials = link.denials();
    let mut answers: Vec<Answer> = Vec::with_capacity(batch.len());
    let subject = place.subject(0);
    for message in batch {
        let (headers, bytes) = envelope::encode(message);
        if let Err(error) = fits(message, bytes, most, link.max_payload) {
            answers.push(Err(error::unsent(error)));
            continue;
        }
        let sent = link.client.publish_with_headers(subject.clone(), headers, message.payload.clone()).await;
        answers.push(match sent {
            Ok(()) => Ok(Position { shard: 0, offset: numbers.fetch_add(1, Ordering::Relaxed) }),
            Err(_) => Err(error::unsent(error::dead("the connection was lost"))),
        });
    }
    let heard = link.echo(WITHIN).await;
    // A refusal comes before the echo.
    let mut refusals = std::iter::from_fn(|| denials.try_recv().ok());
    let failed = match (refusals.find_map(|text| named(&text, std::slice::from_ref(&subject))), heard) {
        (Some(subject), _) => error::unsent(error::denied(&subject)),
        (None, Ok(())) => return answers,
        (None, Err(missed)) => error::unconfirmed(missed.into_error("publishing", &subject)),
    };
    answers.into_iter().map(|answer| answer.and_then(|_| Err(failed.clone()))).collect()
}

impl Link {
    /// Comes back when the server has read everything that was sent before.
    pub(super) async fn echo(&self, within: Duration) -> Result<(), Missed> {
        let ticket = self.confirms.ticket(1).await;
        let mut denials = self.denials();
        let to = ticket.reply(0);
        if self.client.publish(to.clone(), Bytes::new()).await.is_err() {
            return Err(Missed::Dead);
        }
        tokio::select! {
            () = ticket.complete() => Ok(()),
            () = self.died() => Err(Missed::Dead),
            _ = denied(&mut denials, std::slice::from_ref(&to)) => Err(Missed::Denied),
            () = tokio::time::sleep(within) => Err(Missed::Late),
        }
    }
}
