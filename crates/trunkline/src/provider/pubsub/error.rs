//! What gRPC says, in the product's codes. Codes of Pub/Sub: its reference, "Error codes".

use std::collections::HashMap;
use std::error::Error as StdError;
use std::fmt;

use tonic::{Code as Grpc, Status};
use tonic_types::StatusExt;

use crate::error::{Code, Error};
use crate::provider::SendError;

/// What a failure is about, where something depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// No such topic or subscription.
    Missing,
    /// One of that name is there.
    Exists,
    /// A quota is used up.
    Throttled,
    /// Known, but not allowed to do this.
    Denied,
    /// Not known.
    Unknown,
    /// No connection, or none that holds.
    Unreachable,
    /// The connection is not trusted by one side.
    Tls,
    /// Larger than Pub/Sub takes.
    TooLarge,
    /// The server failed; the same call may succeed later.
    Passing,
    /// Anything else: the same call fails again.
    Other,
}

/// A call that failed.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    pub(super) kind: Kind,
    pub(super) error: Error,
    /// Whether the server may have done it all the same.
    pub(super) ambiguous: bool,
    /// On subscriptions that deliver exactly once: the ack ids that were refused, and whether for good. The others were taken.
    pub(super) refused: HashMap<String, bool>,
}

impl Failure {
    pub(super) fn new(kind: Kind, error: Error) -> Self {
        Failure { kind, error, ambiguous: false, refused: HashMap::new() }
    }

    /// As the failure of one message.
    pub(super) fn of_send(&self) -> SendError {
        SendError { error: self.error.clone(), retryable: self.error.retryable(), ambiguous: self.ambiguous }
    }

    /// Whether the same call may succeed a moment later.
    pub(super) fn passes(&self) -> bool {
        matches!(self.kind, Kind::Throttled | Kind::Unreachable | Kind::Passing)
    }

    fn detailed(mut self, reason: &str, next: &str) -> Self {
        self.error = self.error.reason(reason).next(next);
        self
    }

    fn ambiguous(mut self) -> Self {
        self.ambiguous = true;
        self
    }
}

/// Why no connection was made; so nothing was sent on it.
#[derive(Debug)]
pub(super) struct NotSent(pub(super) Error);

impl fmt::Display for NotSent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl StdError for NotSent {}

/// A failed call; `doing` is the action, as a person would say it.
pub(super) fn failure(doing: &str, status: &Status) -> Failure {
    let mut at = status.source();
    while let Some(source) = at {
        if let Some(NotSent(error)) = source.downcast_ref::<NotSent>() {
            let kind = if error.detail_str("reason") == Some("tls") { Kind::Tls } else { Kind::Unreachable };
            return Failure::new(kind, error.clone().context(doing));
        }
        at = source.source();
    }
    // What a server says has no source; what befell the connection has.
    if let Some(source) = status.source() {
        let error = Error::new(Code::ConnectionFailed, format!("{doing}: the connection broke: {}", innermost(source)));
        return Failure::new(Kind::Unreachable, error).ambiguous();
    }
    of_code(doing, status)
}

/// No answer in time.
pub(super) fn unanswered(doing: &str) -> Failure {
    Failure::new(Kind::Unreachable, Error::new(Code::Timeout, format!("{doing}: no answer in time"))).ambiguous()
}

fn innermost(error: &dyn StdError) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    shortened(&last.to_string())
}

fn of_code(doing: &str, status: &Status) -> Failure {
    let said = shortened(status.message());
    let text = |what: &str| format!("{doing}: {what}");
    let failed = |kind, code, what: &str| Failure::new(kind, Error::new(code, text(what)));
    match status.code() {
        Grpc::NotFound => failed(Kind::Missing, Code::TopicNotFound, &format!("it does not exist: {said}"))
            .detailed("not_found", "check `projectId` and the names; with `create` missing topics and subscriptions are made"),
        Grpc::AlreadyExists => failed(Kind::Exists, Code::InUse, "it exists"),
        Grpc::Unauthenticated => failed(Kind::Unknown, Code::AuthenticationFailed, "the server refused the credentials")
            .detailed("credentials_refused", "check the key (`keyFilename`, `credentials`): it may be deleted, or of another project"),
        Grpc::PermissionDenied => failed(Kind::Denied, Code::AuthenticationFailed, &format!("not allowed: {said}")).detailed(
            "permission_missing",
            "give the account the role roles/pubsub.editor, or see the provider's page for single permissions",
        ),
        Grpc::InvalidArgument | Grpc::ResourceExhausted if too_large(status.message()) => {
            failed(Kind::TooLarge, Code::PayloadTooLarge, "larger than Pub/Sub takes")
                .detailed("too_large", "send less, or a reference to it")
        }
        Grpc::ResourceExhausted => failed(Kind::Throttled, Code::ConnectionFailed, &format!("a quota is used up: {said}"))
            .detailed("throttled", "nothing to do: it is tried again; ask Google for more quota if it lasts"),
        Grpc::Unavailable | Grpc::DeadlineExceeded | Grpc::Aborted | Grpc::Internal | Grpc::Unknown | Grpc::Cancelled => {
            let mut failure = failed(Kind::Passing, Code::ConnectionFailed, &format!("the server failed ({}): {said}", status.code()));
            failure.refused = refused(status);
            failure.detailed("server_failed", "nothing to do: it is tried again").ambiguous()
        }
        code => {
            let mut failure = failed(Kind::Other, Code::PublishFailed, &format!("refused ({code}): {said}"));
            failure.error = failure.error.with_retryable(false).reason("refused");
            failure.refused = refused(status);
            failure
        }
    }
}

