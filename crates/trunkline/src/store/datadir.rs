//! The data directory: where a project's state lives on this host, and how it is found.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::error::{Code, Error, Result};
use crate::secret::{Keyring, MASTER_KEY_ENV, MasterKey};

/// The name of the directory that is looked for upward from the working directory.
pub const NAME: &str = ".trunkline";
/// The environment variable that says where the store is.
pub const URL_ENV: &str = "TRUNKLINE_URL";
/// The environment variable that says where a store on a server keeps what belongs to this host.
pub const DATA_DIR_ENV: &str = "TRUNKLINE_DATA_DIR";
/// The layout this code makes and knows.
const FORMAT: u32 = 1;

/// The stores that are compiled in.
pub const STORES: &[&str] = &[
    #[cfg(feature = "sqlite")]
    "sqlite",
    #[cfg(feature = "postgres")]
    "postgres",
];

/// A data directory that is there and has a layout this version knows.
///
/// It holds `state.db` (the store), `log/` (the embedded broker), `history/`, `master.key`, `host-id` and `format`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataDir {
    path: PathBuf,
}

impl DataDir {
    /// Finds the data directory: at `url` or `TRUNKLINE_URL`, created there if missing; else the nearest `.trunkline`
    /// upward from the working directory.
    ///
    /// # Errors
    /// `STORE_FAILED` with reason `missing` if there is none, `newer` if a later version made it, `read_only` or
    /// `cannot_open`; `CAPABILITY_UNSUPPORTED` for a store that is not compiled in; `INPUT_INVALID` for another URL.
    pub fn find(url: Option<&str>) -> Result<DataDir> {
        let env = std::env::var(URL_ENV).ok().filter(|url| !url.is_empty());
        let from = std::env::current_dir().map_err(|error| failed(Path::new("."), "the working directory is gone", &error))?;
        Self::find_from(url.map(|url| (url, "url")).or(env.as_deref().map(|url| (url, URL_ENV))), &from)
    }

    /// Finds the directory of what belongs to this host, for a store that lies on a server: at `TRUNKLINE_DATA_DIR`, else the
    /// nearest `.trunkline` upward from the working directory, else `trunkline/NAME` where the user keeps state
    /// (`XDG_STATE_HOME`, else `~/.local/state`). It is created if it is missing, without a master key.
    ///
    /// # Errors
    /// `STORE_FAILED` as [`DataDir::find`], and with reason `missing` if the user has no home.
    pub fn of_host(name: &str) -> Result<DataDir> {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let near = || std::env::current_dir().ok()?.ancestors().map(|dir| dir.join(NAME)).find(|dir| dir.join("format").is_file());
        let home = || set("XDG_STATE_HOME").or_else(|| Some(set("HOME")?.join(".local/state")));
        let path = set(DATA_DIR_ENV).or_else(near).or_else(|| home().map(|state| state.join("trunkline").join(name)));
        let path = path.ok_or_else(|| {
            Error::store("this user has no home, so there is no place for what belongs to this host")
                .reason("missing")
                .next(format!("name a directory in {DATA_DIR_ENV}"))
        })?;
        if path.join("format").exists() { Self::open(&path) } else { Self::create_with(&path, true) }
    }

    fn find_from(url: Option<(&str, &str)>, from: &Path) -> Result<DataDir> {
        if let Some((url, field)) = url {
            let path = from.join(path_of(url, field)?);
            return if path.join("format").exists() { Self::open(&path) } else { Self::create(&path) };
        }
        let found = from.ancestors().map(|dir| dir.join(NAME)).find(|dir| dir.is_dir());
        found.map_or_else(|| Err(missing(format!("no {NAME} directory in {} or above it", from.display()))), |path| Self::open(&path))
    }

