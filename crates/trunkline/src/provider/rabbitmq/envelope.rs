//! How a message travels: payload as the body, headers as headers, and at most 40 bytes of our own.
//!
//! `trunkline-id` is 22 bytes: the message id, then its place, which says when it was published. RabbitMQ numbers no
//! messages, so the publisher does: in 1/256 ms since 2020, growing with each message of a topic.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, ByteArray, FieldArray, FieldTable, LongString, ShortString};
use xxhash_rust::xxh3::Xxh3;

use crate::delivery::{Deliveries, EnvelopeId};
use crate::message::{Headers, MessageId, Millis, header, now_ms};
use crate::provider::Outgoing;

/// The order of headers, where it is not the alphabet's: one number per header, of its name among the sorted names.
const ORDER: &str = "trunkline-order";
/// The broker's own count of hand-overs before this one.
const DELIVERY_COUNT: &str = "x-delivery-count";
/// The same with hand-overs that were no failure (RabbitMQ 4).
const ACQUIRED_COUNT: &str = "x-acquired-count";
/// 2020-01-01.
const YEAR_2020: Millis = 1_577_836_800_000;
/// Places in a millisecond.
const PER_MS: u64 = 256;
const PLACE_BYTES: usize = 6;
/// What is derived from the content of a foreign message lies above every place.
const FOREIGN: u64 = 1 << 62;

/// Numbers the messages of a topic.
#[derive(Debug, Default)]
pub(super) struct Places(AtomicU64);

impl Places {
    /// `n` places in a row, higher than all before; the first of them.
    pub(super) fn take(&self, n: usize) -> u64 {
        let now = now_ms().saturating_sub(YEAR_2020) * PER_MS;
        let n = n as u64;
        let before = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| Some(next.max(now) + n));
        before.unwrap_or_else(|next| next).max(now)
    }
}

/// What identifies a message that is sent: its id and its place.
pub(super) type Mark = [u8; 16 + PLACE_BYTES];

pub(super) fn mark(id: &MessageId, place: u64) -> Mark {
    let mut mark = [0; 16 + PLACE_BYTES];
    mark[..16].copy_from_slice(id.as_bytes());
    mark[16..].copy_from_slice(&place.to_be_bytes()[8 - PLACE_BYTES..]);
    mark
}

/// The mark of a message that came back.
pub(super) fn mark_of(properties: &BasicProperties) -> Option<Mark> {
    match properties.headers().as_ref()?.inner().get(header::ID)? {
        AMQPValue::ByteArray(bytes) => bytes.as_slice().try_into().ok(),
        _ => None,
    }
}

/// Bytes of a header table, about; it must fit into one frame.
pub(super) fn table_size(message: &Outgoing) -> usize {
    let key = message.key.as_ref().map_or(0, |key| key.len() + 20);
    64 + key + message.headers.size() + message.headers.len() * 8
}

/// A header's name must be a short string.
pub(super) fn bad_name(message: &Outgoing) -> Option<usize> {
    message.headers.iter().map(|(name, _)| name.len()).find(|len| *len > 255)
}

pub(super) fn encode(message: &Outgoing, place: u64) -> BasicProperties {
    let mut table = BTreeMap::new();
    table.insert(ShortString::from(header::ID), AMQPValue::ByteArray(ByteArray::from(&mark(&message.id, place)[..])));
    if let Some(key) = &message.key {
        table.insert(ShortString::from(header::KEY), value(key));
    }
    if !message.headers.is_empty() {
        headers(&message.headers, &mut table);
    }
    BasicProperties::default().with_delivery_mode(2).with_headers(FieldTable::from(table))
}

fn headers(headers: &Headers, table: &mut BTreeMap<ShortString, AMQPValue>) {
    let mut names: Vec<&str> = headers.iter().map(|(name, _)| name).collect();
    if !names.is_sorted() {
        let given = names.clone();
        names.sort_unstable();
        names.dedup();
        let wide = names.len() > 256;
        let mut order = Vec::with_capacity(given.len() * (1 + usize::from(wide)));
        for name in given {
            let at = names.binary_search(&name).unwrap_or_default() as u16;
            if wide { order.extend_from_slice(&at.to_be_bytes()) } else { order.push(at as u8) }
        }
        table.insert(ShortString::from(ORDER), AMQPValue::ByteArray(order.into()));
    }
    for (name, bytes) in headers.iter() {
        let more = value(bytes);
        match table.entry(ShortString::from(name)) {
            std::collections::btree_map::Entry::Vacant(free) => {
                free.insert(more);
            }
            std::collections::btree_map::Entry::Occupied(mut there) => match there.get_mut() {
                AMQPValue::FieldArray(list) => list.push(more),
                first => {
                    let first_value = std::mem::replace(first, AMQPValue::Void);
                    *first = AMQPValue::FieldArray(FieldArray::from(vec![first_value, more]));
                }
            },
        }
    }
}

