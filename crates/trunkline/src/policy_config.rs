//! The options that decide how a topic is handled, as they are written: durations as `30s` or in plain milliseconds,
//! `retry: false`, `dedupe: true`. Parsed once, stored and shown in the humane form.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Value, json};

use crate::config::fields::{Field, INPUT, Kind, join};
use crate::error::{Error, Result};
use crate::event::Event;
use crate::message::millis;

/// The longest duration that is taken: ten years. What is longer is a mistake of the unit.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 86_400);

/// Reads a duration: a whole number of milliseconds, or a text like `30s`, `2m`, `1h 30m`.
///
/// # Errors
/// `INPUT_INVALID` naming `path`.
pub fn duration(path: &str, value: &Value) -> Result<Duration> {
    let read = match value {
        Value::Number(n) => n.as_u64().map(Duration::from_millis),
        Value::String(text) => humantime::parse_duration(text.trim()).ok(),
        _ => None,
    };
    match read {
        Some(duration) if duration <= LONGEST => Ok(duration),
        Some(_) => Err(Error::input(path, format!("`{path}` is longer than ten years; plain numbers are milliseconds"))),
        None => Err(INPUT.wrong(path, "milliseconds or a duration like '30s'", value)),
    }
}

/// A duration as people write it: `2m`, `1h 30m`, `250ms`.
#[must_use]
pub fn humane(duration: Duration) -> String {
    humantime::format_duration(Duration::from_millis(millis(duration))).to_string()
}

/// When a failed delivery is tried again. No delays means no second attempt, written `false`.
#[derive(Debug, Clone, PartialEq)]
pub struct Retry {
    /// The nominal wait after each failure; one run more than there are waits.
    pub delays: Vec<Duration>,
    /// Each wait is moved by up to this share, up or down (0 to 1).
    pub jitter: f64,
}

impl Default for Retry {
    /// 1 s, 5 s, 30 s, 2 m, 10 m, 30 m, 2 h, 6 h, each ± 20 %.
    fn default() -> Self {
        Retry { delays: [1, 5, 30, 120, 600, 1_800, 7_200, 21_600].map(Duration::from_secs).to_vec(), jitter: JITTER }
    }
}

const JITTER: f64 = 0.2;
const RETRY: &[Field] = &[Field::new("delays", Kind::Any).required(), Field::new("jitter", Kind::Ratio)];

impl Retry {
    /// No second attempt.
    #[must_use]
    pub fn never() -> Self {
        Retry { delays: Vec::new(), jitter: 0.0 }
    }

    /// Reads `false` or `{ delays, jitter? }`.
    ///
    /// # Errors
    /// `INPUT_INVALID` naming the field.
    pub fn read(path: &str, value: &Value) -> Result<Self> {
        match value {
            Value::Bool(false) => Ok(Retry::never()),
            Value::Object(_) => {
                let map = INPUT.object(path, RETRY, value)?;
                let path = join(path, "delays");
                let Some(Value::Array(delays)) = map.get("delays") else {
                    return Err(INPUT.wrong(&path, "a list of durations", map.get("delays").unwrap_or(&Value::Null)));
                };
                let delays = delays.iter().enumerate().map(|(i, delay)| duration(&format!("{path}[{i}]"), delay)).collect::<Result<_>>()?;
                Ok(Retry { delays, jitter: map.get("jitter").and_then(Value::as_f64).unwrap_or(JITTER) })
            }
            _ => Err(INPUT.wrong(path, "false or { delays, jitter? }", value)),
        }
    }

    /// As it is written.
    #[must_use]
    pub fn to_value(&self) -> Value {
        if self.delays.is_empty() {
            return Value::Bool(false);
        }
        json!({ "delays": self.delays.iter().map(|delay| humane(*delay)).collect::<Vec<_>>(), "jitter": self.jitter })
    }
}

/// What dedupe does while the store cannot be asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnStoreDown {
    /// Messages go on, perhaps twice.
    #[default]
    Open,
    /// The consumer waits.
    Closed,
}

/// Whether a group skips a message it has handled before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dedupe {
    /// It does not.
    Off,
    /// It does.
    On {
        /// How long a handled message is remembered (default 24 h).
        window: Duration,
        /// While the store is down (default open).
        on_store_down: OnStoreDown,
    },
}

const DEDUPE_WINDOW: Duration = Duration::from_secs(24 * 3_600);
const DEDUPE: &[Field] = &[Field::new("window", Kind::Duration), Field::new("onStoreDown", Kind::Word(&["open", "closed"]))];

