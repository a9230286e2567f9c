//! The rows of secrets, access keys, audit, sessions, caches and schedules as records of a copy: as they are stored, with times
//! in ms since 1970. What is sealed stays sealed.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::Value;
use uuid::Uuid;

/// Bytes; base64 in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob(pub Vec<u8>);

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        BASE64.decode(text).map(Blob).map_err(|_| de::Error::custom("it holds no base64"))
    }
}

/// A secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SecretRecord {
    /// What it is sealed for.
    pub id: String,
    /// The product; `None`: every product.
    pub product: Option<String>,
    /// Its name.
    pub key: String,
    /// The envs it is for; empty: every env.
    pub envs: Vec<String>,
    /// The sealed value.
    pub sealed: String,
    /// When it was made.
    pub created_at: i64,
    /// When it was last rotated.
    pub updated_at: i64,
}

/// An access key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AccessKeyRecord {
    /// The public part of its text.
    pub id: String,
    /// The word of its role.
    pub role: String,
    /// What its maker calls it.
    pub name: Option<String>,
    /// SHA-256 of the secret part of its text.
    pub hash: Blob,
    /// When it was made.
    pub created_at: i64,
    /// From when on it opens nothing.
    pub expires_at: Option<i64>,
    /// When it was revoked.
    pub revoked_at: Option<i64>,
}

/// A row of the audit, with the hashes it was written with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditRecord {
    /// Its number.
    pub seq: i64,
    /// When.
    pub at: i64,
    /// Who did it.
    pub actor: String,
    /// What was called.
    pub call: String,
    /// What it was done to.
    pub target: String,
    /// `ok`, or a code.
    pub outcome: String,
    /// The hash of the row before it.
    pub previous: Blob,
    /// Its own hash.
    pub hash: Blob,
}

/// A key of the workspace's sessions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionKeyRecord {
    /// A token's `kid`.
    pub id: String,
    /// `sign` or `digest`.
    pub purpose: String,
    /// The key, sealed.
    pub sealed: String,
    /// When it was made.
    pub created_at: i64,
    /// Until when its tokens are verified, if another took its place.
    pub verify_until: Option<i64>,
}

/// A subject with its data key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SubjectRecord {
    /// Names it.
    pub id: String,
    /// The product.
    pub product: String,
    /// The session definition's tag.
    pub tag: String,
    /// The keyed digest; `None` once it is erased.
    pub digest: Option<Blob>,
    /// The identifier, sealed; empty once it is erased.
    pub identifier: String,
    /// The data key, sealed; empty once it is erased.
    pub key: String,
    /// When it was first seen.
    pub created_at: i64,
}

/// A session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionRecord {
    /// Its id.
    pub id: String,
    /// The product.
    pub product: String,
    /// The definition's tag.
    pub tag: String,
    /// Its subject's id.
    pub subject: String,
    /// The env it was started for.
    pub env: Option<String>,
    /// Its data, sealed with the subject's key.
    pub data: Blob,
    /// When it was started.
    pub started_at: i64,
    /// When its newest token was made.
    pub refreshed_at: i64,
    /// Until when its newest token is good.
    pub expires_at: i64,
    /// Until when it can be refreshed.
    pub refresh_until: i64,
}

/// Something that was taken back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RevocationRecord {
    /// Its number.
    pub seq: i64,
    /// The product.
    pub product: String,
    /// The definition's tag.
    pub tag: String,
    /// One session; else all.
    pub session: Option<String>,
    /// A subject that was erased.
    pub subject: Option<String>,
    /// When.
    pub at: i64,
    /// Until when it is told.
    pub until: i64,
}

/// A message under a cache: its first result, or, without `sent_at`, one whose outcome is not known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CacheRecord {
    /// The cache.
    pub scope: String,
    /// Hash of the message.
    pub hash: Blob,
    /// Its env.
    pub env: String,
    /// Its event.
    pub event: String,
    /// The message that was, or was to be, sent.
    pub id: Uuid,
    /// For how long a result is kept, in ms.
    pub expiry: i64,
    /// When it was confirmed.
    pub sent_at: Option<i64>,
    /// Until when it is remembered.
    pub expires_at: i64,
}

/// A schedule. Its claim is not part of it: with `firing_at`, that due time is fired again under the id it had.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ScheduleRow {
    /// Unique.
    pub id: Uuid,
    /// The product.
    pub product: String,
    /// The env.
    pub env: String,
    /// Broker and topic.
    pub event: String,
    /// The word of its state.
    pub state: String,
    /// When it fires.
    pub timing: Value,
    /// How the headers are encoded: 1 is [`crate::message::Headers::encode`].
    pub format: i64,
    /// The key of what it produces.
    pub key: Option<Blob>,
    /// The headers of it.
    pub headers: Blob,
    /// The payload of it.
    pub payload: Blob,
    /// The cache it is produced under.
    pub cache: Option<String>,
    /// When it is due next.
    pub next_at: Option<i64>,
    /// Not before this, if the last firing failed.
    pub retry_at: Option<i64>,
    /// When it may be claimed.
    pub due_at: Option<i64>,
    /// The due time that was being fired.
    pub firing_at: Option<i64>,
    /// How many due times were fired.
    pub fired: i64,
    /// How many were passed over.
    pub missed: i64,
    /// How often the due time at hand failed.
    pub failures: i64,
    /// Why it failed last.
    pub error: Option<String>,
    /// The due time that was fired last.
    pub last_at: Option<i64>,
    /// The message of it.
    pub last_id: Option<Uuid>,
    /// When it was made.
    pub created_at: i64,
    /// When it last changed.
    pub updated_at: i64,
}
