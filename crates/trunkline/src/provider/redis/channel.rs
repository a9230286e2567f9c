//! Pub/Sub: a message goes to who listens now. Nothing is kept, nothing is settled, and that is declared.
//!
//! A channel carries payloads and nothing else, so that other clients read and write it as they always did. What belongs to a
//! message beside its payload travels just before it on a channel of its own, `<channel>:trunkline`, with a hash of the
//! payload to find it by: 24 bytes, then key and headers where there are some.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use redis::{PushInfo, PushKind, Value};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use xxhash_rust::xxh3::xxh3_64;

use super::envelope::bytes;
use super::id::EntryId;
use super::link::ANSWER;
use super::send::{Sent, too_large};
use super::target::Wire;
use super::{Core, error, keys};
use crate::delivery::{Deliveries, Delivery, EnvelopeId, Position, Settle, Settled, Token};
use crate::error::{Code, Error, Result};
use crate::message::{Headers, MessageId, now_ms};
use crate::provider::net::slab::Slab;
use crate::provider::{Outgoing, Prefetch, SendError, Signal, SubscribeOptions, Subscription, SubscriptionState, TopicSpec};

/// Envelopes that wait for their payloads.
const ENVELOPES: usize = 4_096;
/// A connection that says nothing is asked so often whether it lives.
const PING: Duration = Duration::from_secs(5);
/// The length that says that there is no key.
const NO_KEY: u32 = u32::MAX;

/// Positions of a channel are of this process only: they grow, and are not given twice.
static LAST: AtomicU64 = AtomicU64::new(0);

fn next_offset() -> u64 {
    let now = EntryId::at(now_ms()).offset();
    LAST.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(now.max(last + 1))).map_or(now, |last| now.max(last + 1))
}

impl Core {
    /// A publish is confirmed when the server has handed it to those who listen: nobody may.
    pub(super) async fn publish(&self, topic: &TopicSpec, batch: &[Outgoing]) -> Vec<Sent> {
        let most = self.facts.load().max_message_bytes;
        let envelopes = keys::envelopes(&topic.name);
        let mut pipeline = redis::pipe();
        for message in batch.iter().filter(|message| message.size() <= most) {
            pipeline.cmd("PUBLISH").arg(&envelopes).arg(envelope(message));
            pipeline.cmd("PUBLISH").arg(&*topic.name).arg(&message.payload[..]);
        }
        let mut answers = if pipeline.is_empty() { Ok(Vec::new()) } else { self.produce.send(&pipeline).await }.map(Vec::into_iter);
        let failed = |error: Error, ambiguous| SendError { retryable: error.retryable(), error, ambiguous };
        let mut sent = Vec::with_capacity(batch.len());
        for message in batch {
            if message.size() > most {
                sent.push(Err(failed(too_large(message.size(), most), false)));
                continue;
            }
            let shard = message.shard.unwrap_or(0);
            sent.push(match &mut answers {
                Ok(answers) => match (answers.next(), answers.next()) {
                    (_, Some(Value::Int(_))) => Ok(Position { shard, offset: next_offset() }),
                    (_, Some(Value::ServerError(refused))) => Err(failed(error::server(&refused, Code::PublishFailed), false)),
                    _ => Err(failed(super::link::strange("a publish"), true)),
                },
                Err(broken) => Err(failed(broken.error.clone(), broken.sent)),
            });
        }
        sent
    }
}

/// Id, hash of the payload; then, if there is any of both, the length of the key and the key, and the headers.
fn envelope(message: &Outgoing) -> Vec<u8> {
    let mut out = Vec::with_capacity(24);
    out.extend_from_slice(message.id.as_bytes());
    out.extend_from_slice(&xxh3_64(&message.payload).to_le_bytes());
    if message.key.is_some() || !message.headers.is_empty() {
        let length = message.key.as_ref().map_or(NO_KEY, |key| u32::try_from(key.len()).unwrap_or(NO_KEY));
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(message.key.as_deref().unwrap_or_default());
        message.headers.encode(&mut out);
    }
    out
}

/// What stood in an envelope.
#[derive(Debug, PartialEq)]
struct Envelope {
    id: MessageId,
    key: Option<Bytes>,
    headers: Headers,
}

