//! How a message is printed.

use base64::Engine as _;
use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;
use trunkline::message::Millis;
use trunkline::sessions::SessionContext;
use trunkline::{Context, Event, Headers, MessageId, Result};

use crate::output;

/// A message as a line of JSON. Its fields are stable.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown<'a> {
    #[serde(rename = "process_id")]
    process_id: MessageId,
    event: &'a Event,
    group: &'a str,
    attempt: u32,
    key: Option<String>,
    headers: &'a Headers,
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<Session>,
    produced_at: Millis,
    /// `text` or `base64`, if the payload is not JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    encoding: Option<&'static str>,
    message: Box<RawValue>,
}

/// Who it was produced for.
#[derive(Debug, Serialize)]
struct Session {
    tag: String,
    id: String,
    identifier: String,
    data: Value,
}

impl From<SessionContext> for Session {
    fn from(context: SessionContext) -> Self {
        let SessionContext { tag, id, identifier, data, .. } = context;
        Session { tag, id, identifier, data }
    }
}

/// Prints a message on one line.
pub(super) fn message(json: bool, payload: &[u8], context: &Context) -> Result<()> {
    if json {
        return output::json_line(&shown(payload, context));
    }
    let mut line = format!("{}  {}", output::time(context.produced_at), context.process_id);
    if let Some(key) = &context.key {
        line.push_str(&format!("  key={}", output::plain(&String::from_utf8_lossy(key))));
    }
    if context.attempt > 1 {
        line.push_str(&format!("  attempt={}", context.attempt));
    }
    output::line(format!("{line}  {}", output::plain(&String::from_utf8_lossy(payload))))
}

fn shown<'a>(payload: &[u8], context: &'a Context) -> Shown<'a> {
    let (encoding, message) = match (raw(payload), std::str::from_utf8(payload)) {
        (Some(json), _) => (None, json),
        (None, Ok(text)) => (Some("text"), quoted(text)),
        (None, Err(_)) => (Some("base64"), quoted(&base64::engine::general_purpose::STANDARD.encode(payload))),
    };
    Shown {
        process_id: context.process_id,
        event: &context.event,
        group: &context.group,
        attempt: context.attempt,
        key: context.key.as_ref().map(|key| String::from_utf8_lossy(key).into_owned()),
        headers: &context.headers,
        session: context.session().map(Session::from),
        produced_at: context.produced_at,
        encoding,
        message,
    }
}

/// The payload as it was written, on one line: in valid JSON a line break can only be white space.
fn raw(payload: &[u8]) -> Option<Box<RawValue>> {
    let text = std::str::from_utf8(payload).ok()?;
    RawValue::from_string(text.replace(['\n', '\r'], " ")).ok()
}

fn quoted(text: &str) -> Box<RawValue> {
    serde_json::to_string(text).and_then(RawValue::from_string).unwrap_or_else(|_| RawValue::NULL.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_keeps_its_spelling_on_one_line() {
        assert_eq!(
            raw(b"{\n \"b\": 1.50,\r\n\"a\": 12345678901234567890123 }").expect("JSON").get(),
            "{  \"b\": 1.50,  \"a\": 12345678901234567890123 }"
        );
        assert!(raw(b"{nope").is_none());
        assert_eq!(quoted("a\"b").get(), r#""a\"b""#);
    }
}
