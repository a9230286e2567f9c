//! A message: payload, key, headers and its id.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_128;

use crate::error::{Code, Error, Result};

/// Milliseconds since 1970 in UTC: the unit of every time that is stored.
pub type Millis = u64;

/// The wall clock in milliseconds.
#[must_use]
pub fn now_ms() -> Millis {
    millis(crate::clock::wall())
}

/// A duration in whole milliseconds, saturating.
#[must_use]
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The `process_id` of a message: a UUIDv7, or a UUIDv8 with the same leading milliseconds where it is derived.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MessageId(pub Uuid);

impl MessageId {
    /// A new id of this moment.
    #[must_use]
    pub fn now() -> Self {
        Self::now_at().0
    }

    /// A new id of this moment, and the moment.
    pub(crate) fn now_at() -> (Self, Millis) {
        let now = crate::clock::wall();
        let mut random: [u8; 10] = rand::random();
        // RFC 9562, method 3: the 12 bits behind the milliseconds are the fraction of the millisecond, so that ids made
        // one after the other sort nearly always that way, without a lock that all threads would share.
        let fraction = (u64::from(now.subsec_nanos() % 1_000_000) * 4_096 / 1_000_000) as u16;
        random[..2].copy_from_slice(&fraction.to_be_bytes());
        let at = millis(now);
        (MessageId(uuid::Builder::from_unix_timestamp_millis(at, &random).into_uuid()), at)
    }

    /// The id that always comes out of the same time and parts: of a schedule's firing, or of a foreign message's position.
    #[must_use]
    pub fn derived(at: Millis, parts: &[&[u8]]) -> Self {
        let mut joined = Vec::with_capacity(parts.iter().map(|part| part.len() + 8).sum());
        for part in parts {
            joined.extend_from_slice(&(part.len() as u64).to_le_bytes());
            joined.extend_from_slice(part);
        }
        let mut bytes = xxh3_128(&joined).to_be_bytes();
        bytes[..6].copy_from_slice(&at.to_be_bytes()[2..]);
        MessageId(Uuid::new_v8(bytes))
    }

    /// The milliseconds the id starts with.
    #[must_use]
    pub fn millis(self) -> Millis {
        let b = self.0.as_bytes();
        u64::from_be_bytes([0, 0, b[0], b[1], b[2], b[3], b[4], b[5]])
    }

    /// The 16 bytes as they travel where the broker carries bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// The id of 16 bytes, if they are a UUID of version 7 or 8.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let uuid = Uuid::from_bytes(bytes.try_into().ok()?);
        matches!(uuid.get_version_num(), 7 | 8).then_some(MessageId(uuid))
    }

    /// The 22 characters that travel where the broker carries text only.
    #[must_use]
    pub fn to_text(self) -> String {
        URL_SAFE_NO_PAD.encode(self.as_bytes())
    }

    /// The id of [`MessageId::to_text`].
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        Self::from_bytes(&URL_SAFE_NO_PAD.decode(text).ok()?)
    }
}

impl FromStr for MessageId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Uuid::try_parse(text).ok().and_then(|uuid| Self::from_bytes(uuid.as_bytes())).ok_or_else(|| {
            Error::new(Code::MessageNotFound, "a message id is a UUID of version 7 or 8")
                .field("eventId")
                .next("list ids with `trunkline messages query`")
        })
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Headers: an ordered list of names with bytes, a name may stand more than once.
///
/// Names starting with `trunkline-` belong to Trunkline and are refused from users.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Headers(Vec<(Box<str>, Bytes)>);

impl Headers {
    /// No headers; allocates nothing.
    #[must_use]
    pub const fn new() -> Self {
        Headers(Vec::new())
    }

    /// Appends one.
    pub fn push(&mut self, name: impl Into<Box<str>>, value: impl Into<Bytes>) {
        self.0.push((name.into(), value.into()));
    }

    /// Replaces all of that name by one.
    pub fn set(&mut self, name: &str, value: impl Into<Bytes>) {
        self.remove(name);
        self.push(name, value);
    }

    /// Removes all of that name.
    pub fn remove(&mut self, name: &str) {
        self.0.retain(|(n, _)| &**n != name);
    }

    /// The first of that name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Bytes> {
        self.0.iter().find(|(n, _)| &**n == name).map(|(_, value)| value)
    }

    /// The first of that name, if it is UTF-8.
    #[must_use]
    pub fn get_str(&self, name: &str) -> Option<&str> {
        self.get(name).and_then(|value| std::str::from_utf8(value).ok())
    }

    /// All, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Bytes)> {
        self.0.iter().map(|(name, value)| (&**name, value))
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Bytes of all names and values.
    #[must_use]
    pub fn size(&self) -> usize {
        self.0.iter().map(|(name, value)| name.len() + value.len()).sum()
    }

    /// As one run of bytes: `u16` count, then `u16` length and name, `u32` length and value, little-endian.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&u16::try_from(self.0.len()).unwrap_or(u16::MAX).to_le_bytes());
        for (name, value) in self.0.iter().take(usize::from(u16::MAX)) {
            out.extend_from_slice(&u16::try_from(name.len()).unwrap_or(u16::MAX).to_le_bytes());
            out.extend_from_slice(&name.as_bytes()[..name.len().min(usize::from(u16::MAX))]);
            out.extend_from_slice(&u32::try_from(value.len()).unwrap_or(u32::MAX).to_le_bytes());
            out.extend_from_slice(value);
        }
    }

    /// The headers of [`Headers::encode`]; `None` if the bytes are not that. Values share `bytes`.
    #[must_use]
    pub fn decode(bytes: &Bytes) -> Option<Self> {
        let mut at = 0;
        let mut take = |n: usize| {
            let end = at + n;
            let part = (end <= bytes.len()).then(|| bytes.slice(at..end));
            at = end;
            part
        };
        let count = u16::from_le_bytes(take(2)?.as_ref().try_into().ok()?);
        let mut list = Vec::with_capacity(usize::from(count).min(64));
        for _ in 0..count {
            let n = u16::from_le_bytes(take(2)?.as_ref().try_into().ok()?);
            let name = take(usize::from(n))?;
            let n = u32::from_le_bytes(take(4)?.as_ref().try_into().ok()?);
            list.push((std::str::from_utf8(&name).ok()?.into(), take(n as usize)?));
        }
        (at == bytes.len()).then_some(Headers(list))
    }
}

