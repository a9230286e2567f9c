//! Records of sessions' messages, opened for who asks the history.

use super::context::SessionContext;
use super::{Sessions, Vault};
use crate::error::Result;
use crate::history::{Payload, Query, Record};
use crate::message::Headers;

impl Vault {
    /// Decrypts a record. One whose key was destroyed is marked as erased.
    pub(crate) async fn open_record(&self, record: &mut Record) -> Result<()> {
        let Some(sealed) = record.sealed.take() else { return Ok(()) };
        let key = self.key(&sealed.subject).await?;
        let open = |key: std::sync::Arc<super::SubjectKey>| {
            key.open_parts(record.process_id.as_bytes(), &sealed.headers, sealed.payload.as_deref())
        };
        let parts = key.and_then(open).and_then(|(headers, payload)| Some((Headers::decode(&headers.into())?, payload)));
        let session = record.session.as_mut();
        let Some((headers, payload)) = parts else {
            record.erased = true;
            // What stands there names the key, and nobody.
            if let Some(session) = session {
                session.identifier.clear();
            }
            return Ok(());
        };
        if let (Some(session), Some(context)) = (session, SessionContext::of(&headers)) {
            session.identifier = context.identifier;
        }
        record.headers = headers;
        record.payload = payload.map(|payload| Payload(payload.into()));
        Ok(())
    }
}

impl Sessions {
    /// Makes a query for an identifier one for its subjects, as they are recorded.
    pub(crate) async fn translate(&self, query: &mut Query) -> Result<()> {
        if let Some(identifier) = &query.identifier {
            let digest = self.digest(identifier).await?;
            query.subjects = self.gate().store.subjects_with(&self.product, &digest).await?;
        }
        Ok(())
    }

    /// Opens what a query found.
    pub(crate) async fn open_records<'r>(&self, records: impl IntoIterator<Item = &'r mut Record>) -> Result<()> {
        for record in records {
            self.gate().vault.open_record(record).await?;
        }
        Ok(())
    }
}
