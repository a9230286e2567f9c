//! The produce path: admit → build → claim the idempotency key, then the cache → send (the only retry loop) → complete → record.

use std::borrow::Cow;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::error::{Code, Error, Result};
use crate::history::{Content, Mark};
use crate::lot::Lot as _;
use crate::message::{Headers, MessageId, Millis, header, millis};
use crate::produce::sender::{Answer, Times, answered};
use crate::provider::Outgoing;
use crate::route::Route;
use crate::sessions::{Session, Stamp};
use crate::store::{Claimed, IdempotencyClaim, LotEntry, LotMessage, LotState, Scope, Store};

mod cached;
pub(crate) mod sender;

/// Within this a produce is confirmed or fails.
pub const TIMEOUT: Duration = Duration::from_secs(30);
/// How long a result is remembered under its idempotency key.
pub const WINDOW: Duration = Duration::from_secs(24 * 3_600);
/// The longest key of a message, in bytes.
const KEY_MOST: usize = 64 << 10;
/// The longest idempotency key, in bytes.
const IDEMPOTENCY_KEY_MOST: usize = 1_024;

/// What a produce may carry beside the payload.
#[derive(Debug, Clone, Default)]
pub struct ProduceOptions {
    /// The key: messages of one key keep their order on ordered topics.
    pub key: Option<Bytes>,
    /// Headers; names starting with `trunkline-` are refused.
    pub headers: Headers,
    /// Published once within the window, however often it is tried.
    pub idempotency_key: Option<String>,
    /// How long the idempotency key is remembered; 24 h by default.
    pub window: Option<Duration>,
    /// Not to be handed out before this long.
    pub delay: Option<Duration>,
    /// Not to be handed out before this time (ms since 1970).
    pub deliver_at: Option<Millis>,
    /// Not to be handled after this time (ms since 1970): it is dead-lettered as `expired`.
    pub expires_at: Option<Millis>,
    /// Within this it is confirmed or fails; 30 s by default.
    pub timeout: Option<Duration>,
    /// Who it is produced for; verified before anything is sent.
    pub session: Option<Session>,
    /// What the session stamps on the message, once it is verified.
    pub(crate) stamp: Option<Arc<Stamp>>,
    /// The tag of a cache of the product: if an equal message (same env, event, key and payload) was produced under it within
    /// its expiry, the first result is returned and nothing is sent.
    pub cache: Option<String>,
    /// The message it replays.
    pub(crate) replay_of: Option<MessageId>,
    /// The id it must carry, of a delayed publish that is due.
    pub(crate) id: Option<MessageId>,
    /// Headers come from a message that was produced before: the product's own names are kept.
    pub(crate) trusted: bool,
    /// Its payload is not asked about: it was when it was first produced, or it is a dead letter of another topic.
    pub(crate) admitted: bool,
}

/// What a produce came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Receipt {
    /// Always true: a failure is an error.
    pub success: bool,
    /// The message's id in history, headers, dead letters and replay.
    pub process_id: MessageId,
    /// With an idempotency key: whether it had been published before, and nothing was sent now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duplicate: Option<bool>,
    /// With an idempotency key or a delay: how far that knowledge reaches.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope: Option<Scope>,
    /// Under a cache: whether this is the result of an equal message, and nothing was sent now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cached: Option<bool>,
}

impl Receipt {
    fn of(process_id: MessageId) -> Self {
        Receipt { success: true, process_id, duplicate: None, scope: None, cached: None }
    }
}

/// What most messages are: a payload, perhaps a key.
#[derive(Debug)]
pub(crate) struct Plain {
    pub(crate) payload: Bytes,
    pub(crate) key: Option<Bytes>,
}

/// A message that is queued.
#[derive(Debug)]
pub(crate) struct Queued {
    id: MessageId,
    answer: Answer,
}

impl Queued {
    /// What it came to.
    pub(crate) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<Receipt>> {
        Pin::new(&mut self.answer).poll(context).map(|answer| answered(answer).map(|_| Receipt::of(self.id)))
    }
}

