//! Access keys: made, listed and revoked. A key reads `tl_<id>_<secret>`; what is stored is a hash of its secret.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::TryRngCore as _;
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use crate::access::{Call, Role};
use crate::error::{Code, Error, Result};
use crate::inner::Inner;
use crate::message::{Millis, now_ms};
use crate::secret::Secret;
use crate::store::keys::KeyRow;
use crate::trunkline::Trunkline;

/// How every key starts.
const PREFIX: &str = "tl";
/// How often a change is worked out anew because another process was faster.
const ATTEMPTS: u32 = 50;

/// A key that was made. Its text is shown this once: `Debug` and JSON do not have it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NewKey {
    /// The key itself, `tl_<id>_<secret>`.
    #[serde(skip)]
    pub text: Secret,
    /// What is known of it from now on.
    #[serde(flatten)]
    pub key: AccessKey,
}

/// An access key as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AccessKey {
    /// Its id, the middle of its text.
    pub id: String,
    /// What it may be used for.
    pub role: Role,
    /// What its maker calls it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// `active`, `expired` or `revoked`.
    pub state: &'static str,
    /// When it was made, in ms since 1970.
    pub created_at: Millis,
    /// From when on it opens nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Millis>,
    /// When it was revoked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<Millis>,
}

impl AccessKey {
    fn of(row: &KeyRow, now: Millis) -> Result<Self> {
        let state = match () {
            () if row.revoked_at.is_some() => "revoked",
            () if row.expires_at.is_some_and(|at| at <= now) => "expired",
            () => "active",
        };
        let role = row.role.parse().map_err(|_| Error::store(format!("access key '{}' has a role of a newer version", row.id)))?;
        let KeyRow { id, name, created_at, expires_at, revoked_at, .. } = row.clone();
        Ok(AccessKey { id, role, name, state, created_at, expires_at, revoked_at })
    }
}

/// A key as somebody presents it: the hash of its secret, and no longer the secret itself.
pub(crate) struct Presented {
    id: String,
    hash: [u8; 32],
}

impl Presented {
    /// Reads a key's text; `None` if it is none.
    pub(crate) fn parse(text: &Secret) -> Option<Self> {
        let mut parts = text.expose().trim().splitn(3, '_');
        let (prefix, id, secret) = (parts.next()?, parts.next()?, parts.next()?);
        let bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(secret).ok()?);
        (prefix == PREFIX && bytes.len() == 32).then(|| Presented { id: id.to_owned(), hash: hash(&bytes) })
    }

    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// Whether it is the key with this hash. Takes as long for a near miss as for any other.
    pub(crate) fn opens(&self, hash: &[u8; 32]) -> bool {
        self.hash.ct_eq(hash).into()
    }
}

impl fmt::Debug for Presented {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Presented({})", self.id)
    }
}

/// A secret of 256 random bits needs no salt and no slow hash.
fn hash(secret: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update(b"trunkline access key\0").chain_update(secret).finalize().into()
}

/// A new key: its id, its text, its hash.
fn fresh() -> Result<(String, Secret, [u8; 32])> {
    let (mut id, mut secret) = ([0; 8], Zeroizing::new([0; 32]));
    let random = &mut rand::rngs::OsRng;
    let filled = random.try_fill_bytes(&mut id).and_then(|()| random.try_fill_bytes(&mut secret[..]));
    filled.map_err(|_| Error::store("the system gives no random numbers").reason("random"))?;
    let id = format!("{:016x}", u64::from_be_bytes(id));
    let text = Secret::new(format!("{PREFIX}_{id}_{}", Zeroizing::new(URL_SAFE_NO_PAD.encode(&secret[..])).as_str()));
    Ok((id, text, hash(&secret[..])))
}

/// The access keys of a workspace; only admins manage them.
#[derive(Debug)]
pub struct Keys<'a>(&'a Arc<Inner>);

impl Trunkline {
    /// Access keys. A workspace without any accepts everybody; from the first one on, only a key that holds opens it.
    ///
    /// ```
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let path = dir.path().join("data").display().to_string();
    /// use trunkline::{Code, Trunkline, access::Role};
    /// let trunkline = Trunkline::open(&path).await?;
    /// let key = trunkline.keys().create(Role::Admin, None, Some("first")).await?;
    /// assert_eq!(Trunkline::open(&path).await.unwrap_err().code(), Code::AccessDenied);
    /// Trunkline::builder().url(&path).access_key(key.text.expose()).open().await?;
    /// # Ok::<_, trunkline::Error>(()) }).unwrap();
    /// ```
    #[must_use]
    pub fn keys(&self) -> Keys<'_> {
        Keys(&self.0)
    }
}

