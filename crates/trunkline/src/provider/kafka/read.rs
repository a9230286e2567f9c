//! Reading a partition without a group.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use rdkafka::ClientContext;
use rdkafka::client::Client;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;
use rdkafka::types::{RDKafkaErrorCode as Kafka, RDKafkaType};

use super::client::{Ear, Properties};
use super::envelope::Came;
use super::error::Fault;
use super::native::Rk;
use super::queue::Reading;
use crate::delivery::{EnvelopeId, Position};
use crate::provider::Stored;

/// One answer holds at most this many bytes, or one message.
const MOST_BYTES: usize = 64 << 20;
/// A broker that gives nothing for this long has nothing, or is not there.
const PATIENCE: Duration = Duration::from_secs(10);

struct Context(Ear);

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        self.0.log(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.0.complain(&error, reason);
    }
}

/// A client that reads, one partition at a time.
pub(super) struct Reader {
    client: Client<Context>,
    ear: Ear,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").finish_non_exhaustive()
    }
}

impl Reader {
    pub(super) fn new(properties: &Properties) -> Result<Self, Fault> {
        let ear = properties.ear();
        let mut config = properties.with(&[
            ("auto.offset.reset", "earliest"),
            ("enable.partition.eof", "true"),
            ("fetch.queue.backoff.ms", "10"),
            ("fetch.wait.max.ms", "100"),
            ("queued.max.messages.kbytes", "4096"),
        ]);
        // Nobody reads what this client would log.
        config.set_log_level(RDKafkaLogLevel::Emerg);
        let native = config.create_native_config()?;
        let client = Client::new(&config, native, RDKafkaType::RD_KAFKA_CONSUMER, Context(ear.clone()))?;
        Ok(Reader { client, ear })
    }

    /// Up to `max` messages of a partition from `offset` on, none at or behind `end`.
    pub(super) fn read(&self, topic: &str, shard: u32, offset: i64, end: i64, max: usize) -> Result<Vec<Stored>, Fault> {
        if max == 0 || offset >= end {
            return Ok(Vec::new());
        }
        let partition = i32::try_from(shard).unwrap_or(i32::MAX);
        let reading = Reading::start(Rk::new(self.client.native_ptr()), topic, partition, offset)?;
        let (mut found, mut bytes, mut arena, mut came) = (Vec::new(), 0, BytesMut::new(), Vec::new());
        let deadline = Instant::now() + PATIENCE;
        while found.len() < max && bytes < MOST_BYTES {
            reading.take(max - found.len(), Duration::from_millis(100), &mut came);
            if came.is_empty() && Instant::now() > deadline {
                return Err(self.ear.last().unwrap_or_else(|| Fault::new(Kafka::OperationTimedOut, "the partition gave nothing in time")));
            }
            for message in came.drain(..) {
                match message.fault() {
                    Some(fault) if fault.code == Kafka::PartitionEOF => return Ok(found),
                    Some(fault) => return Err(fault),
                    None if message.offset() >= end => return Ok(found),
                    None => {
                        let came = Came::copy(&message, &mut arena);
                        bytes += came.size();
                        let last = came.offset + 1 >= end;
                        found.push(stored(shard, came));
                        if last || found.len() >= max {
                            return Ok(found);
                        }
                    }
                }
            }
        }
        Ok(found)
    }
}

fn stored(shard: u32, came: Came) -> Stored {
    Stored {
        position: Position { shard, offset: u64::try_from(came.offset).unwrap_or(0) },
        id: if let EnvelopeId::Id(id) = came.id { Some(id) } else { None },
        key: came.key,
        headers: came.headers,
        payload: came.payload.unwrap_or_default(),
        stored_at: came.stored_at,
    }
}

/// The reader of a connection, made when it is first needed. It blocks: use it where that may be.
#[derive(Debug, Default)]
pub(super) struct LazyReader(parking_lot::Mutex<Option<Arc<Reader>>>);

impl LazyReader {
    /// Reads with the one reader; others wait.
    pub(super) fn with<T>(&self, properties: &Properties, work: impl FnOnce(&Reader) -> Result<T, Fault>) -> Result<T, Fault> {
        let mut reader = self.0.lock();
        if reader.is_none() {
            *reader = Some(Arc::new(Reader::new(properties)?));
        }
        match &*reader {
            Some(reader) => work(reader),
            None => Err(Fault::new(Kafka::Fail, "no reader")),
        }
    }

    /// Lets the reader go. May block.
    pub(super) fn close(&self) {
        *self.0.lock() = None;
    }
}
