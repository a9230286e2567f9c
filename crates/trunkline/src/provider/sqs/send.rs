//! Sending: each message to the queue of every group, ten in a call, many calls at a time.
//!
//! A message is confirmed when all queues have confirmed it. Where only some have, it is reported as failed and ambiguous;
//! when it comes again, under the same id, only the missing ones are tried. On FIFO queues the messages of one key go one
//! call after the other; behind one that failed none of its key is sent.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use aws_sdk_sqs::Client;
use aws_sdk_sqs::types::SendMessageBatchRequestEntry as Entry;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use xxhash_rust::xxh3::xxh3_64;

use super::error::{Failure, Kind, failure, of_code};
use super::message::{Encoded, encode, offset};
use super::provider::{LARGEST, LIMIT, shard_of};
use super::queue;
use super::topics::{Queue, Topics};
use crate::delivery::Position;
use crate::error::{Code, Error};
use crate::message::{MessageId, now_ms};
use crate::provider::{Outgoing, SendError, TopicSpec};

/// Messages and bytes of one call.
const CALL: (usize, usize) = (10, LIMIT);
/// Calls of one connection at a time.
const CALLS: usize = 32;
/// A FIFO queue's calls at a time, and how many messages make another one worth it.
const LANES: (usize, usize) = (16, 100);
/// Messages that some queues confirmed and others did not: as many are remembered.
const PARTIAL: usize = 65_536;

type Results = Vec<Result<Position, SendError>>;

/// What a queue said to one message.
type Answer = Result<Option<String>, Failure>;

/// See the module.
#[derive(Debug)]
pub(super) struct Sender {
    client: Client,
    calls: Arc<Semaphore>,
    partial: Mutex<Partial>,
    clock: AtomicU64,
}

/// Which queues have a message that is not in all of them.
#[derive(Debug, Default)]
struct Partial {
    queues: HashMap<MessageId, HashSet<String>>,
    oldest: VecDeque<MessageId>,
}

impl Partial {
    fn has(&self, id: MessageId, url: &str) -> bool {
        self.queues.get(&id).is_some_and(|urls| urls.contains(url))
    }

    fn note(&mut self, id: MessageId, url: &str) {
        if !self.queues.contains_key(&id) {
            if self.oldest.len() >= PARTIAL
                && let Some(oldest) = self.oldest.pop_front()
            {
                self.queues.remove(&oldest);
            }
            self.oldest.push_back(id);
        }
        self.queues.entry(id).or_default().insert(url.to_owned());
    }

    fn complete(&mut self, id: MessageId) {
        if self.queues.remove(&id).is_some() {
            self.oldest.retain(|other| *other != id);
        }
    }
}

impl Sender {
    pub(super) fn new(client: Client) -> Self {
        Sender { client, calls: Arc::new(Semaphore::new(CALLS)), partial: Mutex::default(), clock: AtomicU64::new(0) }
    }

    /// As [`crate::provider::Provider::send`].
    pub(super) async fn send(&self, topics: &Topics, topic: &TopicSpec, batch: &[Outgoing]) -> Results {
        if batch.is_empty() {
            return Vec::new();
        }
        let queues = match topics.queues(topic).await {
            Ok(queues) => queues,
            Err(failed) => return batch.iter().map(|_| Err(failed.of_send())).collect(),
        };
        let fifo = queue::is_fifo(&topic.name);
        let mut refused: Vec<Option<SendError>> = Vec::with_capacity(batch.len());
        let mut encoded: Vec<Option<Encoded>> = Vec::with_capacity(batch.len());
        for message in batch {
            let one = encode(message, fifo);
            let fits = one.size <= LIMIT && message.size() <= LARGEST;
            refused.push((!fits).then(|| too_large(one.size)));
            encoded.push(fits.then_some(one));
        }
        let answers = self.to_all(topic, &queues, batch, encoded).await;
        let mut partial = self.partial.lock();
        let mut results = Vec::with_capacity(batch.len());
        for (at, refused) in refused.into_iter().enumerate() {
            if let Some(refused) = refused {
                results.push(Err(refused));
                continue;
            }
            let of_queues = queues.iter().zip(&answers).map(|(queue, answers)| (&**queue, &answers[at]));
            results.push(self.settle(&mut partial, topic, &batch[at], of_queues));
        }
        drop(partial);
        for (queue, answers) in queues.iter().zip(&answers) {
            if answers.iter().flatten().any(|answer| matches!(answer, Err(Failure { kind: Kind::Missing, .. }))) {
                topics.missing(topic, queue);
            } else if answers.iter().flatten().any(Result::is_ok) {
                queue.found();
            }
        }
        results
    }

