//! What users write: a function of a message and its context, and what its result means.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use crate::event::Event;
use crate::message::{Headers, MessageId, Millis};
use crate::sessions::SessionContext;

/// What a handler says of a message.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// Handled: ack.
    Done,
    /// Failed, with the error's text: tried again on the schedule, then dead-lettered.
    Failed(String),
    /// Again after this long; not counted as a failure.
    RetryAfter(Duration),
    /// Dead-letter it now, for this reason.
    Bury(String),
    /// Ack without success.
    Drop,
    /// The handler was told to stop by its context's signal, did so, and has nothing to say of the message: it is given back,
    /// and that is no failure. Said without the signal it is a failed attempt. For those who run what others wrote, and
    /// cannot tell what an end that they brought about themselves would have meant.
    #[doc(hidden)]
    Cancelled,
}

/// Everything a handler may return.
pub trait IntoVerdict {
    /// The verdict it means.
    fn into_verdict(self) -> Verdict;
}

impl IntoVerdict for Verdict {
    fn into_verdict(self) -> Verdict {
        self
    }
}

impl IntoVerdict for () {
    fn into_verdict(self) -> Verdict {
        Verdict::Done
    }
}

impl<T: IntoVerdict, E: fmt::Display> IntoVerdict for Result<T, E> {
    fn into_verdict(self) -> Verdict {
        match self {
            Ok(value) => value.into_verdict(),
            Err(error) => Verdict::Failed(error.to_string()),
        }
    }
}

/// Numbers for the handler's own writes: of two runs of the same key, the later has the higher fence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fence {
    /// The shard.
    pub shard: u32,
    /// The number of the shard's ownership; 0 where the broker keeps the order of keys without owners (SQS, Pub/Sub).
    pub epoch: u64,
    /// The place in the shard.
    pub position: u64,
}

/// What a handler knows of the message besides its payload.
#[derive(Clone)]
pub struct Context {
    /// The message's id.
    pub process_id: MessageId,
    /// Broker and topic.
    pub event: Event,
    /// The consumer group.
    pub group: Arc<str>,
    /// Recorded failures + 1.
    pub attempt: u32,
    /// The key.
    pub key: Option<Bytes>,
    /// The headers.
    pub headers: Headers,
    /// When it was produced, in ms since 1970.
    pub produced_at: Millis,
    /// For the handler's own writes.
    pub fence: Fence,
    /// Cancelled when the handler shall stop: its timeout passed, the shard was lost, or the consumer closes for good.
    pub signal: CancellationToken,
}

impl Context {
    /// The verdict: again after `delay`, not counted as a failure.
    #[must_use]
    pub fn retry_after(&self, delay: Duration) -> Verdict {
        Verdict::RetryAfter(delay)
    }

    /// The verdict: dead-letter it now.
    #[must_use]
    pub fn bury(&self, reason: impl Into<String>) -> Verdict {
        Verdict::Bury(reason.into())
    }

    /// The verdict: ack without success.
    #[must_use]
    pub fn drop_message(&self) -> Verdict {
        Verdict::Drop
    }

    /// The session it was produced with: who it is for, and the data of the session.
    #[must_use]
    pub fn session(&self) -> Option<SessionContext> {
        SessionContext::of(&self.headers)
    }

    /// The key as text, if it is UTF-8.
    #[must_use]
    pub fn key_str(&self) -> Option<&str> {
        self.key.as_deref().and_then(|key| std::str::from_utf8(key).ok())
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("process_id", &self.process_id)
            .field("event", &self.event)
            .field("group", &self.group)
            .field("attempt", &self.attempt)
            .field("fence", &self.fence)
            .finish_non_exhaustive()
    }
}

/// The payload as it came, for handlers that decode it themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Raw(pub Bytes);

/// What a payload can be handed over as: any type that deserialises from JSON, or [`Raw`].
pub trait FromPayload: Sized + Send + 'static {
    /// Decodes.
    ///
    /// # Errors
    /// One line on why it does not fit; the attempt then fails.
    fn from_payload(payload: &Bytes) -> Result<Self, String>;
}

impl FromPayload for Raw {
    fn from_payload(payload: &Bytes) -> Result<Self, String> {
        Ok(Raw(payload.clone()))
    }
}

impl<T: DeserializeOwned + Send + 'static> FromPayload for T {
    fn from_payload(payload: &Bytes) -> Result<Self, String> {
        serde_json::from_slice(payload).map_err(|error| format!("the payload does not fit the handler's type: {error}"))
    }
}

