//! Session definitions: how long a session of a product lasts, and which field of its data says who it is of.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Catalog;
use super::input::{SessionInput, given};
use super::product::first;
use super::snapshot::{missing, put, session_path};
use crate::access::Call;
use crate::error::{Code, Error, Result};
use crate::event::check_tag;
use crate::message::Millis;
use crate::store::{DocChange, DocKind};

/// The longest a session may last: ten years.
const LONGEST: Duration = Duration::from_secs(3_650 * 86_400);

/// The unit of a definition's expiry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Period {
    /// Seconds.
    Seconds,
    /// Minutes.
    Minutes,
    /// Hours.
    Hours,
    /// Days.
    Days,
}

/// A session definition.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionDoc {
    /// Its tag.
    pub tag: String,
    /// Its display name.
    pub name: String,
    /// What it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The product it belongs to.
    pub product: String,
    /// `$Session{field}`: the field of a session's data that says who it is of; `$Session{user.id}` for one inside another.
    pub selector: String,
    /// How many periods a token is good for.
    pub expiry: u64,
    /// The unit of `expiry`.
    pub period: Period,
    /// A sample of a session's data.
    pub schema: Value,
    /// When it was made.
    pub created_at: Millis,
    /// When it last changed.
    pub updated_at: Millis,
}

impl SessionDoc {
    /// How long a token of it is good for.
    #[must_use]
    pub fn lifetime(&self) -> Duration {
        lifetime(self.expiry, self.period)
    }

    /// The path of the selector's field: `user.id`.
    #[must_use]
    pub fn field(&self) -> &str {
        field_of(&self.selector).unwrap_or_default()
    }

    /// The identifier that these data give: the selector's field, a text, a number or a boolean.
    #[must_use]
    pub fn identifier(&self, data: &Value) -> Option<String> {
        identifier(self.field(), data)
    }
}

/// The field of a selector, if it is one.
pub(crate) fn field_of(selector: &str) -> Option<&str> {
    let field = selector.strip_prefix("$Session{")?.strip_suffix('}')?;
    let is_name = |name: &str| !name.is_empty() && !name.contains(['{', '}', '$']) && !name.chars().any(char::is_whitespace);
    field.split('.').all(is_name).then_some(field)
}

fn identifier(field: &str, data: &Value) -> Option<String> {
    match field.split('.').try_fold(data, |value, name| value.get(name))? {
        Value::String(text) if !text.is_empty() => Some(text.clone()),
        value @ (Value::Number(_) | Value::Bool(_)) => Some(value.to_string()),
        _ => None,
    }
}

fn lifetime(expiry: u64, period: Period) -> Duration {
    let unit = match period {
        Period::Seconds => 1,
        Period::Minutes => 60,
        Period::Hours => 3_600,
        Period::Days => 86_400,
    };
    Duration::from_secs(expiry.saturating_mul(unit))
}

/// The outcome of an update of a session definition.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SessionUpdate {
    /// The definition as it is now.
    #[serde(flatten)]
    pub session: Arc<SessionDoc>,
    /// Whether anything changed.
    #[serde(skip)]
    pub changed: bool,
}

impl Catalog {
    /// Defines a session by `{ name, tag, description?, selector, expiry, period, schema }`: `selector` is `$Session{field}`,
    /// `period` one of `seconds`, `minutes`, `hours`, `days`, `schema` a sample of the data, which has the selector's field.
    /// The first create of anything makes its product.
    ///
    /// # Errors
    /// `INPUT_INVALID`, `ALREADY_EXISTS`, `STORE_FAILED`.
    pub async fn create_session(&self, product: Option<&str>, input: Value) -> Result<Arc<SessionDoc>> {
        let input = SessionInput::create(product, &input)?;
        let product = match &input.product {
            Some(product) => product.clone(),
            None => self.product_or_only(None)?,
        };
        let now = self.docs.now();
        let fresh = input.fresh(&product, now)?;
        check(&fresh)?;
        self.change(Call::SessionDefine, &session_path(&product, &fresh.tag), |snapshot| {
            if snapshot.session(&product, &fresh.tag).is_ok() {
                let message = format!("session '{}' of product '{product}' exists already", fresh.tag);
                return Err(Error::new(Code::AlreadyExists, message).field("tag").next("update it instead, or choose another tag"));
            }
            let mut changes = first(snapshot, &product, now)?;
            changes.push(put(DocKind::Session, session_path(&product, &fresh.tag), &fresh)?);
            Ok((Arc::new(fresh.clone()), changes))
        })
        .await
    }

