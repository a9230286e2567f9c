//! The secrets of a workspace: made, listed, rotated and deleted. A value goes in and never comes out again.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::scope::{id, record};
use super::{Keyring, Secret};
use crate::access::Call;
use crate::catalog::Seal as _;
use crate::error::{Code, Error, Result};
use crate::event::check_tag;
use crate::inner::Inner;
use crate::message::{Millis, now_ms};
use crate::store::secrets::{SecretChange, SecretRow};
use crate::trunkline::Trunkline;

/// The longest value, in bytes: long enough for a service account or a certificate with its chain.
const VALUE_MAX: usize = 64 * 1024;
/// How often a change is worked out anew because another process was faster.
const ATTEMPTS: u32 = 50;

/// Which secret is meant.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SecretInput {
    /// The product it is for; `None`: every product.
    pub product: Option<String>,
    /// Its name: what `$Secret{KEY}` says. A tag.
    pub key: String,
    /// The envs it is for; empty: every env. Of several secrets of one name, the one for product and env wins, then the one
    /// for the product, then the one for the env, then the one for all.
    pub envs: Vec<String>,
}

impl SecretInput {
    /// A secret of this name, for every product and env.
    #[must_use]
    pub fn new(key: impl Into<String>) -> Self {
        SecretInput { key: key.into(), ..SecretInput::default() }
    }

    /// Only for this product.
    #[must_use]
    pub fn product(mut self, product: impl Into<String>) -> Self {
        self.product = Some(product.into());
        self
    }

    /// Only for these envs.
    #[must_use]
    pub fn envs(mut self, envs: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.envs = envs.into_iter().map(Into::into).collect();
        self
    }

    fn checked(mut self) -> Result<Self> {
        check_tag("key", &self.key)?;
        self.product.iter().try_for_each(|product| check_tag("product", product))?;
        self.envs.iter().try_for_each(|env| check_tag("envs", env))?;
        self.envs.sort_unstable();
        self.envs.dedup();
        Ok(self)
    }

    fn id(&self) -> String {
        id(self.product.as_deref(), &self.key, &self.envs)
    }

    /// As the audit and errors name it.
    fn text(&self) -> String {
        let of = self.product.as_deref().map_or_else(|| "every product".to_owned(), |product| format!("product {product}"));
        if self.envs.is_empty() { format!("{} of {of}", self.key) } else { format!("{} of {of} in {}", self.key, self.envs.join(", ")) }
    }

    /// The row it names: the one of just these envs; without any, the only one of the name and product.
    fn find<'a>(&self, rows: &'a [SecretRow]) -> Result<&'a SecretRow> {
        let named: Vec<&SecretRow> = rows.iter().filter(|row| row.key == self.key && row.product == self.product).collect();
        if let Some(row) = named.iter().find(|row| row.envs == self.envs) {
            return Ok(row);
        }
        match named.as_slice() {
            [only] if self.envs.is_empty() => Ok(only),
            [_, _, ..] if self.envs.is_empty() => {
                let envs: Vec<String> = named.iter().map(|row| row.envs.join(",")).collect();
                Err(Error::input("envs", format!("there are several of {}: for {}", self.text(), envs.join("; "))).detail("known", envs))
            }
            _ => Err(self.unknown(rows)),
        }
    }

    fn unknown(&self, rows: &[SecretRow]) -> Error {
        let near = crate::config::shape::did_you_mean(&self.key, rows.iter().map(|row| row.key.as_str()));
        Error::new(Code::SecretNotFound, format!("there is no secret {}{near}", self.text()))
            .field("key")
            .next("list them with `trunkline secrets list`")
    }
}

/// A secret as it is shown: everything but its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SecretView {
    /// The product it is for; absent: every product.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub product: Option<String>,
    /// Its name.
    pub key: String,
    /// The envs it is for; empty: every env.
    pub envs: Vec<String>,
    /// When it was made, in ms since 1970.
    pub created_at: Millis,
    /// When it was last rotated.
    pub updated_at: Millis,
}

impl From<&SecretRow> for SecretView {
    fn from(row: &SecretRow) -> Self {
        let SecretRow { product, key, envs, created_at, updated_at, .. } = row.clone();
        SecretView { product, key, envs, created_at, updated_at }
    }
}

/// The secrets of a workspace; only admins manage them.
#[derive(Debug)]
pub struct Secrets<'a>(pub(super) &'a Arc<Inner>);

impl Trunkline {
    /// Secrets, which broker configs refer to as `$Secret{KEY}`.
    ///
    /// ```
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let path = dir.path().join("data").display().to_string();
    /// use trunkline::{Trunkline, secret::{Secret, SecretInput}};
    /// let trunkline = Trunkline::open(&path).await?;
    /// let which = SecretInput::new("kafka-password").product("shop").envs(["prd"]);
    /// trunkline.secrets().create(which.clone(), &Secret::new("hunter2")).await?;
    /// trunkline.secrets().rotate(which, &Secret::new("hunter3")).await?;
    /// assert_eq!(trunkline.secrets().list().await?[0].key, "kafka-password");
    /// # Ok::<_, trunkline::Error>(()) }).unwrap();
    /// ```
    #[must_use]
    pub fn secrets(&self) -> Secrets<'_> {
        Secrets(&self.0)
    }
}

