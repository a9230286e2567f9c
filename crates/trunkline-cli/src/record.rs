//! A recorded message as people read it: one row of a list, or its whole life.

use serde::de::IgnoredAny;
use trunkline::Result;
use trunkline::history::{GroupRecord, Moment, Record, Step};
use trunkline::message::Headers;

use crate::output;

/// The headings of [`row`].
pub const HEADINGS: [&str; 6] = ["id", "produced", "event", "key", "status", "groups"];

/// One line of a list.
pub fn row(record: &Record) -> [String; 6] {
    let groups: Vec<String> = record.groups.iter().map(|group| format!("{} {}", group.group, outcome(group))).collect();
    [
        record.process_id.to_string(),
        output::time(record.produced_at.0),
        record.event.clone(),
        key(record),
        word(&record.status),
        groups.join("\n"),
    ]
}

/// The key as text.
pub fn key(record: &Record) -> String {
    record.key.as_ref().map(|key| String::from_utf8_lossy(&key.0).into_owned()).unwrap_or_default()
}

/// The word of a value that is a word in JSON.
pub fn word(value: &impl serde::Serialize) -> String {
    serde_json::to_value(value).map(|value| output::cell(&value)).unwrap_or_default()
}

fn outcome(group: &GroupRecord) -> String {
    let status = if group.dropped { "dropped".to_owned() } else { word(&group.status) };
    if group.attempts > 1 { format!("{status}, {} attempts", group.attempts) } else { status }
}

/// What happened to a message, one step a row: when, who, what, and for how long.
pub fn life(record: &Record) -> Vec<[String; 4]> {
    let steps = record.life.iter().enumerate().map(|(at, moment)| {
        let (what, took) = match moment.step {
            Some(step) => (verb(step), format!("ran {}", milliseconds(moment.ms))),
            // The first that is no group's is the produce, any other a replay.
            None if at == 0 && record.failure.is_none() => (produced(record), format!("confirmed in {}", milliseconds(moment.ms))),
            None if at == 0 => ("could not be sent".to_owned(), format!("gave up after {}", milliseconds(moment.ms))),
            None => (replayed(record), String::new()),
        };
        let took = if moment.step == Some(Step::Reprocessed) { String::new() } else { took };
        [output::time_ms(moment.at.0), who(moment), with_error(&what, moment.error.as_deref()), took]
    });
    steps.collect()
}

fn who(moment: &Moment) -> String {
    if moment.group.is_empty() { "producer".to_owned() } else { moment.group.clone() }
}

fn produced(record: &Record) -> String {
    record.replay_of.map_or_else(|| "produced".to_owned(), |of| format!("produced, replays {of}"))
}

fn replayed(record: &Record) -> String {
    record.replayed_by.map_or_else(|| "replayed".to_owned(), |by| format!("replayed as {by}"))
}

fn verb(step: Step) -> String {
    let text = match step {
        Step::Delivered => "handled",
        Step::Dropped => "dropped",
        Step::Held => "failed, tried again shortly",
        Step::Waiting => "failed, waits in the lot",
        Step::Dead => "dead-lettered",
        Step::Reprocessed => "handed over again",
    };
    text.to_owned()
}

fn with_error(what: &str, error: Option<&str>) -> String {
    error.and_then(|error| error.lines().next()).map_or_else(|| what.to_owned(), |error| format!("{what}: {error}"))
}

/// A span as people read it: the digits that matter.
pub fn milliseconds(ms: f64) -> String {
    match ms {
        _ if ms < 10.0 => format!("{ms:.1} ms"),
        _ if ms < 1_000.0 => format!("{ms:.0} ms"),
        _ if ms < 60_000.0 => format!("{:.1} s", ms / 1_000.0),
        _ => humantime::format_duration(std::time::Duration::from_secs((ms / 1_000.0) as u64)).to_string(),
    }
}

/// A payload as people read it: JSON indented, else as text, else its size. Indented is all that it is: fields keep their
/// order and numbers their digits, so that it can be edited and put back.
pub fn payload(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if serde_json::from_str::<IgnoredAny>(text).is_ok() => indented(text),
        Ok(text) => text.to_owned(),
        Err(_) => format!("{} bytes, not text", bytes.len()),
    }
}

/// Indents a JSON text.
fn indented(json: &str) -> String {
    let mut out = String::with_capacity(json.len() * 2);
    let mut depth = 0;
    let (mut quoted, mut escaped) = (false, false);
    let mut all = json.chars().peekable();
    while let Some(c) = all.next() {
        if quoted {
            out.push(c);
            (quoted, escaped) = (escaped || c != '"', !escaped && c == '\\');
            continue;
        }
        let line = |out: &mut String, depth: usize| {
            out.push('\n');
            out.extend(std::iter::repeat_n("  ", depth));
        };
        match c {
            '"' => {
                quoted = true;
                out.push(c);
            }
            '{' | '[' => {
                out.push(c);
                while all.next_if(|c| c.is_ascii_whitespace()).is_some() {}
                if let Some(end) = all.next_if(|c| matches!(c, '}' | ']')) {
                    out.push(end);
                } else {
                    depth += 1;
                    line(&mut out, depth);
                }
            }
            '}' | ']' => {
                depth -= 1;
                line(&mut out, depth);
                out.push(c);
            }
            ',' => {
                out.push(c);
                line(&mut out, depth);
            }
            ':' => out.push_str(": "),
            _ if c.is_ascii_whitespace() => {}
            _ => out.push(c),
        }
    }
    out
}

/// Prints headers, if there are any.
///
/// # Errors
/// Nobody reads the output.
pub fn print_headers(headers: &Headers) -> Result<()> {
    if headers.is_empty() {
        return Ok(());
    }
    output::line("\nheaders:")?;
    headers.iter().try_for_each(|(name, value)| {
        let value = std::str::from_utf8(value).map_or_else(|_| format!("{} bytes, not text", value.len()), output::plain);
        output::line(format!("  {}: {value}", output::plain(name)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_keep_the_digits_that_matter() {
        assert_eq!([0.04, 9.96, 250.4, 1_250.0, 3_661_000.0].map(milliseconds), ["0.0 ms", "10.0 ms", "250 ms", "1.2 s", "1h 1m 1s"]);
    }

    #[test]
    fn payloads_that_are_no_json_are_shown_too() {
        assert_eq!(payload(br#"{"a":1}"#), "{\n  \"a\": 1\n}");
        assert_eq!((payload(b"plain"), payload(b"\xff\x00")), ("plain".to_owned(), "2 bytes, not text".to_owned()));
    }

    #[test]
    fn an_indented_payload_is_the_same_payload() {
        let json = r#"{ "z": 1.0,"a":[ ],"deep" : {"n":12345678901234567890123,"t":"a\"b{,}: \\"},"list":[1 ,{}, null]}"#;
        let shown = payload(json.as_bytes());
        assert_eq!(shown.lines().nth(1), Some("  \"z\": 1.0,"), "{shown}");
        assert!(shown.contains("\"a\": [],") && shown.contains("12345678901234567890123") && shown.contains(r#""a\"b{,}: \\""#), "{shown}");
        let value = |text: &str| serde_json::from_str::<serde_json::Value>(text).expect("JSON");
        assert_eq!(value(&shown), value(json));
        assert_eq!(payload(shown.as_bytes()), shown, "nothing to do the second time");
    }

    #[test]
    fn an_error_is_told_in_one_line() {
        assert_eq!(with_error("failed", Some("first\nsecond")), "failed: first");
        assert_eq!(with_error("handled", None), "handled");
    }
}
