//! How values are written on the command line: durations, times, schedules, headers, JSON from a file or stdin.

use std::io::Read;
use std::time::Duration;

use serde_json::Value;
use trunkline::message::{Millis, millis, now_ms};
use trunkline::{Code, Error, Result, Schedule, Start};

/// A duration: `30s`, `2m`, `1h 30m`, or plain milliseconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    text.parse::<u64>()
        .map(Duration::from_millis)
        .or_else(|_| humantime::parse_duration(text))
        .map_err(|_| "write it like 30s, 2m, 1h 30m, or in plain milliseconds".into())
}

/// A time that lies behind: RFC 3339, milliseconds since 1970, or how long ago (`10m`).
pub fn past(text: &str) -> Result<Millis, String> {
    time(text, |now, by| now.saturating_sub(by))
}

/// A time that lies ahead: RFC 3339, milliseconds since 1970, or how long from now (`10m`).
pub fn future(text: &str) -> Result<Millis, String> {
    time(text, Millis::saturating_add)
}

fn time(text: &str, relative: fn(Millis, u64) -> Millis) -> Result<Millis, String> {
    let text = text.trim();
    if let Ok(ms) = text.parse() {
        return Ok(ms);
    }
    if let Ok(at) = humantime::parse_rfc3339_weak(text).or_else(|_| humantime::parse_rfc3339_weak(&format!("{text}T00:00:00"))) {
        return at.duration_since(std::time::UNIX_EPOCH).map(millis).map_err(|_| "the time lies before 1970".into());
    }
    match humantime::parse_duration(text) {
        Ok(by) => Ok(relative(now_ms(), millis(by))),
        Err(_) => Err("write it like 2026-11-21T12:00:00Z, 2026-11-21, 10m, or in milliseconds since 1970".into()),
    }
}

/// A retry schedule: `1s,5s,30s`, or `none`.
pub fn schedule(text: &str) -> Result<Schedule, String> {
    if matches!(text, "none" | "false" | "never") {
        return Ok(Schedule::never());
    }
    let delays = text.split(',').map(|delay| duration(delay.trim())).collect::<Result<Vec<_>, _>>();
    let delays = delays.map_err(|_| "write it like 1s,5s,30s, or `none` for no second attempt".to_owned())?;
    Ok(Schedule { delays, ..Schedule::default() })
}

/// Where a group starts: `earliest`, `latest`, or a time that lies behind.
pub fn start(text: &str) -> Result<Start, String> {
    match text {
        "earliest" => Ok(Start::Earliest),
        "latest" => Ok(Start::Latest),
        time => past(time).map(Start::Time).map_err(|error| format!("earliest, latest, or a time; {error}")),
    }
}

/// A header: `name=value`.
pub fn header(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write it like name=value".into()),
    }
}

/// A field of a payload: a JSON pointer (`/order/id`) or a path (`order.id`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldPath(String);

impl FieldPath {
    /// Reads it.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "" => Err("write it like /order/id or order.id".into()),
            pointer if pointer.starts_with('/') => Ok(FieldPath(pointer.to_owned())),
            path => Ok(FieldPath(path.split('.').map(|name| format!("/{}", name.replace('~', "~0").replace('/', "~1"))).collect())),
        }
    }

    /// The scalar of that field, as text.
    pub fn of(&self, payload: &Value) -> Option<String> {
        match payload.pointer(&self.0)? {
            Value::String(text) => Some(text.clone()),
            value @ (Value::Number(_) | Value::Bool(_)) => Some(value.to_string()),
            _ => None,
        }
    }

    /// As a JSON pointer.
    pub fn pointer(&self) -> &str {
        &self.0
    }
}

/// The bytes of a file, or of stdin for `-`.
pub fn input(field: &str, from: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read =
        if from == "-" { std::io::stdin().lock().read_to_end(&mut bytes).map(drop) } else { std::fs::read(from).map(|read| bytes = read) };
    let name = if from == "-" { "stdin" } else { from };
    read.map_err(|error| Error::input(field, format!("{name} cannot be read: {error}")).next("check the path, or use `-` for stdin"))?;
    Ok(bytes)
}

/// A JSON (or YAML) document of a file, or of stdin for `-`. Its text never stands in the error: it may hold credentials.
pub fn json_input(field: &str, from: &str) -> Result<Value> {
    let bytes = input(field, from)?;
    serde_json::from_slice(&bytes).map_err(|error| {
        Error::new(Code::InputInvalid, format!("`--{field}` is not valid JSON at line {}, column {}", error.line(), error.column()))
            .field(field)
            .next("check the document with a JSON linter")
    })
}

/// A word of a fixed list, as JSON has it.
pub fn word<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_value(text.into()).map_err(|_| "it is none of the words that the help names".into())
}

/// `ENV=VALUE`.
pub fn by_env(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((env, value)) if !env.is_empty() && !value.is_empty() => Ok((env.to_owned(), value.to_owned())),
        _ => Err("write it like prd=VALUE".into()),
    }
}

/// A document made of `--from-json` and of flags, which win. Flags that were not given say nothing.
pub fn document<const N: usize>(from_json: Option<&str>, flags: [(&str, Option<Value>); N]) -> Result<Value> {
    let mut document = match from_json.map(|from| json_input("from-json", from)).transpose()? {
        None => serde_json::Map::new(),
        Some(Value::Object(document)) => document,
        Some(_) => {
            return Err(Error::input("from-json", "the document must be a JSON object").next("see the command's --help for an example"));
        }
    };
    for (name, value) in flags {
        if let Some(value) = value {
            document.insert(name.to_owned(), value);
        }
    }
    Ok(Value::Object(document))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn durations_and_times() {
        assert_eq!(duration("250"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("1h 30m"), Ok(Duration::from_secs(5_400)));
        assert!(duration("soon").is_err());
        assert_eq!(past("1700000000000"), Ok(1_700_000_000_000));
        assert_eq!(past("1970-01-02"), Ok(86_400_000));
        assert_eq!(past("1970-01-01T00:00:01Z"), Ok(1_000));
        assert!(past("1h").is_ok_and(|at| at < now_ms()) && future("1h").is_ok_and(|at| at > now_ms()));
    }

    #[test]
    fn schedules() {
        assert_eq!(schedule("1s,5s").expect("two").delays, [1, 5].map(Duration::from_secs));
        assert_eq!(schedule("none"), Ok(Schedule::never()));
        assert!(schedule("1s,,").is_err());
    }

    #[test]
    fn fields_by_pointer_and_path() {
        let payload = json!({ "order": { "id": 7, "a/b": "x" }, "list": [{ "k": "v" }] });
        assert_eq!(FieldPath::parse("/order/id").expect("pointer").of(&payload).as_deref(), Some("7"));
        assert_eq!(FieldPath::parse("order.a/b").expect("path").of(&payload).as_deref(), Some("x"));
        assert_eq!(FieldPath::parse("list.0.k").expect("index").of(&payload).as_deref(), Some("v"));
        assert_eq!(FieldPath::parse("order").expect("object").of(&payload), None);
    }
}