/// Queues a message without options, if there is room and the route is still in use: the path without a future of its own.
pub(crate) fn try_plain(route: &Route, plain: Plain) -> Result<Result<Queued, Plain>> {
    let since = Instant::now();
    let Plain { payload, key } = plain;
    check_size(route, &payload, key.as_ref(), 0)?;
    route.payloads.admit(&payload)?;
    let (id, produced_at) = MessageId::now_at();
    let outgoing = Outgoing { id, shard: route.shard_of(key.as_ref()), key, headers: Headers::new(), payload };
    let offered = route.sender.offer(outgoing, Times { produced_at, since, deadline: since + TIMEOUT });
    Ok(offered.map(|answer| Queued { id, answer }).map_err(|outgoing| Plain { payload: outgoing.payload, key: outgoing.key }))
}

/// A message that passed every check, and how it is to be handed over.
#[derive(Debug)]
struct Ready {
    outgoing: Outgoing,
    /// When it is due, if it shall wait.
    due: Option<Millis>,
    now: Millis,
    times: Times,
    mark: Option<Box<Mark>>,
}

/// Produces one message on a route.
pub(crate) async fn produce(route: &Arc<Route>, payload: Bytes, options: ProduceOptions) -> Result<Receipt> {
    let since = Instant::now();
    let (new, now) = MessageId::now_at();
    let timeout = options.timeout.unwrap_or(TIMEOUT);
    let times = Times { produced_at: now, since, deadline: since + timeout };
    admit(route, &payload, &options, now)?;
    let stamp = match options.stamp {
        None if options.trusted => route.sessions.stamp_of(&options.headers).await,
        stamp => stamp,
    };
    let ProduceOptions { key, mut headers, idempotency_key, window, replay_of, expires_at, cache, .. } = options;
    let due = options.deliver_at.or_else(|| options.delay.map(|delay| now + millis(delay))).filter(|due| *due > now);
    if let Some(expires_at) = expires_at {
        headers.set(header::EXPIRES_AT, expires_at.to_string());
    }
    if let Some(stamp) = &stamp {
        headers.set(header::SESSION, stamp.header.clone());
    }
    let (id, fixed) = (options.id.unwrap_or(new), options.id.is_some());
    let shard = route.shard_of(key.as_ref());
    let ready = |id, headers, payload, mark| Ready { outgoing: Outgoing { id, shard, key, headers, payload }, due, now, times, mark };
    let Some(idempotency_key) = idempotency_key else {
        let mark = (replay_of.is_some() || stamp.is_some()).then(|| mark(None, replay_of, stamp.as_deref()));
        if let Some(replay_of) = replay_of {
            headers.set(header::REPLAY_OF, Bytes::copy_from_slice(replay_of.as_bytes()));
        }
        return send(route, cache.as_deref(), fixed, ready(id, headers, payload, mark)).await;
    };
    let store = &route.store;
    let scoped = format!("{}/{idempotency_key}", route.filed.address);
    let claim = IdempotencyClaim {
        key: scoped.clone(),
        hash: stamped_hash(&payload, stamp.as_deref()),
        id,
        owner: route.process.to_string(),
        lease: timeout + Duration::from_secs(5),
        window: window.unwrap_or(WINDOW),
    };
    let scope = Some(store.scope());
    let claimed = match ours(&claim_key(store.as_ref(), claim, times.deadline).await?)? {
        Ok(id) => id,
        Err(known) => return Ok(Receipt { duplicate: Some(true), scope, ..Receipt::of(known) }),
    };
    headers.set(header::IDEMPOTENCY_KEY, idempotency_key.clone());
    let mark = mark(Some(idempotency_key.into()), replay_of, stamp.as_deref());
    let sent = send(route, cache.as_deref(), true, ready(claimed, headers, payload, Some(mark))).await;
    match &sent {
        // Nothing was sent under this key: it is free for the message that comes when the cache's value has expired.
        Ok(receipt) if receipt.cached == Some(true) => drop(store.idempotency_abandon(&scoped, claimed, &route.process).await),
        // If this is lost, the claim runs out and the next try sends again with the same id.
        Ok(_) => {
            if let Err(error) = store.idempotency_sent(&[(scoped, claimed)]).await {
                tracing::warn!(%error, "a confirmed idempotent publish could not be noted");
            }
        }
        Err(error) if is_unsent(error) => drop(store.idempotency_abandon(&scoped, claimed, &route.process).await),
        Err(_) => {}
    }
    sent.map(|receipt| Receipt { duplicate: Some(false), scope, ..receipt })
}

