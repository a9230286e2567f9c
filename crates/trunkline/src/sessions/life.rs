//! The life of sessions: start, verify, refresh, revoke, list.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use std::time::Duration;

use super::gate::invalid;
use super::given::Session;
use super::token::Claims;
use super::vault::{self, SubjectKey};
use super::{ActiveSession, ActiveSessions, Revoke, Revoked, Sessions, Started, User, Users, Verification};
use crate::access::Call;
use crate::catalog::SessionDoc;
use crate::error::{Code, Error, Result};
use crate::history::Time;
use crate::message::{millis, now_ms};
use crate::store::{SessionRefreshed, SessionRenewal, SessionRow, SessionsOf};

/// A session can be refreshed for so long after its token expired.
const REFRESH: Duration = Duration::from_secs(30 * 86_400);
/// The most bytes of a session's data as JSON: they travel in every token and message.
const DATA_MOST: usize = 4 << 10;
/// The most bytes of an identifier.
const IDENTIFIER_MOST: usize = 512;
/// How long after a rotation a process may still sign with the old key.
const ROTATION_SLACK: Duration = Duration::from_secs(300);

impl Sessions {
    /// Starts a session of `tag` with `data`, which has the field that the definition's selector names. The token is good for
    /// the definition's expiry; the refresh token until 30 days after that, once.
    ///
    /// # Errors
    /// `PRODUCT_NOT_FOUND`, `SESSION_NOT_FOUND`, `INPUT_INVALID` (naming the selector's field where `data` is without it),
    /// `STORE_FAILED`.
    pub async fn start(&self, tag: &str, data: Value) -> Result<Started> {
        self.inner.access.allow(Call::SessionStart)?;
        let doc = self.inner.catalog.session(&self.product, tag)?;
        let identifier = checked(&doc, &data)?;
        let digest = self.digest(&identifier).await?;
        // A second try, should the subject be erased just now: it is then another one.
        for _ in 0..2 {
            let key = self.gate().vault.subject(&self.product, tag, &identifier, &digest).await?;
            let now = self.gate().store.now();
            let expires_at = now + millis(doc.lifetime());
            let session = SessionRow {
                id: uuid::Uuid::now_v7().to_string(),
                product: self.product.to_string(),
                tag: tag.to_owned(),
                subject: key.id().to_string(),
                env: self.env.as_deref().map(str::to_owned),
                data: Vec::new(),
                started_at: now,
                refreshed_at: now,
                expires_at,
                refresh_until: expires_at + millis(REFRESH),
            };
            let session = SessionRow { data: key.seal(session.id.as_bytes(), data.to_string().as_bytes())?, ..session };
            let refresh = refresh_token()?;
            if self.gate().store.session_start(&session, &hash(&refresh)).await? {
                return self.issue(&doc, &session, &key, data, refresh).await;
            }
            self.gate().look().await?;
        }
        Err(Error::store("the session's subject is being erased over and over").with_retryable(true))
    }

    /// Whether a token is good; why not is not said.
    ///
    /// # Errors
    /// `PRODUCT_NOT_FOUND`, `STORE_FAILED`. An invalid token is a result.
    pub async fn verify(&self, tag: &str, token: &str) -> Result<Verification> {
        self.inner.access.allow(Call::SessionVerify)?;
        match self.check(&Session::new(tag, token)).await {
            Ok(verified) => Ok(Verification {
                valid: true,
                data: Some(verified.context.data.clone()),
                session_id: Some(verified.context.id.clone()),
                expires_at: Some(Time(verified.expires_at)),
            }),
            Err(error) if error.code() == Code::SessionInvalid => Ok(Verification::default()),
            Err(error) => Err(error),
        }
    }

