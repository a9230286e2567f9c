//! What a store keeps of sessions: the keys tokens are signed with, subjects with their data keys, sessions, and what was
//! taken back.
//!
//! A subject is who sessions are of: a product, a session's tag and an identifier. What identifies it is kept as a keyed
//! digest and as a sealed text; its data key is sealed. Erasing a subject overwrites all three, and nothing that was
//! encrypted with the key can be read again.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::message::Millis;

/// What a key of the workspace's sessions is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SessionKeyUse {
    /// Signing tokens.
    Sign,
    /// Making digests of identifiers.
    Digest,
}

/// A key of the workspace's sessions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionKey {
    /// Names it: a token's `kid`.
    pub id: String,
    /// What it is for.
    pub purpose: SessionKeyUse,
    /// The key, sealed.
    pub sealed: String,
    /// When it was made.
    pub created_at: Millis,
    /// Since another took its place: until when its tokens are verified.
    pub verify_until: Option<Millis>,
}

/// Who sessions are of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// Names it without saying who it is: random.
    pub id: String,
    /// The product.
    pub product: String,
    /// The session definition's tag.
    pub tag: String,
    /// The keyed digest of product and identifier. Empty once it is erased.
    pub digest: Vec<u8>,
    /// The identifier, sealed. Empty once it is erased.
    pub identifier: String,
    /// The data key, sealed. Empty once it is erased.
    pub key: String,
    /// When it was first seen.
    pub created_at: Millis,
}

impl Subject {
    /// Whether its key was destroyed.
    #[must_use]
    pub fn is_erased(&self) -> bool {
        self.key.is_empty()
    }
}

/// A session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionRow {
    /// A UUIDv7 as text.
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
    pub data: Vec<u8>,
    /// When it was started.
    pub started_at: Millis,
    /// When its newest token was made.
    pub refreshed_at: Millis,
    /// Until when its newest token is good.
    pub expires_at: Millis,
    /// Until when it can be refreshed.
    pub refresh_until: Millis,
}

/// The next token of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionRenewal {
    /// The hash of the refresh token that is good from now on.
    pub hash: [u8; 32],
    /// When the token is made.
    pub at: Millis,
    /// Until when the token is good.
    pub expires_at: Millis,
    /// Until when the session can be refreshed.
    pub refresh_until: Millis,
}

/// What came of a refresh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionRefreshed {
    /// It goes on, as it is now.
    Renewed(Box<SessionRow>),
    /// The refresh token had been used before: the session was taken back, with all that came of it.
    Reused,
    /// There is no such refresh token, or its time is over.
    Unknown,
}

/// Which sessions of a product and tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionsOf {
    /// This one.
    Session(String),
    /// Those of a subject, by its digest.
    Subject(Vec<u8>),
    /// All.
    All,
}

/// A user: a subject with its sessions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionUser {
    /// The subject.
    pub subject: Subject,
    /// Its sessions whose token is good now.
    pub active: u64,
    /// When its newest token was made.
    pub last_at: Option<Millis>,
}

/// Something that was taken back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revocation {
    /// Grows.
    pub seq: u64,
    /// The product.
    pub product: String,
    /// The definition's tag.
    pub tag: String,
    /// One session; else all of the tag that were started, or refreshed, no later than `at`.
    pub session: Option<String>,
    /// A subject that was erased.
    pub subject: Option<String>,
    /// When.
    pub at: Millis,
    /// After this no token can be good that it is about.
    pub until: Millis,
}

/// Sessions, as part of [`Store`](super::Store). All calls are for the whole workspace.
#[async_trait]
pub trait SessionStore: Send + Sync {
    /// The keys that sign or verify now, newest first.
    async fn session_keys(&self) -> Result<Vec<SessionKey>>;

    /// Adds a key. With `retire`, those of the same use that are not retired yet verify until then; without it nothing is
    /// done if there is one of the same use already.
    async fn session_key_add(&self, key: &SessionKey, retire: Option<Millis>) -> Result<()>;

    /// The subject of this product, tag and digest: the one there is, else the one given, which is then kept.
    async fn subject_of(&self, fresh: &Subject) -> Result<Subject>;

    /// A subject by its id; erased ones too.
    async fn subject(&self, id: &str) -> Result<Option<Subject>>;

    /// Subjects that are not erased, by their ids, after this one.
    async fn subjects_after(&self, after: &str, limit: usize) -> Result<Vec<Subject>>;

    /// Keeps keys and subjects as they were sealed anew. What was erased meanwhile stays erased.
    async fn session_resealed(&self, keys: Vec<SessionKey>, subjects: Vec<Subject>) -> Result<()>;

    /// The ids of the subjects of a product with this digest, whatever their tag.
    async fn subjects_with(&self, product: &str, digest: &[u8]) -> Result<Vec<String>>;

    /// Keeps a session that begins, with the hash of its refresh token. `false`, and nothing is kept, if its subject was
    /// erased meanwhile.
    async fn session_start(&self, session: &SessionRow, hash: &[u8; 32]) -> Result<bool>;

    /// Exchanges a refresh token, by its hash, for the next one. One that was exchanged before takes its session back.
    async fn session_refresh(&self, product: &str, tag: &str, hash: &[u8; 32], next: SessionRenewal) -> Result<SessionRefreshed>;

    /// Ends sessions; how many there were whose token was good.
    async fn session_revoke(&self, product: &str, tag: &str, which: SessionsOf) -> Result<u64>;

    /// A page of the sessions whose token is good now, newest first, and how many there are.
    async fn session_list(
        &self,
        product: &str,
        tag: &str,
        digest: Option<&[u8]>,
        limit: u64,
        offset: u64,
    ) -> Result<(Vec<SessionRow>, u64)>;

    /// A page of the subjects of a tag, newest first, and how many there are.
    async fn session_users(&self, product: &str, tag: &str, limit: u64, offset: u64) -> Result<(Vec<SessionUser>, u64)>;

    /// Destroys the subject of this digest: overwrites its key, and removes its sessions. Its id and how many sessions ended,
    /// or `None` if there is none.
    async fn session_erase(&self, product: &str, tag: &str, digest: &[u8]) -> Result<Option<(String, u64)>>;

    /// What was taken back since `after`, in order of `seq`.
    async fn session_revocations(&self, after: u64) -> Result<Vec<Revocation>>;
}