    /// What becomes of a message by what its queues said; `None` is a queue that had it from an earlier try.
    fn settle<'a>(
        &self,
        partial: &mut Partial,
        topic: &TopicSpec,
        message: &Outgoing,
        answers: impl Iterator<Item = (&'a Queue, &'a Option<Answer>)>,
    ) -> Result<Position, SendError> {
        let (mut have, mut sequence) = (Vec::new(), None);
        let mut failed: Vec<(&Queue, &Failure)> = Vec::new();
        for (queue, answer) in answers {
            match answer {
                None => have.push(queue),
                Some(Ok(number)) => {
                    sequence = sequence.or(number.as_deref());
                    have.push(queue);
                }
                Some(Err(failure)) => failed.push((queue, failure)),
            }
        }
        let Some((_, first)) = failed.iter().find(|(_, failure)| !failure.error.retryable()).or(failed.first()) else {
            partial.complete(message.id);
            let offset = sequence.map_or_else(|| self.tick(), offset);
            return Ok(Position { shard: shard_of(topic, message.shard, message.key.as_deref(), message.id), offset });
        };
        let mut error = first.of_send();
        // The next try asks which queues there are.
        error.retryable |= first.kind == Kind::Missing;
        error.ambiguous |= failed.iter().any(|(_, failure)| failure.ambiguous);
        if !have.is_empty() {
            for queue in &have {
                partial.note(message.id, &queue.url);
            }
            let missing: Vec<&str> = failed.iter().map(|(queue, _)| &*queue.name).collect();
            error.ambiguous = true;
            error.error = error.error.detail("missing", missing).detail("confirmed", have.len());
        }
        Err(error)
    }

    /// A position where the broker gives none: the time, and rising.
    fn tick(&self) -> u64 {
        let now = now_ms() << 20;
        let next = |last: u64| Some(now.max(last + 1));
        self.clock.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).map_or(now, |last| now.max(last + 1))
    }

    /// What each queue said to each message; `None` where it was not asked.
    async fn to_all(
        &self,
        topic: &TopicSpec,
        queues: &[Arc<Queue>],
        batch: &[Outgoing],
        mut encoded: Vec<Option<Encoded>>,
    ) -> Vec<Vec<Option<Answer>>> {
        let mut answers: Vec<Vec<Option<Answer>>> = queues.iter().map(|_| (0..batch.len()).map(|_| None).collect()).collect();
        let mut tasks = JoinSet::new();
        let mut alone = None;
        for (which, queue) in queues.iter().enumerate() {
            let last = which + 1 == queues.len();
            let mut items = Vec::with_capacity(batch.len());
            for (at, message) in batch.iter().enumerate() {
                if encoded[at].is_none() || self.partial.lock().has(message.id, &queue.url) {
                    continue;
                }
                let one = if last { encoded[at].take() } else { encoded[at].clone() };
                items.extend(one.map(|one| Item { at, id: message.id, encoded: one }));
            }
            for lane in lanes(items, queue::is_fifo(&topic.name)) {
                let lane = Lane { client: self.client.clone(), calls: self.calls.clone(), url: queue.url.clone(), which, items: lane };
                // What is one call needs no task.
                match alone.take() {
                    None if tasks.is_empty() => alone = Some(lane),
                    None => drop(tasks.spawn(lane.run())),
                    Some(first) => {
                        tasks.spawn(first.run());
                        tasks.spawn(lane.run());
                    }
                }
            }
        }
        let mut note = |which: usize, said: Vec<(usize, Answer)>| {
            for (at, answer) in said {
                answers[which][at] = Some(answer);
            }
        };
        if let Some(lane) = alone {
            let (which, said) = lane.run().await;
            note(which, said);
        }
        while let Some(done) = tasks.join_next().await {
            if let Ok((which, said)) = done {
                note(which, said);
            }
        }
        for (queue, answers) in queues.iter().zip(&mut answers) {
            for (answer, message) in answers.iter_mut().zip(batch) {
                if answer.is_none() && !self.partial.lock().has(message.id, &queue.url) {
                    *answer = Some(Err(no_answer()));
                }
            }
        }
        answers
    }
}

