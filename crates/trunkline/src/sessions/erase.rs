//! Erasure: a subject's data key is destroyed, and with it all that was encrypted.

use super::{Erased, Sessions};
use crate::access::Call;
use crate::error::Result;

impl Sessions {
    /// Erases who `identifier` is: destroys the key that the payloads, headers and contexts of its messages are stored with,
    /// ends its sessions, and forgets the identifier. What was recorded is still found by its id, as erased. A session that
    /// is started later with the same identifier is of another subject.
    ///
    /// Not reached: what lies on the broker itself, messages that were produced without a session, keys of messages, errors
    /// that a handler wrote, and backups made before.
    ///
    /// # Errors
    /// `SESSION_NOT_FOUND` if there is no definition of this tag; `ACCESS_DENIED`; `STORE_FAILED`.
    pub async fn erase(&self, tag: &str, identifier: &str) -> Result<Erased> {
        // The audit does not say who it was.
        let target = format!("{}/{tag}: a subject", self.product);
        self.inner.access.audited(Call::SessionErase, &target, self.erase_subject(tag, identifier)).await
    }

    async fn erase_subject(&self, tag: &str, identifier: &str) -> Result<Erased> {
        self.inner.catalog.session(&self.product, tag)?;
        let digest = self.digest(identifier).await?;
        let Some((subject, sessions)) = self.gate().store.session_erase(&self.product, tag, &digest).await? else {
            return Ok(Erased { erased: false, sessions: 0 });
        };
        // It cannot be read any more, whatever fails from here on.
        self.gate().vault.forget(&subject);
        tracing::info!(product = &*self.product, tag, subject, sessions, "a session's subject was erased");
        self.gate().look().await?;
        Ok(Erased { erased: true, sessions })
    }
}