impl Keys<'_> {
    /// Makes a key of this role that holds until `expires_at` (ms since 1970), or until it is revoked. The first key must be
    /// an admin's.
    ///
    /// # Errors
    /// `INPUT_INVALID` for an end in the past, a name of more than 100 characters, or a first key of another role;
    /// `ACCESS_DENIED`, `STORE_FAILED`.
    pub async fn create(&self, role: Role, expires_at: Option<Millis>, name: Option<&str>) -> Result<NewKey> {
        let (id, text, hash) = fresh()?;
        let target = format!("{id} {role}");
        let made = self.0.access.audited(Call::KeyCreate, &target, self.insert(role, expires_at, name, &id, hash));
        Ok(NewKey { text, key: made.await? })
    }

    async fn insert(&self, role: Role, expires_at: Option<Millis>, name: Option<&str>, id: &str, hash: [u8; 32]) -> Result<AccessKey> {
        let now = now_ms();
        if expires_at.is_some_and(|at| at <= now) {
            return Err(Error::input("expiresAt", "`expiresAt` lies in the past"));
        }
        if name.is_some_and(|name| name.chars().count() > 100) {
            return Err(Error::input("name", "`name` must have at most 100 characters"));
        }
        let row = KeyRow {
            id: id.to_owned(),
            role: role.as_str().to_owned(),
            name: name.map(str::to_owned),
            hash,
            created_at: now,
            expires_at,
            revoked_at: None,
        };
        self.write(|rows| {
            if role != Role::Admin && !rows.iter().any(|row| row.revoked_at.is_none()) {
                return Err(Error::input("role", "the first key must be an admin's: from it on, only keys open this workspace")
                    .next("make one with `trunkline keys create --role admin` first"));
            }
            Ok(row.clone())
        })
        .await
    }

    /// All keys, oldest first; never their texts.
    ///
    /// # Errors
    /// `ACCESS_DENIED`, `STORE_FAILED`.
    pub async fn list(&self) -> Result<Vec<AccessKey>> {
        self.0.access.allow(Call::KeyRead)?;
        let now = self.0.store.now();
        self.0.store.keys().await?.1.iter().map(|row| AccessKey::of(row, now)).collect()
    }

    /// Revokes a key: within a second no open process can use it any more. When the last one is revoked, the workspace is open
    /// to everybody again.
    ///
    /// # Errors
    /// `INPUT_INVALID` if there is no such key; `IN_USE` for the last admin's key, unless `force`; `ACCESS_DENIED`,
    /// `STORE_FAILED`.
    pub async fn revoke(&self, id: &str, force: bool) -> Result<AccessKey> {
        let revoked = async {
            self.write(|rows| {
                let row = rows.iter().find(|row| row.id == id).ok_or_else(|| unknown(id))?;
                let now = self.0.store.now();
                let is_admin = |row: &&KeyRow| AccessKey::of(row, now).is_ok_and(|key| key.role == Role::Admin && key.state == "active");
                let last = is_admin(&row) && rows.iter().filter(is_admin).count() == 1;
                if last && !force {
                    return Err(Error::new(Code::InUse, format!("'{id}' is the last admin's key: without one nobody can make keys"))
                        .field("id")
                        .next("make another one with `trunkline keys create --role admin`, or pass --force"));
                }
                Ok(KeyRow { revoked_at: row.revoked_at.or(Some(now_ms())), ..row.clone() })
            })
            .await
        };
        self.0.access.audited(Call::KeyRevoke, &shown(id), revoked).await
    }

    /// Works a row out on what is there, and writes it; again from the start if another process was faster.
    async fn write(&self, work: impl Fn(&[KeyRow]) -> Result<KeyRow>) -> Result<AccessKey> {
        for attempt in 0..ATTEMPTS {
            let (version, rows) = self.0.store.keys().await?;
            let row = work(&rows)?;
            if self.0.store.key_write(version, row.clone()).await?.is_some() {
                self.0.follow_catalogue().await?;
                return AccessKey::of(&row, self.0.store.now());
            }
            tokio::time::sleep(Duration::from_millis(u64::from(attempt.min(20)) * rand::random_range(1..=4))).await;
        }
        Err(Error::store("the access keys are being changed by too many processes at once").with_retryable(true))
    }
}

/// What may be shown of an id: a whole key given by mistake must not come back in an error or in the audit.
fn shown(id: &str) -> String {
    id.strip_prefix("tl_").unwrap_or(id).split('_').next().unwrap_or_default().chars().take(16).collect()
}

fn unknown(id: &str) -> Error {
    Error::input("id", format!("there is no access key '{}'", shown(id)))
        .next("list them with `trunkline keys list`; the id is the middle part")
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_known_by_its_hash_alone() {
        let (id, text, hash) = fresh().unwrap();
        let key = Presented::parse(&text).unwrap();
        assert!(key.opens(&hash) && key.id() == id && !key.opens(&[0; 32]));
        assert!(!format!("{key:?}").contains(text.expose().rsplit('_').next().unwrap()));
        assert!(Presented::parse(&Secret::new(format!(" {}\n", text.expose()))).is_some());
        for bad in ["", "tl", "tl_x", "tl_x_", "tl_x_short", &text.expose().replace("tl_", "xx_"), &text.expose()[..60]] {
            assert!(Presented::parse(&Secret::new(bad)).is_none(), "{bad}");
        }
    }

    #[test]
    fn a_whole_key_given_for_its_id_is_not_repeated() {
        let (_, text, _) = fresh().unwrap();
        let secret = text.expose().splitn(3, '_').last().unwrap().to_owned();
        assert!(!format!("{:?}", unknown(text.expose())).contains(&secret));
    }
}
