//! JetStream's API: questions and answers in JSON over subjects, as its documentation (ADR-1 and the ones after it) says.
//!
//! Only what is used here. Unknown fields of a stream's config are kept, so that an update changes nothing else.

use std::time::Duration;

use async_nats::{HeaderMap, Subject};
use bytes::Bytes;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::error::{self, ApiError};
use super::link::{Link, Missed};
use crate::error::{Code, Error, Result};

/// How long the server may take to answer: its disk may be slow. A dead connection is noticed before.
pub(super) const WITHIN: Duration = Duration::from_secs(15);

/// Why a call has no answer of the kind that was asked for.
#[derive(Debug)]
pub(super) enum Refused {
    /// The server's own words.
    Api(ApiError),
    /// No answer, or one that cannot be read.
    Error(Error),
}

impl Refused {
    pub(super) fn is(&self, err_code: u32) -> bool {
        matches!(self, Refused::Api(error) if error.err_code == err_code)
    }

    pub(super) fn into_error(self, doing: &str) -> Error {
        match self {
            Refused::Api(error) => error.into_error(doing),
            Refused::Error(error) => error,
        }
    }
}

/// A stream.
#[derive(Debug, Deserialize)]
pub(super) struct StreamInfo {
    pub(super) config: Map<String, Value>,
    #[serde(default)]
    pub(super) state: StreamState,
    #[serde(default)]
    pub(super) did_create: bool,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct StreamState {
    #[serde(default)]
    pub(super) first_seq: u64,
    #[serde(default)]
    pub(super) last_seq: u64,
}

impl StreamInfo {
    pub(super) fn text(&self, name: &str) -> &str {
        self.config.get(name).and_then(Value::as_str).unwrap_or_default()
    }

    pub(super) fn number(&self, name: &str) -> i64 {
        self.config.get(name).and_then(Value::as_i64).unwrap_or(0)
    }

    pub(super) fn flag(&self, name: &str) -> bool {
        self.config.get(name).and_then(Value::as_bool).unwrap_or(false)
    }

    pub(super) fn subjects(&self) -> impl Iterator<Item = &str> {
        self.config.get("subjects").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
    }

