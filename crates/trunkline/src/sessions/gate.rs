//! The gate: whether a session may pass, at a cost that a produce does not feel.
//!
//! A token is verified once and then known by its text, in a bounded memory. What was taken back is asked from the store once
//! a second, and at once by the process that took it back. While the store is down, what is known of it may be a minute old.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use lru::LruCache;
use parking_lot::{Mutex, RwLock};

use super::context::SessionContext;
use super::given::Session;
use super::token::{Claims, Ring};
use super::vault::{SubjectKey, Vault};
use crate::catalog::Seal;
use crate::error::{Code, Error, Result};
use crate::history::SessionMark;
use crate::message::{Headers, Millis, header, now_ms};
use crate::store::Store;

/// Verified tokens that are kept in memory.
const KNOWN: NonZeroUsize = NonZeroUsize::MIN.saturating_add(4_095);
/// What is known of what was taken back may be this old.
const STALE: Duration = Duration::from_secs(60);
/// A longer token is none of ours.
const TOKEN_MOST: usize = 64 << 10;

/// Who a message is produced for: what goes with it, and the key it is stored with.
#[derive(Debug, Clone)]
pub(crate) struct Stamp {
    /// The header's value.
    pub(crate) header: Bytes,
    /// For the history: the identifier in it is the subject's id.
    pub(crate) mark: Arc<SessionMark>,
    /// `None` if it cannot be read now, or was destroyed: then nothing of the message's content is kept.
    pub(crate) key: Option<Arc<SubjectKey>>,
}

impl Stamp {
    fn new(context: &SessionContext, key: Option<Arc<SubjectKey>>) -> Stamp {
        let header = serde_json::to_vec(context).unwrap_or_default().into();
        let mark = SessionMark { tag: context.tag.clone(), id: context.id.clone(), identifier: context.subject.clone() };
        Stamp { header, mark: Arc::new(mark), key }
    }
}

/// A token that was verified.
#[derive(Debug)]
pub(crate) struct Verified {
    product: Box<str>,
    /// Product and tag, as what was taken back is filed.
    of: Box<str>,
    pub(crate) context: SessionContext,
    pub(crate) stamp: Arc<Stamp>,
    not_before: Millis,
    pub(crate) expires_at: Millis,
    /// By the store's clock.
    at: Millis,
}

/// What was taken back, as far as it is known here.
#[derive(Debug, Default)]
struct Taken {
    cursor: u64,
    looked: Option<Instant>,
    /// Sessions and subjects, and until when they matter.
    gone: HashMap<Box<str>, Millis>,
    /// Product and tag: tokens made no later than this are gone; until when that matters.
    before: HashMap<Box<str>, (Millis, Millis)>,
}

