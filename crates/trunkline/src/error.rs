//! One error type and one table of codes for everything Trunkline does.
//!
//! An error says what failed, whether trying again can help, and what to do next.
//! No secret ever stands in one: values are described by their shape (`a string of 12 characters`), never quoted.

use std::fmt;

use serde::Serialize;
use serde_json::{Map, Value};

/// The result of nearly every call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $text:literal, $retryable:literal;)*) => {
        /// What kind of failure an [`Error`] is. The texts are the same in Rust, JSON, the CLI and every SDK.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Code { $($(#[$doc])* $variant,)* }

        impl Code {
            /// Every code there is, in the order of this table.
            pub const ALL: &[Code] = &[$(Code::$variant,)*];

            /// The code as text, for example `TOPIC_NOT_FOUND`.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Code::$variant => $text,)* }
            }

            /// Whether an error of this code may go away by trying again, unless the error itself says otherwise.
            #[must_use]
            pub const fn retryable(self) -> bool {
                match self { $(Code::$variant => $retryable,)* }
            }
        }
    };
}

codes! {
    /// An argument is missing, misspelt or of the wrong type.
    InputInvalid = "INPUT_INVALID", false;
    /// The access key does not open this workspace.
    AccessDenied = "ACCESS_DENIED", false;
    /// No product of this tag.
    ProductNotFound = "PRODUCT_NOT_FOUND", false;
    /// The event is not of the form `brokerTag:topicTag`.
    EventInvalid = "EVENT_INVALID", false;
    /// No broker of this tag in the product.
    BrokerNotFound = "BROKER_NOT_FOUND", false;
    /// The broker has no config for this env.
    BrokerEnvNotFound = "BROKER_ENV_NOT_FOUND", false;
    /// A broker of this tag is there already.
    BrokerExists = "BROKER_EXISTS", false;
    /// No topic of this tag under the broker.
    TopicNotFound = "TOPIC_NOT_FOUND", false;
    /// A topic of this tag is there already.
    TopicExists = "TOPIC_EXISTS", false;
    /// No group of this name on the topic.
    GroupNotFound = "GROUP_NOT_FOUND", false;
    /// A thing of this tag is there already.
    AlreadyExists = "ALREADY_EXISTS", false;
    /// It cannot be removed while it is used.
    InUse = "IN_USE", false;
    /// A provider config does not validate.
    ConfigInvalid = "CONFIG_INVALID", false;
    /// The session token is malformed, expired, revoked or of another tag.
    SessionInvalid = "SESSION_INVALID", false;
    /// No session definition of this tag.
    SessionNotFound = "SESSION_NOT_FOUND", false;
    /// A `$Secret{NAME}` that is not defined.
    SecretNotFound = "SECRET_NOT_FOUND", false;
    /// No cache of this tag.
    CacheNotFound = "CACHE_NOT_FOUND", false;
    /// No schedule of this id.
    ScheduleNotFound = "SCHEDULE_NOT_FOUND", false;
    /// No job of this id.
    JobNotFound = "JOB_NOT_FOUND", false;
    /// No message of this id, or its payload was not kept.
    MessageNotFound = "MESSAGE_NOT_FOUND", false;
    /// The message was replayed before; `force` does it again.
    AlreadyReplayed = "ALREADY_REPLAYED", false;
    /// The payload is not JSON, or does not fit the topic's schema.
    PayloadInvalid = "PAYLOAD_INVALID", false;
    /// The message is larger than the provider takes.
    PayloadTooLarge = "PAYLOAD_TOO_LARGE", false;
    /// The same idempotency key came with another payload.
    IdempotencyConflict = "IDEMPOTENCY_CONFLICT", false;
    /// The first publish with this idempotency key is still under way.
    IdempotencyInProgress = "IDEMPOTENCY_IN_PROGRESS", true;
    /// The provider cannot keep what was asked for.
    CapabilityUnsupported = "CAPABILITY_UNSUPPORTED", false;
    /// The server cannot be reached.
    ConnectionFailed = "CONNECTION_FAILED", true;
    /// The server refused the credentials.
    AuthenticationFailed = "AUTHENTICATION_FAILED", false;
    /// The message was not confirmed; `details.ambiguous` says whether the broker may have it all the same.
    PublishFailed = "PUBLISH_FAILED", true;
    /// The subscription could not be opened.
    SubscribeFailed = "SUBSCRIBE_FAILED", true;
    /// The store is missing, damaged, newer than this version, or cannot be written.
    StoreFailed = "STORE_FAILED", false;
    /// A deadline passed.
    Timeout = "TIMEOUT", true;
    /// The instance or the consumer is closed.
    Closed = "CLOSED", false;
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Code {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// A failure with its code, one line of text, whether to retry, and details for a program.
///
/// ```
/// use trunkline::{Code, Error};
/// let error = Error::new(Code::TopicNotFound, "topic 'order-events:order-created' does not exist")
///     .next("create it with `trunkline topics create order-events:order-created`");
/// assert_eq!(error.code().as_str(), "TOPIC_NOT_FOUND");
/// assert!(!error.retryable());
/// ```
#[derive(Clone)]
pub struct Error(Box<Inner>);

#[derive(Clone)]
struct Inner {
    code: Code,
    message: String,
    retryable: bool,
    details: Map<String, Value>,
}

impl Error {
    /// An error of `code`, retryable as the code usually is.
    #[must_use]
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Error(Box::new(Inner { code, message: one_line(message.into()), retryable: code.retryable(), details: Map::new() }))
    }

    /// A missing, misspelt or wrong argument, with the name of its field.
    #[must_use]
    pub fn input(field: &str, message: impl Into<String>) -> Self {
        Error::new(Code::InputInvalid, message).field(field)
    }

    /// The store cannot be used.
    #[must_use]
    pub fn store(message: impl Into<String>) -> Self {
        Error::new(Code::StoreFailed, message)
    }

    /// Sets one entry of `details`.
    #[must_use]
    pub fn detail(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.0.details.insert(name.to_owned(), value.into());
        self
    }

    /// Sets `details.field`: the field that is wrong.
    #[must_use]
    pub fn field(self, field: &str) -> Self {
        self.detail("field", field)
    }

    /// Sets `details.reason`: a fixed word a program can match on.
    #[must_use]
    pub fn reason(self, reason: &str) -> Self {
        self.detail("reason", reason)
    }

    /// Sets `details.next`: what to do now, as a sentence or a command.
    #[must_use]
    pub fn next(self, next: impl Into<String>) -> Self {
        self.detail("next", next.into())
    }

    /// Overrides whether trying again can help.
    #[must_use]
    pub fn with_retryable(mut self, retryable: bool) -> Self {
        self.0.retryable = retryable;
        self
    }

    /// Puts what was being done in front of the message.
    #[must_use]
    pub fn context(mut self, doing: &str) -> Self {
        self.0.message = format!("{doing}: {}", self.0.message);
        self
    }

    /// The code.
    #[must_use]
    pub fn code(&self) -> Code {
        self.0.code
    }

    /// One line for a person.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// Whether trying again can help.
    #[must_use]
    pub fn retryable(&self) -> bool {
        self.0.retryable
    }

    /// Everything a program may want to know: `field`, `reason`, `next`, `ambiguous` and others by code.
    #[must_use]
    pub fn details(&self) -> &Map<String, Value> {
        &self.0.details
    }

    /// One text of `details`.
    #[must_use]
    pub fn detail_str(&self, name: &str) -> Option<&str> {
        self.0.details.get(name).and_then(Value::as_str)
    }
}

fn one_line(text: String) -> String {
    if text.contains(['\n', '\r']) { text.split(['\n', '\r']).filter(|part| !part.is_empty()).collect::<Vec<_>>().join("; ") } else { text }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.0.code, self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")?;
        if self.0.details.is_empty() { Ok(()) } else { write!(f, " {}", Value::Object(self.0.details.clone())) }
    }
}

impl std::error::Error for Error {}

impl Serialize for Error {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct;
        let mut out = serializer.serialize_struct("Error", 4)?;
        out.serialize_field("code", &self.0.code)?;
        out.serialize_field("message", &self.0.message)?;
        out.serialize_field("retryable", &self.0.retryable)?;
        out.serialize_field("details", &self.0.details)?;
        out.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_shouting() {
        let mut texts: Vec<_> = Code::ALL.iter().map(|code| code.as_str()).collect();
        texts.sort_unstable();
        let all = texts.len();
        texts.dedup();
        assert_eq!(texts.len(), all);
        assert!(texts.iter().all(|text| text.bytes().all(|b| b.is_ascii_uppercase() || b == b'_')));
    }

    #[test]
    fn message_is_one_line() {
        assert_eq!(Error::store("a\nb").message(), "a; b");
    }
}
