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
        let mut record = record.filter(|record| record.product == self.product_tag() && record.env == self.slug());
        self.sessions().open_records(&mut record).await?;
        Ok(record)
    }

    /// A page of messages of this env.
    ///
    /// # Errors
    /// `INPUT_INVALID` for a limit or cursor out of range; `STORE_FAILED`.
    ///
    /// Messages of sessions are found by session and identifier, key, status and the like, and not by their text or headers,
    /// which are encrypted.
    pub async fn messages(&self, mut query: Query) -> Result<Page> {
        query.product = Some(self.product_tag().to_owned());
        query.env = Some(self.slug().to_owned());
        let inner = self.inner();
        self.sessions().translate(&mut query).await?;
        let mut page = inner.tracker.flushed().await?.query(&query).await?;
        self.sessions().open_records(&mut page.messages).await?;
        Ok(page)
    }
}