/// One message on its way to one queue.
struct Item {
    at: usize,
    id: MessageId,
    encoded: Encoded,
}

/// Calls that follow each other.
struct Lane {
    client: Client,
    calls: Arc<Semaphore>,
    url: String,
    which: usize,
    items: Vec<Item>,
}

/// What goes in calls of its own: without order every ten messages, with order the messages of some keys.
fn lanes(items: Vec<Item>, fifo: bool) -> Vec<Vec<Item>> {
    if !fifo {
        return calls(items);
    }
    let count = (items.len() / LANES.1).clamp(1, LANES.0);
    let mut lanes: Vec<Vec<Item>> = (0..count).map(|_| Vec::new()).collect();
    for item in items {
        let group = item.encoded.group.as_deref().unwrap_or_default();
        lanes[xxh3_64(group.as_bytes()) as usize % count].push(item);
    }
    lanes.retain(|lane| !lane.is_empty());
    lanes
}

/// In tens, and not more than SQS takes in one call.
fn calls(items: Vec<Item>) -> Vec<Vec<Item>> {
    let mut calls: Vec<Vec<Item>> = Vec::with_capacity(items.len().div_ceil(CALL.0));
    let mut bytes = 0;
    for item in items {
        let size = item.encoded.size;
        match calls.last_mut() {
            Some(call) if call.len() < CALL.0 && bytes + size <= CALL.1 => {
                bytes += size;
                call.push(item);
            }
            _ => {
                bytes = size;
                calls.push(vec![item]);
            }
        }
    }
    calls
}

impl Lane {
    async fn run(self) -> (usize, Vec<(usize, Answer)>) {
        let Lane { client, calls: permits, url, which, items } = self;
        let mut said = Vec::with_capacity(items.len());
        let mut stopped: HashSet<String> = HashSet::new();
        for mut call in calls(items) {
            if !stopped.is_empty() {
                let behind = |item: &Item| item.encoded.group.as_ref().is_some_and(|group| stopped.contains(group));
                let (held, rest): (Vec<_>, Vec<_>) = call.into_iter().partition(behind);
                said.extend(held.into_iter().map(|item| (item.at, Err(behind_failed()))));
                call = rest;
                if call.is_empty() {
                    continue;
                }
            }
            let groups: Vec<(usize, Option<String>)> = call.iter().map(|item| (item.at, item.encoded.group.clone())).collect();
            let _permit = permits.acquire().await;
            let mut answers = one_call(&client, &url, call).await;
            keep_order(&groups, &mut answers);
            for ((_, group), (_, answer)) in groups.into_iter().zip(&answers) {
                if answer.is_err() {
                    stopped.extend(group);
                }
            }
            said.extend(answers);
        }
        (which, said)
    }
}

/// A message that failed while a later one of its key was taken cannot be sent any more without changing their order.
fn keep_order(groups: &[(usize, Option<String>)], answers: &mut [(usize, Answer)]) {
    for at in 0..answers.len() {
        let Some(group) = &groups[at].1 else { continue };
        let overtaken = answers[at].1.is_err()
            && groups.iter().zip(&*answers).skip(at + 1).any(|((_, other), (_, answer))| other.as_ref() == Some(group) && answer.is_ok());
        if let (true, Err(failed)) = (overtaken, &mut answers[at].1) {
            failed.error = failed.error.clone().with_retryable(false).reason("overtaken");
        }
    }
}

/// One call, and an answer for each of its messages, in their order.
async fn one_call(client: &Client, url: &str, call: Vec<Item>) -> Vec<(usize, Answer)> {
    let places: Vec<usize> = call.iter().map(|item| item.at).collect();
    let entries = call.into_iter().enumerate().map(|(n, item)| {
        let Encoded { body, attributes, group, .. } = item.encoded;
        let entry = Entry::builder().id(n.to_string()).message_body(body).set_message_attributes(Some(attributes));
        let dedup = group.is_some().then(|| item.id.to_text());
        let entry = entry.set_message_group_id(group).set_message_deduplication_id(dedup).build();
        entry.unwrap_or_else(|_| unreachable!("the required fields, id and body, are set"))
    });
    let answer = client.send_message_batch().queue_url(url).set_entries(Some(entries.collect())).send().await;
    let mut said: Vec<(usize, Answer)> = places.into_iter().map(|at| (at, Err(no_answer()))).collect();
    match answer {
        Err(error) => {
            let failed = failure("sending", &error);
            said.iter_mut().for_each(|(_, answer)| *answer = Err(failed.clone()));
        }
        Ok(answer) => {
            for done in answer.successful {
                if let Some(place) = place(&done.id, &mut said) {
                    *place = Ok(done.sequence_number);
                }
            }
            for failed in answer.failed {
                if let Some(place) = place(&failed.id, &mut said) {
                    let status = if failed.sender_fault { 400 } else { 500 };
                    *place = Err(of_code("sending", &failed.code, failed.message.as_deref().unwrap_or_default(), status));
                }
            }
        }
    }
    said
}

