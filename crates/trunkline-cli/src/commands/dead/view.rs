//! A dead letter as it is shown: the fields of a record and what it died of.

use serde_json::{Value, json};
use trunkline::history::{Payload, Text, Time};
use trunkline::store::LotEntry;

use crate::output;

/// As JSON, with the payload if it is wanted.
pub fn json_of(entry: &LotEntry, with_payload: bool) -> Value {
    let message = &entry.message;
    let event = &entry.address.event;
    let mut view = json!({
        "process_id": message.id,
        "eventId": message.id,
        "product": &*entry.address.product,
        "env": &*entry.address.env,
        "event": event,
        "brokerTag": event.broker(),
        "topicTag": event.topic(),
        "group": &*entry.group,
        "key": message.key.clone().map(Text),
        "headers": if entry.is_erased() { json!({}) } else { json!(message.headers) },
        "size": message.payload.len(),
        "status": "dead",
        "reason": entry.reason,
        "error": entry.error,
        "attempts": entry.attempts,
        "producedAt": Time(message.produced_at),
        "diedAt": entry.died_at.map(Time),
    });
    if entry.is_erased() {
        view["erased"] = true.into();
    } else if with_payload {
        view["payload"] = json!(Payload(message.payload.clone()));
    }
    view
}

/// The headings of [`row`].
pub const HEADINGS: [&str; 7] = ["id", "died", "event", "group", "key", "attempts", "error"];

/// One line of a list.
pub fn row(entry: &LotEntry) -> [String; 7] {
    [
        entry.message.id.to_string(),
        entry.died_at.map(output::time).unwrap_or_default(),
        entry.address.event.to_string(),
        entry.group.to_string(),
        entry.message.key.as_deref().map(|key| String::from_utf8_lossy(key).into_owned()).unwrap_or_default(),
        entry.attempts.to_string(),
        what(entry),
    ]
}

/// The error's first line, or the reason where there is none.
pub fn what(entry: &LotEntry) -> String {
    let error = entry.error.as_deref().and_then(|error| error.lines().next());
    error.or(entry.reason.as_deref()).unwrap_or_default().to_owned()
}