    /// Exchanges a refresh token for a new token and a new refresh token. The session keeps its id. One that was exchanged
    /// before revokes the session: somebody else has it.
    ///
    /// # Errors
    /// `SESSION_NOT_FOUND`, `SESSION_INVALID`, `STORE_FAILED`.
    pub async fn refresh(&self, tag: &str, refresh_token: &str) -> Result<Started> {
        self.inner.access.allow(Call::SessionRefresh)?;
        let doc = self.inner.catalog.session(&self.product, tag)?;
        let (next, now) = (self::refresh_token()?, self.gate().store.now());
        let expires_at = now + millis(doc.lifetime());
        let renewal = SessionRenewal { hash: hash(&next), at: now, expires_at, refresh_until: expires_at + millis(REFRESH) };
        let session = match self.gate().store.session_refresh(&self.product, tag, &hash(refresh_token), renewal).await? {
            SessionRefreshed::Renewed(session) => session,
            SessionRefreshed::Unknown => return Err(invalid("refresh_unknown")),
            SessionRefreshed::Reused => {
                self.gate().look().await?;
                return Err(invalid("refresh_reused"));
            }
        };
        let key = self.gate().vault.key(&session.subject).await?.ok_or_else(|| invalid("revoked"))?;
        let data = key.open(session.id.as_bytes(), &session.data).and_then(|data| serde_json::from_slice(&data).ok());
        let data = data.ok_or_else(|| Error::store("the data of a session cannot be read").reason("damaged"))?;
        self.issue(&doc, &session, &key, data, next).await
    }

    async fn issue(&self, doc: &SessionDoc, session: &SessionRow, key: &SubjectKey, data: Value, refresh: String) -> Result<Started> {
        let now = now_ms();
        let expires_at = now + millis(doc.lifetime());
        let claims = Claims {
            iss: Claims::issuer(),
            aud: self.product.to_string(),
            sub: key.id().to_string(),
            // Whole seconds: a token is not cut short by them.
            exp: expires_at.div_ceil(1_000),
            nbf: now / 1_000,
            iat: now / 1_000,
            at: session.refreshed_at,
            sid: session.id.clone(),
            tag: session.tag.clone(),
            identifier: key.identifier().to_owned(),
            data,
        };
        let jwt = self.gate().ring.sign(&claims).await?;
        Ok(Started {
            session_id: session.id.clone(),
            token: format!("{}:{jwt}", session.tag),
            refresh_token: refresh,
            expires_at: Time(claims.exp * 1_000),
        })
    }

    /// Ends one session, or all of an identifier. Other processes refuse its tokens within a second.
    ///
    /// # Errors
    /// `SESSION_NOT_FOUND` if there is no definition of this tag; `STORE_FAILED`.
    pub async fn revoke(&self, tag: &str, which: Revoke) -> Result<Revoked> {
        let which = match which {
            Revoke::Session(id) => SessionsOf::Session(id),
            Revoke::Identifier(identifier) => SessionsOf::Subject(self.digest(&identifier).await?.to_vec()),
        };
        self.take_back(tag, which).await
    }

    /// Ends all sessions of a tag.
    ///
    /// # Errors
    /// As [`Sessions::revoke`].
    pub async fn revoke_all(&self, tag: &str) -> Result<Revoked> {
        self.take_back(tag, SessionsOf::All).await
    }

    async fn take_back(&self, tag: &str, which: SessionsOf) -> Result<Revoked> {
        let revoked = async {
            self.inner.catalog.session(&self.product, tag)?;
            let revoked = self.gate().store.session_revoke(&self.product, tag, which).await?;
            self.gate().look().await?;
            Ok(Revoked { revoked })
        };
        self.inner.access.audited(Call::SessionRevoke, &format!("{}/{tag}", self.product), revoked).await
    }

    /// A page (from 1) of the sessions whose token is good now, newest first; of one identifier, or of all.
    ///
    /// # Errors
    /// `SESSION_NOT_FOUND`, `INPUT_INVALID` for a page or limit out of range, `STORE_FAILED`.
    pub async fn active(&self, tag: &str, identifier: Option<&str>, page: u64, limit: u64) -> Result<ActiveSessions> {
        self.inner.access.allow(Call::SessionRead)?;
        self.inner.catalog.session(&self.product, tag)?;
        let offset = offset(page, limit)?;
        let digest = match identifier {
            Some(identifier) => Some(self.digest(identifier).await?),
            None => None,
        };
        let digest = digest.as_ref().map(|digest| &digest[..]);
        let (rows, total) = self.gate().store.session_list(&self.product, tag, digest, limit, offset).await?;
        let mut sessions = Vec::with_capacity(rows.len());
        for row in rows {
            // One that is erased just now is gone.
            let Some(key) = self.gate().vault.key(&row.subject).await? else { continue };
            sessions.push(ActiveSession {
                session_id: row.id,
                tag: row.tag,
                identifier: key.identifier().to_owned(),
                env: row.env,
                started_at: Time(row.started_at),
                refreshed_at: Time(row.refreshed_at),
                expires_at: Time(row.expires_at),
            });
        }
        Ok(ActiveSessions { sessions, total, page, limit })
    }