    /// Opens the data directory at `path`.
    ///
    /// # Errors
    /// As [`DataDir::find`].
    pub fn open(path: &Path) -> Result<DataDir> {
        let text = match std::fs::read_to_string(path.join("format")) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(missing(format!("{} is not a data directory, or its creation was cut short", path.display())));
            }
            Err(error) => return Err(failed(path, "the data directory cannot be read", &error)),
        };
        match text.trim().parse::<u32>() {
            Ok(format) if format == FORMAT => Ok(DataDir { path: path.to_owned() }),
            Ok(format) if format > FORMAT => {
                Err(Error::store(format!("the data directory {} has format {format}, this Trunkline knows {FORMAT}", path.display()))
                    .reason("newer")
                    .next("use the newer Trunkline that made it; going back to an older one is not supported"))
            }
            _ => Err(Error::store(format!("{} is damaged: it holds no known format", path.join("format").display()))
                .reason("damaged")
                .next("put the data directory back from its backup")),
        }
    }

    /// Creates what is missing of the data directory at `path`, and opens it. What is there stays.
    ///
    /// # Errors
    /// `STORE_FAILED` if it cannot be made, or a later version made it.
    pub fn create(path: &Path) -> Result<DataDir> {
        Self::create_with(path, std::env::var_os(MASTER_KEY_ENV).is_some())
    }

    fn create_with(path: &Path, key_in_env: bool) -> Result<DataDir> {
        let make = |path: &Path| {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(path)
                .map_err(|error| failed(path, "the data directory cannot be made", &error))
        };
        for dir in [path.to_owned(), path.join("log"), path.join("history")] {
            make(&dir)?;
        }
        // Of several that create it at once, the first to give a file its name wins, and all use that one.
        if !key_in_env && !path.join("master.key").exists() {
            MasterKey::random()?.create(&path.join("master.key"))?;
        }
        create_new(&path.join("host-id"), format!("{}\n", Uuid::now_v7()).as_bytes())?;
        // Last: a directory with it is complete.
        create_new(&path.join("format"), format!("{FORMAT}\n").as_bytes())?;
        Self::open(path)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The store's file.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.path.join("state.db")
    }

    /// The directory of the history.
    #[must_use]
    pub fn history(&self) -> PathBuf {
        self.path.join("history")
    }

    /// The directory of the embedded broker's log.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    /// The master key of this directory, or of `TRUNKLINE_MASTER_KEY`.
    ///
    /// # Errors
    /// As [`MasterKey::load`].
    pub fn master_key(&self) -> Result<MasterKey> {
        MasterKey::load(&self.master_key_file())
    }

    /// The file of the master key.
    #[must_use]
    pub fn master_key_file(&self) -> PathBuf {
        self.path.join("master.key")
    }

    /// Seals and opens with the master key, and follows when that is replaced.
    ///
    /// # Errors
    /// As [`MasterKey::load`].
    pub fn keyring(&self) -> Result<Keyring> {
        Keyring::open(&self.path.join("master.key"))
    }

    /// A stable id of this directory on this host.
    ///
    /// # Errors
    /// `STORE_FAILED` if the file is gone or holds no UUID.
    pub fn host_id(&self) -> Result<Uuid> {
        let file = self.path.join("host-id");
        let text = std::fs::read_to_string(&file).map_err(|error| failed(&file, "the host id cannot be read", &error))?;
        Uuid::try_parse(text.trim()).map_err(|_| {
            Error::store(format!("{} is damaged: it holds no UUID", file.display()))
                .reason("damaged")
                .next("remove it and run `trunkline init`")
        })
    }
}