/// The id to send with, or (`Err`) that of the message that was sent under the same key.
fn ours(claimed: &Claimed) -> Result<Result<MessageId, MessageId>> {
    match claimed {
        Claimed::Ours(id) => Ok(Ok(*id)),
        Claimed::Sent { id, .. } => Ok(Err(*id)),
        Claimed::InProgress { until } => {
            Err(Error::new(Code::IdempotencyInProgress, "the first publish with this idempotency key is still under way")
                .detail("until", *until)
                .next("try again with the same key"))
        }
        Claimed::Conflict => Err(Error::new(Code::IdempotencyConflict, "this idempotency key came with another payload before")
            .field("idempotencyKey")
            .next("use one key for one payload")),
    }
}

/// Sends, or finds under the cache what was sent before.
async fn send(route: &Arc<Route>, cache: Option<&str>, fixed: bool, ready: Ready) -> Result<Receipt> {
    match cache {
        Some(tag) => cached::cached(route, tag, fixed, ready).await,
        None => hand_over(route, ready).await,
    }
}

/// To the broker, or to the lot if it shall wait.
async fn hand_over(route: &Arc<Route>, ready: Ready) -> Result<Receipt> {
    let Ready { outgoing, due, now, times, mark } = ready;
    let id = outgoing.id;
    match due {
        Some(due) => wait(route, outgoing, due, now).await,
        None => route.sender.send(outgoing, times, mark).await.map(|_| Receipt::of(id)),
    }
}

/// Whether an error says that the broker certainly does not have the message.
fn is_unsent(error: &Error) -> bool {
    error.details().get("ambiguous").and_then(serde_json::Value::as_bool) == Some(false)
}

/// What the record says beside the message.
fn mark(idempotency_key: Option<Arc<str>>, replay_of: Option<MessageId>, stamp: Option<&Stamp>) -> Box<Mark> {
    let content = match stamp.map(|stamp| &stamp.key) {
        None => Content::Plain,
        Some(Some(key)) => Content::Sealed(key.clone()),
        Some(None) => Content::Withheld,
    };
    Box::new(Mark { session: stamp.map(|stamp| stamp.mark.clone()), idempotency_key, replay_of, content })
}

/// Claims the key; waits for a first publish that is still under way, up to the deadline.
async fn claim_key(store: &dyn Store, claim: IdempotencyClaim, deadline: Instant) -> Result<Claimed> {
    let mut pause = Duration::from_millis(5);
    loop {
        let claimed =
            store.idempotency_claim(vec![claim.clone()]).await?.pop().ok_or_else(|| Error::store("the store gave no answer to a claim"))?;
        if !matches!(claimed, Claimed::InProgress { .. }) || Instant::now() + pause > deadline {
            return Ok(claimed);
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(250));
    }
}

/// Checks the size against what the provider takes.
fn check_size(route: &Route, payload: &Bytes, key: Option<&Bytes>, headers: usize) -> Result<()> {
    let size = payload.len() + key.map_or(0, Bytes::len) + headers;
    let most = route.capabilities.max_message_bytes;
    if size > most {
        return Err(Error::new(Code::PayloadTooLarge, format!("the message has {size} bytes; {} takes {most}", route.filed.provider))
            .field("message")
            .detail("bytes", size)
            .detail("limit", most)
            .next("send a reference to the data instead, or raise the limit of the broker"));
    }
    if key.is_some_and(|key| key.len() > KEY_MOST) {
        return Err(Error::input("key", format!("`key` has more than {KEY_MOST} bytes")));
    }
    Ok(())
}

