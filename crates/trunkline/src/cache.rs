//! Caches: a message that equals one produced under the same cache within its expiry is not sent again; the first result is
//! returned. The definitions stand in the [`Catalog`](crate::Catalog), the values in the store.
//!
//! ```
//! # use std::time::Duration;
//! # use serde_json::json;
//! # use trunkline::Trunkline;
//! # tokio::runtime::Runtime::new().unwrap().block_on(async {
//! # let dir = tempfile::tempdir().unwrap();
//! # let trunkline = Trunkline::open(&dir.path().join("data").display().to_string()).await?;
//! # trunkline.catalog().create_broker(Some("shop"), json!({
//! #     "name": "Quotes", "tag": "quotes", "envs": [{ "slug": "prd", "type": "EMBEDDED" }] })).await?;
//! # trunkline.catalog().create_topic(Some("shop"), json!({ "name": "Asked", "tag": "quotes:asked" })).await?;
//! trunkline.catalog().create_cache(Some("shop"), json!({ "tag": "recent", "expiry": "5m" })).await?;
//! let shop = trunkline.env("shop", "prd");
//! let first = shop.produce("quotes:asked", &json!({ "symbol": "ABC" })).cache("recent").await?;
//! let again = shop.produce("quotes:asked", &json!({ "symbol": "ABC" })).cache("recent").await?;
//! assert_eq!((again.process_id, again.cached), (first.process_id, Some(true)));
//! assert_eq!(trunkline.cache_values("shop", "recent", 1, 20).await?.total, 1);
//! # trunkline.close(Duration::from_secs(5)).await;
//! # Ok::<_, trunkline::Error>(()) }).unwrap();
//! ```

use std::sync::Arc;

use serde::Serialize;

use crate::access::Call;
use crate::catalog::CacheDoc;
use crate::error::{Error, Result};
use crate::store::Scope;
use crate::store::cache::CacheValue;
use crate::trunkline::Trunkline;

/// The most entries of one page.
pub(crate) const PAGE_MOST: usize = 1_000;

/// A page of a cache's values.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CacheValues {
    /// Newest first.
    pub values: Vec<CacheValue>,
    /// How many there are on all pages.
    pub total: u64,
    /// Which page this is, from 1.
    pub page: usize,
    /// How many a page has.
    pub limit: usize,
    /// Whether there are more pages.
    pub has_more: bool,
    /// How far the cache reaches.
    pub scope: Scope,
}

/// Where a page starts.
pub(crate) fn offset(page: usize, limit: usize) -> Result<usize> {
    if limit == 0 || limit > PAGE_MOST {
        return Err(Error::input("limit", format!("`limit` must be 1 to {PAGE_MOST}")));
    }
    page.checked_sub(1).and_then(|before| before.checked_mul(limit)).ok_or_else(|| Error::input("page", "`page` counts from 1"))
}

impl Trunkline {
    /// What was produced under a cache and would be returned again now, with its age; pages count from 1 and have 1 to 1,000
    /// values.
    ///
    /// # Errors
    /// `INPUT_INVALID`, `PRODUCT_NOT_FOUND`, `CACHE_NOT_FOUND`, `STORE_FAILED`.
    pub async fn cache_values(&self, product: &str, tag: &str, page: usize, limit: usize) -> Result<CacheValues> {
        let from = offset(page, limit)?;
        self.0.access.allow(Call::CacheRead)?;
        let cache = self.catalog().cache(product, tag)?;
        let (values, total) = self.store().cache_values(&cache.scope(), cache.expires_after(), limit, from).await?;
        let has_more = ((from + values.len()) as u64) < total;
        Ok(CacheValues { values, total, page, limit, has_more, scope: self.store().scope() })
    }

    /// Forgets all values of a cache, so that the next equal message is sent; how many there were.
    ///
    /// # Errors
    /// `INPUT_INVALID`, `PRODUCT_NOT_FOUND`, `CACHE_NOT_FOUND`, `STORE_FAILED`.
    pub async fn clear_cache(&self, product: &str, tag: &str) -> Result<u64> {
        let cleared = async {
            let cache = self.catalog().cache(product, tag)?;
            self.store().cache_clear(&cache.scope()).await
        };
        self.0.access.audited(Call::CacheClear, &format!("{product}/{tag}"), cleared).await
    }

    /// Removes a cache with its values.
    ///
    /// # Errors
    /// `INPUT_INVALID`, `PRODUCT_NOT_FOUND`, `CACHE_NOT_FOUND`, `STORE_FAILED`.
    pub async fn delete_cache(&self, product: &str, tag: &str) -> Result<Arc<CacheDoc>> {
        let cache = self.catalog().delete_cache(product, tag).await?;
        self.store().cache_clear(&cache.scope()).await?;
        Ok(cache)
    }
}

#[cfg(test)]
mod tests;
