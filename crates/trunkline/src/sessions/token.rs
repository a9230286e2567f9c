//! Tokens: JWTs signed with HS256 by a key of the workspace, and the ring of these keys.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, decode_header, encode};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use zeroize::Zeroizing;

use super::hs256;
use super::vault::{self, open_key, seal_key};
use crate::catalog::Seal;
use crate::error::{Error, Result};
use crate::message::Millis;
use crate::store::{SessionKey, SessionKeyUse, Store};

/// Who issues the tokens.
const ISSUER: &str = "trunkline";
/// A token whose key is not known may have been signed with one that another process has just made; so soon it is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// What a token says.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Claims {
    pub(super) iss: String,
    /// The product.
    pub(super) aud: String,
    /// The subject's id, which says nothing of who it is.
    pub(super) sub: String,
    pub(super) exp: u64,
    pub(super) nbf: u64,
    pub(super) iat: u64,
    /// When it was made by the store's clock, in milliseconds.
    pub(super) at: Millis,
    /// The session's id.
    pub(super) sid: String,
    pub(super) tag: String,
    pub(super) identifier: String,
    pub(super) data: Value,
}

impl Claims {
    /// The claims that every token has.
    pub(super) fn issuer() -> String {
        ISSUER.to_owned()
    }
}

/// A key that signs.
struct SignKey {
    id: String,
    encoding: EncodingKey,
    decoding: DecodingKey,
}

#[derive(Default)]
struct Keys {
    newest: Option<Arc<SignKey>>,
    by_id: HashMap<String, Arc<SignKey>>,
    digest: Option<Zeroizing<[u8; 32]>>,
    read_at: Option<Instant>,
}

/// The workspace's keys.
pub(super) struct Ring {
    store: Arc<dyn Store>,
    sealer: Arc<dyn Seal>,
    keys: ArcSwap<Keys>,
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring").field("keys", &self.keys.load().by_id.len()).finish_non_exhaustive()
    }
}

pub(super) fn record(key: &str) -> String {
    format!("session-key/{key}")
}

impl Ring {
    pub(super) fn new(store: Arc<dyn Store>, sealer: Arc<dyn Seal>) -> Self {
        hs256::install();
        Ring { store, sealer, keys: ArcSwap::default() }
    }

    /// Reads the keys.
    pub(super) async fn read(&self) -> Result<()> {
        let mut keys = Keys { read_at: Some(Instant::now()), ..Keys::default() };
        for key in self.store.session_keys().await? {
            let secret = open_key(&*self.sealer, &record(&key.id), &key.sealed)?;
            match key.purpose {
                SessionKeyUse::Digest => keys.digest = keys.digest.or(Some(secret)),
                SessionKeyUse::Sign => {
                    let (encoding, decoding) = (EncodingKey::from_secret(&secret[..]), DecodingKey::from_secret(&secret[..]));
                    let sign = Arc::new(SignKey { id: key.id.clone(), encoding, decoding });
                    if key.verify_until.is_none() && keys.newest.is_none() {
                        keys.newest = Some(sign.clone());
                    }
                    keys.by_id.insert(key.id, sign);
                }
            }
        }
        self.keys.store(Arc::new(keys));
        Ok(())
    }

    fn fresh(&self, purpose: SessionKeyUse) -> Result<SessionKey> {
        let id = uuid::Uuid::from_bytes(rand::random()).simple().to_string();
        let sealed = seal_key(&*self.sealer, &record(&id), &*vault::random()?)?;
        Ok(SessionKey { id, purpose, sealed, created_at: self.store.now(), verify_until: None })
    }

    /// Makes the key of a use, if there is none.
    async fn make(&self, purpose: SessionKeyUse) -> Result<()> {
        self.store.session_key_add(&self.fresh(purpose)?, None).await?;
        self.read().await
    }

    /// Signs with a new key from now on; the others verify until then. The new key's id.
    pub(super) async fn rotate(&self, until: Millis) -> Result<String> {
        let key = self.fresh(SessionKeyUse::Sign)?;
        self.store.session_key_add(&key, Some(until)).await?;
        self.read().await?;
        Ok(key.id)
    }

    /// The digest of a subject's identifier.
    pub(super) async fn digest(&self, product: &str, identifier: &str) -> Result<[u8; 32]> {
        if self.keys.load().digest.is_none() {
            self.read().await?;
        }
        if self.keys.load().digest.is_none() {
            self.make(SessionKeyUse::Digest).await?;
        }
        let keys = self.keys.load();
        let key = keys.digest.as_ref().ok_or_else(|| Error::store("the key for digests of identifiers is missing"))?;
        Ok(vault::digest(key, &[product.as_bytes(), identifier.as_bytes()]))
    }

    /// Signs a token.
    pub(super) async fn sign(&self, claims: &Claims) -> Result<String> {
        if self.keys.load().newest.is_none() {
            self.read().await?;
        }
        if self.keys.load().newest.is_none() {
            self.make(SessionKeyUse::Sign).await?;
        }
        let keys = self.keys.load();
        let key = keys.newest.as_ref().ok_or_else(|| Error::store("the key that signs sessions is missing"))?;
        let header = Header { kid: Some(key.id.clone()), ..Header::new(Algorithm::HS256) };
        encode(&header, claims, &key.encoding).map_err(|_| Error::store("a session's token cannot be signed").reason("internal"))
    }

    /// The claims of a token whose signature is right, of this product. Its times are not looked at. The outer error: the keys
    /// cannot be read; the inner one: why it is no token of ours, in a word.
    pub(super) async fn open(&self, product: &str, jwt: &str) -> Result<Result<Claims, &'static str>> {
        let Ok(header) = decode_header(jwt) else { return Ok(Err("malformed")) };
        let Some(kid) = header.kid.filter(|_| header.alg == Algorithm::HS256) else { return Ok(Err("algorithm")) };
        let Some(key) = self.key(&kid).await? else { return Ok(Err("unknown_key")) };
        let mut validation = Validation::new(Algorithm::HS256);
        validation.set_required_spec_claims(&["exp", "nbf", "iss", "aud"]);
        validation.set_issuer(&[ISSUER]);
        validation.set_audience(&[product]);
        // One clock for all that is decided by time: the caller's.
        validation.validate_exp = false;
        validation.validate_nbf = false;
        Ok(decode::<Claims>(jwt, &key.decoding, &validation).map(|token| token.claims).map_err(|_| "signature"))
    }

    async fn key(&self, kid: &str) -> Result<Option<Arc<SignKey>>> {
        let find = || self.keys.load().by_id.get(kid).cloned();
        if let Some(key) = find() {
            return Ok(Some(key));
        }
        if self.keys.load().read_at.is_none_or(|at| at.elapsed() >= ASK_AGAIN) {
            self.read().await?;
        }
        Ok(find())
    }
}