/// Text as text, so that every client shows it; the rest as bytes.
fn value(bytes: &Bytes) -> AMQPValue {
    if std::str::from_utf8(bytes).is_ok() {
        AMQPValue::LongString(LongString::from(bytes.to_vec()))
    } else {
        AMQPValue::ByteArray(ByteArray::from(&bytes[..]))
    }
}

/// A message that arrived, without its payload.
#[derive(Debug)]
pub(super) struct Decoded {
    pub(super) id: EnvelopeId,
    pub(super) place: u64,
    pub(super) key: Option<Bytes>,
    pub(super) headers: Headers,
    pub(super) deliveries: Deliveries,
    pub(super) stored_at: Millis,
}

/// Whether the place is one of a publisher of ours, so that it grows.
pub(super) fn is_numbered(place: u64) -> bool {
    place < FOREIGN
}

pub(super) fn decode(properties: &BasicProperties, routing_key: &str, redelivered: bool, payload: &[u8]) -> Decoded {
    let empty = BTreeMap::new();
    let table = properties.headers().as_ref().map_or(&empty, FieldTable::inner);
    let (id, place) = match table.get(header::ID) {
        None => (EnvelopeId::Foreign, None),
        Some(value) => identity(value),
    };
    let before = table.get(DELIVERY_COUNT).and_then(number).unwrap_or_else(|| u64::from(redelivered));
    let mut headers = Headers::new();
    for (name, value) in table {
        if !matches!(name.as_str(), header::ID | header::KEY | ORDER | DELIVERY_COUNT | ACQUIRED_COUNT) {
            push(&mut headers, name.as_str(), value);
        }
    }
    if let Some(order) = table.get(ORDER).and_then(raw) {
        headers = reorder(headers, order);
    }
    if id == EnvelopeId::Foreign {
        described(properties, &mut headers);
    }
    let timestamp = properties.timestamp().map(|seconds| seconds.saturating_mul(1000));
    let stored_at = match place {
        Some(place) => place / PER_MS + YEAR_2020,
        None => timestamp.unwrap_or_else(now_ms),
    };
    Decoded {
        id,
        place: place.unwrap_or_else(|| derived_place(properties, routing_key, payload)),
        key: table.get(header::KEY).map(bytes),
        headers,
        deliveries: Deliveries::UpperBound(u32::try_from(before.saturating_add(1)).unwrap_or(u32::MAX)),
        stored_at,
    }
}

/// The id header: ours with its place, or an id that another producer gave, as 16 bytes or as text.
fn identity(value: &AMQPValue) -> (EnvelopeId, Option<u64>) {
    let (id, place) = match value {
        AMQPValue::ByteArray(bytes) if bytes.len() == 16 + PLACE_BYTES => {
            let (id, place) = bytes.as_slice().split_at(16);
            let mut wide = [0; 8];
            wide[8 - PLACE_BYTES..].copy_from_slice(place);
            (MessageId::from_bytes(id), Some(u64::from_be_bytes(wide)))
        }
        value => {
            let id = raw(value)
                .and_then(|bytes| MessageId::from_bytes(bytes).or_else(|| std::str::from_utf8(bytes).ok().and_then(MessageId::from_text)));
            (id, None)
        }
    };
    match id {
        Some(id) => (EnvelopeId::Id(id), place),
        None => (EnvelopeId::Broken, None),
    }
}

/// The same for each hand-over of the same message: from its `message-id`, or else from all it holds.
fn derived_place(properties: &BasicProperties, routing_key: &str, payload: &[u8]) -> u64 {
    let mut hash = Xxh3::new();
    let mut add = |part: &[u8]| {
        hash.update(&(part.len() as u64).to_le_bytes());
        hash.update(part);
    };
    match properties.message_id() {
        Some(id) => add(id.as_str().as_bytes()),
        None => {
            add(routing_key.as_bytes());
            add(payload);
            add(&properties.timestamp().unwrap_or_default().to_le_bytes());
            add(properties.correlation_id().as_ref().map_or("", ShortString::as_str).as_bytes());
            for (name, value) in properties.headers().iter().flatten() {
                if !name.as_str().starts_with("x-") {
                    add(name.as_str().as_bytes());
                    add(&bytes(value));
                }
            }
        }
    }
    FOREIGN | (hash.digest() >> 2)
}

