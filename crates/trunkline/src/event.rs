//! Tags and events: the names people give to things, and the address `brokerTag:topicTag`.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::{Code, Error, Result};

/// The longest tag or env slug, in characters.
pub(crate) const TAG_MAX: usize = 64;

/// Whether `text` is a tag: 1 to 64 of ASCII letters, digits, `-`, `_`, `.`, the first a letter or digit.
#[must_use]
pub(crate) fn is_tag(text: &str) -> bool {
    let bytes = text.as_bytes();
    (1..=TAG_MAX).contains(&bytes.len())
        && bytes[0].is_ascii_alphanumeric()
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// Checks a tag or slug given in `field`.
///
/// # Errors
/// `INPUT_INVALID` naming the field.
pub(crate) fn check_tag(field: &str, text: &str) -> Result<()> {
    if is_tag(text) {
        return Ok(());
    }
    Err(Error::input(
        field,
        format!(
            "`{field}` must be 1 to {TAG_MAX} of letters, digits, '-', '_', '.', starting with a letter or digit; got {} characters",
            text.chars().count()
        ),
    ))
}

/// The address of a topic: `brokerTag:topicTag`.
///
/// ```
/// let event: trunkline::Event = "order-events:order-created".parse()?;
/// assert_eq!((event.broker(), event.topic()), ("order-events", "order-created"));
/// # Ok::<(), trunkline::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Event {
    text: Arc<str>,
    colon: usize,
}

impl Event {
    /// The event of a broker's tag and a topic's short tag.
    ///
    /// # Errors
    /// `EVENT_INVALID` if one of them is not a tag.
    pub fn new(broker: &str, topic: &str) -> Result<Self> {
        format!("{broker}:{topic}").parse()
    }

    /// The broker's tag.
    #[must_use]
    pub fn broker(&self) -> &str {
        &self.text[..self.colon]
    }

    /// The topic's short tag.
    #[must_use]
    pub fn topic(&self) -> &str {
        &self.text[self.colon + 1..]
    }

    /// The event as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl FromStr for Event {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.split_once(':') {
            Some((broker, topic)) if is_tag(broker) && is_tag(topic) => Ok(Event { text: text.into(), colon: broker.len() }),
            _ => Err(Error::new(Code::EventInvalid, "the event must be `brokerTag:topicTag`, each of letters, digits, '-', '_', '.'")
                .field("event")
                .next("write it like order-events:order-created")),
        }
    }
}

impl TryFrom<String> for Event {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Event> for String {
    fn from(event: Event) -> String {
        event.text.as_ref().to_owned()
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_events_are_refused() {
        for bad in ["", ":", "a", "a:", ":b", "a:b:c", "a b:c", "-a:b", "a:.b", "ä:b", "..."] {
            assert_eq!(bad.parse::<Event>().expect_err(bad).code(), Code::EventInvalid, "{bad}");
        }
    }

    #[test]
    fn tags_have_a_length() {
        assert!(is_tag(&"a".repeat(64)) && !is_tag(&"a".repeat(65)));
    }
}
