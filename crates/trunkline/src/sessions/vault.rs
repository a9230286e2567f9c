//! The data keys of subjects: what the store keeps of a session's messages is encrypted with them, and cannot be read any
//! more once the key is destroyed.

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use chacha20poly1305::aead::{Aead as _, Payload};
use chacha20poly1305::{KeyInit as _, XChaCha20Poly1305, XNonce};
use hmac::{Hmac, Mac};
use lru::LruCache;
use parking_lot::Mutex;
use rand::TryRngCore as _;
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::catalog::Seal;
use crate::error::{Error, Result};
use crate::store::{Store, Subject};

/// Keys that are kept in memory.
const KEPT: NonZeroUsize = NonZeroUsize::MIN.saturating_add(4_095);
/// Bytes of a nonce in front of what was encrypted.
const NONCE: usize = 24;
/// Bytes that encrypting adds to a text, its nonce aside.
pub(crate) const TAG: usize = 16;

/// The data key of one subject.
pub(crate) struct SubjectKey {
    id: Arc<str>,
    identifier: Box<str>,
    key: Zeroizing<[u8; 32]>,
    cipher: XChaCha20Poly1305,
}

impl fmt::Debug for SubjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SubjectKey({})", self.id)
    }
}

impl SubjectKey {
    fn new(id: &str, identifier: &str, key: Zeroizing<[u8; 32]>) -> Self {
        let cipher = XChaCha20Poly1305::new((&*key).into());
        SubjectKey { id: id.into(), identifier: identifier.into(), key, cipher }
    }

    /// The subject's id.
    pub(crate) fn id(&self) -> &Arc<str> {
        &self.id
    }

    /// Who it is.
    pub(crate) fn identifier(&self) -> &str {
        &self.identifier
    }

    /// Encrypts a text for a place (`aad`): it opens nowhere else.
    pub(crate) fn seal(&self, aad: &[u8], plain: &[u8]) -> Result<Vec<u8>> {
        let nonce: [u8; NONCE] = rand::random();
        let mut sealed = nonce.to_vec();
        sealed.extend_from_slice(&self.seal_under(&nonce, aad, plain)?);
        Ok(sealed)
    }

    /// The text of [`SubjectKey::seal`]; `None` if it was changed, or is of another key or place.
    pub(crate) fn open(&self, aad: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE>()?;
        self.open_under(nonce, aad, sealed)
    }

    fn seal_under(&self, nonce: &[u8; NONCE], aad: &[u8], plain: &[u8]) -> Result<Vec<u8>> {
        self.cipher
            .encrypt(XNonce::from_slice(nonce), Payload { msg: plain, aad })
            .map_err(|_| Error::store("what a session's subject sent cannot be encrypted").reason("internal"))
    }

    fn open_under(&self, nonce: &[u8; NONCE], aad: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
        self.cipher.decrypt(XNonce::from_slice(nonce), Payload { msg: sealed, aad }).ok()
    }

    /// Headers and payload of a message, to be kept apart: the first with the nonce in front, the second [`TAG`] bytes longer
    /// than it was.
    pub(crate) fn seal_parts(&self, aad: &[u8], headers: &[u8], payload: Option<&[u8]>) -> Result<(Vec<u8>, Option<Vec<u8>>)> {
        let sealed = self.seal(aad, headers)?;
        let nonce = second(&sealed).unwrap_or_default();
        let payload = payload.map(|payload| self.seal_under(&nonce, aad, payload)).transpose()?;
        Ok((sealed, payload))
    }

    /// The parts of [`SubjectKey::seal_parts`].
    pub(crate) fn open_parts(&self, aad: &[u8], headers: &[u8], payload: Option<&[u8]>) -> Option<(Vec<u8>, Option<Vec<u8>>)> {
        let plain = self.open(aad, headers)?;
        let payload = match payload {
            Some(payload) => Some(self.open_under(&second(headers)?, aad, payload)?),
            None => None,
        };
        Some((plain, payload))
    }

    /// A digest that nobody can make, or compare, without the key.
    pub(crate) fn digest(&self, bytes: &[u8]) -> [u8; 32] {
        digest(&self.key, &[bytes])
    }
}

