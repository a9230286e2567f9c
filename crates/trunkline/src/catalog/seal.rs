//! Credentials at rest: sensitive fields of a config are sealed before they reach the store, and a `***` that comes back
//! with an update stands for what is stored.

use std::collections::HashMap;
use std::fmt::Debug;

use serde::Deserialize as _;
use serde_json::{Value, json};

use super::record::BrokerDoc;
use crate::config::sensitive::{MASK, hidden, visit};
use crate::config::{ProviderKind, invalid};
use crate::error::{Error, Result};
use crate::store::{Doc, DocKind};

/// Encrypts credentials for the store. `record` says where the text belongs (`product/broker/env/field`): what was sealed
/// for one record does not open for another.
pub trait Seal: Send + Sync + Debug {
    /// Seals a text.
    ///
    /// # Errors
    /// `STORE_FAILED` if there is no key to seal with.
    fn seal(&self, record: &str, plain: &str) -> Result<String>;

    /// Opens what was sealed for this record.
    ///
    /// # Errors
    /// `STORE_FAILED` if it was sealed with another key or for another record.
    fn open(&self, record: &str, sealed: &str) -> Result<String>;
}

const SEALED: &str = "$sealed";
const JSON: &str = "json";

/// Seals what is sensitive in a config that was checked. `old` is the stored config it replaces, of the same provider.
pub(crate) fn seal_config(seal: &dyn Seal, record: &str, kind: ProviderKind, config: &Value, old: Option<&Value>) -> Result<Value> {
    let old = old.map(|old| stored(seal, record, kind, old)).transpose()?.unwrap_or_default();
    let mut sealed = config.clone();
    visit(kind, &mut sealed, &mut |path, hide, value| {
        let kept = |path: &str, stored: &Stored| {
            if stored.path == path { Ok(stored.sealed.clone()) } else { seal_value(seal, record, path, &stored.plain) }
        };
        let same = old.get(path).filter(|stored| stored.plain == *value || hidden(hide, &stored.plain).as_ref() == Some(value));
        // in a list of URLs the entries may have moved
        let moved = || old.values().find(|stored| is_masked(value) && value != MASK && hidden(hide, &stored.plain).as_ref() == Some(value));
        if let Some(stored) = same.or_else(moved) {
            *value = kept(path, stored)?;
        } else if is_masked(value) {
            return Err(invalid(path, format!("'{MASK}' in `{path}` stands for the stored value, but none is stored for it")));
        } else if hidden(hide, value).is_some() {
            *value = seal_value(seal, record, path, value)?;
        }
        Ok(())
    })?;
    Ok(sealed)
}

/// The config with its credentials, as they were given; references in it are not resolved.
pub(crate) fn open_config(seal: &dyn Seal, record: &str, kind: ProviderKind, sealed: &Value) -> Result<Value> {
    let mut plain = sealed.clone();
    visit(kind, &mut plain, &mut |path, _, value| {
        *value = open_value(seal, record, path, value)?;
        Ok(())
    })?;
    Ok(plain)
}

/// A document with its credentials sealed anew by the key that seals now; `None` if it holds none.
///
/// # Errors
/// `STORE_FAILED` if one does not open, or the document cannot be read.
pub(crate) fn reseal_doc(seal: &dyn Seal, doc: &Doc) -> Result<Option<Doc>> {
    if doc.kind != DocKind::Broker {
        return Ok(None);
    }
    let mut broker =
        BrokerDoc::deserialize(&doc.body).map_err(|_| Error::store(format!("the catalogue's '{}' cannot be read", doc.path)))?;
    let mut any = false;
    for env in &mut broker.envs {
        let record = format!("{}/{}", doc.path, env.slug);
        any |= reseal_config(seal, &record, env.kind, &mut env.config)?;
        for left in &mut env.leaving {
            any |= reseal_config(seal, &record, left.kind, &mut left.config)?;
        }
    }
    if any { super::snapshot::doc(DocKind::Broker, doc.path.clone(), &broker).map(Some) } else { Ok(None) }
}

fn reseal_config(seal: &dyn Seal, record: &str, kind: ProviderKind, config: &mut Value) -> Result<bool> {
    let mut any = false;
    visit(kind, config, &mut |path, _, value| {
        if value.get(SEALED).is_some() {
            *value = seal_value(seal, record, path, &open_value(seal, record, path, value)?)?;
            any = true;
        }
        Ok(())
    })?;
    Ok(any)
}

/// The config as it may be shown. What does not open reads `***` too.
pub(crate) fn masked_config(seal: &dyn Seal, record: &str, kind: ProviderKind, sealed: &Value) -> Value {
    let mut shown = sealed.clone();
    let seen = visit(kind, &mut shown, &mut |path, hide, value| {
        *value = match open_value(seal, record, path, value) {
            Ok(plain) => hidden(hide, &plain).unwrap_or(plain),
            Err(_) => MASK.into(),
        };
        Ok(())
    });
    if seen.is_ok() { shown } else { Value::Null }
}

#[derive(Debug)]
struct Stored {
    path: String,
    plain: Value,
    sealed: Value,
}

fn stored(seal: &dyn Seal, record: &str, kind: ProviderKind, config: &Value) -> Result<HashMap<String, Stored>> {
    let mut found = HashMap::new();
    visit(kind, &mut config.clone(), &mut |path, _, value| {
        let plain = open_value(seal, record, path, value)?;
        found.insert(path.to_owned(), Stored { path: path.to_owned(), plain, sealed: value.clone() });
        Ok(())
    })?;
    Ok(found)
}

fn is_masked(value: &Value) -> bool {
    value.as_str().is_some_and(|text| text == MASK || text.contains("***@") || text.contains("=***"))
}

fn seal_value(seal: &dyn Seal, record: &str, path: &str, plain: &Value) -> Result<Value> {
    let record = format!("{record}/{path}");
    Ok(match plain {
        Value::String(text) => json!({ SEALED: seal.seal(&record, text)? }),
        other => json!({ SEALED: seal.seal(&record, &other.to_string())?, JSON: true }),
    })
}

fn open_value(seal: &dyn Seal, record: &str, path: &str, value: &Value) -> Result<Value> {
    let Some(sealed) = value.get(SEALED).and_then(Value::as_str) else { return Ok(value.clone()) };
    let plain = seal.open(&format!("{record}/{path}"), sealed)?;
    if value.get(JSON).is_some() {
        return serde_json::from_str(&plain).map_err(|_| Error::store(format!("the sealed `{path}` of {record} is damaged")));
    }
    Ok(plain.into())
}
