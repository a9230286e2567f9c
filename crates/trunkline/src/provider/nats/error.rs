//! What the server and the client say, in the product's codes. Never a credential, never a payload.

use async_nats::rustls::Error as RustlsError;
use async_nats::{ConnectError, ConnectErrorKind};
use serde::Deserialize;

use crate::error::{Code, Error};
use crate::provider::SendError;
use crate::provider::net::tls;

/// An error of the JetStream API, as it travels. The numbers are the server's `errors.json`.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct ApiError {
    pub(super) code: u16,
    #[serde(default)]
    pub(super) err_code: u32,
    #[serde(default)]
    pub(super) description: String,
}

pub(super) const STREAM_NOT_FOUND: u32 = 10_059;
pub(super) const CONSUMER_NOT_FOUND: u32 = 10_014;
pub(super) const STREAM_IN_USE: u32 = 10_058;
pub(super) const SUBJECTS_OVERLAP: u32 = 10_065;
pub(super) const CONSUMER_EXISTS: u32 = 10_148;
pub(super) const NO_MESSAGE: u32 = 10_037;
pub(super) const WRONG_LAST_SEQUENCE: u32 = 10_071;
/// The same, where the subject has no message yet (server ≥ 2.12).
pub(super) const WRONG_LAST_SEQUENCE_CONSTANT: u32 = 10_164;
const JETSTREAM_NOT_ENABLED: [u32; 2] = [10_039, 10_076];
const MESSAGE_TOO_LARGE: [u32; 2] = [10_054, 10_097];
/// `store failed`: a limit of the stream with `discard: new`, or a disk that cannot be written.
const STORE_FAILED: u32 = 10_077;

impl ApiError {
    /// Whether a message was not stored because its place was taken by another.
    pub(super) fn is_conflict(&self) -> bool {
        matches!(self.err_code, WRONG_LAST_SEQUENCE | WRONG_LAST_SEQUENCE_CONSTANT)
    }

    /// As an error of an administrative call.
    pub(super) fn into_error(self, doing: &str) -> Error {
        let said = if self.description.is_empty() { format!("code {}", self.code) } else { self.description.clone() };
        let error = match self.err_code {
            STREAM_NOT_FOUND => Error::new(Code::TopicNotFound, format!("{doing}: {said}")),
            CONSUMER_NOT_FOUND => Error::new(Code::GroupNotFound, format!("{doing}: {said}")),
            code if JETSTREAM_NOT_ENABLED.contains(&code) => no_jetstream(),
            _ => Error::new(Code::SubscribeFailed, format!("{doing}: {said}")).with_retryable(self.code >= 500),
        };
        error.detail("errCode", self.err_code)
    }

    /// As the answer to a publish: the server has refused it, so it does not have the message.
    pub(super) fn into_send_error(self) -> SendError {
        let code = self.err_code;
        let error = match code {
            code if MESSAGE_TOO_LARGE.contains(&code) => {
                Error::new(Code::PayloadTooLarge, format!("the stream does not take it: {}", self.description))
            }
            STREAM_NOT_FOUND => Error::new(Code::TopicNotFound, self.description),
            STORE_FAILED => {
                Error::new(Code::PublishFailed, format!("the stream did not store it: {}", self.description)).reason("stream_full").next(
                    "raise the stream's limits, or wait until messages are old enough to go; the server's log says more if it is the disk",
                )
            }
            _ => Error::new(Code::PublishFailed, format!("JetStream refused it: {}", self.description)),
        };
        let retryable = matches!(error.code(), Code::PublishFailed);
        SendError { error: error.detail("errCode", code), retryable, ambiguous: false }
    }
}

/// The server answers, and has no JetStream for this account.
pub(super) fn no_jetstream() -> Error {
    Error::new(Code::CapabilityUnsupported, "JetStream is not enabled on this server or for this account")
        .reason("jetstream_disabled")
        .next("enable JetStream (`jetstream: enabled` in the server's or the account's config), or set `mode: core`")
}

