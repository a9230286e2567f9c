//! Sessions: who a message is produced for, verified, recorded, and erased on demand.
//!
//! A session is defined in the catalogue ([`Catalog::create_session`](crate::Catalog::create_session)): how long it lasts, and
//! which field of its data says who it is of. [`Sessions::start`] gives a token for it, which a produce or a consume takes;
//! the user's context then travels with the message, and the history is searched by it.
//!
//! ```
//! use serde_json::json;
//! use trunkline::Trunkline;
//!
//! # tokio::runtime::Runtime::new().unwrap().block_on(async {
//! # let dir = tempfile::tempdir().unwrap();
//! # let path = dir.path().join("data").display().to_string();
//! let trunkline = Trunkline::open(&path).await?;
//! trunkline.catalog().create_session(Some("my-product"), json!({
//!     "name": "User", "tag": "user", "selector": "$Session{userId}", "expiry": 7, "period": "days",
//!     "schema": { "userId": "u-1", "email": "ann@example.org" }
//! })).await?;
//! let sessions = trunkline.sessions("my-product");
//! let started = sessions.start("user", json!({ "userId": "u-42" })).await?;
//! assert!(sessions.verify("user", &started.token).await?.valid);
//! sessions.erase("user", "u-42").await?;
//! assert!(!sessions.verify("user", &started.token).await?.valid);
//! # trunkline.close(std::time::Duration::from_secs(5)).await;
//! # Ok::<_, trunkline::Error>(()) }).unwrap();
//! ```
//!
//! What the store keeps of a session's messages (payload, headers and context, in the history, the lot and dead letters) is
//! encrypted with a data key of the session's subject. [`Sessions::erase`] destroys that key.

mod context;
mod erase;
mod gate;
mod given;
mod hs256;
mod life;
mod records;
#[cfg(test)]
mod tests;
mod token;
mod vault;

use std::fmt;
use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;

pub use context::SessionContext;
pub(crate) use gate::{Gate, Stamp, Verified};
pub use given::Session;
pub(crate) use vault::{SubjectKey, TAG, Vault};

use crate::error::Result;
use crate::history::Time;
use crate::inner::Inner;
use crate::trunkline::Trunkline;

/// The sessions of a product.
#[derive(Debug, Clone)]
pub struct Sessions {
    inner: Arc<Inner>,
    product: Arc<str>,
    env: Option<Arc<str>>,
}

impl Trunkline {
    /// The sessions of a product.
    #[must_use]
    pub fn sessions(&self, product: &str) -> Sessions {
        Sessions { inner: self.0.clone(), product: product.into(), env: None }
    }
}

impl Sessions {
    /// Notes the env that sessions are started for. It is shown, and nothing else: a session is good in all envs.
    #[must_use]
    pub fn env(self, env: &str) -> Self {
        Sessions { env: Some(env.into()), ..self }
    }

    pub(crate) fn of(inner: &Arc<Inner>, product: Arc<str>) -> Sessions {
        Sessions { inner: inner.clone(), product, env: None }
    }

    fn gate(&self) -> &Gate {
        &self.inner.sessions
    }

    /// Verifies a session that a call names.
    pub(crate) async fn check(&self, session: &Session) -> Result<Arc<Verified>> {
        let snapshot = self.inner.catalog.snapshot();
        let known = &snapshot.product(&self.product)?.sessions;
        let verified = self.gate().verify(&self.product, session).await?;
        // A definition that was removed takes its tokens with it.
        if known.contains_key(verified.context.tag.as_str()) { Ok(verified) } else { Err(gate::invalid("revoked")) }
    }
}

/// A session that was started, or refreshed. `Debug` shows neither token.
#[derive(Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Started {
    /// Its id; a refresh keeps it.
    pub session_id: String,
    /// `tag:jwt`, for produce and consume.
    pub token: String,
    /// Good once, for the next token.
    pub refresh_token: String,
    /// Until when the token is good.
    pub expires_at: Time,
}

impl fmt::Debug for Started {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Started").field("session_id", &self.session_id).field("expires_at", &self.expires_at).finish_non_exhaustive()
    }
}

/// Whether a token is good, and what it says.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Verification {
    /// Whether it is good.
    pub valid: bool,
    /// The data the session was started with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<Value>,
    /// The session's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_id: Option<String>,
    /// Until when it is good.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Time>,
}

/// Which sessions to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Revoke {
    /// The one of this id.
    Session(String),
    /// All of this identifier.
    Identifier(String),
}

/// What a revocation came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Revoked {
    /// Sessions that ended and whose token was good until then.
    pub revoked: u64,
}

/// A session whose token is good now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ActiveSession {
    /// Its id.
    pub session_id: String,
    /// Its definition's tag.
    pub tag: String,
    /// Who it is of.
    pub identifier: String,
    /// The env it was started for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env: Option<String>,
    /// When it was started.
    pub started_at: Time,
    /// When its newest token was made.
    pub refreshed_at: Time,
    /// Until when that token is good.
    pub expires_at: Time,
}

/// A page of sessions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ActiveSessions {
    /// The sessions, newest first.
    pub sessions: Vec<ActiveSession>,
    /// How many there are.
    pub total: u64,
    /// The page, from 1.
    pub page: u64,
    /// Sessions on a page.
    pub limit: u64,
}

/// Somebody who had sessions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct User {
    /// Who it is.
    pub identifier: String,
    /// Sessions whose token is good now.
    pub active: u64,
    /// When the first session was started.
    pub first_at: Time,
    /// When the newest token was made, as long as that session is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_at: Option<Time>,
}

/// A page of users.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Users {
    /// The users, newest first.
    pub users: Vec<User>,
    /// How many there are.
    pub total: u64,
    /// The page, from 1.
    pub page: u64,
    /// Users on a page.
    pub limit: u64,
    /// How many pages there are.
    pub total_pages: u64,
}

/// What an erasure came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Erased {
    /// Whether there was somebody to erase.
    pub erased: bool,
    /// Sessions that ended with it.
    pub sessions: u64,
}