    /// Changes a definition. Tokens that were given out keep the time they were given; a given `schema` replaces the old one.
    ///
    /// # Errors
    /// `INPUT_INVALID`, `PRODUCT_NOT_FOUND`, `SESSION_NOT_FOUND`, `STORE_FAILED`.
    pub async fn update_session(&self, product: Option<&str>, tag: &str, patch: Value) -> Result<SessionUpdate> {
        check_tag("tag", tag)?;
        let patch = SessionInput::update(product, &patch)?;
        if patch.tag.as_deref().is_some_and(|given| given != tag) {
            return Err(Error::input("tag", "a session's tag is fixed"));
        }
        let product = self.product_or_only(patch.product.as_deref())?;
        let now = self.docs.now();
        self.change(Call::SessionDefine, &session_path(&product, tag), |snapshot| {
            let old = snapshot.session(&product, tag)?;
            let mut next = patch.over(old);
            check(&next)?;
            if next == **old {
                return Ok((SessionUpdate { session: old.clone(), changed: false }, Vec::new()));
            }
            next.updated_at = now;
            let change = put(DocKind::Session, session_path(&product, tag), &next)?;
            Ok((SessionUpdate { session: Arc::new(next), changed: true }, vec![change]))
        })
        .await
    }

    /// One definition, or `None`.
    ///
    /// # Errors
    /// `INPUT_INVALID` for a malformed tag; `PRODUCT_NOT_FOUND`.
    pub fn fetch_session(&self, product: &str, tag: &str) -> Result<Option<Arc<SessionDoc>>> {
        check_tag("product", product)?;
        check_tag("tag", tag)?;
        Ok(self.snapshot().product(product)?.sessions.get(tag).cloned())
    }

    /// All definitions of a product, by tag.
    ///
    /// # Errors
    /// `INPUT_INVALID`, `PRODUCT_NOT_FOUND`.
    pub fn list_sessions(&self, product: &str) -> Result<Vec<Arc<SessionDoc>>> {
        check_tag("product", product)?;
        Ok(self.snapshot().product(product)?.sessions.values().cloned().collect())
    }

    /// Removes a definition. Its tokens are no longer valid; what was recorded with them stays.
    ///
    /// # Errors
    /// `INPUT_INVALID`, `PRODUCT_NOT_FOUND`, `SESSION_NOT_FOUND`, `STORE_FAILED`.
    pub async fn delete_session(&self, product: &str, tag: &str) -> Result<Arc<SessionDoc>> {
        check_tag("product", product)?;
        check_tag("tag", tag)?;
        self.change(Call::SessionDefine, &session_path(product, tag), |snapshot| {
            let old = snapshot.session(product, tag)?.clone();
            Ok((old, vec![DocChange::Remove(DocKind::Session, session_path(product, tag))]))
        })
        .await
    }

    /// The definition of a tag, for a call that needs it.
    pub(crate) fn session(&self, product: &str, tag: &str) -> Result<Arc<SessionDoc>> {
        given(Some(tag), "tag")?;
        self.snapshot().session(product, tag).cloned()
    }
}

/// What no single field can say.
fn check(doc: &SessionDoc) -> Result<()> {
    if doc.lifetime() > LONGEST {
        return Err(Error::input("expiry", "`expiry` must not be longer than ten years (3650 days)"));
    }
    if doc.identifier(&doc.schema).is_none() {
        let message = format!("`schema` must have the selector's field '{}', as a text, a number or a boolean", doc.field());
        return Err(Error::input("schema", message).next("add the field to the sample, or name another one in `selector`"));
    }
    Ok(())
}

impl super::Snapshot {
    pub(crate) fn session(&self, product: &str, tag: &str) -> Result<&Arc<SessionDoc>> {
        let node = self.product(product)?;
        node.sessions.get(tag).ok_or_else(|| {
            let message = format!("session '{tag}' does not exist in product '{product}'");
            missing(Code::SessionNotFound, &message, tag, node.sessions.keys().map(AsRef::as_ref))
                .field("tag")
                .next(format!("define it with `trunkline sessions define {tag} --product {product} …`"))
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_selector_names_a_field() {
        assert_eq!(field_of("$Session{userId}"), Some("userId"));
        assert_eq!(field_of("$Session{user.id}"), Some("user.id"));
        for bad in ["userId", "$Session{}", "$Session{a b}", "$Session{a..b}", "Session{a}", "$Session{a", "$Session{a}}", "$session{a}"] {
            assert_eq!(field_of(bad), None, "{bad}");
        }
    }

    #[test]
    fn an_identifier_is_a_scalar() {
        let data = json!({ "user": { "id": 42, "name": "" }, "ok": true, "list": [1] });
        assert_eq!(identifier("user.id", &data).as_deref(), Some("42"));
        assert_eq!(identifier("ok", &data).as_deref(), Some("true"));
        for none in ["user", "user.name", "list", "other", "user.id.x"] {
            assert_eq!(identifier(none, &data), None, "{none}");
        }
    }
}