/// The nonce of the second part of a message: that of the first with its last bit turned.
fn second(sealed: &[u8]) -> Option<[u8; NONCE]> {
    let mut nonce = *sealed.first_chunk::<NONCE>()?;
    nonce[NONCE - 1] ^= 1;
    Some(nonce)
}

/// HMAC-SHA-256 over parts, each with its length.
pub(super) fn digest(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 32] {
    // A key of any length is taken.
    let Ok(mut mac) = <Hmac<Sha256> as Mac>::new_from_slice(key) else { return [0; 32] };
    for part in parts {
        mac.update(&(part.len() as u64).to_le_bytes());
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

/// 32 bytes that nobody guesses.
pub(super) fn random() -> Result<Zeroizing<[u8; 32]>> {
    let mut bytes = Zeroizing::new([0; 32]);
    let filled = rand::rngs::OsRng.try_fill_bytes(&mut bytes[..]);
    filled.map_err(|_| Error::store("the system gives no random numbers").reason("random"))?;
    Ok(bytes)
}

/// Seals 32 bytes for a record.
pub(super) fn seal_key(sealer: &dyn Seal, record: &str, key: &[u8; 32]) -> Result<String> {
    sealer.seal(record, &Zeroizing::new(STANDARD_NO_PAD.encode(key)))
}

/// Opens 32 bytes of a record.
pub(super) fn open_key(sealer: &dyn Seal, record: &str, sealed: &str) -> Result<Zeroizing<[u8; 32]>> {
    let text = Zeroizing::new(sealer.open(record, sealed)?);
    let bytes = STANDARD_NO_PAD.decode(text.as_bytes()).map(Zeroizing::new).ok();
    let key = bytes.and_then(|bytes| <[u8; 32]>::try_from(&bytes[..]).ok()).map(Zeroizing::new);
    key.ok_or_else(|| Error::store(format!("the key '{record}' is not one")).reason("damaged"))
}

fn record(id: &str, what: &str) -> String {
    format!("subject/{id}/{what}")
}

/// So many subjects are sealed anew at a time.
const RESEALED: usize = 500;

/// The data keys, over a store.
#[derive(Debug)]
pub(crate) struct Vault {
    store: Arc<dyn Store>,
    sealer: Arc<dyn Seal>,
    /// `None`: erased.
    keys: Mutex<LruCache<Box<str>, Option<Arc<SubjectKey>>>>,
    /// Grows with each key that is let go of: what was read before that must not be kept after it.
    forgotten: AtomicU64,
    /// Something of sessions was used in this process: from then on it has to hear of what is taken back.
    used: AtomicBool,
}

impl Vault {
    pub(crate) fn new(store: Arc<dyn Store>, sealer: Arc<dyn Seal>) -> Arc<Self> {
        Arc::new(Vault { store, sealer, keys: Mutex::new(LruCache::new(KEPT)), forgotten: AtomicU64::new(0), used: AtomicBool::new(false) })
    }

    pub(super) fn is_used(&self) -> bool {
        self.used.load(Ordering::Relaxed)
    }

    pub(super) fn use_it(&self) {
        self.used.store(true, Ordering::Relaxed);
    }

    /// A subject's key; `None` if it was destroyed, or never was in this store.
    pub(crate) async fn key(&self, id: &str) -> Result<Option<Arc<SubjectKey>>> {
        self.use_it();
        if let Some(known) = self.keys.lock().get(id) {
            return Ok(known.clone());
        }
        let since = self.forgotten.load(Ordering::Acquire);
        let key = match self.store.subject(id).await?.filter(|subject| !subject.is_erased()) {
            Some(subject) => Some(Arc::new(self.read(&subject)?)),
            None => None,
        };
        self.keep(id, &key, since);
        Ok(key)
    }

    /// Keeps what was read, unless a key was destroyed since then: it may be this one.
    fn keep(&self, id: &str, key: &Option<Arc<SubjectKey>>, since: u64) {
        let mut keys = self.keys.lock();
        if self.forgotten.load(Ordering::Acquire) == since {
            keys.put(id.into(), key.clone());
        }
    }

    fn read(&self, subject: &Subject) -> Result<SubjectKey> {
        let key = open_key(&*self.sealer, &record(&subject.id, "key"), &subject.key)?;
        Ok(SubjectKey::new(&subject.id, &self.identifier(subject)?, key))
    }

    /// Who a subject is.
    pub(super) fn identifier(&self, subject: &Subject) -> Result<String> {
        self.sealer.open(&record(&subject.id, "identifier"), &subject.identifier)
    }

    /// The subject of an identifier, made if there is none.
    pub(super) async fn subject(&self, product: &str, tag: &str, identifier: &str, digest: &[u8]) -> Result<Arc<SubjectKey>> {
        let id = uuid::Uuid::from_bytes(rand::random()).simple().to_string();
        let fresh = Subject {
            product: product.to_owned(),
            tag: tag.to_owned(),
            digest: digest.to_vec(),
            identifier: self.sealer.seal(&record(&id, "identifier"), identifier)?,
            key: seal_key(&*self.sealer, &record(&id, "key"), &*random()?)?,
            created_at: self.store.now(),
            id,
        };
        let since = self.forgotten.load(Ordering::Acquire);
        let subject = self.store.subject_of(&fresh).await?;
        let key = Arc::new(self.read(&subject)?);
        self.keep(&subject.id, &Some(key.clone()), since);
        Ok(key)
    }

    /// Seals the keys of sessions and subjects with the master key that seals now; how many subjects.
    pub(crate) async fn reseal(&self) -> Result<usize> {
        let anew = |record: &str, sealed: &str| self.sealer.seal(record, &Zeroizing::new(self.sealer.open(record, sealed)?));
        let mut keys = self.store.session_keys().await?;
        for key in &mut keys {
            key.sealed = anew(&super::token::record(&key.id), &key.sealed)?;
        }
        self.store.session_resealed(keys, Vec::new()).await?;
        let (mut after, mut count) = (String::new(), 0);
        loop {
            let mut page = self.store.subjects_after(&after, RESEALED).await?;
            let Some(last) = page.last() else { return Ok(count) };
            after.clone_from(&last.id);
            for of in &mut page {
                of.identifier = anew(&record(&of.id, "identifier"), &of.identifier)?;
                of.key = anew(&record(&of.id, "key"), &of.key)?;
            }
            count += page.len();
            self.store.session_resealed(Vec::new(), page).await?;
        }
    }

    /// Lets go of a key that was destroyed.
    pub(super) fn forget(&self, id: &str) {
        let mut keys = self.keys.lock();
        self.forgotten.fetch_add(1, Ordering::Release);
        keys.put(id.into(), None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> SubjectKey {
        SubjectKey::new("s1", "ann", random().expect("random numbers"))
    }

    #[test]
    fn what_was_changed_or_moved_does_not_open() {
        let (mine, other) = (key(), key());
        let sealed = mine.seal(b"here", b"hunter2").expect("sealed");
        assert_eq!(mine.open(b"here", &sealed).as_deref(), Some(&b"hunter2"[..]));
        assert!(mine.open(b"there", &sealed).is_none() && other.open(b"here", &sealed).is_none());
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(mine.open(b"here", &changed).is_none() && mine.open(b"here", &sealed[..at]).is_none());
        }
    }

    #[test]
    fn headers_and_payload_belong_together() {
        let key = key();
        let (headers, payload) = key.seal_parts(b"id", b"head", Some(b"hunter2")).expect("sealed");
        assert_eq!(payload.as_ref().map(Vec::len), Some(7 + TAG));
        assert_eq!(key.open_parts(b"id", &headers, payload.as_deref()), Some((b"head".to_vec(), Some(b"hunter2".to_vec()))));
        let (others, _) = key.seal_parts(b"id", b"head", Some(b"hunter2")).expect("sealed");
        assert_eq!(key.open_parts(b"id", &others, payload.as_deref()), None);
        assert!(!format!("{key:?}").contains("ann"));
    }
}