fn too_large(said: &str) -> bool {
    ["exceeds the limit", "larger than max", "is too large"].iter().any(|part| said.contains(part))
}

/// What a subscription that delivers exactly once says of single ack ids ("Exactly-once delivery", error info).
fn refused(status: &Status) -> HashMap<String, bool> {
    let Some(info) = status.get_details_error_info() else { return HashMap::new() };
    let known = info.metadata.into_iter().filter_map(|(id, why)| {
        let for_good = why.starts_with("PERMANENT_FAILURE_");
        (for_good || why.starts_with("TRANSIENT_FAILURE_")).then_some((id, for_good))
    });
    known.collect()
}

fn shortened(text: &str) -> String {
    if text.chars().count() <= 300 { text.to_owned() } else { text.chars().take(300).chain("…".chars()).collect() }
}

/// The connection was closed by its owner.
pub(super) fn closed() -> Error {
    Error::new(Code::Closed, "the connection to Pub/Sub is closed")
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic_types::ErrorDetails;

    #[test]
    fn answers_are_told_apart() {
        for (code, said, kind, product, retryable, ambiguous) in [
            (Grpc::NotFound, "Resource not found", Kind::Missing, Code::TopicNotFound, false, false),
            (Grpc::AlreadyExists, "", Kind::Exists, Code::InUse, false, false),
            (Grpc::Unauthenticated, "", Kind::Unknown, Code::AuthenticationFailed, false, false),
            (Grpc::PermissionDenied, "User not authorized", Kind::Denied, Code::AuthenticationFailed, false, false),
            (Grpc::ResourceExhausted, "Quota exceeded", Kind::Throttled, Code::ConnectionFailed, true, false),
            (
                Grpc::InvalidArgument,
                "Request payload size exceeds the limit: 10485760 bytes.",
                Kind::TooLarge,
                Code::PayloadTooLarge,
                false,
                false,
            ),
            (Grpc::ResourceExhausted, "grpc: received message larger than max", Kind::TooLarge, Code::PayloadTooLarge, false, false),
            (Grpc::InvalidArgument, "bad name", Kind::Other, Code::PublishFailed, false, false),
            (Grpc::FailedPrecondition, "detached", Kind::Other, Code::PublishFailed, false, false),
            (Grpc::Unavailable, "", Kind::Passing, Code::ConnectionFailed, true, true),
            (Grpc::Internal, "", Kind::Passing, Code::ConnectionFailed, true, true),
            (Grpc::DeadlineExceeded, "", Kind::Passing, Code::ConnectionFailed, true, true),
        ] {
            let failure = failure("sending", &Status::new(code, said));
            let seen = (failure.kind, failure.error.code(), failure.error.retryable(), failure.ambiguous);
            assert_eq!(seen, (kind, product, retryable, ambiguous), "{code} {said}");
        }
    }

    #[test]
    fn what_was_not_sent_is_not_ambiguous() {
        let inner = NotSent(Error::new(Code::ConnectionFailed, "refused"));
        let failed = failure("sending", &Status::from_error(Box::new(inner)));
        assert_eq!((failed.kind, failed.ambiguous, failed.error.retryable()), (Kind::Unreachable, false, true));
        let failed = failure("sending", &Status::from_error(Box::new(std::io::Error::other("reset"))));
        assert_eq!((failed.kind, failed.ambiguous, failed.error.retryable()), (Kind::Unreachable, true, true));
    }

    /// As the reference of exactly-once delivery has it; no emulator answers so.
    #[test]
    fn ack_ids_are_refused_one_by_one() {
        let metadata = HashMap::from([
            ("a".to_owned(), "PERMANENT_FAILURE_INVALID_ACK_ID".to_owned()),
            ("b".to_owned(), "TRANSIENT_FAILURE_UNORDERED_ACK_ID".to_owned()),
            ("c".to_owned(), "something else".to_owned()),
        ]);
        let details = ErrorDetails::with_error_info("ACK", "pubsub.googleapis.com", metadata);
        let failed = failure("acking", &Status::with_error_details(Grpc::FailedPrecondition, "Some acknowledgement ids failed", details));
        assert_eq!(failed.refused, HashMap::from([("a".to_owned(), true), ("b".to_owned(), false)]));
    }
}
