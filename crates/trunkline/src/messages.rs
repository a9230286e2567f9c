//! What became of messages: one by its id, a page by a filter.

use crate::access::Call;
use crate::error::Result;
use crate::history::Record;
use crate::history::{Page, Query};
use crate::message::MessageId;
use crate::trunkline::Env;

impl Env {
    /// A message with its whole life, or `None`. Without the permission to read payloads it has none.
    ///
    /// # Errors
    /// `ACCESS_DENIED`, `STORE_FAILED`.
    pub async fn message(&self, id: MessageId) -> Result<Option<Record>> {
        self.inner().access.allow(Call::MessageRead)?;
        let Some(mut record) = self.record(id).await? else { return Ok(None) };
        let target = format!("{}/{}/{}/{id}", self.product_tag(), self.slug(), record.event);
        self.open_payloads(std::slice::from_mut(&mut record), &target).await;
        Ok(Some(record))
    }

    /// The same for the core itself, which shows it to nobody.
    pub(crate) async fn record(&self, id: MessageId) -> Result<Option<Record>> {
        let inner = self.inner();
        // What this process did a moment ago is seen too.
        let record = inner.tracker.flushed().await?.get(id).await?;
        let mut record = record.filter(|record| record.product == self.product_tag() && record.env == self.slug());
        self.sessions().open_records(&mut record).await?;
        Ok(record)
    }

    /// A page of messages of this env. Without the permission to read payloads they have none.
    ///
    /// # Errors
    /// `INPUT_INVALID` for a limit or cursor out of range; `ACCESS_DENIED`, also for a search in payloads without the
    /// permission to read them; `STORE_FAILED`.
    ///
    /// Messages of sessions are found by session and identifier, key, status and the like, and not by their text or headers,
    /// which are encrypted.
    pub async fn messages(&self, mut query: Query) -> Result<Page> {
        query.product = Some(self.product_tag().to_owned());
        query.env = Some(self.slug().to_owned());
        let inner = self.inner();
        inner.access.allow(Call::MessageRead)?;
        if query.text.is_some() {
            inner.access.allow(Call::PayloadRead)?;
        }
        self.sessions().translate(&mut query).await?;
        let mut page = inner.tracker.flushed().await?.query(&query).await?;
        self.sessions().open_records(&mut page.messages).await?;
        let target = format!("{}/{}: a page of {}", self.product_tag(), self.slug(), page.messages.len());
        self.open_payloads(&mut page.messages, &target).await;
        Ok(page)
    }

    /// Leaves payloads in what is shown if the caller may see them and that can be written down; else takes them out.
    async fn open_payloads(&self, records: &mut [Record], target: &str) {
        if records.iter().all(|record| record.payload.is_none()) {
            return;
        }
        let access = &self.inner().access;
        let shown = if access.may(Call::PayloadRead) { access.note(Call::PayloadRead, target, None).await.is_ok() } else { false };
        if !shown {
            records.iter_mut().for_each(|record| record.payload = None);
        }
    }
}
