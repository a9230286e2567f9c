//! A message with its whole life, put together from what was recorded of it.

use std::fmt;

use base64::Engine as _;
use bytes::Bytes;
use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};

use crate::delivery::Position;
use crate::message::{Headers, MessageId, Millis};

use super::row::{HeadersOf, KeyOf, Kind, Row};
use super::{SessionMark, Step};
use crate::store::SessionRef;

/// A time in milliseconds since 1970; RFC 3339 in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(pub Millis);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Beyond the year 9999 there is no such text; a clock that says so is wrong anyway.
        let at = std::time::UNIX_EPOCH + std::time::Duration::from_millis(self.0.min(253_402_300_799_999));
        humantime::format_rfc3339_millis(at).fmt(f)
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Where a message stands; of several groups the worst, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Buried at a group.
    Dead,
    /// Not sent.
    Failed,
    /// An attempt failed; it is tried again.
    Retrying,
    /// Nothing came of it yet.
    Pending,
    /// Handled, or dropped by the handler's word.
    Delivered,
}

/// What happened last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Category {
    /// It was produced, or that failed.
    Produce,
    /// A group worked on it.
    Consume,
    /// It was buried.
    DeadLetter,
    /// It was replayed.
    Replay,
}

/// Bytes that are text most of the time; else `base64:…` in JSON.
#[derive(Clone, PartialEq, Eq)]
pub struct Text(pub Bytes);

impl Serialize for Text {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(&self.0) {
            Ok(text) => serializer.serialize_str(text),
            Err(_) => serializer.collect_str(&format_args!("base64:{}", base64::engine::general_purpose::STANDARD.encode(&self.0))),
        }
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// A payload: a JSON value if it is one, else `{"base64": "…"}`.
#[derive(Clone, PartialEq, Eq)]
pub struct Payload(pub Bytes);

impl Serialize for Payload {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if let Ok(json) = serde_json::from_slice::<&serde_json::value::RawValue>(&self.0) {
            return json.serialize(serializer);
        }
        let mut map = serializer.serialize_map(Some(1))?;
        map.serialize_entry("base64", &base64::engine::general_purpose::STANDARD.encode(&self.0))?;
        map.end()
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// What one group did with the message.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GroupRecord {
    /// The group.
    pub group: String,
    /// The consumer that had it last.
    pub consumer: String,
    /// Where it stands at this group.
    pub status: Status,
    /// How often it was tried.
    pub attempts: u32,
    /// When the last attempt started.
    pub started_at: Time,
    /// When it ended.
    pub settled_at: Time,
    /// From the confirm to the first start.
    pub wait_ms: f64,
    /// How long the last attempt ran.
    pub run_ms: f64,
    /// The last error or reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Acked without success, by the handler's word.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub dropped: bool,
    /// The session that its consumer works with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionRef>,
}

/// One step of the life line.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Moment {
    /// When it was over.
    pub at: Time,
    /// The group; empty for what the producer did.
    pub group: String,
    /// The producer or consumer.
    pub who: String,
    /// What a group did; `None` for a produce or a replay.
    pub step: Option<Step>,
    /// How long it took, in ms.
    pub ms: f64,
    /// The error or reason.
    pub error: Option<String>,
}

/// A message (or event): what it was, and what became of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// The message id.
    #[serde(rename = "process_id")]
    pub process_id: MessageId,
    /// The same.
    pub event_id: MessageId,
    /// The product's tag.
    pub product: String,
    /// The env's slug.
    pub env: String,
    /// The broker's tag.
    pub broker_tag: String,
    /// The topic's short tag.
    pub topic_tag: String,
    /// `brokerTag:topicTag`.
    pub event: String,
    /// As `EMBEDDED`.
    pub provider: String,
    /// The worst of the groups.
    pub status: Status,
    /// What happened last.
    pub category: Category,
    /// The key.
    pub key: Option<Text>,
    /// The user's headers.
    pub headers: Headers,
    /// The payload, where it was kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload: Option<Payload>,
    /// Bytes of the payload, kept or not.
    pub size: u64,
    /// The subject of its session was erased: headers and payload cannot be read any more.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub erased: bool,
    /// The session.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionMark>,
    /// The producer; `None` if no Trunkline produced it.
    pub producer: Option<String>,
    /// When.
    pub produced_at: Time,
    /// The idempotency key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
    /// The message it replays.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replay_of: Option<MessageId>,
    /// The message it was replayed by last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replayed_by: Option<MessageId>,
    /// By name.
    pub groups: Vec<GroupRecord>,
    /// Where it lies on the broker. Not in JSON.
    #[serde(skip)]
    pub position: Option<Position>,
    /// Code and text of why it was not sent. Not in JSON.
    #[serde(skip)]
    pub failure: Option<(String, String)>,
    /// All that happened, in order. Not in JSON.
    #[serde(skip)]
    pub life: Vec<Moment>,
    /// Headers and payload while they are encrypted. Not in JSON.
    #[serde(skip)]
    pub(crate) sealed: Option<Box<Sealed>>,
}

/// Headers and payload of a session's message, as they are kept.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sealed {
    /// Names the key.
    pub(crate) subject: String,
    pub(crate) headers: Bytes,
    pub(crate) payload: Option<Bytes>,
}

impl Sealed {
    /// What of a record is encrypted.
    fn of(row: &Row<'_>) -> Option<Box<Sealed>> {
        let (KeyOf::Stored(subject), HeadersOf::Stored(headers)) = (row.key_of, row.headers) else { return None };
        let (headers, payload) = (Bytes::copy_from_slice(headers), row.payload.map(Bytes::copy_from_slice));
        Some(Box::new(Sealed { subject: subject.into(), headers, payload }))
    }
}

