//! Publishing: up to 1,000 messages a request, many requests at a time. All messages of a request must have the same ordering
//! key (Pub/Sub's rule), so on ordered topics each key has requests of its own, one after the other; behind one that failed
//! none of its key is sent.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use googleapis_tonic_google_pubsub_v1::google::pubsub::v1::{PublishRequest, PubsubMessage};
use prost::Message as _;
use tokio::sync::Semaphore;

use super::error::{Failure, Kind};
use super::link::Link;
use super::message::{LARGEST_HEADERS, encode, offset};
use super::provider::{LARGEST, shard_of};
use crate::delivery::Position;
use crate::error::{Code, Error};
use crate::message::now_ms;
use crate::provider::{Outgoing, SendError, TopicSpec};

/// Messages of one request, Pub/Sub's limit, and bytes: below its limit of 10 MB, so that several are under way.
const REQUEST: (usize, usize) = (1000, 2 << 20);
/// Requests of one connection at a time; the service allows 100 on a connection.
const REQUESTS: usize = 64;

type Answer = Result<Position, SendError>;

/// What Pub/Sub said to a message: its id there.
type Said = Result<String, Failure>;

/// See the module.
#[derive(Debug)]
pub(super) struct Sender {
    requests: Semaphore,
    clock: AtomicU64,
}

/// One message on its way: its place in the batch, and itself.
type Item = (usize, PubsubMessage);

impl Sender {
    pub(super) fn new() -> Self {
        Sender { requests: Semaphore::new(REQUESTS), clock: AtomicU64::new(0) }
    }

    /// As [`crate::provider::Provider::send`]; `path` is the topic's.
    pub(super) async fn send(&self, link: &Arc<Link>, path: &str, topic: &TopicSpec, batch: &[Outgoing]) -> Vec<Answer> {
        let mut said: Vec<Option<Said>> = (0..batch.len()).map(|_| None).collect();
        let mut free: Vec<Item> = Vec::new();
        let mut by_key: HashMap<String, Vec<Item>> = HashMap::new();
        let mut refused = Vec::new();
        for (at, message) in batch.iter().enumerate() {
            match encode(message, topic.ordered).filter(|_| message.size() <= LARGEST) {
                Some(encoded) if encoded.ordering_key.is_empty() => free.push((at, encoded)),
                Some(encoded) => match by_key.get_mut(&encoded.ordering_key) {
                    Some(items) => items.push((at, encoded)),
                    None => drop(by_key.insert(encoded.ordering_key.clone(), vec![(at, encoded)])),
                },
                None => refused.push(at),
            }
        }
        // Requests without a key are lanes of one request each.
        let lanes = requests(free).into_iter().map(|request| vec![request]).chain(by_key.into_values().map(requests));
        let mut lanes: FuturesUnordered<_> = lanes.map(|lane| self.lane(link, path, lane)).collect();
        while let Some(lane) = lanes.next().await {
            for (at, answer) in lane {
                said[at] = Some(answer);
            }
        }
        drop(lanes);
        let mut refused = refused.into_iter().peekable();
        let answer = |(at, (message, said)): (usize, (&Outgoing, Option<Said>))| {
            if refused.next_if_eq(&at).is_some() {
                return Err(too_large(message));
            }
            let id = said.unwrap_or_else(|| Err(no_id())).map_err(|failed| failed.of_send())?;
            let shard = shard_of(topic, message.shard, message.key.as_deref(), message.id);
            Ok(Position { shard, offset: if topic.ordered { offset(&id) } else { self.tick() } })
        };
        batch.iter().zip(said).enumerate().map(answer).collect()
    }

    /// Requests that follow each other: what became of each message, its id from Pub/Sub where it was taken.
    async fn lane(&self, link: &Arc<Link>, path: &str, lane: Vec<Vec<Item>>) -> Vec<(usize, Said)> {
        let mut said = Vec::with_capacity(lane.iter().map(Vec::len).sum());
        let mut failed: Option<Failure> = None;
        for items in lane {
            let (places, messages): (Vec<usize>, Vec<PubsubMessage>) = items.into_iter().unzip();
            if let Some(first) = &failed {
                said.extend(places.into_iter().map(|at| (at, Err(behind(first)))));
                continue;
            }
            let _permit = self.requests.acquire().await;
            let request = PublishRequest { topic: path.to_owned(), messages };
            let about = format!("topic={path}");
            let answer = link.publisher("publishing", &about, request, async |mut client, request| client.publish(request).await).await;
            match answer {
                Ok(answer) => {
                    let mut ids = answer.message_ids.into_iter();
                    said.extend(places.into_iter().map(|at| (at, ids.next().ok_or_else(no_id))));
                }
                Err(error) => {
                    said.extend(places.into_iter().map(|at| (at, Err(error.clone()))));
                    failed = Some(error);
                }
            }
        }
        said
    }

    /// A position where order means nothing: the time, and rising. Ids of requests that overtook each other do not.
    fn tick(&self) -> u64 {
        let now = now_ms() << 20;
        let next = |last: u64| Some(now.max(last + 1));
        self.clock.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).map_or(now, |last| now.max(last + 1))
    }
}

/// As many messages as one request takes, or one that is larger.
fn requests(items: Vec<Item>) -> Vec<Vec<Item>> {
    let mut requests: Vec<Vec<Item>> = Vec::with_capacity(items.len().div_ceil(REQUEST.0));
    let mut bytes = 0;
    for (at, message) in items {
        let size = message.encoded_len();
        match requests.last_mut() {
            Some(request) if request.len() < REQUEST.0 && bytes + size <= REQUEST.1 => {
                bytes += size;
                request.push((at, message));
            }
            _ => {
                bytes = size;
                requests.push(vec![(at, message)]);
            }
        }
    }
    requests
}

fn too_large(message: &Outgoing) -> SendError {
    let size = message.size();
    let (what, most) = if size > LARGEST { (size, LARGEST) } else { (message.headers.size(), LARGEST_HEADERS) };
    let error = Error::new(Code::PayloadTooLarge, format!("{what} bytes, of {most} that Pub/Sub takes"))
        .detail("size", what)
        .detail("limit", most)
        .reason(if size > LARGEST { "too_large" } else { "headers_too_large" })
        .next("send less, or a reference to it");
    SendError { error, retryable: false, ambiguous: false }
}

/// Not sent, so that it does not overtake the one that failed.
fn behind(first: &Failure) -> Failure {
    let error = Error::new(first.error.code(), "an earlier message of the same key was not confirmed").reason("behind_failed");
    Failure::new(first.kind, error.with_retryable(true))
}

fn no_id() -> Failure {
    let error = Error::new(Code::PublishFailed, "the server answered without an id for the message").reason("no_id");
    let mut failed = Failure::new(Kind::Passing, error);
    failed.ambiguous = true;
    failed
}
