//! What went wrong on the disk, as an error of the product.

use std::io;
use std::path::Path;

use crate::error::{Code, Error};
use crate::provider::SendError;

/// The fixed word for `details.reason`.
pub(super) fn reason(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "disk_full",
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => "read_only",
        io::ErrorKind::NotFound => "missing",
        _ => "io",
    }
}

fn next(reason: &str) -> &'static str {
    match reason {
        "disk_full" => "free space on the disk of the log",
        "read_only" => "make the directory writable for this user",
        _ => "look at the disk of the log",
    }
}

/// `doing` failed at `path`.
pub(super) fn disk(error: &io::Error, doing: &str, path: &Path) -> Error {
    let reason = reason(error);
    Error::store(format!("{doing} {}: {error}", path.display())).reason(reason).with_retryable(reason == "disk_full").next(next(reason))
}

/// A file that is not what it should be.
pub(super) fn damaged(path: &Path, what: &str) -> Error {
    Error::store(format!("{} is damaged: {what}", path.display()))
        .reason("damaged")
        .next("restore the directory from a backup, or move it away to start anew")
}

/// A file that a later version wrote.
pub(super) fn newer(path: &Path, version: u32) -> Error {
    Error::store(format!("{} was written by a newer version (format {version})", path.display()))
        .reason("newer_version")
        .next("use the newer version; the file was left as it is")
}

/// The topic is not there.
pub(super) fn no_topic(name: &str) -> Error {
    Error::new(Code::TopicNotFound, format!("the embedded broker has no topic '{name}'")).next("ensure the topic first")
}

/// The group is not there.
pub(super) fn no_group(topic: &str, group: &str) -> Error {
    Error::new(Code::GroupNotFound, format!("topic '{topic}' has no group '{group}'")).next("ensure the group first")
}

/// Later calls after `close`.
pub(super) fn closed() -> Error {
    Error::new(Code::Closed, "the embedded broker is closed")
}

/// Nothing of it was written.
pub(super) fn not_written(error: &io::Error) -> SendError {
    let reason = reason(error);
    let code = Error::new(Code::PublishFailed, format!("the log could not be written: {error}")).reason(reason).next(next(reason));
    let retryable = reason != "read_only";
    SendError { error: code.with_retryable(retryable), retryable, ambiguous: false }
}

/// It was written, and nobody knows whether it will be there after a power failure.
pub(super) fn not_synced(error: &str) -> SendError {
    let error = Error::new(Code::PublishFailed, format!("the log could not be synced: {error}"))
        .reason("fsync_failed")
        .detail("ambiguous", true)
        .next("look at the disk of the log; the message may be there all the same");
    SendError { error, retryable: true, ambiguous: true }
}

/// All the room is taken by what groups have not settled yet.
pub(super) fn log_full(limit: u64) -> SendError {
    let error = Error::new(Code::PublishFailed, format!("the log holds {limit} bytes of messages that are not settled"))
        .reason("log_full")
        .next("let the consumers catch up, remove a group that is not used, or raise the retention's bytes");
    SendError { error, retryable: true, ambiguous: false }
}

/// An error that sending again does not cure.
pub(super) fn refused(error: Error) -> SendError {
    let retryable = error.retryable();
    SendError { error, retryable, ambiguous: false }
}