/// The server said on the connection that a subject may not be used.
pub(super) fn denied(subject: &str) -> Error {
    Error::new(Code::AuthenticationFailed, format!("this user may not use the subject '{subject}'"))
        .reason("permission_denied")
        .detail("subject", subject)
        .next(format!("allow it in the user's permissions: {subject}"))
}

/// The connection is gone; whoever asks again gets a new one.
pub(super) fn dead(why: &str) -> Error {
    Error::new(Code::ConnectionFailed, why)
}

pub(super) fn closed() -> Error {
    Error::new(Code::Closed, "the connection is closed")
}

pub(super) fn late(doing: &str) -> Error {
    Error::new(Code::Timeout, format!("{doing}: the server did not answer in time"))
}

/// A message that certainly did not leave.
pub(super) fn unsent(error: Error) -> SendError {
    SendError { retryable: error.retryable(), error, ambiguous: false }
}

/// A message that the server may have.
pub(super) fn unconfirmed(error: Error) -> SendError {
    SendError { retryable: true, error, ambiguous: true }
}

/// Why a connection to `server` (host and port, no credentials) could not be opened.
pub(super) fn connect(server: &str, error: &ConnectError) -> Error {
    let source = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
    let lower = source.to_lowercase();
    let refused = matches!(error.kind(), ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication)
        || ["authorization", "authentication", "account", "user "].iter().any(|word| lower.contains(word));
    if refused {
        return Error::new(Code::AuthenticationFailed, format!("{server} refused the credentials"))
            .next("check `user` and `pass`, `token` or `creds`, and that the server knows them");
    }
    let io = std::error::Error::source(error).and_then(|source| source.downcast_ref::<std::io::Error>());
    if let Some(io) = io.filter(|io| io.get_ref().is_some_and(<dyn std::error::Error + Send + Sync>::is::<RustlsError>)) {
        return tls::refused(io).context(server);
    }
    if error.kind() == ConnectErrorKind::Tls || lower.contains("tls") {
        return no_tls(&format!("{server}: the TLS handshake failed: {source}"));
    }
    match error.kind() {
        ConnectErrorKind::TimedOut => Error::new(Code::ConnectionFailed, format!("{server} did not answer in time")).reason("timeout"),
        kind => Error::new(Code::ConnectionFailed, format!("{server} cannot be reached: {kind}{}", after_colon(&source))),
    }
    .next("check the address and that the server runs")
}

fn after_colon(source: &str) -> String {
    if source.is_empty() { String::new() } else { format!(" ({source})") }
}

/// One side speaks TLS, and the other does not.
pub(super) fn no_tls(message: &str) -> Error {
    Error::new(Code::ConnectionFailed, message)
        .reason("tls")
        .next("use `tls://` and `tls` with a server that speaks TLS, and neither with one that does not")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn api(code: u16, err_code: u32) -> ApiError {
        ApiError { code, err_code, description: "words".into() }
    }

    #[test]
    fn answers_to_a_publish_are_never_ambiguous() {
        for (err_code, code, retryable) in [
            (10_054, Code::PayloadTooLarge, false),
            (STREAM_NOT_FOUND, Code::TopicNotFound, false),
            (STORE_FAILED, Code::PublishFailed, true),
            (10_023, Code::PublishFailed, true),
        ] {
            let error = api(503, err_code).into_send_error();
            assert_eq!((error.error.code(), error.retryable, error.ambiguous), (code, retryable, false), "{err_code}");
        }
    }

    #[test]
    fn administrative_errors_have_their_code() {
        for (status, err_code, code, retryable) in [
            (404, STREAM_NOT_FOUND, Code::TopicNotFound, false),
            (404, CONSUMER_NOT_FOUND, Code::GroupNotFound, false),
            (503, 10_039, Code::CapabilityUnsupported, false),
            (503, 10_008, Code::SubscribeFailed, true),
            (400, 10_003, Code::SubscribeFailed, false),
        ] {
            let error = api(status, err_code).into_error("x");
            assert_eq!((error.code(), error.retryable()), (code, retryable), "{err_code}");
        }
    }
}