    pub(super) fn metadata(&self, name: &str) -> Option<&str> {
        self.config.get("metadata")?.get(name)?.as_str()
    }
}

/// A consumer.
#[derive(Debug, Deserialize)]
pub(super) struct ConsumerInfo {
    #[serde(default)]
    pub(super) name: String,
    /// Names this incarnation: a consumer made again has another.
    #[serde(default)]
    pub(super) created: String,
    #[serde(default)]
    pub(super) config: ConsumerConfig,
    #[serde(default)]
    pub(super) delivered: Sequences,
    #[serde(default)]
    pub(super) ack_floor: Sequences,
    #[serde(default)]
    pub(super) num_ack_pending: u64,
    #[serde(default)]
    pub(super) num_pending: u64,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct ConsumerConfig {
    #[serde(default)]
    pub(super) ack_policy: String,
    #[serde(default)]
    pub(super) deliver_subject: Option<String>,
    /// Nanoseconds.
    #[serde(default)]
    pub(super) ack_wait: u64,
    #[serde(default)]
    pub(super) max_ack_pending: i64,
    #[serde(default)]
    pub(super) max_deliver: i64,
    #[serde(default)]
    pub(super) filter_subject: Option<String>,
    #[serde(default)]
    pub(super) priority_policy: Option<String>,
}

#[derive(Debug, Default, Clone, Copy, Deserialize)]
pub(super) struct Sequences {
    #[serde(default)]
    pub(super) consumer_seq: u64,
    #[serde(default)]
    pub(super) stream_seq: u64,
}

/// A message as `STREAM.MSG.GET` gives it.
#[derive(Debug, Deserialize)]
pub(super) struct RawMessage {
    pub(super) seq: u64,
    #[serde(default)]
    pub(super) data: String,
    #[serde(default)]
    pub(super) time: String,
}

/// What every answer may be.
#[derive(Deserialize)]
struct Failure {
    error: Option<ApiError>,
}

/// One call: the last part of its subject, and its body.
async fn call<T: DeserializeOwned>(link: &Link, tail: &str, body: &Value) -> Result<T, Refused> {
    let subject = format!("$JS.API.{tail}").into();
    let body = if body.is_null() { Bytes::new() } else { body.to_string().into() };
    let answer = link.request(&subject, body, WITHIN).await.map_err(|missed| {
        Refused::Error(match missed {
            // JetStream itself serves these subjects, so nobody there means that it is off.
            Missed::NoResponders => error::no_jetstream(),
            other => other.into_error("asking JetStream", &subject),
        })
    })?;
    if let Ok(Failure { error: Some(error) }) = serde_json::from_slice(&answer.payload) {
        return Err(Refused::Api(error));
    }
    serde_json::from_slice(&answer.payload).map_err(|e| {
        let what = format!("the answer to {tail} cannot be read: line {} column {}", e.line(), e.column());
        Refused::Error(Error::new(Code::SubscribeFailed, what))
    })
}

pub(super) async fn account(link: &Link) -> Result<Value, Refused> {
    call(link, "INFO", &Value::Null).await
}

pub(super) async fn stream_info(link: &Link, stream: &str) -> Result<Option<StreamInfo>, Refused> {
    absent(call(link, &format!("STREAM.INFO.{stream}"), &Value::Null).await, error::STREAM_NOT_FOUND)
}

pub(super) async fn stream_create(link: &Link, stream: &str, config: &Value) -> Result<StreamInfo, Refused> {
    call(link, &format!("STREAM.CREATE.{stream}"), config).await
}

pub(super) async fn stream_update(link: &Link, stream: &str, config: &Map<String, Value>) -> Result<StreamInfo, Refused> {
    call(link, &format!("STREAM.UPDATE.{stream}"), &Value::Object(config.clone())).await
}

/// `true` if there was one.
pub(super) async fn stream_delete(link: &Link, stream: &str) -> Result<bool, Refused> {
    let gone: Option<Value> = absent(call(link, &format!("STREAM.DELETE.{stream}"), &Value::Null).await, error::STREAM_NOT_FOUND)?;
    Ok(gone.is_some())
}

/// Removes the messages of a subject.
pub(super) async fn stream_purge(link: &Link, stream: &str, subject: &str) -> Result<(), Refused> {
    let purged = call(link, &format!("STREAM.PURGE.{stream}"), &json!({ "filter": subject })).await;
    absent::<Value>(purged, error::STREAM_NOT_FOUND).map(drop)
}

/// The streams that listen to a subject.
pub(super) async fn streams_of(link: &Link, subject: &str) -> Result<Vec<String>, Refused> {
    #[derive(Deserialize)]
    struct Names {
        #[serde(default)]
        streams: Option<Vec<String>>,
    }
    let names: Names = call(link, "STREAM.NAMES", &json!({ "subject": subject })).await?;
    Ok(names.streams.unwrap_or_default())
}

/// The last message of a subject.
pub(super) async fn last_message(link: &Link, stream: &str, subject: &str) -> Result<Option<RawMessage>, Refused> {
    get(link, stream, json!({ "last_by_subj": subject })).await
}

/// Writes the next message of a subject whose last one is `revision` (0: there is none); `false` if another has written
/// since.
pub(super) async fn replace(link: &Link, subject: &Subject, revision: u64, body: Vec<u8>, within: Duration, doing: &str) -> Result<bool> {
    let mut headers = HeaderMap::new();
    headers.insert(async_nats::header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, revision.to_string());
    let answer = link.request_with(subject, Some(headers), body.into(), within).await;
    let answer = answer.map_err(|missed| missed.into_error(doing, subject))?;
    match serde_json::from_slice::<Failure>(&answer.payload) {
        Ok(Failure { error: None }) => Ok(true),
        Ok(Failure { error: Some(error) }) if error.is_conflict() => Ok(false),
        Ok(Failure { error: Some(error) }) => Err(error.into_error(doing)),
        Err(_) => Err(Error::new(Code::SubscribeFailed, format!("{doing}: the answer cannot be read"))),
    }
}

/// The first message of a subject at or after a sequence.
pub(super) async fn next_message(link: &Link, stream: &str, subject: &str, seq: u64) -> Result<Option<RawMessage>, Refused> {
    get(link, stream, json!({ "seq": seq, "next_by_subj": subject })).await
}

async fn get(link: &Link, stream: &str, what: Value) -> Result<Option<RawMessage>, Refused> {
    #[derive(Deserialize)]
    struct Got {
        message: RawMessage,
    }
    let got: Option<Got> = absent(call(link, &format!("STREAM.MSG.GET.{stream}"), &what).await, error::NO_MESSAGE)?;
    Ok(got.map(|got| got.message))
}

pub(super) async fn consumer_info(link: &Link, stream: &str, consumer: &str) -> Result<Option<ConsumerInfo>, Refused> {
    absent(call(link, &format!("CONSUMER.INFO.{stream}.{consumer}"), &Value::Null).await, error::CONSUMER_NOT_FOUND)
}

/// The names of all consumers of a stream.
pub(super) async fn consumer_names(link: &Link, stream: &str) -> Result<Vec<String>, Refused> {
    #[derive(Deserialize)]
    struct Names {
        #[serde(default)]
        total: usize,
        #[serde(default)]
        consumers: Option<Vec<String>>,
    }
    let mut all = Vec::new();
    loop {
        let asked = call(link, &format!("CONSUMER.NAMES.{stream}"), &json!({ "offset": all.len() })).await;
        let Some(Names { total, consumers }) = absent(asked, error::STREAM_NOT_FOUND)? else { return Ok(all) };
        let page = consumers.unwrap_or_default();
        let last = page.is_empty();
        all.extend(page);
        if last || all.len() >= total {
            return Ok(all);
        }
    }
}

/// Makes a consumer that is not there yet; one of the same config is left as it is.
pub(super) async fn consumer_create(link: &Link, stream: &str, config: Value) -> Result<ConsumerInfo, Refused> {
    let name = config.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
    let body = json!({ "stream_name": stream, "config": config, "action": "create" });
    call(link, &format!("CONSUMER.CREATE.{stream}.{name}"), &body).await
}

/// `true` if there was one.
pub(super) async fn consumer_delete(link: &Link, stream: &str, consumer: &str) -> Result<bool, Refused> {
    match call::<Value>(link, &format!("CONSUMER.DELETE.{stream}.{consumer}"), &Value::Null).await {
        Ok(_) => Ok(true),
        Err(refused) if refused.is(error::CONSUMER_NOT_FOUND) || refused.is(error::STREAM_NOT_FOUND) => Ok(false),
        Err(refused) => Err(refused),
    }
}

/// Takes the pin from whoever has it.
pub(super) async fn consumer_unpin(link: &Link, stream: &str, consumer: &str, group: &str) -> Result<(), Refused> {
    call::<Value>(link, &format!("CONSUMER.UNPIN.{stream}.{consumer}"), &json!({ "group": group })).await.map(drop)
}

fn absent<T>(answer: Result<T, Refused>, err_code: u32) -> Result<Option<T>, Refused> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(refused) if refused.is(err_code) => Ok(None),
        Err(refused) => Err(refused),
    }
}