impl<N: Into<Box<str>>, V: Into<Bytes>> FromIterator<(N, V)> for Headers {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(iter: I) -> Self {
        Headers(iter.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.0.iter().map(|(name, value)| (name, value.len()))).finish()
    }
}

/// JSON: an object of texts; bytes that are not UTF-8 stand as `base64:…`, a name that comes twice holds a list.
impl Serialize for Headers {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap;
        let text = |value: &Bytes| {
            std::str::from_utf8(value)
                .map_or_else(|_| format!("base64:{}", base64::engine::general_purpose::STANDARD.encode(value)), str::to_owned)
        };
        let mut map = serializer.serialize_map(None)?;
        for (at, (name, value)) in self.0.iter().enumerate() {
            if self.0[..at].iter().any(|(n, _)| n == name) {
                continue;
            }
            let all: Vec<String> = self.0.iter().filter(|(n, _)| n == name).map(|(_, value)| text(value)).collect();
            if all.len() == 1 { map.serialize_entry(name, &text(value))? } else { map.serialize_entry(name, &all)? }
        }
        map.end()
    }
}

/// The names of the headers that are Trunkline's own. Only set when they say something.
pub mod header {
    /// All of Trunkline's own headers start so.
    pub const PREFIX: &str = "trunkline-";
    /// The message id: 16 bytes, or 22 characters where the broker has text only.
    pub const ID: &str = "trunkline-id";
    /// The key, on brokers without a key of their own.
    pub const KEY: &str = "trunkline-key";
    /// Content type, if it is not JSON.
    pub const CONTENT_TYPE: &str = "trunkline-content-type";
    /// The id of the message this one replays.
    pub const REPLAY_OF: &str = "trunkline-replay-of";
    /// The idempotency key it was published with.
    pub const IDEMPOTENCY_KEY: &str = "trunkline-idempotency-key";
    /// When it expires, in milliseconds since 1970, as decimal text.
    pub const EXPIRES_AT: &str = "trunkline-expires-at";
    /// Recorded failures so far, as decimal text (on copies in the lot).
    pub const ATTEMPT: &str = "trunkline-attempt";
    /// Not to be handled before, in milliseconds since 1970, as decimal text (on copies in the lot).
    pub const NOT_BEFORE: &str = "trunkline-not-before";
    /// First produced at, in milliseconds since 1970, as decimal text (on copies in the lot).
    pub const PRODUCED_AT: &str = "trunkline-produced-at";
    /// When it was buried, in milliseconds since 1970, as decimal text (on dead letters).
    pub const DIED_AT: &str = "trunkline-died-at";
    /// Why it was buried (on dead letters).
    pub const REASON: &str = "trunkline-reason";
    /// The last error's text (on copies in the lot).
    pub const ERROR: &str = "trunkline-error";
    /// The session's context, as JSON.
    pub const SESSION: &str = "trunkline-session";
    /// Stands alone on an entry of the lot whose content was erased.
    pub const ERASED: &str = "trunkline-erased";
    /// W3C trace context.
    pub const TRACEPARENT: &str = "traceparent";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_keep_their_time_and_travel() {
        let id = MessageId::now();
        assert!(id.millis().abs_diff(now_ms()) < 1000);
        assert_eq!(MessageId::from_text(&id.to_text()), Some(id));
        assert_eq!(id.to_text().len(), 22);
        let derived = MessageId::derived(1_700_000_000_123, &[b"topic", b"3", b"77"]);
        assert_eq!(derived.millis(), 1_700_000_000_123);
        assert_eq!(derived, MessageId::derived(1_700_000_000_123, &[b"topic", b"3", b"77"]));
        assert_ne!(derived, MessageId::derived(1_700_000_000_123, &[b"topic3", b"", b"77"]));
        assert!("event-123".parse::<MessageId>().is_err());
    }

    #[test]
    fn headers_survive_their_bytes() {
        let headers: Headers =
            [("a", &b"1"[..]), ("b", b"\xff"), ("a", b"")].into_iter().map(|(n, v)| (n, Bytes::copy_from_slice(v))).collect();
        let mut out = Vec::new();
        headers.encode(&mut out);
        assert_eq!(Headers::decode(&Bytes::from(out.clone())), Some(headers));
        for cut in 0..out.len() {
            assert_eq!(Headers::decode(&Bytes::copy_from_slice(&out[..cut])), None);
        }
    }
}