/// Microseconds as milliseconds.
fn ms(micros: u64) -> f64 {
    micros as f64 / 1_000.0
}

impl Record {
    /// Puts the records of one message together; `None` if there are none.
    pub(super) fn assemble(mut rows: Vec<Row<'_>>) -> Option<Record> {
        rows.sort_by_key(|row| (row.ended_us(), row.kind.is_step(), row.attempts));
        let (first, last) = (rows.first()?, rows.last()?);
        // Its produce: the confirmed one, should one have been given up before.
        let produce = rows.iter().find(|row| row.kind == Kind::Produced).or_else(|| rows.iter().rfind(|row| row.kind == Kind::Failed));
        let main = produce.unwrap_or(first);
        let groups = groups(&rows);
        let status = match groups.iter().map(|group| group.status).min() {
            Some(status) => status,
            None if main.kind == Kind::Failed => Status::Failed,
            None => Status::Pending,
        };
        let (broker, topic) = main.place.event.split_once(':').unwrap_or_default();
        let sealed = Sealed::of(main);
        Some(Record {
            process_id: main.id,
            event_id: main.id,
            product: main.place.product.into(),
            env: main.place.env.into(),
            broker_tag: broker.into(),
            topic_tag: topic.into(),
            event: main.place.event.into(),
            provider: main.place.provider.into(),
            status,
            category: category(last.kind),
            key: main.key.or_else(|| rows.iter().find_map(|row| row.key)).map(|key| Text(Bytes::copy_from_slice(key))),
            headers: match main.headers {
                _ if sealed.is_some() => Headers::new(),
                HeadersOf::Live(headers) => headers.clone(),
                HeadersOf::Stored(bytes) => Headers::decode(&Bytes::copy_from_slice(bytes)).unwrap_or_default(),
            },
            payload: main.payload.filter(|_| sealed.is_none()).map(|payload| Payload(Bytes::copy_from_slice(payload))),
            size: main.size,
            erased: false,
            session: main.session.filter(|_| main.kind.is_produce()).map(|[tag, id, identifier]| SessionMark {
                tag: tag.into(),
                id: id.into(),
                identifier: identifier.into(),
            }),
            producer: produce.map(|row| row.who.into()),
            produced_at: Time(if main.kind == Kind::Replayed { main.id.millis() } else { main.at }),
            idempotency_key: main.idempotency_key.map(Into::into),
            replay_of: produce.and_then(|row| row.other),
            replayed_by: rows.iter().rfind(|row| row.kind == Kind::Replayed).and_then(|row| row.other),
            groups,
            position: main.position,
            failure: (main.kind == Kind::Failed).then(|| (main.code.into(), main.text.unwrap_or_default().into())),
            life: rows.iter().map(moment).collect(),
            sealed,
        })
    }
}

fn category(last: Kind) -> Category {
    match last {
        Kind::Produced | Kind::Failed => Category::Produce,
        Kind::Dead => Category::DeadLetter,
        Kind::Replayed => Category::Replay,
        _ => Category::Consume,
    }
}

fn groups(rows: &[Row<'_>]) -> Vec<GroupRecord> {
    let mut names: Vec<&str> = rows.iter().filter(|row| row.kind.is_step()).map(|row| row.group).collect();
    names.sort_unstable();
    names.dedup();
    names.into_iter().filter_map(|name| group(name, rows)).collect()
}

fn group(name: &str, rows: &[Row<'_>]) -> Option<GroupRecord> {
    let steps = || rows.iter().filter(|row| row.kind.is_step() && row.group == name);
    let last = steps().next_back()?;
    let is_done = matches!(last.kind, Kind::Delivered | Kind::Dropped);
    let status = match last.kind {
        Kind::Dead => Status::Dead,
        Kind::Held | Kind::Waiting => Status::Retrying,
        Kind::Reprocessed => Status::Pending,
        _ => Status::Delivered,
    };
    let first = steps().find(|row| row.is_first()).or_else(|| steps().next())?;
    Some(GroupRecord {
        group: name.into(),
        consumer: last.who.into(),
        status,
        // The count is of failures: the run that succeeded comes on top.
        attempts: last.attempts + u32::from(is_done),
        started_at: Time(last.started_at),
        settled_at: Time(last.ended_us() / 1_000),
        wait_ms: ms(first.first_us),
        run_ms: ms(last.run_us),
        error: last.text.or_else(|| steps().rfind(|row| row.text.is_some() && !is_done).and_then(|row| row.text)).map(Into::into),
        dropped: last.kind == Kind::Dropped,
        session: last.session.map(|[tag, id, _]| SessionRef { tag: tag.into(), id: id.into() }),
    })
}

fn moment(row: &Row<'_>) -> Moment {
    let step = match row.kind {
        Kind::Delivered => Some(Step::Delivered),
        Kind::Dropped => Some(Step::Dropped),
        Kind::Held => Some(Step::Held),
        Kind::Waiting => Some(Step::Waiting),
        Kind::Dead => Some(Step::Dead),
        Kind::Reprocessed => Some(Step::Reprocessed),
        Kind::Produced | Kind::Failed | Kind::Replayed => None,
    };
    Moment {
        at: Time(row.ended_us() / 1_000),
        group: row.group.into(),
        who: row.who.into(),
        step,
        ms: ms(if step.is_some() { row.run_us } else { row.first_us }),
        error: row.text.map(Into::into),
    }
}
