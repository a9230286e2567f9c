//! What the AWS client says, in the product's codes. Codes of SQS: its API reference, "Common errors" and each action's.

use std::error::Error as StdError;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_sqs::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;

use tokio_rustls::rustls;

use super::http::NotSent;
use crate::error::{Code, Error};
use crate::provider::SendError;
use crate::provider::net::tls;

/// What a failure is about, where something depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// No such queue.
    Missing,
    /// A queue of that name, with other attributes, is there.
    Exists,
    /// Asked too often.
    Throttled,
    /// As many messages as the queue allows are in flight.
    OverLimit,
    /// Known, but not allowed to do this.
    Denied,
    /// Not known.
    Unknown,
    /// No connection, or none that holds.
    Unreachable,
    /// The connection is not trusted by one side.
    Tls,
    /// The receipt handle is not (or no longer) good.
    Stale,
    /// Larger than the queue takes.
    TooLarge,
    /// Anything else.
    Other,
}

/// A call that failed.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    pub(super) kind: Kind,
    pub(super) error: Error,
    /// Whether the server may have done it all the same.
    pub(super) ambiguous: bool,
}

impl Failure {
    fn new(kind: Kind, code: Code, message: String) -> Self {
        Failure { kind, error: Error::new(code, message), ambiguous: false }
    }

