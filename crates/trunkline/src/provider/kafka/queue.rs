//! A partition's queue read in batches, and a partition read without a group. With `native` the only file of this provider
//! with `unsafe`.
//!
//! The rule of librdkafka this file keeps: a queue and every message are let go before their client is.

use std::ffi::{CStr, c_void};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::time::Duration;

use rdkafka::bindings as sys;
use rdkafka::types::RDKafkaErrorCode as ErrorCode;
use tokio::sync::Notify;

use super::error::Fault;
use super::native::{Rk, c_text, millis};

type Result<T, E = Fault> = std::result::Result<T, E>;

/// A message as librdkafka holds it. Let go before its client.
#[derive(Debug)]
pub(super) struct Message(NonNull<sys::rd_kafka_message_t>);

impl Drop for Message {
    fn drop(&mut self) {
        // SAFETY: taken from a queue and not destroyed before.
        unsafe { sys::rd_kafka_message_destroy(self.0.as_ptr()) }
    }
}

fn bytes<'a>(at: *const c_void, len: usize) -> Option<&'a [u8]> {
    // SAFETY: librdkafka's key, payload and header values are `len` bytes, or null; the caller bounds the lifetime.
    (!at.is_null()).then(|| unsafe { std::slice::from_raw_parts(at.cast::<u8>(), len) })
}

impl Message {
    fn get(&self) -> &sys::rd_kafka_message_t {
        // SAFETY: alive until dropped.
        unsafe { self.0.as_ref() }
    }

    /// The error that stands in the place of a message.
    pub(super) fn fault(&self) -> Option<Fault> {
        let code: ErrorCode = self.get().err.into();
        (code != ErrorCode::NoError).then(|| {
            let said = self.payload().map(|said| String::from_utf8_lossy(said).into_owned());
            Fault::new(code, said.unwrap_or_default())
        })
    }

    pub(super) fn offset(&self) -> i64 {
        self.get().offset
    }

    pub(super) fn key(&self) -> Option<&[u8]> {
        bytes(self.get().key, self.get().key_len)
    }

    pub(super) fn payload(&self) -> Option<&[u8]> {
        bytes(self.get().payload, self.get().len)
    }

    /// When it was produced, or stored, as the topic is set up; in ms since 1970.
    pub(super) fn timestamp(&self) -> i64 {
        let mut kind = sys::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        // SAFETY: alive until dropped.
        unsafe { sys::rd_kafka_message_timestamp(self.0.as_ptr(), &raw mut kind) }
    }

    /// Its headers, in order. A name is any bytes: other clients do not keep to UTF-8.
    pub(super) fn headers(&self) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
        let mut headers: *mut sys::rd_kafka_headers_t = ptr::null_mut();
        // SAFETY: alive until dropped; the headers belong to the message.
        let code = unsafe { sys::rd_kafka_message_headers(self.0.as_ptr(), &raw mut headers) };
        let there = code == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR && !headers.is_null();
        (0..).map_while(move |at| {
            if !there {
                return None;
            }
            let (mut name, mut value, mut len) = (ptr::null(), ptr::null(), 0);
            // SAFETY: as above; beyond the last header an error is answered.
            let code = unsafe { sys::rd_kafka_header_get_all(headers, at, &raw mut name, &raw mut value, &raw mut len) };
            if code != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
                return None;
            }
            // SAFETY: a header's name ends in a zero byte.
            Some((unsafe { CStr::from_ptr(name) }.to_bytes(), bytes(value, len)))
        })
    }
}

/// The queue of one partition, apart from the consumer's own: what is not taken stays there, and bounds what is fetched.
#[derive(Debug)]
pub(super) struct Queue {
    queue: NonNull<sys::rd_kafka_queue_t>,
    /// Told when something comes into the empty queue; librdkafka holds a pointer to it.
    bell: Option<Arc<Notify>>,
}

// SAFETY: librdkafka's queues may be used from any thread.
unsafe impl Send for Queue {}
// SAFETY: as above.
unsafe impl Sync for Queue {}

unsafe extern "C" fn ring(_: *mut sys::rd_kafka_t, bell: *mut c_void) {
    // SAFETY: `Queue` keeps the bell until it has told librdkafka to forget it.
    unsafe { &*bell.cast::<Notify>() }.notify_one();
}