impl Secrets<'_> {
    /// Keeps a secret, sealed with the master key.
    ///
    /// # Errors
    /// `INPUT_INVALID` for a malformed name, product or env, or a value that is empty or longer than 64 KiB;
    /// `ALREADY_EXISTS` if there is one of this name for the product in one of these envs; `ACCESS_DENIED`, `STORE_FAILED`.
    pub async fn create(&self, which: SecretInput, value: &Secret) -> Result<SecretView> {
        let which = which.checked()?;
        check_value(value)?;
        let created = self.write(|rows| {
            let clash = rows.iter().find(|row| {
                let overlap = row.envs.is_empty() == which.envs.is_empty()
                    && (which.envs.is_empty() || row.envs.iter().any(|env| which.envs.contains(env)));
                row.key == which.key && row.product == which.product && overlap
            });
            if clash.is_some() {
                return Err(Error::new(Code::AlreadyExists, format!("there is a secret {} already", which.text()))
                    .field("key")
                    .next(format!("change its value with `trunkline secrets rotate {}`", which.key)));
            }
            let now = now_ms();
            let SecretInput { product, key, envs } = which.clone();
            let sealed = seal(self.0.vault.keyring(), &which.id(), value)?;
            let row = SecretRow { id: which.id(), product, key, envs, sealed, created_at: now, updated_at: now };
            Ok((SecretView::from(&row), SecretChange::Put(row)))
        });
        self.0.access.audited(Call::SecretCreate, &which.text(), created).await
    }

    /// All secrets, by product and name; never their values.
    ///
    /// # Errors
    /// `ACCESS_DENIED`, `STORE_FAILED`.
    pub async fn list(&self) -> Result<Vec<SecretView>> {
        self.0.access.allow(Call::SecretRead)?;
        Ok(self.0.store.secrets().await?.1.iter().map(SecretView::from).collect())
    }

    /// Gives a secret another value. Every open process of the workspace opens the connections that use it anew, within a
    /// second or two; what was handed to the old ones is still confirmed and settled there.
    ///
    /// # Errors
    /// `SECRET_NOT_FOUND`; `INPUT_INVALID` as [`Secrets::create`], and where no env was named and there are several;
    /// `ACCESS_DENIED`, `STORE_FAILED`.
    pub async fn rotate(&self, which: SecretInput, value: &Secret) -> Result<SecretView> {
        let which = which.checked()?;
        check_value(value)?;
        let rotated = self.write(|rows| {
            let row = which.find(rows)?;
            let sealed = seal(self.0.vault.keyring(), &row.id, value)?;
            let row = SecretRow { sealed, updated_at: now_ms(), ..row.clone() };
            Ok((SecretView::from(&row), SecretChange::Put(row)))
        });
        self.0.access.audited(Call::SecretRotate, &which.text(), rotated).await
    }

    /// Removes a secret. Connections that used it are opened anew, with a less specific one or the environment's if there is
    /// one; else what needs them fails with `SECRET_NOT_FOUND`.
    ///
    /// # Errors
    /// As [`Secrets::rotate`].
    pub async fn delete(&self, which: SecretInput) -> Result<SecretView> {
        let which = which.checked()?;
        let deleted = self.write(|rows| {
            let row = which.find(rows)?;
            Ok((SecretView::from(row), SecretChange::Remove(row.id.clone())))
        });
        self.0.access.audited(Call::SecretDelete, &which.text(), deleted).await
    }

    /// Works a change out on what is there, and writes it; again from the start if another process was faster.
    async fn write(&self, work: impl Fn(&[SecretRow]) -> Result<(SecretView, SecretChange)>) -> Result<SecretView> {
        for attempt in 0..ATTEMPTS {
            let (version, rows) = self.0.store.secrets().await?;
            let (view, change) = work(&rows)?;
            if self.0.store.secrets_write(version, vec![change], Vec::new()).await?.is_some() {
                self.0.follow_catalogue().await?;
                return Ok(view);
            }
            tokio::time::sleep(Duration::from_millis(u64::from(attempt.min(20)) * rand::random_range(1..=4))).await;
        }
        Err(Error::store("the secrets are being changed by too many processes at once").with_retryable(true))
    }
}

fn seal(keyring: &Keyring, id: &str, value: &Secret) -> Result<String> {
    keyring.seal(&record(id), value.expose())
}

fn check_value(value: &Secret) -> Result<()> {
    let length = value.expose().len();
    if (1..=VALUE_MAX).contains(&length) {
        return Ok(());
    }
    Err(Error::input("value", format!("the value must have 1 to {VALUE_MAX} bytes; it has {length}")))
}
