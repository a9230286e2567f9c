//! What SQLite says, as errors a person can act on.

use rusqlite::ErrorCode;

use crate::error::{Error, Result};

/// The failure of a statement while `doing` something.
pub(super) fn failed(doing: &str, error: &rusqlite::Error) -> Error {
    let (reason, what, next, retryable) = match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => ("disk_full", "the disk is full", "free space on the file system of the data directory", true),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            ("busy", "another process held the store for too long", "try again; `trunkline doctor` shows who uses the store", true)
        }
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => {
            ("read_only", "the store cannot be written", "give this user write access to the data directory and the files in it", false)
        }
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => return damaged(&error.to_string()).context(doing),
        Some(ErrorCode::CannotOpen) => {
            ("cannot_open", "the store cannot be opened", "check that the data directory is there and can be read and written", false)
        }
        Some(ErrorCode::SystemIoFailure) => ("io", "the disk failed", "look into the system's log for errors of this disk", false),
        Some(ErrorCode::OutOfMemory) => ("memory", "there is no memory left", "give the process more memory", true),
        _ => ("internal", "the store refused a statement", "please report this with the message", false),
    };
    Error::store(format!("{doing}: {what} ({error})")).reason(reason).next(next).with_retryable(retryable)
}

/// A file that is not, or no longer, a store.
pub(super) fn damaged(why: &str) -> Error {
    Error::store(format!("state.db is damaged: {why}"))
        .reason("damaged")
        .next("the file was left as it is; put a backup of the data directory in its place, or move state.db away and start with a new one")
}

/// A file of a later version.
pub(super) fn newer(found: i64, known: i64) -> Error {
    Error::store(format!("state.db has version {found}, this Trunkline knows up to {known}"))
        .reason("newer")
        .next("use the newer Trunkline that wrote it; going back to an older one is not supported")
}

/// Says what was being done when SQLite failed.
pub(super) trait Doing<T> {
    /// The result with its error in words.
    fn doing(self, doing: &str) -> Result<T>;
}

impl<T> Doing<T> for rusqlite::Result<T> {
    fn doing(self, doing: &str) -> Result<T> {
        self.map_err(|error| failed(doing, &error))
    }
}