impl Queue {
    /// Takes the partition's messages out of the consumer's queue; `bell` rings when there are some.
    pub(super) fn of_partition(rk: Rk, topic: &str, partition: i32, bell: Arc<Notify>) -> Result<Queue> {
        let name = c_text(topic)?;
        // SAFETY: the name outlives the call.
        let queue = unsafe { sys::rd_kafka_queue_get_partition(rk.0, name.as_ptr(), partition) };
        let queue = NonNull::new(queue).ok_or_else(|| Fault::new(ErrorCode::UnknownPartition, "no queue for this partition"))?;
        // SAFETY: the bell is kept beside the queue, and forgotten before it goes.
        unsafe {
            sys::rd_kafka_queue_forward(queue.as_ptr(), ptr::null_mut());
            sys::rd_kafka_queue_cb_event_enable(queue.as_ptr(), Some(ring), Arc::as_ptr(&bell).cast_mut().cast());
        }
        Ok(Queue { queue, bell: Some(bell) })
    }

    /// A queue of its own, for a [`Reading`].
    fn new(rk: Rk) -> Result<Queue> {
        // SAFETY: destroyed on drop.
        let queue = NonNull::new(unsafe { sys::rd_kafka_queue_new(rk.0) });
        queue.map(|queue| Queue { queue, bell: None }).ok_or_else(|| Fault::new(ErrorCode::Fail, "no queue"))
    }

    /// Up to `max` messages; waits at most that long for the first.
    pub(super) fn take(&self, max: usize, wait: Duration, into: &mut Vec<Message>) {
        let mut raw: [*mut sys::rd_kafka_message_t; 128] = [ptr::null_mut(); 128];
        let max = max.min(raw.len());
        // SAFETY: room for `max` messages; those that came are ours.
        let n = unsafe { sys::rd_kafka_consume_batch_queue(self.queue.as_ptr(), millis(wait), raw.as_mut_ptr(), max) };
        into.extend(raw[..usize::try_from(n).unwrap_or(0)].iter().filter_map(|message| NonNull::new(*message)).map(Message));
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: nobody else has this handle; from here on the bell is not rung.
        unsafe {
            if self.bell.is_some() {
                sys::rd_kafka_queue_cb_event_enable(self.queue.as_ptr(), None, ptr::null_mut());
            }
            sys::rd_kafka_queue_destroy(self.queue.as_ptr());
        }
    }
}

/// One partition read from an offset on, without a group.
#[derive(Debug)]
pub(super) struct Reading {
    topic: *mut sys::rd_kafka_topic_t,
    partition: i32,
    queue: Queue,
}

// SAFETY: librdkafka's topic handles may be used from any thread.
unsafe impl Send for Reading {}

impl Reading {
    /// Starts reading. One reading of a partition at a time on a client.
    pub(super) fn start(rk: Rk, topic: &str, partition: i32, offset: i64) -> Result<Reading> {
        let name = c_text(topic)?;
        let queue = Queue::new(rk)?;
        // SAFETY: the topic's handle is destroyed on drop.
        unsafe {
            let topic = sys::rd_kafka_topic_new(rk.0, name.as_ptr(), ptr::null_mut());
            if topic.is_null() {
                return Err(Fault::new(sys::rd_kafka_last_error().into(), "the topic cannot be read"));
            }
            if sys::rd_kafka_consume_start_queue(topic, partition, offset, queue.queue.as_ptr()) != 0 {
                let code = sys::rd_kafka_last_error().into();
                sys::rd_kafka_topic_destroy(topic);
                return Err(Fault::new(code, "the partition cannot be read"));
            }
            Ok(Reading { topic, partition, queue })
        }
    }

    /// As [`Queue::take`].
    pub(super) fn take(&self, max: usize, wait: Duration, into: &mut Vec<Message>) {
        self.queue.take(max, wait, into);
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        // SAFETY: started above, stopped once.
        unsafe {
            sys::rd_kafka_consume_stop(self.topic, self.partition);
            sys::rd_kafka_topic_destroy(self.topic);
        }
    }
}