impl Taken {
    fn has(&self, verified: &Verified) -> bool {
        let SessionContext { id, subject, .. } = &verified.context;
        self.gone.contains_key(id.as_str())
            || self.gone.contains_key(subject.as_str())
            || self.before.get(&verified.of).is_some_and(|(at, _)| verified.at <= *at)
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Gate {
    pub(super) store: Arc<dyn Store>,
    pub(super) ring: Ring,
    pub(crate) vault: Arc<Vault>,
    known: Mutex<LruCache<Box<str>, Arc<Verified>>>,
    taken: RwLock<Taken>,
    looking: tokio::sync::Mutex<()>,
}

/// A refusal, with the reason in a word.
pub(super) fn invalid(reason: &str) -> Error {
    let text = match reason {
        "expired" => "the session's token has expired",
        "not_yet" => "the session's token is not valid yet",
        "revoked" => "the session was revoked",
        "tag" => "the session is of another tag than the one it is given with",
        "refresh_reused" => "the refresh token had been used before: the session was revoked, with all tokens that came of it",
        "refresh_unknown" => "the refresh token is not one, or its time is over",
        _ => "the session's token is not one that this workspace issued",
    };
    Error::new(Code::SessionInvalid, text).field("session").reason(reason).next("start a new session with `trunkline sessions start`")
}

/// What tokens of a tag are filed under.
fn filed(product: &str, tag: &str) -> Box<str> {
    format!("{product}/{tag}").into()
}

impl Gate {
    /// A gate over a store. It reads nothing before the first session is used.
    pub(crate) fn new(store: Arc<dyn Store>, sealer: Arc<dyn Seal>) -> Arc<Self> {
        Arc::new(Gate {
            ring: Ring::new(store.clone(), sealer.clone()),
            vault: Vault::new(store.clone(), sealer),
            store,
            known: Mutex::new(LruCache::new(KNOWN)),
            taken: RwLock::default(),
            looking: tokio::sync::Mutex::default(),
        })
    }

    /// Verifies a session for a product. The tag's definition is the caller's to look up.
    ///
    /// # Errors
    /// `SESSION_INVALID`; `STORE_FAILED` where nothing newer than a minute is known of what was taken back.
    pub(crate) async fn verify(&self, product: &str, session: &Session) -> Result<Arc<Verified>> {
        self.hear().await?;
        let parts = session.parts().filter(|parts| parts.jwt.len() <= TOKEN_MOST).ok_or_else(|| invalid("malformed"))?;
        let known = self.known.lock().get(parts.jwt).filter(|known| &*known.product == product).cloned();
        let verified = match known {
            Some(known) => known,
            None => self.open(product, parts.jwt).await?,
        };
        if !parts.agree(&verified.context.tag, &verified.context.id) {
            return Err(invalid("tag"));
        }
        let now = now_ms();
        if verified.expires_at <= now {
            return Err(invalid("expired"));
        }
        if verified.not_before > now {
            return Err(invalid("not_yet"));
        }
        if self.taken.read().has(&verified) { Err(invalid("revoked")) } else { Ok(verified) }
    }

    /// Verifies a token that is not known yet.
    async fn open(&self, product: &str, jwt: &str) -> Result<Arc<Verified>> {
        let Claims { sub, exp, nbf, at, sid, tag, identifier, data, .. } = self.ring.open(product, jwt).await?.map_err(invalid)?;
        let of = filed(product, &tag);
        let context = SessionContext { tag, id: sid, identifier, data, subject: sub };
        // Without the key the message can be sent all the same; only nothing of it is kept.
        let key = match self.vault.key(&context.subject).await {
            Ok(Some(key)) => Some(key),
            Ok(None) => return Err(invalid("revoked")),
            Err(error) => {
                tracing::warn!(%error, "the data key of a session cannot be read: the content of its messages is not kept");
                None
            }
        };
        let (is_whole, stamp) = (key.is_some(), Arc::new(Stamp::new(&context, key)));
        let (not_before, expires_at) = (nbf.saturating_mul(1_000), exp.saturating_mul(1_000));
        let verified = Arc::new(Verified { product: product.into(), of, context, stamp, not_before, expires_at, at });
        if is_whole {
            self.known.lock().put(jwt.into(), verified.clone());
        }
        Ok(verified)
    }

    /// The stamp of a message that carries a session already: one that is due, reprocessed, or replayed.
    pub(crate) async fn stamp_of(&self, headers: &Headers) -> Option<Arc<Stamp>> {
        headers.get(header::SESSION)?;
        let context = SessionContext::of(headers)?;
        let key = self.vault.key(&context.subject).await.unwrap_or_else(|error| {
            tracing::warn!(%error, "the data key of a session cannot be read: the content of its message is not kept");
            None
        });
        Some(Arc::new(Stamp::new(&context, key)))
    }

    /// Makes sure that what was taken back is known, and not too old.
    async fn hear(&self) -> Result<()> {
        self.vault.use_it();
        let is_fresh = || self.taken.read().looked.is_some_and(|at| at.elapsed() <= STALE);
        if is_fresh() {
            return Ok(());
        }
        let looked = tokio::time::timeout(Duration::from_secs(5), self.look()).await;
        let looked = looked.unwrap_or_else(|_| Err(Error::store("the store did not answer in time").with_retryable(true)));
        looked.map_err(|error| error.context("sessions cannot be verified: what was revoked is not known"))
    }

    /// Asks what was taken back since the last look.
    pub(crate) async fn look(&self) -> Result<()> {
        let _one = self.looking.lock().await;
        let (since, now) = (Instant::now(), self.store.now());
        let cursor = self.taken.read().cursor;
        let news = self.store.session_revocations(cursor).await?;
        let mut is_erased = false;
        let mut taken = self.taken.write();
        for revocation in news {
            taken.cursor = revocation.seq;
            if let Some(subject) = revocation.subject {
                self.vault.forget(&subject);
                taken.gone.insert(subject.into(), revocation.until);
                is_erased = true;
            } else if let Some(session) = revocation.session {
                taken.gone.insert(session.into(), revocation.until);
            } else {
                taken.before.insert(filed(&revocation.product, &revocation.tag), (revocation.at, revocation.until));
            }
        }
        taken.gone.retain(|_, until| *until > now);
        taken.before.retain(|_, (_, until)| *until > now);
        taken.looked = Some(since);
        drop(taken);
        if is_erased {
            // Their keys go with them.
            self.known.lock().clear();
        }
        Ok(())
    }

    /// What an open process does once a second, as soon as sessions are used in it.
    pub(crate) async fn tend(&self) -> Result<()> {
        if !self.vault.is_used() {
            return Ok(());
        }
        self.look().await?;
        self.ring.read().await
    }
}
