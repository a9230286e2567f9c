//! Another master key: everything that is sealed is sealed anew, secrets and brokers in one transaction, then the keys of
//! sessions and subjects.
//!
//! The new key takes the old one's place first, with the old one beside it; then what is sealed is sealed anew; then the old one
//! goes. Cut short at any moment, both keys are there and everything opens; the next rekey finishes what was begun.

use std::time::Duration;

use serde::Serialize;

use super::manage::Secrets;
use super::scope::record;
use super::seal::MasterKey;
use crate::access::Call;
use crate::catalog::{Seal as _, reseal_doc};
use crate::error::{Code, Error, Result};
use crate::store::secrets::{SecretChange, SecretRow};
use crate::store::{DocChange, Scope};

/// How often the work is done anew because another process changed the catalogue meanwhile.
const ATTEMPTS: u32 = 50;
/// One process at a time changes the key.
const LEASE: Duration = Duration::from_secs(30);

/// Where the new master key comes from.
#[derive(Debug, Clone)]
pub enum NewMasterKey {
    /// Made now. It needs the key file of the data directory.
    Random,
    /// This one. It is written into the key file; where the old one stands in the environment, nothing is written, and every
    /// process has to be started with the new one.
    Given(MasterKey),
}

/// What came of a rekey.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Rekeyed {
    /// Names the new key: 8 hex digits.
    pub key_id: String,
    /// How many secrets were sealed anew.
    pub secrets: usize,
    /// How many brokers with sealed credentials were.
    pub brokers: usize,
    /// Whether processes must be started anew with the new key in their environment.
    pub restart: bool,
}

impl Secrets<'_> {
    /// Seals everything that is sealed with a new master key: secrets, the credentials in broker configs, the keys of sessions
    /// and of their subjects. Open processes whose key lies in the data directory go on.
    ///
    /// # Errors
    /// `CAPABILITY_UNSUPPORTED` on a store that hosts share; `INPUT_INVALID` for a random key where the old one stands in the environment; `IN_USE` while another process changes
    /// the key; `ACCESS_DENIED`; `STORE_FAILED`, also if something does not open with the old key: then nothing was changed
    /// but the key file, which holds both keys.
    pub async fn rekey(&self, new: NewMasterKey) -> Result<Rekeyed> {
        let rekeyed = async {
            let (lease, owner) = ("rekey", &self.0.process);
            if self.0.store.lease_take(lease, owner, LEASE).await?.is_none() {
                return Err(Error::new(Code::InUse, "another process is changing the master key").next("try again in a minute"));
            }
            let done = self.change_key(new).await;
            self.0.store.lease_release(lease, owner).await?;
            done
        };
        self.0.access.audited(Call::SecretRekey, "everything that is sealed", rekeyed).await
    }

    async fn change_key(&self, new: NewMasterKey) -> Result<Rekeyed> {
        if self.0.store.scope() == Scope::Shared {
            return Err(Error::new(Code::CapabilityUnsupported, "the master key of a store that hosts share cannot be changed yet")
                .next("rotate the secrets themselves: `trunkline secrets rotate`"));
        }
        let keyring = self.0.vault.keyring();
        let key = match new {
            NewMasterKey::Given(key) => key,
            NewMasterKey::Random if keyring.is_in_file() => MasterKey::random()?,
            NewMasterKey::Random => {
                return Err(Error::input("key", "the master key stands in the environment: a random one would have no place to lie")
                    .next("make one with `openssl rand -base64 32`, and give it by a file or another variable"));
            }
        };
        if keyring.is_between() {
            self.reseal().await?;
            keyring.settle()?;
        }
        keyring.change(key)?;
        let (secrets, brokers) = self.reseal().await?;
        keyring.settle()?;
        self.0.follow_catalogue().await?;
        Ok(Rekeyed { key_id: keyring.key_id(), secrets, brokers, restart: !keyring.is_in_file() })
    }

    /// Seals everything with the key that seals now; how many secrets and brokers.
    async fn reseal(&self) -> Result<(usize, usize)> {
        let keyring = self.0.vault.keyring();
        for _ in 0..ATTEMPTS {
            let (version, rows) = self.0.store.secrets().await?;
            let (seen, docs) = self.0.store.catalog().await?;
            if seen != version {
                continue;
            }
            let secrets = rows.into_iter().map(|row| {
                let record = record(&row.id);
                let sealed = keyring.seal(&record, &keyring.open(&record, &row.sealed)?)?;
                Ok(SecretChange::Put(SecretRow { sealed, ..row }))
            });
            let secrets = secrets.collect::<Result<Vec<_>>>()?;
            let docs = docs.iter().filter_map(|doc| reseal_doc(keyring, doc).transpose());
            let docs = docs.map(|doc| doc.map(DocChange::Put)).collect::<Result<Vec<_>>>()?;
            let counts = (secrets.len(), docs.len());
            if self.0.store.secrets_write(version, secrets, docs).await?.is_some() {
                self.0.sessions.vault.reseal().await?;
                return Ok(counts);
            }
        }
        Err(Error::store("the catalogue is being changed by too many processes at once").with_retryable(true))
    }
}