fn place<'a>(id: &str, said: &'a mut [(usize, Answer)]) -> Option<&'a mut Answer> {
    said.get_mut(id.parse::<usize>().ok()?).map(|(_, answer)| answer)
}

fn too_large(size: usize) -> SendError {
    let error = Error::new(Code::PayloadTooLarge, format!("a message of {size} bytes with its headers; SQS takes {LIMIT}"));
    let error = error.detail("bytes", size).detail("limit", LIMIT).next("send less, or a reference to it");
    SendError { error, retryable: false, ambiguous: false }
}

fn no_answer() -> Failure {
    let error = Error::new(Code::PublishFailed, "SQS said nothing of this message").reason("no_answer");
    Failure { kind: Kind::Other, error, ambiguous: true }
}

fn behind_failed() -> Failure {
    let error = Error::new(Code::PublishFailed, "an earlier message of its key was not confirmed").reason("behind_failed");
    Failure { kind: Kind::Other, error, ambiguous: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(at: usize, size: usize, group: Option<&str>) -> Item {
        let encoded = Encoded { body: String::new(), attributes: HashMap::new(), group: group.map(str::to_owned), size };
        Item { at, id: MessageId::now(), encoded }
    }

    #[test]
    fn calls_keep_both_bounds() {
        let sizes = |items: Vec<Item>| calls(items).iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!(sizes((0..25).map(|at| item(at, 100, None)).collect()), [10, 10, 5]);
        assert_eq!(sizes((0..4).map(|at| item(at, LIMIT / 2, None)).collect()), [2, 2]);
        assert_eq!(sizes(vec![item(0, LIMIT, None), item(1, 1, None)]), [1, 1]);
    }

    #[test]
    fn a_key_stays_in_its_lane() {
        let keys = ["a", "b", "c", "d", "e", "f", "g"];
        let items = (0..700).map(|at| item(at, 100, Some(keys[at % 7]))).collect();
        let lanes = lanes(items, true);
        assert!(lanes.len() > 1);
        for key in keys {
            let of_key = |lane: &&Vec<Item>| lane.iter().any(|item| item.encoded.group.as_deref() == Some(key));
            let with: Vec<_> = lanes.iter().filter(of_key).collect();
            assert_eq!(with.len(), 1);
            let places: Vec<_> = with[0].iter().filter(|item| item.encoded.group.as_deref() == Some(key)).map(|item| item.at).collect();
            assert!(places.is_sorted());
        }
    }

    #[test]
    fn what_was_overtaken_is_not_sent_again() {
        let groups: Vec<_> = [(0, "a"), (1, "b"), (2, "a")].map(|(at, key)| (at, Some(key.to_owned()))).into();
        let down = || of_code("sending", "InternalError", "", 500);
        let mut answers: Vec<(usize, Answer)> = vec![(0, Err(down())), (1, Err(down())), (2, Ok(None))];
        keep_order(&groups, &mut answers);
        let retryable = |at: usize| answers[at].1.as_ref().err().map(|failed| failed.error.retryable());
        assert_eq!((retryable(0), retryable(1), retryable(2)), (Some(false), Some(true), None));
    }

    #[test]
    fn partial_confirms_are_remembered_within_a_bound() {
        let mut partial = Partial::default();
        let first = MessageId::now();
        partial.note(first, "a");
        assert!(partial.has(first, "a") && !partial.has(first, "b"));
        (0..PARTIAL).for_each(|_| partial.note(MessageId::now(), "a"));
        assert!(!partial.has(first, "a"));
        assert_eq!((partial.queues.len(), partial.oldest.len()), (PARTIAL, PARTIAL));
    }
}