    /// A page (from 1) of those who had sessions of a tag, newest first. Erased ones are not among them.
    ///
    /// # Errors
    /// As [`Sessions::active`].
    pub async fn users(&self, tag: &str, page: u64, limit: u64) -> Result<Users> {
        self.inner.access.allow(Call::SessionRead)?;
        self.inner.catalog.session(&self.product, tag)?;
        let (rows, total) = self.gate().store.session_users(&self.product, tag, limit, offset(page, limit)?).await?;
        let user = |row: crate::store::SessionUser| {
            Ok(User {
                identifier: self.gate().vault.identifier(&row.subject)?,
                active: row.active,
                first_at: Time(row.subject.created_at),
                last_at: row.last_at.map(Time),
            })
        };
        let users = rows.into_iter().map(user).collect::<Result<_>>()?;
        Ok(Users { users, total, page, limit, total_pages: total.div_ceil(limit) })
    }

    /// Signs with a new key from now on. Tokens of the old one stay valid until their time is over. The new key's id.
    ///
    /// # Errors
    /// `STORE_FAILED`.
    pub async fn rotate_keys(&self) -> Result<String> {
        let catalog = &self.inner.catalog;
        let products = catalog.list_products();
        let of = |product: &str| catalog.list_sessions(product).unwrap_or_default();
        let longest = products.iter().flat_map(|product| of(&product.tag)).map(|doc| doc.lifetime()).max().unwrap_or_default();
        // Also if a definition was shortened, or removed, since it gave out its last token.
        let until = self.gate().store.now() + millis(longest.max(REFRESH) + ROTATION_SLACK);
        self.inner.access.audited(Call::SessionKeysRotate, "the keys of sessions", self.gate().ring.rotate(until)).await
    }

    pub(super) async fn digest(&self, identifier: &str) -> Result<[u8; 32]> {
        self.gate().ring.digest(&self.product, identifier).await
    }
}

/// The identifier of a session's data.
fn checked(doc: &SessionDoc, data: &Value) -> Result<String> {
    if !data.is_object() {
        let shape = crate::config::shape::shape(data);
        return Err(Error::input("data", format!("`data` must be an object, got {shape}")));
    }
    if data.to_string().len() > DATA_MOST {
        return Err(Error::input("data", format!("`data` has more than {DATA_MOST} bytes as JSON"))
            .next("keep what is large elsewhere, and put a reference into the session"));
    }
    let field = doc.field();
    let identifier = doc.identifier(data).ok_or_else(|| {
        Error::input(&format!("data.{field}"), format!("`data` must have the selector's field '{field}', as a text, a number or a boolean"))
            .next(format!("the session '{}' finds out by it who it is of: {}", doc.tag, doc.selector))
    })?;
    if identifier.len() > IDENTIFIER_MOST {
        return Err(Error::input(&format!("data.{field}"), format!("an identifier has at most {IDENTIFIER_MOST} bytes")));
    }
    Ok(identifier)
}

fn offset(page: u64, limit: u64) -> Result<u64> {
    if page == 0 {
        return Err(Error::input("page", "`page` counts from 1"));
    }
    if !(1..=1_000).contains(&limit) {
        return Err(Error::input("limit", "`limit` must be 1 to 1000"));
    }
    Ok((page - 1).saturating_mul(limit))
}

/// 256 bits that nobody guesses.
fn refresh_token() -> Result<String> {
    Ok(URL_SAFE_NO_PAD.encode(&vault::random()?[..]))
}

/// What the store keeps of a refresh token.
fn hash(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}
