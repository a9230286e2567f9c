//! Which secret a reference means: the most specific one of the product and env it is resolved in.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use serde_json::Value;
use tokio::sync::Mutex;

use super::resolve::resolve_in;
use super::{Keyring, Secret};
use crate::catalog::Seal as _;
use crate::error::Result;
use crate::store::Store;
use crate::store::secrets::SecretRow;

/// The secrets of a workspace as this process knows them: sealed, at one version of the catalogue.
#[derive(Debug)]
pub(crate) struct Vault {
    store: Arc<dyn Store>,
    keyring: Arc<Keyring>,
    known: ArcSwapOption<(u64, Vec<SecretRow>)>,
    reading: Mutex<()>,
}

impl Vault {
    pub(crate) fn new(store: Arc<dyn Store>, keyring: Arc<Keyring>) -> Self {
        Vault { store, keyring, known: ArcSwapOption::empty(), reading: Mutex::default() }
    }

    pub(crate) fn keyring(&self) -> &Keyring {
        &self.keyring
    }

    /// Reads the secrets unless those of this version of the catalogue, or of a later one, are known.
    ///
    /// # Errors
    /// `STORE_FAILED` if they cannot be read, and never were.
    pub(crate) async fn refresh(&self, version: u64) -> Result<()> {
        let is_known = || self.known.load().as_ref().is_some_and(|known| known.0 >= version);
        if is_known() {
            return Ok(());
        }
        let _one = self.reading.lock().await;
        if is_known() {
            return Ok(());
        }
        match self.store.secrets().await {
            Ok(read) => self.known.store(Some(Arc::new(read))),
            // A store that is down stops no message: the next look reads them.
            Err(error) if self.known.load().is_some() => tracing::warn!(%error, "the secrets cannot be read; those known stay in force"),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// A config with its references resolved, as of the last refresh.
    ///
    /// # Errors
    /// `SECRET_NOT_FOUND`, `CONFIG_INVALID`; `STORE_FAILED` for a secret that does not open.
    pub(crate) fn resolve(&self, product: &str, env: &str, config: &Value) -> Result<Value> {
        let known = self.known.load();
        let rows = known.as_ref().map_or(&[][..], |known| &known.1);
        resolve_in(config, &|name| match find(rows, product, env, name) {
            Some(row) => self.keyring.open(&record(&row.id), &row.sealed).map(|text| Some(Secret::new(text))),
            None => Ok(None),
        })
    }
}

/// What a secret is sealed for.
pub(super) fn record(id: &str) -> String {
    format!("secret/{id}")
}

/// What tells a secret from all others: product, key and envs. None of their alphabets has a `/` or a `,`.
pub(super) fn id(product: Option<&str>, key: &str, envs: &[String]) -> String {
    format!("{}/{key}/{}", product.unwrap_or_default(), envs.join(","))
}

/// The most specific of this name: of the product before one of all products, then of the env before one of all envs.
fn find<'a>(rows: &'a [SecretRow], product: &str, env: &str, key: &str) -> Option<&'a SecretRow> {
    let fits = |row: &&SecretRow| {
        row.key == key
            && row.product.as_ref().is_none_or(|of| of == product)
            && (row.envs.is_empty() || row.envs.iter().any(|of| of == env))
    };
    rows.iter().filter(fits).max_by_key(|row| (row.product.is_some(), !row.envs.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(product: Option<&str>, envs: &[&str]) -> SecretRow {
        let envs: Vec<String> = envs.iter().map(|env| (*env).to_owned()).collect();
        let id = id(product, "K", &envs);
        SecretRow { id, product: product.map(str::to_owned), key: "K".into(), envs, sealed: String::new(), created_at: 0, updated_at: 0 }
    }

    #[test]
    fn the_most_specific_wins() {
        let rows = [row(None, &[]), row(None, &["prd"]), row(Some("shop"), &[]), row(Some("shop"), &["dev", "prd"])];
        for (product, env, expected) in
            [("shop", "prd", "shop/K/dev,prd"), ("shop", "qa", "shop/K/"), ("other", "prd", "/K/prd"), ("other", "qa", "/K/")]
        {
            assert_eq!(find(&rows, product, env, "K").map(|row| row.id.as_str()), Some(expected), "{product}/{env}");
        }
        assert_eq!(find(&rows[3..], "shop", "qa", "K"), None);
        assert_eq!(find(&rows, "shop", "prd", "L"), None);
    }
}