impl Dedupe {
    /// Reads a boolean or `{ window?, onStoreDown? }`.
    ///
    /// # Errors
    /// `INPUT_INVALID` naming the field.
    pub fn read(path: &str, value: &Value) -> Result<Self> {
        let on = |window, on_store_down| Dedupe::On { window, on_store_down };
        match value {
            Value::Bool(false) => Ok(Dedupe::Off),
            Value::Bool(true) => Ok(on(DEDUPE_WINDOW, OnStoreDown::Open)),
            Value::Object(_) => {
                let map = INPUT.object(path, DEDUPE, value)?;
                let window = map.get("window").map(|window| duration(&join(path, "window"), window)).transpose()?;
                let closed = map.get("onStoreDown").is_some_and(|word| word == "closed");
                Ok(on(window.unwrap_or(DEDUPE_WINDOW), if closed { OnStoreDown::Closed } else { OnStoreDown::Open }))
            }
            _ => Err(INPUT.wrong(path, "true, false or { window?, onStoreDown? }", value)),
        }
    }

    /// As it is written.
    #[must_use]
    pub fn to_value(&self) -> Value {
        match self {
            Dedupe::Off => Value::Bool(false),
            Dedupe::On { window, on_store_down } => json!({ "window": humane(*window), "onStoreDown": on_store_down }),
        }
    }
}

/// How much is kept: of a topic's history, or of the embedded log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Retention {
    /// At most this old.
    pub age: Option<Duration>,
    /// At most this many bytes.
    pub bytes: Option<u64>,
}

const RETENTION: &[Field] = &[Field::new("age", Kind::Duration), Field::new("bytes", Kind::Int(1, i64::MAX))];

impl Retention {
    /// Reads `{ age?, bytes? }`.
    ///
    /// # Errors
    /// `INPUT_INVALID` naming the field.
    pub fn read(path: &str, value: &Value) -> Result<Self> {
        let map = INPUT.object(path, RETENTION, value)?;
        let age = map.get("age").map(|age| duration(&join(path, "age"), age)).transpose()?;
        Ok(Retention { age, bytes: map.get("bytes").and_then(Value::as_u64) })
    }

    /// As it is written.
    #[must_use]
    pub fn to_value(&self) -> Value {
        let mut map = serde_json::Map::new();
        map.extend(self.age.map(|age| ("age".to_owned(), Value::from(humane(age)))));
        map.extend(self.bytes.map(|bytes| ("bytes".to_owned(), Value::from(bytes))));
        Value::Object(map)
    }
}

/// What a topic gives its consumers where they say nothing themselves.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Defaults {
    /// When a failed delivery is tried again.
    pub retry: Option<Retry>,
    /// How long a handler may run.
    pub timeout: Option<Duration>,
    /// How many handlers run at once in one consumer.
    pub concurrency: Option<u32>,
    /// Whether repeated messages are skipped.
    pub dedupe: Option<Dedupe>,
    /// The topic that dead letters are copied to.
    pub dead_letter: Option<Event>,
}

/// The largest `concurrency`.
pub const CONCURRENCY_MAX: u32 = 10_000;

const DEAD_LETTER: &[Field] = &[Field::new("topic", Kind::Text).required()];
const DEFAULTS: &[Field] = &[
    Field::new("retry", Kind::By(|path, value| Retry::read(path, value).map(drop))),
    Field::new("timeout", Kind::Duration),
    Field::new("concurrency", Kind::Int(1, CONCURRENCY_MAX as i64)),
    Field::new("dedupe", Kind::By(|path, value| Dedupe::read(path, value).map(drop))),
    Field::new("deadLetter", Kind::Object(DEAD_LETTER)),
];

impl Defaults {
    /// Reads `{ retry?, timeout?, concurrency?, dedupe?, deadLetter? }`.
    ///
    /// # Errors
    /// `INPUT_INVALID` naming the field; `EVENT_INVALID` for a malformed `deadLetter.topic`.
    pub fn read(path: &str, value: &Value) -> Result<Self> {
        let map = INPUT.object(path, DEFAULTS, value)?;
        let at = |name| map.get(name).map(|value| (join(path, name), value));
        Ok(Defaults {
            retry: at("retry").map(|(path, value)| Retry::read(&path, value)).transpose()?,
            timeout: at("timeout").map(|(path, value)| duration(&path, value)).transpose()?,
            concurrency: at("concurrency").and_then(|(_, n)| n.as_u64()).and_then(|n| u32::try_from(n).ok()),
            dedupe: at("dedupe").map(|(path, value)| Dedupe::read(&path, value)).transpose()?,
            dead_letter: match at("deadLetter") {
                Some((path, dead)) => {
                    Some(dead["topic"].as_str().unwrap_or_default().parse::<Event>().map_err(|error| error.field(&join(&path, "topic")))?)
                }
                None => None,
            },
        })
    }