/// The path that a URL stands for.
fn path_of<'a>(url: &'a str, field: &str) -> Result<&'a str> {
    // One letter is no scheme but a drive.
    let scheme = url.split_once(':').filter(|(scheme, _)| {
        scheme.len() > 1 && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.')) && !scheme.starts_with('.')
    });
    let path = match scheme {
        None => url,
        Some(("sqlite", rest)) => rest.strip_prefix("//").unwrap_or(rest),
        Some(("postgres" | "postgresql", _)) => {
            let what = if cfg!(feature = "postgres") { "is no directory" } else { "is not compiled in" };
            return Err(Error::new(Code::CapabilityUnsupported, format!("a PostgreSQL store {what}; there is: {}", STORES.join(", ")))
                .field(field)
                .detail("stores", STORES)
                .next("use sqlite:/path/to/a/directory"));
        }
        // The rest of a URL may hold a password.
        Some((scheme, _)) => return Err(unknown(field, &format!("`{field}` has the unknown scheme '{scheme}'"))),
    };
    if path.is_empty() || path.starts_with(':') {
        return Err(unknown(field, &format!("`{field}` names no directory")));
    }
    Ok(path)
}

fn unknown(field: &str, what: &str) -> Error {
    Error::input(field, what).next("use sqlite:/path/to/a/directory, or a plain path")
}

fn missing(what: String) -> Error {
    Error::store(what).reason("missing").next("create a data directory with `trunkline init`")
}

fn failed(path: &Path, what: &str, error: &std::io::Error) -> Error {
    let (reason, next) = match error.kind() {
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => ("read_only", "give this user write access to the directory"),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => ("disk_full", "free space on this file system"),
        _ => ("cannot_open", "check that the path is a directory that this user may read and write"),
    };
    Error::store(format!("{what}: {}: {error}", path.display()))
        .reason(reason)
        .detail("path", path.display().to_string())
        .next(next)
        .with_retryable(reason == "disk_full")
}

/// Writes a new file that only its owner reads; `false` if one is there already. It has its name only once all of it is
/// on the disk, so nobody ever reads half a key.
pub(crate) fn create_new(file: &Path, bytes: &[u8]) -> Result<bool> {
    if file.exists() {
        return Ok(false);
    }
    let scratch = file.with_extension(format!("{}.new", Uuid::now_v7().simple()));
    let write = || -> std::io::Result<bool> {
        write_scratch(&scratch, bytes)?;
        // Unlike a rename, a link never replaces what another process put there first.
        let linked = match std::fs::hard_link(&scratch, file) {
            Ok(()) => true,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => false,
            Err(error) => return Err(error),
        };
        sync_parent(file)?;
        Ok(linked)
    };
    let written = write();
    let _ = std::fs::remove_file(&scratch);
    written.map_err(|error| failed(file, "the file cannot be made", &error))
}

/// Puts a file that only its owner reads in the place of what is there; readers see all of the one or all of the other.
pub(crate) fn replace(file: &Path, bytes: &[u8]) -> Result<()> {
    let scratch = file.with_extension(format!("{}.new", Uuid::now_v7().simple()));
    let write = || -> std::io::Result<()> {
        write_scratch(&scratch, bytes)?;
        std::fs::rename(&scratch, file)?;
        sync_parent(file)
    };
    write().map_err(|error| {
        let _ = std::fs::remove_file(&scratch);
        failed(file, "the file cannot be replaced", &error)
    })
}

/// Removes a file for good.
pub(crate) fn remove(file: &Path) -> Result<()> {
    let removed = match std::fs::remove_file(file) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other.and_then(|()| sync_parent(file)),
    };
    removed.map_err(|error| failed(file, "the file cannot be removed", &error))
}

fn write_scratch(scratch: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(scratch)?;
    out.write_all(bytes)?;
    out.sync_all()
}