fn opened(bytes: &Bytes) -> Option<(u64, Envelope)> {
    let id = MessageId::from_bytes(bytes.get(..16)?)?;
    let hash = u64::from_le_bytes(bytes.get(16..24)?.try_into().ok()?);
    let mut envelope = Envelope { id, key: None, headers: Headers::new() };
    if bytes.len() > 24 {
        let length = u32::from_le_bytes(bytes.get(24..28)?.try_into().ok()?);
        let mut at = 28_usize;
        if length != NO_KEY {
            let end = at.checked_add(length as usize).filter(|end| *end <= bytes.len())?;
            envelope.key = Some(bytes.slice(at..end));
            at = end;
        }
        envelope.headers = Headers::decode(&bytes.slice(at..))?;
    }
    Some((hash, envelope))
}

#[derive(Debug, Default)]
struct Heard {
    waiting: VecDeque<(usize, Delivery)>,
    bytes: usize,
    held: Slab<()>,
    envelopes: HashMap<u64, VecDeque<Envelope>>,
    /// The hashes of the envelopes, the oldest first.
    order: VecDeque<u64>,
    signals: VecDeque<Signal>,
    dropping: bool,
    paused: bool,
    ended: Option<Error>,
}

/// What a listener's connection and its callers share.
#[derive(Debug)]
pub(super) struct Shared {
    channels: HashMap<Vec<u8>, (usize, bool)>,
    prefetch: Prefetch,
    heard: Mutex<Heard>,
    arrived: Notify,
    stop: CancellationToken,
}

impl Shared {
    pub(super) fn end(&self, error: Error) {
        self.heard.lock().ended.get_or_insert(error);
        self.stop.cancel();
        self.arrived.notify_waiters();
    }

    fn hear(&self, push: PushInfo) {
        match push.kind {
            PushKind::Disconnection => self.end(error::connection("the connection to Redis broke")),
            PushKind::Message => {
                let mut data = push.data.into_iter();
                let (Some(channel), Some(payload)) = (data.next(), data.next()) else { return };
                let Some((route, is_envelope)) = self.channels.get(&bytes(channel)).copied() else { return };
                let payload = Bytes::from(bytes(payload));
                let mut heard = self.heard.lock();
                if is_envelope {
                    heard.remember(&payload)
                } else {
                    heard.receive(route, payload, self.prefetch)
                }
                drop(heard);
                self.arrived.notify_waiters();
            }
            _ => {}
        }
    }
}

impl Heard {
    fn remember(&mut self, bytes: &Bytes) {
        let Some((hash, envelope)) = opened(bytes) else { return };
        self.envelopes.entry(hash).or_default().push_back(envelope);
        self.order.push_back(hash);
        while self.order.len() > ENVELOPES {
            // Its payload never came, or came long ago.
            if let Some(old) = self.order.pop_front() {
                self.envelope_of(old);
            }
        }
    }

    fn envelope_of(&mut self, hash: u64) -> Option<Envelope> {
        let list = self.envelopes.get_mut(&hash)?;
        let envelope = list.pop_front();
        if list.is_empty() {
            self.envelopes.remove(&hash);
        }
        envelope
    }

    fn receive(&mut self, route: usize, payload: Bytes, prefetch: Prefetch) {
        let hash = xxh3_64(&payload);
        let envelope = self.envelope_of(hash);
        if envelope.is_some()
            && let Some(at) = self.order.iter().position(|of| *of == hash)
        {
            self.order.remove(at);
        }
        if self.waiting.len() >= prefetch.count.max(1) || self.bytes >= prefetch.bytes.max(1) {
            if !std::mem::replace(&mut self.dropping, true) {
                tracing::warn!(reason = "messages_dropped", "a listener is too slow: messages of a channel are dropped");
                self.signals.push_back(Signal::State(SubscriptionState::Degraded("messages_dropped")));
            }
            return;
        }
        let (id, key, headers) =
            envelope.map_or((EnvelopeId::Foreign, None, Headers::new()), |own| (EnvelopeId::Id(own.id), own.key, own.headers));
        let delivery = Delivery {
            token: self.held.insert(()),
            position: Position { shard: 0, offset: next_offset() },
            id,
            key,
            payload: Some(payload),
            headers,
            deliveries: Deliveries::Unknown,
            stored_at: now_ms(),
            lease_end: None,
        };
        self.bytes += delivery.size();
        self.waiting.push_back((route, delivery));
    }

