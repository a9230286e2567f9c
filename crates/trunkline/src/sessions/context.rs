//! What a message says of the session it was produced with.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::message::{Headers, header};

/// The user's context of a session: stamped on every message produced with it, shown to its consumers, and recorded.
///
/// It travels in a header of the message: whoever can write to the broker past Trunkline can write any context.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SessionContext {
    /// The session definition's tag.
    pub tag: String,
    /// The session's id.
    pub id: String,
    /// Who it is of: the value of the selector's field.
    pub identifier: String,
    /// The data it was started with.
    pub data: Value,
    /// Names the data key its messages are stored with.
    pub(crate) subject: String,
}

impl SessionContext {
    /// The context among a message's headers.
    pub(crate) fn of(headers: &Headers) -> Option<SessionContext> {
        serde_json::from_slice(headers.get(header::SESSION)?).ok()
    }
}