/// What a foreign producer says in AMQP's own properties, as headers of the same names.
fn described(properties: &BasicProperties, headers: &mut Headers) {
    let texts = [
        ("content-type", properties.content_type()),
        ("content-encoding", properties.content_encoding()),
        ("correlation-id", properties.correlation_id()),
        ("reply-to", properties.reply_to()),
        ("message-id", properties.message_id()),
        ("type", properties.kind()),
        ("app-id", properties.app_id()),
    ];
    for (name, text) in texts {
        if let Some(text) = text
            && headers.get(name).is_none()
        {
            headers.push(name, text.as_str().to_owned());
        }
    }
}

fn push(headers: &mut Headers, name: &str, value: &AMQPValue) {
    match value {
        AMQPValue::FieldArray(list) => list.as_slice().iter().for_each(|value| headers.push(name, bytes(value))),
        value => headers.push(name, bytes(value)),
    }
}

/// The headers in the order they were sent in; as they are if `order` does not fit them.
fn reorder(headers: Headers, order: &[u8]) -> Headers {
    let all: Vec<(&str, &Bytes)> = headers.iter().collect();
    let mut starts: Vec<usize> = (0..all.len()).filter(|at| *at == 0 || all[*at].0 != all[*at - 1].0).collect();
    let ends: Vec<usize> = starts.iter().skip(1).copied().chain([all.len()]).collect();
    let wide = starts.len() > 256;
    let mut sorted = Headers::new();
    for number in order.chunks(1 + usize::from(wide)) {
        let name = number.iter().fold(0_usize, |sum, byte| sum << 8 | usize::from(*byte));
        match (starts.get_mut(name), ends.get(name)) {
            (Some(at), Some(end)) if *at < *end => {
                sorted.push(all[*at].0, all[*at].1.clone());
                *at += 1;
            }
            _ => return headers,
        }
    }
    if sorted.len() == all.len() { sorted } else { headers }
}

fn raw(value: &AMQPValue) -> Option<&[u8]> {
    match value {
        AMQPValue::LongString(text) => Some(text.as_bytes()),
        AMQPValue::ByteArray(bytes) => Some(bytes.as_slice()),
        _ => None,
    }
}

fn number(value: &AMQPValue) -> Option<u64> {
    let signed = match value {
        AMQPValue::ShortShortInt(n) => i64::from(*n),
        AMQPValue::ShortShortUInt(n) => i64::from(*n),
        AMQPValue::ShortInt(n) => i64::from(*n),
        AMQPValue::ShortUInt(n) => i64::from(*n),
        AMQPValue::LongInt(n) => i64::from(*n),
        AMQPValue::LongUInt(n) => i64::from(*n),
        AMQPValue::LongLongInt(n) => *n,
        AMQPValue::Timestamp(n) => return Some(*n),
        _ => return None,
    };
    u64::try_from(signed).ok()
}

/// A header's value as bytes: text and bytes as they are, numbers as decimal text, the rest as JSON.
fn bytes(value: &AMQPValue) -> Bytes {
    if let Some(raw) = raw(value) {
        return Bytes::copy_from_slice(raw);
    }
    match json(value) {
        serde_json::Value::Null => Bytes::new(),
        serde_json::Value::String(text) => text.into(),
        other => other.to_string().into(),
    }
}

fn json(value: &AMQPValue) -> serde_json::Value {
    use serde_json::Value;
    match value {
        AMQPValue::Boolean(truth) => Value::from(*truth),
        AMQPValue::Float(n) => Value::from(*n),
        AMQPValue::Double(n) => Value::from(*n),
        AMQPValue::DecimalValue(n) => Value::from(f64::from(n.value) / 10_f64.powi(i32::from(n.scale))),
        AMQPValue::ShortString(text) => Value::from(text.as_str()),
        AMQPValue::LongString(text) => Value::from(text.to_string()),
        AMQPValue::ByteArray(bytes) => Value::from(String::from_utf8_lossy(bytes.as_slice())),
        AMQPValue::FieldArray(list) => list.as_slice().iter().map(json).collect(),
        AMQPValue::FieldTable(table) => table.into_iter().map(|(name, value)| (name.to_string(), json(value))).collect(),
        AMQPValue::Void => Value::Null,
        AMQPValue::ShortShortInt(n) => Value::from(*n),
        AMQPValue::ShortInt(n) => Value::from(*n),
        AMQPValue::LongInt(n) => Value::from(*n),
        AMQPValue::LongLongInt(n) => Value::from(*n),
        other => number(other).map_or(Value::Null, Value::from),
    }
}

#[cfg(test)]
mod tests;
