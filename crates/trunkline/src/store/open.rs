//! Opening a store by its URL, with what belongs to this host.

use std::sync::Arc;

use super::Store;
use super::datadir::DataDir;
use super::sqlite::SqliteStore;
use crate::error::Result;
use crate::secret::MasterKey;

/// An open store, and what of this host goes with it.
#[derive(Debug)]
pub struct Opened {
    /// The store.
    pub store: Arc<dyn Store>,
    /// Where this host keeps the embedded log, the history and its own id.
    pub directory: DataDir,
    /// What credentials in the store are sealed with.
    pub key: MasterKey,
}

/// Opens the store at `url`, at `TRUNKLINE_URL`, or in the nearest `.trunkline` upward from the working directory:
///
/// - `sqlite:DIR` or a plain path: a data directory, made if it is missing;
/// - `postgres://…` or `postgresql://…`: a schema of a database, made if it is missing. What belongs to this host lies where
///   [`DataDir::of_host`] says. All hosts must have the same master key: the first host's is made, the others bring it.
///
/// # Errors
/// As [`DataDir::find`], and as the store that is opened: `STORE_FAILED`, with reason `master_key` where this host has no key
/// or another one than the store's.
pub async fn open(url: Option<&str>) -> Result<Opened> {
    #[cfg(feature = "postgres")]
    {
        let env = std::env::var(super::datadir::URL_ENV).ok().filter(|url| !url.is_empty());
        if let Some(url) = url.or(env.as_deref()).filter(|url| is_postgres(url)) {
            return shared::open(url).await;
        }
    }
    let directory = DataDir::find(url)?;
    let store: Arc<dyn Store> = Arc::new(SqliteStore::open(directory.path(), super::sqlite::Options::default())?);
    let key = directory.master_key()?;
    Ok(Opened { store, directory, key })
}

/// Whether a URL names a database of PostgreSQL.
#[must_use]
pub fn is_postgres(url: &str) -> bool {
    url.starts_with("postgres:") || url.starts_with("postgresql:")
}

/// A URL as it may be shown: of a server, nothing that could be a password.
#[must_use]
pub fn shown(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://").filter(|(scheme, _)| *scheme != "sqlite") else { return url.to_owned() };
    let rest = rest.split('?').next().unwrap_or_default();
    format!("{scheme}://{}", rest.rsplit_once('@').map_or(rest, |(_, place)| place))
}

#[cfg(feature = "postgres")]
mod shared {
    use super::*;
    use crate::error::{Code, Error};
    use crate::secret::MASTER_KEY_ENV;
    use crate::store::postgres::{Options, PostgresStore};

    pub(super) async fn open(url: &str) -> Result<Opened> {
        let store = PostgresStore::open(url, Options::default()).await?;
        let directory = DataDir::of_host(&folder(&store.location()))?;
        let key = key(&store, &directory).await?;
        Ok(Opened { store: Arc::new(store), directory, key })
    }

    /// The name of a store's folder: its location, in what every file system takes.
    fn folder(location: &str) -> String {
        let place = location.split_once("://").map_or(location, |(_, place)| place);
        place.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' || c == '-' { c } else { '_' }).collect()
    }

    /// This host's key, if it is the store's; a new one where no host has one yet.
    async fn key(store: &PostgresStore, directory: &DataDir) -> Result<MasterKey> {
        let file = directory.master_key_file();
        let there = std::env::var_os(MASTER_KEY_ENV).is_some() || file.exists();
        if !there && store.has_key().await? {
            return Err(Error::new(Code::StoreFailed, "this host has no master key, and the store has one already")
                .reason("master_key")
                .detail("path", file.display().to_string())
                .next(format!("set {MASTER_KEY_ENV} to the key of the first host, or copy its master.key to {}", file.display())));
        }
        let made = !there && MasterKey::random()?.create(&file)?;
        let key = directory.master_key()?;
        let checked = store.check_key(&key).await;
        if made && checked.is_err() {
            // Another host was faster: this one's key was never used.
            let _ = std::fs::remove_file(&file);
        }
        checked.map(|()| key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_shown_without_its_password() {
        for (url, text) in [
            ("postgres://me:hunter2@db:5432/app?sslkey=hunter2", "postgres://db:5432/app"),
            ("postgresql://me:hun@ter2@db/app", "postgresql://db/app"),
            ("sqlite:./data", "sqlite:./data"),
            ("sqlite:///data", "sqlite:///data"),
            ("/data", "/data"),
        ] {
            assert_eq!(shown(url), text);
        }
        assert!(is_postgres("postgres://h/d") && is_postgres("postgresql://h/d") && !is_postgres("sqlite:postgres"));
    }
}
