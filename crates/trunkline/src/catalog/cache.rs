//! Caches: under which a message that equals an earlier one is not sent again.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Catalog;
use super::input::CacheInput;
use super::product::first;
use super::snapshot::{Snapshot, cache_path, missing, put};
use crate::access::Call;
use crate::error::{Code, Error, Result};
use crate::event::check_tag;
use crate::message::Millis;
use crate::store::{DocChange, DocKind};

/// A cache: stored and shown alike.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CacheDoc {
    /// Its tag.
    pub tag: String,
    /// Its display name (default: the tag).
    pub name: String,
    /// What it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The product it belongs to.
    pub product: String,
    /// How old a result may be to be returned again (ms).
    pub expiry: Millis,
    /// When it was made.
    pub created_at: Millis,
    /// When it last changed.
    pub updated_at: Millis,
}

impl CacheDoc {
    /// How old a result may be to be returned again.
    #[must_use]
    pub fn expires_after(&self) -> Duration {
        Duration::from_millis(self.expiry)
    }

    /// What its values are filed under: those of a cache that was deleted are none of one that takes its tag later.
    #[must_use]
    pub fn scope(&self) -> String {
        format!("{}/{}@{}", self.product, self.tag, self.created_at)
    }
}

/// The outcome of an update of a cache.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CacheUpdate {
    /// The cache as it is now.
    #[serde(flatten)]
    pub cache: Arc<CacheDoc>,
    /// Whether anything changed.
    #[serde(skip)]
    pub changed: bool,
}

impl Catalog {
    /// Makes a cache of `{ tag, name?, description?, expiry }`, and its product if it is the first thing in it. `expiry` is in
    /// milliseconds, or a text like `5m`; 1 ms to ten years.
    ///
    /// # Errors
    /// `INPUT_INVALID`, `ALREADY_EXISTS`, `STORE_FAILED`.
    pub async fn create_cache(&self, product: Option<&str>, input: Value) -> Result<Arc<CacheDoc>> {
        let input = CacheInput::create(product, &input)?;
        let product = match &input.product {
            Some(product) => product.clone(),
            None => self.product_or_only(None)?,
        };
        let (tag, expiry) = (input.tag.unwrap_or_default(), input.expiry.unwrap_or_default());
        let now = self.docs.now();
        self.change(Call::CacheDefine, &cache_path(&product, &tag), |snapshot| {
            if snapshot.cache(&product, &tag).is_ok() {
                return Err(Error::new(Code::AlreadyExists, format!("cache '{tag}' exists already in product '{product}'"))
                    .field("tag")
                    .next(format!("change it with `trunkline caches update {tag} --product {product}`")));
            }
            let mut changes = first(snapshot, &product, now)?;
            let doc = CacheDoc {
                tag: tag.clone(),
                name: input.name.clone().unwrap_or_else(|| tag.clone()),
                description: input.description.clone(),
                product: product.clone(),
                expiry,
                created_at: now,
                updated_at: now,
            };
            changes.push(put(DocKind::Cache, cache_path(&product, &tag), &doc)?);
            Ok((Arc::new(doc), changes))
        })
        .await
    }

    /// Changes name, description or expiry. A shorter expiry holds for the values that are there as well.
    ///
    /// # Errors
    /// `INPUT_INVALID`, `PRODUCT_NOT_FOUND`, `CACHE_NOT_FOUND`, `STORE_FAILED`.
    pub async fn update_cache(&self, product: Option<&str>, tag: &str, patch: Value) -> Result<CacheUpdate> {
        check_tag("tag", tag)?;
        let patch = CacheInput::update(product, &patch)?;
        if patch.tag.as_deref().is_some_and(|given| given != tag) {
            return Err(Error::input("tag", "a cache's tag is fixed"));
        }
        let product = self.product_or_only(patch.product.as_deref())?;
        let now = self.docs.now();
        self.change(Call::CacheDefine, &cache_path(&product, tag), |snapshot| {
            let old = snapshot.cache(&product, tag)?;
            let mut doc = CacheDoc::clone(old);
            doc.name = patch.name.clone().unwrap_or(doc.name);
            doc.description = patch.description.clone().or(doc.description);
            doc.expiry = patch.expiry.unwrap_or(doc.expiry);
            if doc == **old {
                return Ok((CacheUpdate { cache: old.clone(), changed: false }, Vec::new()));
            }
            doc.updated_at = now;
            let change = put(DocKind::Cache, cache_path(&product, tag), &doc)?;
            Ok((CacheUpdate { cache: Arc::new(doc), changed: true }, vec![change]))
        })
        .await
    }

    /// One cache, or `None`.
    ///
    /// # Errors
    /// `INPUT_INVALID` for a malformed tag, `PRODUCT_NOT_FOUND`.
    pub fn fetch_cache(&self, product: &str, tag: &str) -> Result<Option<Arc<CacheDoc>>> {
        check_tag("product", product)?;
        check_tag("tag", tag)?;
        Ok(self.snapshot().product(product)?.caches.get(tag).cloned())
    }

    /// The caches of a product, by tag.
    ///
    /// # Errors
    /// `INPUT_INVALID` for a malformed tag, `PRODUCT_NOT_FOUND`.
    pub fn list_caches(&self, product: &str) -> Result<Vec<Arc<CacheDoc>>> {
        check_tag("product", product)?;
        Ok(self.snapshot().product(product)?.caches.values().cloned().collect())
    }

    /// Removes a cache. Its values are never returned again.
    ///
    /// # Errors
    /// `INPUT_INVALID` for a malformed tag, `PRODUCT_NOT_FOUND`, `CACHE_NOT_FOUND`, `STORE_FAILED`.
    pub async fn delete_cache(&self, product: &str, tag: &str) -> Result<Arc<CacheDoc>> {
        check_tag("product", product)?;
        check_tag("tag", tag)?;
        self.change(Call::CacheDefine, &cache_path(product, tag), |snapshot| {
            let doc = snapshot.cache(product, tag)?.clone();
            Ok((doc, vec![DocChange::Remove(DocKind::Cache, cache_path(product, tag))]))
        })
        .await
    }

    /// A cache that must be there.
    ///
    /// # Errors
    /// `INPUT_INVALID` for a malformed tag, `PRODUCT_NOT_FOUND`, `CACHE_NOT_FOUND`.
    pub fn cache(&self, product: &str, tag: &str) -> Result<Arc<CacheDoc>> {
        check_tag("cache", tag)?;
        self.snapshot().cache(product, tag).cloned()
    }
}

impl Snapshot {
    pub(crate) fn cache(&self, product: &str, tag: &str) -> Result<&Arc<CacheDoc>> {
        let node = self.product(product)?;
        node.caches.get(tag).ok_or_else(|| {
            let known = node.caches.keys().map(AsRef::as_ref);
            missing(Code::CacheNotFound, &format!("cache '{tag}' does not exist in product '{product}'"), tag, known)
                .field("cache")
                .next(format!("create it with `trunkline caches create {tag} --expiry 5m --product {product}`"))
        })
    }
}