/// Checks a message against what the topic and the provider take.
pub(crate) fn admit(route: &Route, payload: &Bytes, options: &ProduceOptions, now: Millis) -> Result<()> {
    let stamp = options.stamp.as_ref().map_or(0, |stamp| header::SESSION.len() + stamp.header.len());
    check_size(route, payload, options.key.as_ref(), options.headers.size() + stamp)?;
    check_options(options, now)?;
    if options.admitted { Ok(()) } else { route.payloads.admit(payload) }
}

/// Checks what can be said without the topic.
pub(crate) fn check_options(options: &ProduceOptions, now: Millis) -> Result<()> {
    if !options.trusted
        && let Some((name, _)) = options.headers.iter().find(|(name, _)| name.starts_with(header::PREFIX) || name.is_empty())
    {
        return Err(Error::input(
            "headers",
            format!("a header may not be called '{name}': empty names and names starting with '{}' are taken", header::PREFIX),
        ));
    }
    if let Some(key) = &options.idempotency_key
        && (key.is_empty() || key.len() > IDEMPOTENCY_KEY_MOST)
    {
        return Err(Error::input("idempotencyKey", format!("`idempotencyKey` must have 1 to {IDEMPOTENCY_KEY_MOST} bytes")));
    }
    if options.delay.is_some() && options.deliver_at.is_some() {
        return Err(Error::input("delay", "`delay` and `deliverAt` exclude each other"));
    }
    if options.expires_at.is_some_and(|expires| expires <= now) {
        return Err(Error::input("expiresAt", "`expiresAt` lies in the past"));
    }
    Ok(())
}

/// Puts a delayed publish into the lot; it is produced when it is due.
async fn wait(route: &Arc<Route>, outgoing: Outgoing, due_at: Millis, now: Millis) -> Result<Receipt> {
    let id = outgoing.id;
    let entry = LotEntry {
        seq: 0,
        state: LotState::Publish,
        address: route.filed.address.clone(),
        group: "".into(),
        chain: None,
        // From here on the store's clock counts, which nobody sets.
        due_at: route.store.now() + due_at.saturating_sub(now),
        attempts: 0,
        reason: None,
        error: None,
        died_at: None,
        job: None,
        deliveries: 0,
        message: LotMessage {
            id,
            key: outgoing.key,
            headers: outgoing.headers,
            payload: outgoing.payload,
            produced_at: now,
            position: crate::delivery::Position::default(),
        },
    };
    match &route.delays {
        Some(lot) => lot.put(vec![entry]).await?,
        None => route.store.lot_put(vec![entry]).await?,
    }
    route.delayed.notify_one();
    Ok(Receipt { scope: route.delays.is_none().then(|| route.store.scope()), ..Receipt::of(id) })
}

/// What is kept of a payload to compare the next one with; of a session's it says nothing without the subject's key.
fn stamped_hash(payload: &[u8], stamp: Option<&Stamp>) -> [u8; 32] {
    let hash = hash(payload);
    stamp.and_then(|stamp| stamp.key.as_ref()).map_or(hash, |key| key.digest(&hash))
}

/// Payloads are compared in RFC 8785 form, so that the order of fields and white space do not matter.
pub(crate) fn hash(payload: &[u8]) -> [u8; 32] {
    Sha256::digest(canonical(payload)).into()
}

/// JSON in RFC 8785 form; what is no JSON as it is.
fn canonical(payload: &[u8]) -> Cow<'_, [u8]> {
    let value = serde_json::from_slice::<serde_json::Value>(payload).ok();
    value.and_then(|value| serde_json_canonicalizer::to_vec(&value).ok()).map_or(Cow::Borrowed(payload), Cow::Owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_are_compared_by_meaning() {
        assert_eq!(hash(br#"{"a":1,"b":[1.0]}"#), hash(br#"{ "b": [1], "a": 1 }"#));
        assert_ne!(hash(br#"{"a":1}"#), hash(br#"{"a":2}"#));
        assert_eq!(hash(b"\xff\x00"), hash(b"\xff\x00"));
    }
}
