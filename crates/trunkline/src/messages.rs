//! What became of messages: one by its id, a page by a filter, figures over a time.

use crate::error::Result;
use crate::history::Record;
use crate::history::{Page, Query};
use crate::message::MessageId;
use crate::trunkline::Env;

impl Env {
    /// A message with its whole life, or `None`.
    ///
    /// # Errors
    /// `STORE_FAILED`.
    pub async fn message(&self, id: MessageId) -> Result<Option<Record>> {
        let inner = self.inner();
        // What this process did a moment ago is seen too.
        let record = inner.tracker.flushed().await?.get(id).await?;
        Ok(record.filter(|record| record.product == self.product_tag() && record.env == self.slug()))
    }

    /// A page of messages of this env.
    ///
    /// # Errors
    /// `INPUT_INVALID` for a limit or cursor out of range; `STORE_FAILED`.
    pub async fn messages(&self, mut query: Query) -> Result<Page> {
        query.product = Some(self.product_tag().to_owned());
        query.env = Some(self.slug().to_owned());
        let inner = self.inner();
        inner.tracker.flushed().await?.query(&query).await
    }
}