    /// As the failure of one message.
    pub(super) fn of_send(&self) -> SendError {
        SendError { error: self.error.clone(), retryable: self.error.retryable(), ambiguous: self.ambiguous }
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

/// A failed call; `doing` is the action, as a person would say it.
pub(super) fn failure<E>(doing: &str, error: &SdkError<E, HttpResponse>) -> Failure
where
    E: ProvideErrorMetadata + StdError + 'static,
{
    match error {
        SdkError::ServiceError(answer) => {
            let (code, said) = (answer.err().code().unwrap_or_default(), answer.err().message().unwrap_or_default());
            of_code(doing, code, said, answer.raw().status().as_u16())
        }
        SdkError::ResponseError(_) => {
            Failure::new(Kind::Unreachable, Code::ConnectionFailed, format!("{doing}: the answer could not be read")).ambiguous()
        }
        SdkError::TimeoutError(_) => Failure::new(Kind::Unreachable, Code::Timeout, format!("{doing}: no answer in time")).ambiguous(),
        other => unsent(doing, other),
    }
}

/// A call that got no answer at all, or was not made.
fn unsent(doing: &str, error: &(dyn StdError + 'static)) -> Failure {
    let mut not_sent = false;
    let mut at = error.source();
    let mut last = String::new();
    while let Some(source) = at {
        if source.is::<CredentialsError>() {
            let failure = Failure::new(Kind::Unknown, Code::AuthenticationFailed, format!("{doing}: no credentials to sign it with"));
            let next = "give `accessKeyId` and `secretAccessKey`, or set up the AWS chain: environment, profile, role";
            return failure.detailed("no_credentials", next);
        }
        not_sent |= source.is::<NotSent>();
        let io = source.downcast_ref::<std::io::Error>();
        if let Some(io) = io.filter(|io| io.get_ref().is_some_and(|inner| inner.is::<rustls::Error>())) {
            return Failure { kind: Kind::Tls, error: tls::refused(io).context(doing), ambiguous: false };
        }
        last = source.to_string();
        at = source.source();
    }
    let failure = Failure::new(Kind::Unreachable, Code::ConnectionFailed, format!("{doing}: {last}"));
    if not_sent { failure } else { failure.ambiguous() }
}

/// An answer that is an error, or an entry of a batch that failed.
pub(super) fn of_code(doing: &str, code: &str, said: &str, status: u16) -> Failure {
    // `com.amazonaws.sqs#QueueDoesNotExist` and `AWS.SimpleQueueService.NonExistentQueue` are the same to us.
    let name = code.rsplit(['#', '.']).next().unwrap_or(code);
    let name = name.strip_suffix("Exception").unwrap_or(name);
    let text = |what: &str| format!("{doing}: {what}");
    let said = shortened(said);
    match name {
        "QueueDoesNotExist" | "NonExistentQueue" => {
            Failure::new(Kind::Missing, Code::TopicNotFound, text("the queue does not exist")).detailed("no_queue", "see `details.queue`")
        }
        "QueueDeletedRecently" => {
            let mut failure = Failure::new(Kind::Other, Code::TopicNotFound, text("a queue of this name was deleted a moment ago"));
            failure.error = failure.error.with_retryable(true);
            failure.detailed("queue_deleted_recently", "SQS gives the name out again after 60 seconds: try again then")
        }
        "QueueNameExists" | "QueueAlreadyExists" => Failure::new(Kind::Exists, Code::InUse, text("it exists with other attributes")),
        "OverLimit" => {
            let failure = Failure::new(Kind::OverLimit, Code::SubscribeFailed, text("as many messages as SQS allows are in flight"));
            failure.detailed("over_limit", "settle what is in hand, or lower the prefetch of the consumers of this group")
        }
        "RequestThrottled" | "Throttling" | "RequestLimitExceeded" | "TooManyRequests" | "KmsThrottled" => {
            let failure = Failure::new(Kind::Throttled, Code::ConnectionFailed, text("SQS throttles these calls"));
            failure.detailed("throttled", "nothing to do: it is tried again; FIFO queues take 300 calls a second and action")
        }
        "InvalidClientTokenId"
        | "UnrecognizedClient"
        | "SignatureDoesNotMatch"
        | "InvalidSignature"
        | "IncompleteSignature"
        | "MissingAuthenticationToken"
        | "InvalidAccessKeyId"
        | "InvalidSecurity"
        | "ExpiredToken"
        | "RequestExpired" => {
            // The server's own text is not shown: it may quote the signed headers, the session token among them.
            let failure = Failure::new(Kind::Unknown, Code::AuthenticationFailed, text(&format!("SQS refused the credentials ({name})")));
            let next = "check `accessKeyId`, `secretAccessKey`, `sessionToken` (they expire), `region`, and this machine's clock";
            failure.detailed("credentials_refused", next)
        }
        "AccessDenied" | "NotAuthorized" | "OptInRequired" | "KmsAccessDenied" => {
            let failure = Failure::new(Kind::Denied, Code::AuthenticationFailed, text(&format!("not allowed: {said}")));
            failure.detailed("permission_missing", "allow the action in the IAM policy or in the queue's policy")
        }
        "ReceiptHandleIsInvalid" | "InvalidReceiptHandle" | "MessageNotInflight" => {
            Failure::new(Kind::Stale, Code::MessageNotFound, text("the lease was lost"))
        }
        // What SQS says of a handle whose message has been handed out again, and of a lease beyond twelve hours.
        "InvalidParameterValue" if said.contains("ReceiptHandle") || said.contains("VisibilityTimeout") => {
            Failure::new(Kind::Stale, Code::MessageNotFound, text("the lease was lost"))
        }
        "BatchRequestTooLong" | "MessageTooLong" => too_large(&text("larger than the queue takes")),
        "InvalidParameterValue" if said.contains("shorter than") || said.contains("longer than") => {
            too_large(&text("larger than the queue takes"))
        }
        _ if status >= 500 || matches!(name, "InternalError" | "InternalFailure" | "ServiceUnavailable") => {
            let failure = Failure::new(Kind::Unreachable, Code::ConnectionFailed, text(&format!("SQS failed ({name} {status})")));
            failure.ambiguous()
        }
        _ => {
            let mut failure = Failure::new(Kind::Other, Code::PublishFailed, text(&format!("refused: {name}: {said}")));
            failure.error = failure.error.with_retryable(false).reason("refused");
            failure
        }
    }
}

fn too_large(message: &str) -> Failure {
    Failure::new(Kind::TooLarge, Code::PayloadTooLarge, message.to_owned()).detailed("too_large", "send less, or a reference to it")
}

fn shortened(text: &str) -> String {
    if text.chars().count() <= 300 { text.to_owned() } else { text.chars().take(300).chain("…".chars()).collect() }
}

/// The connection was closed by its owner.
pub(super) fn closed() -> Error {
    Error::new(Code::Closed, "the connection to SQS is closed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_apart() {
        for (code, said, status, kind, product, retryable, ambiguous) in [
            ("AWS.SimpleQueueService.NonExistentQueue", "", 400, Kind::Missing, Code::TopicNotFound, false, false),
            ("com.amazonaws.sqs#QueueDoesNotExist", "", 400, Kind::Missing, Code::TopicNotFound, false, false),
            ("AWS.SimpleQueueService.QueueDeletedRecently", "", 400, Kind::Other, Code::TopicNotFound, true, false),
            ("OverLimit", "", 403, Kind::OverLimit, Code::SubscribeFailed, true, false),
            ("RequestThrottled", "", 403, Kind::Throttled, Code::ConnectionFailed, true, false),
            ("ThrottlingException", "Rate exceeded", 400, Kind::Throttled, Code::ConnectionFailed, true, false),
            ("InvalidClientTokenId", "", 403, Kind::Unknown, Code::AuthenticationFailed, false, false),
            ("ExpiredTokenException", "", 403, Kind::Unknown, Code::AuthenticationFailed, false, false),
            ("AccessDeniedException", "User is not authorized", 403, Kind::Denied, Code::AuthenticationFailed, false, false),
            ("ReceiptHandleIsInvalid", "", 400, Kind::Stale, Code::MessageNotFound, false, false),
            (
                "InvalidParameterValue",
                "Value X for parameter ReceiptHandle is invalid.",
                400,
                Kind::Stale,
                Code::MessageNotFound,
                false,
                false,
            ),
            ("InternalFailure", "", 500, Kind::Unreachable, Code::ConnectionFailed, true, true),
            ("", "", 503, Kind::Unreachable, Code::ConnectionFailed, true, true),
            ("InvalidMessageContents", "bad", 400, Kind::Other, Code::PublishFailed, false, false),
        ] {
            let failure = of_code("sending", code, said, status);
            let seen = (failure.kind, failure.error.code(), failure.error.retryable(), failure.ambiguous);
            assert_eq!(seen, (kind, product, retryable, ambiguous), "{code} {status}");
        }
    }

    #[test]
    fn the_text_of_a_refused_signature_is_not_shown() {
        let said = "The Canonical String for this request should have been 'x-amz-security-token:hunter2'";
        let failure = of_code("sending", "SignatureDoesNotMatch", said, 403);
        assert!(!format!("{:?}", failure.error).contains("hunter2"));
    }
}
