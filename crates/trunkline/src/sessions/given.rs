//! A session as a call names it: the spellings of a token with its tag or its session's id.

use std::fmt;

use serde_json::Value;

use crate::config::fields::{Field, INPUT, Kind, is_absent};
use crate::error::Result;
use crate::secret::Secret;

/// A session as a produce or a consume names it. `Debug` does not show it.
///
/// ```
/// use trunkline::sessions::Session;
/// let all = [
///     Session::new("user", "eyJ…"),          // { tag, token }
///     Session::from("user:eyJ…"),            // tag:jwt, as a start gives it
///     Session::from("0199…-…:eyJ…"),         // sessionId:jwt
///     Session::from("0199…-…:user:eyJ…"),    // sessionId:tag:jwt
/// ];
/// assert!(all.iter().all(|session| !format!("{session:?}").contains("eyJ")));
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Session {
    tag: Option<String>,
    token: Secret,
}

const FIELDS: &[Field] = &[Field::new("tag", Kind::Text).required(), Field::new("token", Kind::Text).required()];

impl Session {
    /// A tag and a token; the token may carry its tag in front.
    pub fn new(tag: impl Into<String>, token: impl Into<String>) -> Self {
        Session { tag: Some(tag.into()), token: Secret::new(token) }
    }

    /// The session of a call's JSON: a text or `{ tag, token }`; `None` for `null`, `''` and `{}`.
    ///
    /// # Errors
    /// `INPUT_INVALID` for any other type, and for a missing or unknown field.
    pub fn read(value: &Value) -> Result<Option<Session>> {
        if is_absent(value) {
            return Ok(None);
        }
        if let Value::String(text) = value {
            return Ok(Some(Session::from(text.as_str())));
        }
        let map = INPUT.object("session", FIELDS, value)?;
        let text = |name: &str| map.get(name).and_then(Value::as_str).unwrap_or_default();
        Ok(Some(Session::new(text("tag"), text("token"))))
    }

    /// The JWT, and what it has to agree with: names that stand before it.
    pub(super) fn parts(&self) -> Option<Parts<'_>> {
        let mut parts = self.token.expose().rsplit(':');
        let jwt = parts.next()?;
        let (inner, outer) = (parts.next(), parts.next());
        // A token alone does not say what it is meant for.
        if parts.next().is_some() || (self.tag.is_none() && inner.is_none()) {
            return None;
        }
        Some(Parts { jwt, tag: self.tag.as_deref(), inner, outer })
    }
}

/// What a session's text is made of.
#[derive(Clone, Copy)]
pub(super) struct Parts<'a> {
    pub(super) jwt: &'a str,
    tag: Option<&'a str>,
    inner: Option<&'a str>,
    outer: Option<&'a str>,
}

impl Parts<'_> {
    /// Whether everything before the JWT agrees with what it says of itself: `id:tag:jwt`, or one of the two.
    pub(super) fn agree(&self, tag: &str, id: &str) -> bool {
        let names = match (self.outer, self.inner) {
            (Some(outer), inner) => outer == id && inner == Some(tag),
            (None, Some(name)) => name == tag || name == id,
            (None, None) => true,
        };
        names && self.tag.is_none_or(|given| given == tag)
    }
}

impl From<&str> for Session {
    fn from(text: &str) -> Self {
        Session { tag: None, token: Secret::new(text) }
    }
}

impl From<String> for Session {
    fn from(text: String) -> Self {
        Session { tag: None, token: Secret::new(text) }
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("tag", &self.tag).field("token", &self.token).finish()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_spelling_is_taken_and_has_to_agree() {
        let agrees = |session: Session| session.parts().is_some_and(|parts| parts.jwt == "a.b.c" && parts.agree("user", "id-1"));
        for text in ["user:a.b.c", "id-1:a.b.c", "id-1:user:a.b.c"] {
            assert!(agrees(text.into()), "{text}");
        }
        for text in ["a.b.c", "", ":a.b.c", "admin:a.b.c", "user:id-1:a.b.c", "id-2:user:a.b.c", "x:id-1:user:a.b.c", "user:a.b.c:"] {
            assert!(!agrees(text.into()), "{text}");
        }
        assert!(agrees(Session::new("user", "a.b.c")) && agrees(Session::new("user", "user:a.b.c")));
        assert!(agrees(Session::new("user", "id-1:a.b.c")) && !agrees(Session::new("admin", "user:a.b.c")));
    }

    #[test]
    fn json_is_read_as_the_calls_say() {
        assert_eq!(Session::read(&json!({})).ok(), Some(None));
        assert_eq!(Session::read(&json!("user:t")).ok().flatten(), Some("user:t".into()));
        assert_eq!(Session::read(&json!({ "tag": "user", "token": "t" })).ok().flatten(), Some(Session::new("user", "t")));
        for bad in [json!(3), json!({ "tag": "user" }), json!({ "tag": "user", "tokn": "hunter2" })] {
            let error = Session::read(&bad).expect_err("refused");
            assert!(error.code() == crate::Code::InputInvalid && !format!("{error:?}").contains("hunter2"), "{error:?}");
        }
    }
}