/// A message as the engine gives it to a handler.
#[derive(Debug)]
pub struct Delivered {
    /// The payload.
    pub payload: Bytes,
    /// The rest.
    pub context: Context,
}

/// The engine's side of a handler: a number of messages in, a verdict for each out.
pub trait Handler: Send + Sync + 'static {
    /// How many messages it takes at most at a time, and how long to wait for more than one.
    fn batch(&self) -> (usize, Duration) {
        (1, Duration::ZERO)
    }

    /// Handles one.
    fn one(&self, message: Delivered) -> impl Future<Output = Verdict> + Send;

    /// Handles many; as many verdicts as messages.
    fn many(&self, messages: Vec<Delivered>) -> impl Future<Output = Vec<Verdict>> + Send;
}

/// A handler of single messages.
#[derive(Debug)]
pub struct Single<T, F> {
    function: F,
    payload: std::marker::PhantomData<fn() -> T>,
}

impl<T, F> Single<T, F> {
    /// Wraps a function of payload and context.
    pub fn new(function: F) -> Self {
        Single { function, payload: std::marker::PhantomData }
    }
}

impl<T, F, R> Handler for Single<T, F>
where
    T: FromPayload,
    F: Fn(T, Context) -> R + Send + Sync + 'static,
    R: Future<Output: IntoVerdict> + Send,
{
    async fn one(&self, message: Delivered) -> Verdict {
        match T::from_payload(&message.payload) {
            Ok(payload) => (self.function)(payload, message.context).await.into_verdict(),
            Err(error) => Verdict::Failed(error),
        }
    }

    async fn many(&self, messages: Vec<Delivered>) -> Vec<Verdict> {
        let mut verdicts = Vec::with_capacity(messages.len());
        for message in messages {
            verdicts.push(self.one(message).await);
        }
        verdicts
    }
}

/// One item of a batch: the payload, its context, and its own verdict.
#[derive(Debug)]
pub struct Item<T> {
    /// The payload.
    pub payload: T,
    /// Its context.
    pub context: Context,
}

/// What a batch handler says: one verdict for all, or one for each.
#[derive(Debug)]
pub enum BatchVerdict {
    /// The same for all.
    All(Verdict),
    /// As many as there were items, in order.
    Each(Vec<Verdict>),
}

impl<V: IntoVerdict> From<V> for BatchVerdict {
    fn from(verdict: V) -> Self {
        BatchVerdict::All(verdict.into_verdict())
    }
}

/// A handler of batches.
#[derive(Debug)]
pub struct Batched<T, F> {
    size: usize,
    wait: Duration,
    function: F,
    payload: std::marker::PhantomData<fn() -> T>,
}

impl<T, F> Batched<T, F> {
    /// Wraps a function of up to `size` items; waits up to `wait` for a full batch.
    pub fn new(size: usize, wait: Duration, function: F) -> Self {
        Batched { size: size.max(1), wait, function, payload: std::marker::PhantomData }
    }
}

impl<T, F, R> Handler for Batched<T, F>
where
    T: FromPayload,
    F: Fn(Vec<Item<T>>) -> R + Send + Sync + 'static,
    R: Future<Output: Into<BatchVerdict>> + Send,
{
    fn batch(&self) -> (usize, Duration) {
        (self.size, self.wait)
    }

    async fn one(&self, message: Delivered) -> Verdict {
        self.many(vec![message]).await.pop().unwrap_or(Verdict::Failed("the handler gave no verdict".into()))
    }

    async fn many(&self, messages: Vec<Delivered>) -> Vec<Verdict> {
        let mut verdicts: Vec<Option<Verdict>> = vec![None; messages.len()];
        let mut items = Vec::with_capacity(messages.len());
        let mut places = Vec::with_capacity(messages.len());
        for (place, message) in messages.into_iter().enumerate() {
            match T::from_payload(&message.payload) {
                Ok(payload) => {
                    items.push(Item { payload, context: message.context });
                    places.push(place);
                }
                // One that does not fit fails alone.
                Err(error) => verdicts[place] = Some(Verdict::Failed(error)),
            }
        }
        if !items.is_empty() {
            match (self.function)(items).await.into() {
                BatchVerdict::All(verdict) => places.iter().for_each(|place| verdicts[*place] = Some(verdict.clone())),
                BatchVerdict::Each(each) => places.iter().zip(each).for_each(|(place, verdict)| verdicts[*place] = Some(verdict)),
            }
        }
        verdicts.into_iter().map(|verdict| verdict.unwrap_or(Verdict::Failed("the handler gave no verdict".into()))).collect()
    }
}
