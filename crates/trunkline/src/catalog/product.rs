//! Products: made by the first create of anything in them.

use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;

use super::Catalog;
use super::input::{ProductInput, given};
use super::record::ProductDoc;
use super::snapshot::{Snapshot, broker_path, cache_path, group_path, product_path, put, session_path, topic_path};
use crate::access::Call;
use crate::error::{Code, Error, Result};
use crate::event::check_tag;
use crate::message::Millis;
use crate::store::{DocChange, DocKind};

/// The outcome of an update of a product.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ProductUpdate {
    /// The product as it is now.
    #[serde(flatten)]
    pub product: Arc<ProductDoc>,
    /// Whether anything changed.
    #[serde(skip)]
    pub changed: bool,
}

impl Catalog {
    /// Makes a product of `{ tag, name?, description? }`.
    ///
    /// # Errors
    /// `INPUT_INVALID`, `ALREADY_EXISTS`, `STORE_FAILED`.
    pub async fn create_product(&self, input: Value) -> Result<Arc<ProductDoc>> {
        let input = ProductInput::read(&input)?;
        let Some(tag) = input.tag else { return Err(Error::input("tag", "`tag` is required")) };
        let now = self.docs.now();
        self.change(Call::ProductCreate, &product_path(&tag), |snapshot| {
            if snapshot.product(&tag).is_ok() {
                return Err(Error::new(Code::AlreadyExists, format!("product '{tag}' exists already")).field("tag"));
            }
            let mut doc = fresh(&tag, now);
            doc.name = input.name.clone().unwrap_or(doc.name);
            doc.description.clone_from(&input.description);
            let change = put(DocKind::Product, product_path(&tag), &doc)?;
            Ok((Arc::new(doc), vec![change]))
        })
        .await
    }

    /// Changes name or description.
    ///
    /// # Errors
    /// `INPUT_INVALID`, `PRODUCT_NOT_FOUND`, `STORE_FAILED`.
    pub async fn update_product(&self, tag: &str, patch: Value) -> Result<ProductUpdate> {
        check_tag("product", tag)?;
        let patch = ProductInput::read(&patch)?;
        if patch.tag.as_deref().is_some_and(|given| given != tag) {
            return Err(Error::input("tag", "a product's tag is fixed"));
        }
        let now = self.docs.now();
        self.change(Call::ProductUpdate, &product_path(tag), |snapshot| {
            let old = &snapshot.product(tag)?.doc;
            let mut doc = ProductDoc::clone(old);
            doc.name = patch.name.clone().unwrap_or(doc.name);
            doc.description = patch.description.clone().or(doc.description);
            if doc == **old {
                return Ok((ProductUpdate { product: old.clone(), changed: false }, Vec::new()));
            }
            doc.updated_at = now;
            let change = put(DocKind::Product, product_path(tag), &doc)?;
            Ok((ProductUpdate { product: Arc::new(doc), changed: true }, vec![change]))
        })
        .await
    }

    /// One product, or `None`.
    ///
    /// # Errors
    /// `INPUT_INVALID` for a malformed tag.
    pub fn fetch_product(&self, tag: &str) -> Result<Option<Arc<ProductDoc>>> {
        check_tag("product", tag)?;
        Ok(self.snapshot().product(tag).ok().map(|node| node.doc.clone()))
    }

    /// All products, by tag.
    #[must_use]
    pub fn list_products(&self) -> Vec<Arc<ProductDoc>> {
        self.snapshot().products().map(|node| node.doc.clone()).collect()
    }

    /// Removes a product with all its brokers, topics, groups, session definitions and caches from the catalogue; nothing on
    /// any broker.
    ///
    /// # Errors
    /// `INPUT_INVALID`, `PRODUCT_NOT_FOUND`, `STORE_FAILED`.
    pub async fn delete_product(&self, tag: &str) -> Result<Arc<ProductDoc>> {
        check_tag("product", tag)?;
        self.change(Call::ProductDelete, &product_path(tag), |snapshot| {
            let node = snapshot.product(tag)?;
            let mut changes = Vec::new();
            for broker in node.brokers.values() {
                changes.extend(removal(&node.tag, broker));
            }
            changes.extend(node.sessions.keys().map(|session| DocChange::Remove(DocKind::Session, session_path(tag, session))));
            changes.extend(node.caches.keys().map(|cache| DocChange::Remove(DocKind::Cache, cache_path(tag, cache))));
            changes.push(DocChange::Remove(DocKind::Product, product_path(tag)));
            Ok((node.doc.clone(), changes))
        })
        .await
    }

    /// The product of a call: the given one, else the only one there is.
    ///
    /// # Errors
    /// `INPUT_INVALID` saying which there are.
    pub fn product_or_only(&self, product: Option<&str>) -> Result<String> {
        if let Some(product) = given(product, "product")? {
            return Ok(product.to_owned());
        }
        let snapshot = self.snapshot();
        only("product", &snapshot.products().map(|node| node.tag.to_string()).collect::<Vec<_>>())
    }

    /// The env of a call: the given one, else the only one the product's brokers have.
    ///
    /// # Errors
    /// `INPUT_INVALID` saying which there are; `PRODUCT_NOT_FOUND`.
    pub fn env_or_only(&self, product: &str, env: Option<&str>) -> Result<String> {
        if let Some(env) = given(env, "env")? {
            return Ok(env.to_owned());
        }
        let snapshot = self.snapshot();
        let node = snapshot.product(product)?;
        let slugs: std::collections::BTreeSet<String> =
            node.brokers.values().flat_map(|broker| broker.doc.envs.iter().map(|env| env.slug.clone())).collect();
        only("env", &slugs.into_iter().collect::<Vec<_>>())
    }
}

fn only(field: &str, there: &[String]) -> Result<String> {
    match there {
        [one] => Ok(one.clone()),
        [] => Err(Error::input(field, format!("`{field}` is required: there is none yet")).next("create a broker first")),
        many => Err(Error::input(field, format!("`{field}` is required: there are {}", many.join(", "))).detail("known", many)),
    }
}

/// The product of a first create, if it is not there yet.
pub(crate) fn first(snapshot: &Snapshot, tag: &str, now: Millis) -> Result<Vec<DocChange>> {
    if snapshot.product(tag).is_ok() {
        return Ok(Vec::new());
    }
    Ok(vec![put(DocKind::Product, product_path(tag), &fresh(tag, now))?])
}

fn fresh(tag: &str, now: Millis) -> ProductDoc {
    ProductDoc { tag: tag.to_owned(), name: tag.to_owned(), description: None, created_at: now, updated_at: now }
}

/// The removal of a broker with all that is in it.
pub(crate) fn removal(product: &str, broker: &super::snapshot::BrokerNode) -> Vec<DocChange> {
    let mut changes = Vec::new();
    for topic in broker.topics.values() {
        let groups = topic.groups.keys();
        changes.extend(groups.map(|group| DocChange::Remove(DocKind::Group, group_path(product, &topic.doc.tag, group))));
        changes.push(DocChange::Remove(DocKind::Topic, topic_path(product, &topic.doc.tag)));
    }
    changes.push(DocChange::Remove(DocKind::Broker, broker_path(product, &broker.doc.tag)));
    changes
}
