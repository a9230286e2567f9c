//! Producing: every message of a batch is handed to the idempotent producer at once, and each is answered by its delivery
//! report.
//!
//! A producer whose order cannot be kept any more goes fatal and stays so (librdkafka, "Idempotent Producer"): then it is
//! replaced, and what it had not confirmed is answered as such.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rdkafka::error::KafkaError;
use rdkafka::message::{DeliveryResult, Message as _};
use rdkafka::producer::{BaseRecord, Producer as _, PurgeConfig};
use rdkafka::types::RDKafkaErrorCode as Kafka;
use tokio::sync::{Notify, oneshot};

use super::client::{Client, Properties, Reports};
use super::envelope;
use super::error::{Fault, closed, unsent};
use super::native;
use crate::delivery::Position;
use crate::error::{Code, Error, Result};
use crate::provider::{Outgoing, SendError, TopicSpec};

/// How long a message may wait for its confirm: as long as the core waits by default, so that librdkafka's own, idempotent
/// tries cover it.
const TIMEOUT: &str = "30000";
/// So many messages of all topics together wait in a producer.
const QUEUE: &str = "100000";
/// And so many kilobytes.
const QUEUE_KB: &str = "131072";
/// After so many the runtime gets a turn.
const TURN: usize = 512;
/// What librdkafka gathers into one record batch, unless the topic takes less.
const BATCH_BYTES: usize = 1_000_000;

type Answer = Result<Position, SendError>;

// A report's name is the batch and the place in it.
const _: () = assert!(usize::BITS >= 64, "the Kafka provider needs a 64-bit target");

/// Batches that wait for their reports.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    batches: Mutex<HashMap<u32, Batch>>,
    /// Told when a report came, for who waits for room.
    room: Notify,
}

#[derive(Debug)]
struct Batch {
    answers: Vec<Option<Answer>>,
    left: usize,
    done: oneshot::Sender<Vec<Option<Answer>>>,
}

impl Waiting {
    fn answer(&self, name: usize, answer: Answer) {
        let (id, at) = ((name >> 32) as u32, name as u32 as usize);
        let mut batches = self.batches.lock();
        let Some(batch) = batches.get_mut(&id) else { return };
        if let Some(slot @ None) = batch.answers.get_mut(at) {
            *slot = Some(answer);
            batch.left -= 1;
        }
        if batch.left == 0
            && let Some(batch) = batches.remove(&id)
        {
            // Who asked may have given up.
            let _ = batch.done.send(batch.answers);
            self.room.notify_waiters();
        }
    }
}

impl Reports for Arc<Waiting> {
    fn report(&self, result: &DeliveryResult<'_>, name: usize) {
        let answer = match result {
            Ok(message) => Ok(Position {
                shard: u32::try_from(message.partition()).unwrap_or(0),
                offset: u64::try_from(message.offset()).unwrap_or(0),
            }),
            Err((error, message)) => Err(unsent(&Fault::from(error.clone()), native::may_be_stored(message))),
        };
        self.answer(name, answer);
    }
}

/// The producers of a connection: one, and one more for each smaller limit a topic has.
#[derive(Debug)]
pub(super) struct Senders {
    properties: Properties,
    by_limit: Mutex<HashMap<usize, Arc<Sender>>>,
    closed: std::sync::atomic::AtomicBool,
}

#[derive(Debug)]
struct Sender {
    client: Client<Arc<Waiting>>,
    waiting: Arc<Waiting>,
    next: AtomicU32,
}

impl Senders {
    pub(super) fn new(properties: Properties) -> Self {
        Senders { properties, by_limit: Mutex::default(), closed: false.into() }
    }

    /// The producer for topics of this limit; one that went fatal is replaced.
    fn sender(&self, limit: usize) -> Result<Arc<Sender>> {
        if self.closed.load(Ordering::Acquire) {
            return Err(closed());
        }
        let batch = limit.min(BATCH_BYTES);
        let mut senders = self.by_limit.lock();
        if let Some(sender) = senders.get(&batch) {
            match sender.client.producer().client().fatal_error() {
                None => return Ok(Arc::clone(sender)),
                Some((code, why)) => {
                    tracing::warn!(%code, why, "the idempotent producer cannot go on and is replaced");
                }
            }
        }
        let sender = Arc::new(Sender::new(&self.properties, batch, limit)?);
        senders.insert(batch, Arc::clone(&sender));
        Ok(sender)
    }