    /// As it is written.
    #[must_use]
    pub fn to_value(&self) -> Value {
        let mut map = serde_json::Map::new();
        let mut put = |name: &str, value: Option<Value>| map.extend(value.map(|value| (name.to_owned(), value)));
        put("retry", self.retry.as_ref().map(Retry::to_value));
        put("timeout", self.timeout.map(|timeout| Value::from(humane(timeout))));
        put("concurrency", self.concurrency.map(Value::from));
        put("dedupe", self.dedupe.as_ref().map(Dedupe::to_value));
        put("deadLetter", self.dead_letter.as_ref().map(|event| json!({ "topic": event })));
        Value::Object(map)
    }

    /// Whether nothing is set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Defaults::default()
    }
}

/// Serde by way of `read` and `to_value`, so that there is one reading of each option.
macro_rules! as_written {
    ($($type:ty),*) => {$(
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                self.to_value().serialize(serializer)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                <$type>::read("", &Value::deserialize(deserializer)?).map_err(|error| serde::de::Error::custom(error.message()))
            }
        }
    )*};
}

as_written!(Retry, Dedupe, Retention, Defaults);

/// For `#[serde(deserialize_with = …)]` on an optional duration.
pub(crate) fn maybe_duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::Null => Ok(None),
        value => duration("", &value).map(Some).map_err(|error| serde::de::Error::custom(error.message())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    #[test]
    fn durations() {
        for (given, expected) in
            [(json!(0), 0), (json!(1500), 1_500), (json!("30s"), 30_000), (json!("1h 30m"), 5_400_000), (json!("250ms"), 250)]
        {
            assert_eq!(duration("d", &given).expect("valid"), Duration::from_millis(expected), "{given}");
        }
        for bad in [json!(-1), json!(1.5), json!("30"), json!("soon"), json!(true), json!("900y"), json!(u64::MAX)] {
            let error = duration("d", &bad).expect_err("bad");
            assert_eq!((error.code(), error.detail_str("field")), (Code::InputInvalid, Some("d")), "{bad}");
        }
    }

    #[test]
    fn retry_reads_and_writes_the_same() {
        for (given, written) in [
            (json!(false), json!(false)),
            (json!({"delays": []}), json!(false)),
            (json!({"delays": [1000, "30s"], "jitter": 0}), json!({"delays": ["1s", "30s"], "jitter": 0.0})),
            (json!({"delays": ["2m"]}), json!({"delays": ["2m"], "jitter": 0.2})),
        ] {
            let retry = Retry::read("retry", &given).expect("valid");
            assert_eq!(retry.to_value(), written);
            let again = Retry::read("retry", &written).expect("written");
            assert_eq!(again.delays, retry.delays);
        }
        for (bad, field) in [
            (json!(true), "retry"),
            (json!({}), "retry.delays"),
            (json!({"delays": 3}), "retry.delays"),
            (json!({"delays": ["x"]}), "retry.delays[0]"),
            (json!({"delays": [1], "jitter": 2}), "retry.jitter"),
            (json!({"delay": [1]}), "retry.delay"),
        ] {
            assert_eq!(Retry::read("retry", &bad).expect_err("bad").detail_str("field"), Some(field), "{bad}");
        }
        assert_eq!(Retry::default().delays.len(), 8);
    }

    #[test]
    fn defaults_read_and_write_the_same() {
        let given = json!({"retry": false, "timeout": 30000, "concurrency": 4, "dedupe": true, "deadLetter": {"topic": "a:b"}});
        let defaults = Defaults::read("defaults", &given).expect("valid");
        let written = json!({"retry": false, "timeout": "30s", "concurrency": 4,
            "dedupe": {"window": "1day", "onStoreDown": "open"}, "deadLetter": {"topic": "a:b"}});
        assert_eq!(defaults.to_value(), written);
        assert_eq!(serde_json::from_value::<Defaults>(written).expect("written"), defaults);
        for (bad, field) in [
            (json!({"concurrency": 0}), "defaults.concurrency"),
            (json!({"dedupe": {"onStoreDown": "maybe"}}), "defaults.dedupe.onStoreDown"),
            (json!({"deadLetter": {}, "retries": 1}), "defaults.retries"),
            (json!({"deadLetter": {"topic": "nope"}}), "defaults.deadLetter.topic"),
        ] {
            assert_eq!(Defaults::read("defaults", &bad).expect_err("bad").detail_str("field"), Some(field), "{bad}");
        }
    }

    #[test]
    fn retention() {
        let read = Retention::read("retention", &json!({"age": "7days", "bytes": 1024})).expect("valid");
        assert_eq!(read.to_value(), json!({"age": "7days", "bytes": 1024}));
        assert!(Retention::read("retention", &json!({"bytes": 0})).is_err());
    }
}