    fn take(&mut self, max: usize, max_bytes: usize) -> Vec<Signal> {
        let mut out: Vec<Signal> = self.signals.drain(..).collect();
        if self.paused {
            return out;
        }
        let (mut items, mut of, mut left, mut bytes) = (Vec::new(), 0, max, 0);
        let deliveries = |route, items| Signal::Deliveries { route, shard: 0, epoch: 0, items };
        while left > 0 && bytes < max_bytes {
            let Some((route, delivery)) = self.waiting.pop_front() else { break };
            let size = delivery.size();
            (left, bytes, self.bytes) = (left - 1, bytes + size, self.bytes - size);
            if route != of && !items.is_empty() {
                out.push(deliveries(of, std::mem::take(&mut items)));
            }
            of = route;
            items.push(delivery);
        }
        if !items.is_empty() {
            out.push(deliveries(of, items));
        }
        if self.dropping && self.waiting.is_empty() {
            self.dropping = false;
            out.push(Signal::State(SubscriptionState::Live));
        }
        out
    }
}

/// Somebody who listens to channels.
#[derive(Debug)]
pub(super) struct Listener {
    shared: Arc<Shared>,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Listener {
    pub(super) async fn open(core: &Arc<Core>, routes: &[TopicSpec], options: SubscribeOptions) -> Result<Self> {
        core.work.wire().await?;
        let mut channels = HashMap::new();
        for (route, topic) in routes.iter().enumerate() {
            channels.insert(topic.name.as_bytes().to_vec(), (route, false));
            channels.insert(keys::envelopes(&topic.name).into_bytes(), (route, true));
        }
        let names: Vec<Vec<u8>> = channels.keys().cloned().collect();
        let shared = Arc::new(Shared {
            channels,
            prefetch: options.prefetch,
            heard: Mutex::default(),
            arrived: Notify::new(),
            stop: CancellationToken::new(),
        });
        let weak = Arc::downgrade(&shared);
        let hear = move |push| {
            if let Some(shared) = weak.upgrade() {
                shared.hear(push);
            }
        };
        let mut wire = core.target.open(Some(Box::new(hear))).await?;
        let subscribed = tokio::time::timeout(ANSWER, wire.connection.subscribe(&names)).await;
        subscribed.map_err(|_| error::silence("a subscribe"))?.map_err(|e| match e.clone().into_server_errors().as_deref() {
            Some([(_, refused), ..]) => error::server(refused, Code::SubscribeFailed),
            _ => error::transport(&e),
        })?;
        {
            let mut listeners = core.listeners.lock();
            listeners.retain(|listener| listener.strong_count() > 0);
            listeners.push(Arc::downgrade(&shared));
        }
        let task = tokio::spawn(watch(Arc::clone(&shared), wire));
        Ok(Listener { shared, task: Mutex::new(Some(task)) })
    }

    fn stop(&self) -> Option<JoinHandle<()>> {
        self.shared.end(error::closed());
        self.task.lock().take().inspect(JoinHandle::abort)
    }
}

/// Holds the connection, and notices when it is silent.
async fn watch(shared: Arc<Shared>, mut wire: Wire) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(PING) => {}
            () = shared.stop.cancelled() => return,
        }
        let ping = tokio::time::timeout(PING, wire.connection.send_packed_command(&redis::cmd("PING"))).await;
        match ping {
            Ok(Ok(_)) => {}
            Ok(Err(broken)) => return shared.end(error::transport(&broken)),
            Err(_) => return shared.end(error::silence("a ping")),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop();
    }
}

#[async_trait]
impl Subscription for Listener {
    async fn next(&self, max: usize, max_bytes: usize, wait: Duration) -> Result<Vec<Signal>> {
        let end = tokio::time::Instant::now() + wait;
        loop {
            let arrived = self.shared.arrived.notified();
            tokio::pin!(arrived);
            arrived.as_mut().enable();
            {
                let mut heard = self.shared.heard.lock();
                if let Some(error) = &heard.ended {
                    return Err(error.clone());
                }
                let signals = heard.take(max, max_bytes.max(1));
                if !signals.is_empty() {
                    return Ok(signals);
                }
            }
            if tokio::time::timeout_at(end, arrived).await.is_err() {
                return Ok(Vec::new());
            }
        }
    }

    /// Nothing can be given back: a release is not answered as if it held.
    async fn settle(&self, items: &[(Token, Settle)]) -> Vec<Settled> {
        let mut heard = self.shared.heard.lock();
        let settle = |(token, how): &(Token, Settle)| match (heard.held.remove(*token), how) {
            (None, _) => Settled::Stale,
            (Some(()), Settle::Done) => Settled::Settled,
            (Some(()), Settle::Retry { .. } | Settle::Release) => Settled::Unknown,
        };
        items.iter().map(settle).collect()
    }