fn sync_parent(file: &Path) -> std::io::Result<()> {
    file.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn a_directory_is_made_whole_and_for_its_owner() {
        let bed = tempfile::tempdir().unwrap();
        let path = bed.path().join("a/b");
        let dir = DataDir::create_with(&path, false).unwrap();
        assert_eq!((mode(&path), mode(&path.join("master.key")), mode(&dir.log()), mode(&dir.history())), (0o700, 0o600, 0o700, 0o700));
        let (key, host) = (MasterKey::load_with(&path.join("master.key"), None).unwrap(), dir.host_id().unwrap());
        assert_eq!(DataDir::create_with(&path, false).unwrap(), dir, "again changes nothing");
        assert_eq!(MasterKey::load_with(&path.join("master.key"), None).unwrap().id(), key.id());
        assert_eq!(dir.host_id().unwrap(), host);
        let names = std::fs::read_dir(&path).unwrap().count();
        assert_eq!(names, 5, "no scratch file is left");
        let other = DataDir::create_with(&bed.path().join("c"), true).unwrap();
        assert!(!other.path().join("master.key").exists());
    }

    #[test]
    fn many_may_create_it_at_once() {
        let bed = tempfile::tempdir().unwrap();
        let seen = || {
            let dir = DataDir::create_with(bed.path(), false).unwrap();
            (dir.host_id().unwrap(), MasterKey::load_with(&bed.path().join("master.key"), None).unwrap().id().to_owned())
        };
        let all: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(seen)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(all.iter().all(|one| *one == all[0]));
    }

    #[test]
    fn the_nearest_upward_is_found_and_none_is_made() {
        let bed = tempfile::tempdir().unwrap();
        let deep = bed.path().join("x/y/z");
        std::fs::create_dir_all(&deep).unwrap();
        let error = DataDir::find_from(None, &deep).unwrap_err();
        assert_eq!((error.code(), error.detail_str("reason")), (Code::StoreFailed, Some("missing")));
        assert!(error.detail_str("next").unwrap().contains("trunkline init"));
        assert_eq!(std::fs::read_dir(bed.path()).unwrap().count(), 1);
        let far = DataDir::create(&bed.path().join(NAME)).unwrap();
        assert_eq!(DataDir::find_from(None, &deep).unwrap(), far);
        let near = DataDir::create(&bed.path().join("x").join(NAME)).unwrap();
        assert_eq!(DataDir::find_from(None, &deep).unwrap(), near);
        std::fs::remove_file(near.path().join("format")).unwrap();
        assert_eq!(DataDir::find_from(None, &deep).unwrap_err().detail_str("reason"), Some("missing"), "half a directory is not skipped");
    }

    #[test]
    fn a_url_is_created_and_others_are_refused() {
        let bed = tempfile::tempdir().unwrap();
        let find = |url: &str| DataDir::find_from(Some((url, URL_ENV)), bed.path());
        let absolute = format!("sqlite:{}/one", bed.path().display());
        assert_eq!(find(&absolute).unwrap().path(), bed.path().join("one"));
        assert_eq!(find(&absolute).unwrap().path(), bed.path().join("one"), "the second time it is there");
        assert_eq!(find(&format!("sqlite://{}/one", bed.path().display())).unwrap().path(), bed.path().join("one"));
        for relative in ["two", "./two", "sqlite:two", "sqlite:./two"] {
            assert!(find(relative).unwrap().path().ends_with("two"));
        }
        let error = find("postgres://me:hunter2@host/db").unwrap_err();
        assert_eq!((error.code(), error.details()["stores"][0].as_str()), (Code::CapabilityUnsupported, STORES.first().copied()));
        assert!(!format!("{error:?}").contains("hunter2"));
        for bad in ["mysql://me:hunter2@host", "", "sqlite:", "sqlite::memory:"] {
            let error = find(bad).unwrap_err();
            assert_eq!((error.code(), error.detail_str("field")), (Code::InputInvalid, Some(URL_ENV)), "{bad}");
            assert!(!format!("{error:?}").contains("hunter2"));
        }
    }

    #[test]
    fn a_newer_or_damaged_directory_is_refused() {
        let bed = tempfile::tempdir().unwrap();
        DataDir::create(bed.path()).unwrap();
        for (text, reason) in [("2\n", "newer"), ("x", "damaged"), ("0", "damaged")] {
            std::fs::write(bed.path().join("format"), text).unwrap();
            assert_eq!(DataDir::open(bed.path()).unwrap_err().detail_str("reason"), Some(reason));
            assert!(DataDir::create(bed.path()).is_err());
        }
    }
}