    /// Sends, in the order of the batch; see the contract.
    pub(super) async fn send(&self, topic: &TopicSpec, limit: usize, batch: Arc<Vec<Outgoing>>) -> Vec<Answer> {
        if batch.is_empty() {
            return Vec::new();
        }
        match self.sender(limit) {
            Ok(sender) => sender.send(topic, limit, batch).await,
            Err(error) => {
                let retryable = error.retryable();
                batch.iter().map(|_| Err(SendError { error: error.clone(), retryable, ambiguous: false })).collect()
            }
        }
    }

    /// Lets the producers go; what waits is answered as not confirmed.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        for (_, sender) in self.by_limit.lock().drain() {
            // Without waiting for the threads of brokers, which may be anywhere; the reports come as always.
            sender.client.producer().purge(PurgeConfig::default().queue().inflight().non_blocking());
        }
    }
}

impl Sender {
    fn new(properties: &Properties, batch: usize, limit: usize) -> Result<Self> {
        let waiting = Arc::new(Waiting::default());
        let (batch, limit) = (batch.to_string(), limit.max(BATCH_BYTES).to_string());
        let properties_more = [
            ("enable.idempotence", "true"),
            ("acks", "all"),
            ("linger.ms", "1"),
            // As the Java client, for what comes with a key and without a shard.
            ("partitioner", "murmur2_random"),
            ("message.timeout.ms", TIMEOUT),
            ("topic.metadata.propagation.max.ms", "5000"),
            ("queue.buffering.max.messages", QUEUE),
            ("queue.buffering.max.kbytes", QUEUE_KB),
            ("batch.size", &*batch),
            ("message.max.bytes", &*limit),
        ];
        let client = Client::new(properties, &properties_more, Arc::clone(&waiting))?;
        Ok(Sender { client, waiting, next: AtomicU32::new(0) })
    }

    async fn send(&self, topic: &TopicSpec, limit: usize, batch: Arc<Vec<Outgoing>>) -> Vec<Answer> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (done, reports) = oneshot::channel();
        let n = batch.len();
        let answers = (0..n).map(|_| None).collect();
        self.waiting.batches.lock().insert(id, Batch { answers, left: n, done });
        // Where nothing more of a shard may follow: its order would be lost.
        let mut stopped: Option<Fault> = None;
        for (at, message) in batch.iter().enumerate() {
            if at % TURN == TURN - 1 {
                tokio::task::yield_now().await;
            }
            let name = (id as usize) << 32 | at;
            let refused = match &stopped {
                Some(fault) => Some(unsent(fault, false)),
                None => self.hand_over(topic, limit, message, name, &mut stopped).await.err(),
            };
            if let Some(refused) = refused {
                self.waiting.answer(name, Err(refused));
            }
        }
        drop(batch);
        let answers = reports.await.unwrap_or_default();
        let lost = || Err(unsent(&Fault::new(Kafka::PurgeInflight, "the producer ended"), true));
        let mut answers: Vec<Answer> = answers.into_iter().map(|answer| answer.unwrap_or_else(lost)).collect();
        answers.resize_with(n, lost);
        answers
    }

    /// Hands one message to librdkafka, which copies it.
    async fn hand_over(
        &self,
        topic: &TopicSpec,
        limit: usize,
        message: &Outgoing,
        name: usize,
        stopped: &mut Option<Fault>,
    ) -> Result<(), SendError> {
        if envelope::wire_size(message) > limit {
            let most = limit.saturating_sub(envelope::OVERHEAD);
            let error = Error::new(Code::PayloadTooLarge, format!("a message of {} bytes, of at most {most}", message.size()))
                .reason("message_too_large")
                .next("send less, or raise `max.message.bytes` of the topic");
            return Err(SendError { error, retryable: false, ambiguous: false });
        }
        let Some(mut headers) = envelope::headers_out(message) else {
            let error = Error::input("headers", "a header's name holds a zero byte, which Kafka's clients cannot send");
            return Err(SendError { error, retryable: false, ambiguous: false });
        };
        loop {
            let mut record =
                BaseRecord::<[u8], [u8], usize>::with_opaque_to(&topic.name, name).payload(&message.payload[..]).headers(headers);
            if let Some(key) = &message.key {
                record = record.key(&key[..]);
            }
            if let Some(shard) = message.shard {
                record = record.partition(i32::try_from(shard).unwrap_or(i32::MAX));
            }
            let room = self.waiting.room.notified();
            let Err((error, record)) = self.client.producer().send(record) else { return Ok(()) };
            let fault = Fault::from(error);
            if fault.code != Kafka::QueueFull {
                // A message librdkafka does not take at all; the others may go.
                if fault.code == Kafka::Fatal {
                    *stopped = Some(fault.clone());
                }
                return Err(unsent(&fault, false));
            }
            let Some(back) = record.headers else { return Err(unsent(&fault, false)) };
            headers = back;
            // Its room is freed by reports, at the latest when messages time out.
            let _ = tokio::time::timeout(Duration::from_millis(50), room).await;
        }
    }
}

