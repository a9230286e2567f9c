//! What PostgreSQL says, as errors a person can act on.

use tokio_postgres::error::SqlState;

use crate::error::{Code, Error, Result};

/// The failure of a statement while `doing` something.
pub(super) fn failed(doing: &str, error: &tokio_postgres::Error) -> Error {
    let Some(said) = error.as_db_error() else {
        // The text of the library's errors tells of sockets and types, never of values.
        return unreachable(&format!("{doing}: {}", chain(error)));
    };
    let (reason, what, next, retryable) = match said.code() {
        code if is_gone(code) => return unreachable(&format!("{doing}: {}", said.message())),
        code if *code == SqlState::INVALID_PASSWORD || *code == SqlState::INVALID_AUTHORIZATION_SPECIFICATION => {
            ("authentication", "the server refused the user", "check user and password of the URL (PGPASSWORD is read too)", false)
        }
        code if *code == SqlState::INVALID_CATALOG_NAME => {
            ("missing", "there is no such database", "create it with `createdb`, and give the user CREATE on it", false)
        }
        code if *code == SqlState::INSUFFICIENT_PRIVILEGE => {
            ("forbidden", "the user may not do this", "let the user own the schema, or create it", false)
        }
        code if *code == SqlState::READ_ONLY_SQL_TRANSACTION => {
            ("read_only", "the server takes no writes now", "name the primary in the URL, or target_session_attrs=read-write", true)
        }
        code if *code == SqlState::DISK_FULL => ("disk_full", "the server's disk is full", "free space on the database server", true),
        code if is_conflict(code) => ("busy", "others were in the way", "try again", true),
        code if *code == SqlState::QUERY_CANCELED || *code == SqlState::TOO_MANY_CONNECTIONS || *code == SqlState::OUT_OF_MEMORY => {
            ("busy", "the server is overloaded", "try again; raise max_connections or give the server more memory", true)
        }
        code if *code == SqlState::UNDEFINED_TABLE || *code == SqlState::INVALID_SCHEMA_NAME => {
            ("damaged", "the schema is gone", "restore it with `trunkline store restore`, or open the store anew", false)
        }
        _ => ("internal", "the server refused a statement", "please report this with the message", false),
    };
    Error::store(format!("{doing}: {what} ({})", said.message())).reason(reason).next(next).with_retryable(retryable)
}

/// Whether the same work may go through at once when it is done again: it was rolled back because of others.
pub(super) fn is_conflict(code: &SqlState) -> bool {
    *code == SqlState::T_R_DEADLOCK_DETECTED || *code == SqlState::T_R_SERIALIZATION_FAILURE
}

/// Whether the server goes away, is away, or comes back.
fn is_gone(code: &SqlState) -> bool {
    code.code().starts_with("08") || matches!(code.code(), "57P01" | "57P02" | "57P03" | "57P05")
}

/// The server cannot be reached.
pub(super) fn unreachable(why: &str) -> Error {
    Error::store(why)
        .reason("unreachable")
        .next("check that the database server is up and can be reached; calls work again once it is")
        .with_retryable(true)
}

/// What is stored cannot be what we stored.
pub(super) fn damaged(why: &str) -> Error {
    Error::store(format!("the store is damaged: {why}")).reason("damaged").next("restore it with `trunkline store restore`")
}

/// The tables of a later version.
pub(super) fn newer(found: i64, known: i64) -> Error {
    Error::store(format!("the store has version {found}, this Trunkline knows up to {known}"))
        .reason("newer")
        .next("use the newer Trunkline that upgraded it; going back to an older one is not supported")
}

/// The store was closed.
pub(super) fn closed() -> Error {
    Error::new(Code::Closed, "the store is closed")
}

/// The error with its causes, in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// Says what was being done when PostgreSQL failed.
pub(super) trait Doing<T> {
    /// The result with its error in words.
    fn doing(self, doing: &str) -> Result<T>;
}

impl<T> Doing<T> for std::result::Result<T, tokio_postgres::Error> {
    fn doing(self, doing: &str) -> Result<T> {
        self.map_err(|error| failed(doing, &error))
    }
}
