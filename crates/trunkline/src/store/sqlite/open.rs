//! Looking at a data directory before touching it, and opening connections.

use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use super::db::is_busy;
use super::errors::{Doing, damaged, failed};
use super::schema;
use crate::error::{Error, Result};

/// The name of the file in the data directory.
pub(super) const FILE: &str = "state.db";
/// A file up to this size is checked as a whole when it is opened: a few ms.
const CHECKED_BYTES: u64 = 8 << 20;
/// Held while a file may be created.
static OPENING: Mutex<()> = Mutex::new(());

/// Looks at directory and file without changing anything: what cannot be opened is left byte by byte as it is.
pub(super) fn inspect(dir: &Path) -> Result<PathBuf> {
    let path = dir.join(FILE);
    match std::fs::metadata(dir) {
        Ok(meta) if meta.is_dir() => writable(dir, &meta)?,
        Ok(_) => return Err(missing(format!("{} is not a directory", dir.display()))),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(missing(format!("the data directory {} does not exist", dir.display())));
        }
        Err(error) => return Err(unreadable(dir, &error)),
    }
    #[cfg(target_os = "linux")]
    super::filesystem::refuse_network(dir)?;
    match std::fs::metadata(&path) {
        Ok(meta) => {
            writable(&path, &meta)?;
            if (1..512).contains(&meta.len()) {
                return Err(damaged("it is too short to be a SQLite file"));
            }
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(unreadable(&path, &error)),
    }
    Ok(path)
}

fn missing(what: String) -> Error {
    Error::store(what).reason("missing").next("create it with `trunkline init`")
}

fn unreadable(path: &Path, error: &std::io::Error) -> Error {
    Error::store(format!("{} cannot be read: {error}", path.display()))
        .reason("cannot_open")
        .next("check that the data directory is there and that this user may read and write it")
}

/// Refuses what is marked read-only, also for root, who could write it all the same.
fn writable(path: &Path, meta: &std::fs::Metadata) -> Result<()> {
    use rustix::fs::{Access, access};
    if meta.mode() & 0o222 != 0 && access(path, Access::WRITE_OK).is_ok() {
        return Ok(());
    }
    Err(Error::store(format!("{} cannot be written", path.display()))
        .reason("read_only")
        .next(format!("give this user write access: `chmod u+w {}`, and mount the file system writable", path.display())))
}

fn uncreatable(path: &Path, error: &std::io::Error) -> Error {
    let reason = match error.kind() {
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => "read_only",
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "disk_full",
        _ => "cannot_open",
    };
    unreadable(path, error).reason(reason).with_retryable(reason == "disk_full")
}

/// Opens the file, creates or upgrades it, and gives the connection that writes.
pub(super) fn writer(path: &Path, busy_timeout: Duration) -> Result<Connection> {
    let deadline = Instant::now() + busy_timeout;
    // Closing a file takes away all locks that this process has on it, those of another store in it too. So an existing
    // file is only ever opened by SQLite, which takes care of that, and a new one by one thread at a time.
    let opening = OPENING.lock();
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(uncreatable(path, &error)),
        _ => drop(opening),
    }
    let checked = verify_still(path).or_else(|_| verify_still(path))?;
    let db = connect(path, busy_timeout)?;
    // Until the file has proved to be ours and whole, even closing it must not write to it.
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).doing("open the store")?;
    verify(&db, path, !checked)?;
    wal(&db, deadline)?;
    schema::migrate(&db, deadline)?;
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false).doing("open the store")?;
    Ok(db)
}

/// Checks a file that nobody has open without leaving a trace: the usual way would put a journal beside it. `false` if it
/// is in use. Takes no lock, so a failure may also come from a process that opened the file under our eyes.
fn verify_still(path: &Path) -> Result<bool> {
    let in_use = || std::fs::metadata(path.with_extension("db-wal")).is_ok_and(|meta| meta.len() > 0);
    if in_use() || std::fs::metadata(path).is_ok_and(|meta| meta.len() == 0) {
        return Ok(false);
    }
    let mut uri = String::from("file:");
    for byte in path.as_os_str().as_bytes() {
        let plain = byte.is_ascii_alphanumeric() || b"/._-".contains(byte);
        if plain { uri.push(char::from(*byte)) } else { uri.push_str(&format!("%{byte:02X}")) }
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
    let db = Connection::open_with_flags(uri + "?immutable=1", flags).doing("open the store")?;
    if let Err(error) = verify(&db, path, true) {
        return if in_use() { Ok(false) } else { Err(error) };
    }
    Ok(true)
}

fn verify(db: &Connection, path: &Path, whole: bool) -> Result<()> {
    schema::version(db)?;
    if whole && std::fs::metadata(path).is_ok_and(|meta| meta.len() <= CHECKED_BYTES) {
        let verdict: String = db.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).doing("check the store")?;
        if verdict != "ok" {
            return Err(damaged(&verdict));
        }
    }
    Ok(())
}

/// One more connection, for reading.
pub(super) fn reader(path: &Path, busy_timeout: Duration) -> Result<Connection> {
    let db = connect(path, busy_timeout)?;
    db.pragma_update(None, "query_only", true).doing("open the store")?;
    Ok(db)
}

fn connect(path: &Path, busy_timeout: Duration) -> Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags).doing("open the store")?;
    db.busy_timeout(busy_timeout).doing("open the store")?;
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true).doing("open the store")?;
    db.set_prepared_statement_cache_capacity(128);
    // FULL syncs the journal at each commit: a commit that was answered survives a power cut.
    db.execute_batch(
        "PRAGMA trusted_schema = OFF; PRAGMA foreign_keys = ON; PRAGMA synchronous = FULL; PRAGMA temp_store = MEMORY;
         PRAGMA cache_size = -32000; PRAGMA wal_autocheckpoint = 4000; PRAGMA journal_size_limit = 67108864;",
    )
    .doing("open the store")?;
    Ok(db)
}

/// Turns the write-ahead log on. SQLite does not wait for others in this step, so it is tried again here.
fn wal(db: &Connection, deadline: Instant) -> Result<()> {
    loop {
        match db.query_row("PRAGMA journal_mode = WAL", [], |row| row.get::<_, String>(0)) {
            Ok(mode) if mode == "wal" => return Ok(()),
            Ok(mode) => {
                return Err(Error::store(format!("the store cannot use a write-ahead log here, only '{mode}'"))
                    .reason("cannot_open")
                    .next("keep the data directory on a local disk"));
            }
            Err(error) if is_busy(&error) && Instant::now() < deadline => std::thread::sleep(Duration::from_millis(2)),
            Err(error) => return Err(failed("open the store", &error)),
        }
    }
}