impl From<&KafkaError> for Fault {
    fn from(error: &KafkaError) -> Self {
        Fault::from(error.clone())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use rdkafka::bindings::rd_kafka_resp_err_t as Response;
    use rdkafka::mocking::MockCluster;
    use rdkafka::types::RDKafkaApiKey;
    use serde_json::json;

    use super::*;
    use crate::config::{ProviderConfig, ProviderKind};
    use crate::message::{Headers, MessageId};

    async fn properties(servers: &str) -> Properties {
        match ProviderConfig::parse(ProviderKind::Kafka, &json!({ "brokers": servers })).expect("a config") {
            ProviderConfig::Kafka(config) => Properties::new(&config).await.expect("taken"),
            _ => unreachable!("asked for Kafka"),
        }
    }

    fn some(n: usize) -> Arc<Vec<Outgoing>> {
        let message =
            || Outgoing { id: MessageId::now(), shard: Some(0), key: None, headers: Headers::new(), payload: Bytes::from_static(b"x") };
        Arc::new((0..n).map(|_| message()).collect())
    }

    /// A broker that lost the producer's state answers so; librdkafka's producer can never send again.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_producer_that_goes_fatal_is_replaced() {
        let cluster = MockCluster::new(1).expect("a cluster in this process");
        let topic = TopicSpec::new("orders", 1, true);
        cluster.create_topic(&topic.name, 1, 1).expect("a topic");
        let senders = Senders::new(properties(&cluster.bootstrap_servers()).await);
        assert!(senders.send(&topic, BATCH_BYTES, some(3)).await.iter().all(Result::is_ok));
        cluster.request_errors(RDKafkaApiKey::Produce, &[Response::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER]);
        let failed = senders.send(&topic, BATCH_BYTES, some(3)).await;
        assert_eq!(failed.len(), 3);
        for answer in failed {
            let error = answer.expect_err("the broker refused it");
            assert!(error.retryable && error.error.code() == Code::PublishFailed, "{error:?}");
            assert_eq!(error.error.detail_str("reason"), Some("producer_fatal"), "{error:?}");
        }
        let again = senders.send(&topic, BATCH_BYTES, some(3)).await;
        let offsets: Vec<_> = again.into_iter().map(|answer| answer.expect("a new producer").offset).collect();
        assert!(offsets.is_sorted() && offsets.len() == 3, "{offsets:?}");
        senders.close();
        let late = senders.send(&topic, BATCH_BYTES, some(1)).await.pop().expect("an answer").expect_err("closed");
        assert!(late.error.code() == Code::Closed && !late.ambiguous, "{late:?}");
    }
}