    async fn extend(&self, tokens: &[Token]) -> Vec<bool> {
        let heard = self.shared.heard.lock();
        tokens.iter().map(|token| heard.held.get(*token).is_some()).collect()
    }

    async fn yield_shard(&self, _route: usize, _shard: u32) {}

    async fn pause(&self) {
        self.shared.heard.lock().paused = true;
    }

    async fn resume(&self) {
        self.shared.heard.lock().paused = false;
        self.shared.arrived.notify_waiters();
    }

    async fn close(&self, _deadline: Instant) {
        if let Some(task) = self.stop() {
            let _ = task.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(key: Option<&'static [u8]>, headers: &[(&str, &'static [u8])]) -> Outgoing {
        Outgoing {
            id: "01890a5d-ac96-774b-bcce-b302099a8057".parse().expect("an id"),
            shard: None,
            key: key.map(Bytes::from_static),
            headers: headers.iter().map(|(name, value)| (*name, Bytes::from_static(value))).collect(),
            payload: Bytes::from_static(b"{\"n\":1}"),
        }
    }

    #[test]
    fn the_bytes_of_an_envelope_are_these() {
        let plain = envelope(&message(None, &[]));
        let hash = xxh3_64(b"{\"n\":1}").to_le_bytes();
        assert_eq!(plain, [&b"\x01\x89\x0a\x5d\xac\x96\x77\x4b\xbc\xce\xb3\x02\x09\x9a\x80\x57"[..], &hash].concat());
        let full = envelope(&message(Some(b"k"), &[("a", b"1")]));
        assert_eq!(full[24..], *b"\x01\0\0\0k\x01\0\x01\0a\x01\0\0\x001");
        for sent in [message(None, &[]), message(Some(b""), &[]), message(None, &[("a", b"\xff"), ("a", b"")])] {
            let (hash, found) = opened(&Bytes::from(envelope(&sent))).expect("an envelope");
            assert_eq!((hash, found), (xxh3_64(&sent.payload), Envelope { id: sent.id, key: sent.key, headers: sent.headers }));
        }
        let bytes = Bytes::from(full);
        assert!((0..bytes.len()).filter(|cut| *cut != 24).all(|cut| opened(&bytes.slice(..cut)).is_none()));
    }

    #[test]
    fn payloads_find_their_envelopes_and_others_are_foreign() {
        let mut heard = Heard::default();
        let prefetch = Prefetch { count: 3, bytes: 1 << 20 };
        heard.remember(&Bytes::from(envelope(&message(Some(b"k"), &[]))));
        heard.receive(0, Bytes::from_static(b"foreign"), prefetch);
        heard.receive(1, Bytes::from_static(b"{\"n\":1}"), prefetch);
        heard.receive(1, Bytes::from_static(b"{\"n\":1}"), prefetch);
        assert_eq!((heard.envelopes.len(), heard.order.len()), (0, 0));
        heard.receive(1, Bytes::from_static(b"one too many"), prefetch);
        let signals = heard.take(9, usize::MAX);
        let [
            Signal::State(SubscriptionState::Degraded("messages_dropped")),
            Signal::Deliveries { route: 0, items: a, .. },
            Signal::Deliveries { route: 1, items: b, .. },
            Signal::State(SubscriptionState::Live),
        ] = &signals[..]
        else {
            panic!("{signals:?}")
        };
        assert_eq!((a[0].id, b[0].key.as_deref(), b[1].id), (EnvelopeId::Foreign, Some(&b"k"[..]), EnvelopeId::Foreign));
        assert!(matches!(b[0].id, EnvelopeId::Id(_)));
        assert_eq!(heard.bytes, 0);
        for n in 0..ENVELOPES as u64 + 10 {
            heard.remember(&Bytes::from(envelope(&Outgoing { payload: n.to_string().into(), ..message(None, &[]) })));
        }
        assert_eq!((heard.order.len(), heard.envelopes.len()), (ENVELOPES, ENVELOPES));
    }

    #[test]
    fn positions_grow() {
        let offsets: Vec<u64> = (0..1000).map(|_| next_offset()).collect();
        assert!(offsets.is_sorted_by(|a, b| a < b));
    }
}
