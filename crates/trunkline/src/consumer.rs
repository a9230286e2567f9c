//! A running consumer, as its owner holds it.

use std::fmt;
use std::future::IntoFuture;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, oneshot, watch};

use crate::access::Call;
use crate::catalog::RouteEntry;
use crate::consume::engine::{DeadLetterCopy, Dedupe, Engine, Options, Parts};
use crate::consume::follow::{Follow, What};
use crate::consume::handler::{BatchVerdict, Batched, Context, FromPayload, Handler, IntoVerdict, Item, Single, Verdict};
use crate::consume::state::State;
use crate::error::{Code, Error, Result};
use crate::event::Event;
use crate::lot::Lot;
use crate::lot::store::StoreLot;
use crate::message::{MessageId, header};
use crate::policy::{LotPlace, Schedule};
use crate::policy_config::{self, OnStoreDown};
use crate::produce::{ProduceOptions, produce};
use crate::provider::{GroupSpec, Prefetch, Start};
use crate::sessions::Session;
use crate::store::SessionRef;
use crate::trunkline::Env;

/// How a consume works; what is not set comes from the topic's defaults, then from the documented ones.
#[derive(Debug, Clone, Default)]
pub struct ConsumeOptions {
    /// The consumer group; by default the provider config's, else the product's tag.
    pub group: Option<String>,
    /// How many messages are handled at a time; 16 by default.
    pub concurrency: Option<usize>,
    /// When a failed message is tried again.
    pub retry: Option<Schedule>,
    /// A handler that runs longer fails; 30 s by default.
    pub timeout: Option<Duration>,
    /// How long a handler that passed its timeout keeps its slot; 30 s by default.
    pub grace: Option<Duration>,
    /// `Some(false)` turns the group breaker off.
    pub breaker: Option<bool>,
    /// Gives up the order of keys on an ordered topic.
    pub unordered: bool,
    /// Passes over messages that this group handled within this window.
    pub dedupe: Option<Duration>,
    /// With `dedupe`: stop rather than handle twice while the store is down.
    pub dedupe_closed: bool,
    /// Where a group that is new to the topic starts.
    pub from: Option<Start>,
    /// Dead letters are also produced to this event.
    pub dead_letter: Option<String>,
    /// At most this many messages in hand; 1,000 by default. Handled ones whose settle the broker has not answered yet are not
    /// counted, up to as many again.
    pub prefetch: Option<usize>,
    /// At most this many bytes in hand (one message may pass it); by default, and at most, what all consumers of the
    /// instance may have in hand together, see [`Builder::in_hand_bytes`](crate::Builder::in_hand_bytes).
    pub prefetch_bytes: Option<usize>,
    /// At most this many messages are started per second by this consumer; unbounded by default.
    pub rate: Option<f64>,
    /// Waits that the group's consumers in this process write to the lot per second; 500 by default.
    pub waits_per_second: Option<f64>,
    /// Who consumes: verified when the consumer starts, and recorded. That it expires later does not end the consumer.
    pub session: Option<Session>,
    /// The tag of a cache of the product, which must exist (`CACHE_NOT_FOUND`); it has no other effect on a consume.
    pub cache: Option<String>,
}

/// A consume being described. Awaiting it subscribes; it is live when that returns.
#[must_use = "a consume starts when it is awaited"]
pub struct Consume<H> {
    env: Env,
    event: String,
    options: ConsumeOptions,
    handler: H,
}

impl<H> fmt::Debug for Consume<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consume").field("event", &self.event).field("options", &self.options).finish_non_exhaustive()
    }
}

impl<H: Handler> Consume<H> {
    pub(crate) fn new(env: Env, event: &str, handler: H) -> Self {
        Consume { env, event: event.to_owned(), options: ConsumeOptions::default(), handler }
    }

    /// Sets all options at once.
    pub fn options(mut self, options: ConsumeOptions) -> Self {
        self.options = options;
        self
    }

    /// The consumer group.
    pub fn group(mut self, group: impl Into<String>) -> Self {
        self.options.group = Some(group.into());
        self
    }

    /// How many messages are handled at a time (default 16).
    pub fn concurrency(mut self, concurrency: usize) -> Self {
        self.options.concurrency = Some(concurrency);
        self
    }

    /// When a failed message is tried again; [`Schedule::never`] dead-letters it at once.
    pub fn retry(mut self, schedule: Schedule) -> Self {
        self.options.retry = Some(schedule);
        self
    }

    /// A handler that runs longer fails (default 30 s).
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.options.timeout = Some(timeout);
        self
    }

    /// Turns the group breaker on or off (default on).
    pub fn breaker(mut self, on: bool) -> Self {
        self.options.breaker = Some(on);
        self
    }

    /// Passes over messages that this group handled within the window.
    pub fn dedupe(mut self, window: Duration) -> Self {
        self.options.dedupe = Some(window);
        self
    }

    /// Where a group that is new to the topic starts (default: the oldest message kept).
    pub fn from(mut self, start: Start) -> Self {
        self.options.from = Some(start);
        self
    }

    /// Dead letters are also produced to this event.
    pub fn dead_letter(mut self, event: impl Into<String>) -> Self {
        self.options.dead_letter = Some(event.into());
        self
    }

    /// Who consumes: verified when the consumer starts (`SESSION_INVALID`), and recorded with what it does.
    pub fn session(mut self, session: impl Into<Session>) -> Self {
        self.options.session = Some(session.into());
        self
    }

    /// Gives up the order of keys on an ordered topic.
    pub fn unordered(mut self) -> Self {
        self.options.unordered = true;
        self
    }
}

impl<H: Handler> IntoFuture for Consume<H> {
    type Output = Result<Consumer>;
    type IntoFuture = BoxFuture<'static, Result<Consumer>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let Consume { env, event, options, handler } = self;
            env.start_consumer(&event, options, handler).await
        })
    }
}

/// A consumer that is at work. Dropping it stops it at once: what is in hand is handed out again later.
/// [`Consumer::close`] is the polite way.
///
/// It follows its env: where that moves to another server, the consumer takes what is left on the old one beside what comes to
/// the new one, or before it on an ordered topic.
pub struct Consumer {
    follow: Arc<Follow>,
    event: Event,
    id: Arc<str>,
    group: Arc<str>,
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer").field("event", &self.event).field("group", &self.group).field("state", &self.state()).finish()
    }
}

impl Consumer {
    /// How it fares now.
    #[must_use]
    pub fn state(&self) -> State {
        self.follow.state()
    }

    /// Told of every change of state.
    #[must_use]
    pub fn states(&self) -> watch::Receiver<State> {
        self.follow.states()
    }

    /// Its id in the registry (on a server that its env moved to later it has another one).
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its group.
    #[must_use]
    pub fn group(&self) -> &str {
        &self.group
    }

    /// Messages received and not yet settled.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.follow.in_flight()
    }

    /// Messages settled so far.
    #[must_use]
    pub fn settled(&self) -> u64 {
        self.follow.settled()
    }

    /// Stops receiving; what is in hand goes on.
    pub fn pause(&self) {
        self.follow.pause(true);
    }

    /// Receives again.
    pub fn resume(&self) {
        self.follow.pause(false);
    }

    /// Drains: stops receiving, lets what runs finish within `within`, gives back the rest uncounted, leaves the group.
    pub async fn close(&self, within: Duration) {
        self.follow.close(within).await;
    }
}

#[cfg(test)]
impl Consumer {
    /// What does the work now.
    pub(crate) fn engine(&self) -> Arc<Engine> {
        self.follow.newest().expect("a side")
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.follow.abandon();
    }
}

/// One message of a stream. Give a verdict with [`Delivery::settle`]; dropping it is a failed attempt.
#[derive(Debug)]
pub struct Delivery<T> {
    /// The payload.
    pub payload: T,
    /// The rest.
    pub context: Context,
    verdict: Option<oneshot::Sender<Verdict>>,
}

impl<T> Delivery<T> {
    /// Handled.
    pub fn ack(self) {
        self.settle(Verdict::Done);
    }

    /// Says what became of it.
    pub fn settle(mut self, verdict: impl IntoVerdict) {
        if let Some(sender) = self.verdict.take() {
            let _ = sender.send(verdict.into_verdict());
        }
    }
}

/// Messages for those who want to own the loop.
#[derive(Debug)]
pub struct Stream<T> {
    consumer: Consumer,
    messages: mpsc::Receiver<Delivery<T>>,
}

impl<T> Stream<T> {
    /// The next message; `None` once the consumer is closed.
    pub async fn next(&mut self) -> Option<Delivery<T>> {
        self.messages.recv().await
    }

    /// The consumer behind it.
    #[must_use]
    pub fn consumer(&self) -> &Consumer {
        &self.consumer
    }

    /// Closes the consumer; messages not yet taken are given back.
    pub async fn close(mut self, within: Duration) {
        self.messages.close();
        self.consumer.close(within).await;
    }
}

impl Env {
    /// Handles the messages of an event, one at a time per slot.
    ///
    /// The handler returns `()`, a [`Verdict`], or a `Result` of these; an error is a failed attempt.
    pub fn consume<T, F, R>(&self, event: &str, handler: F) -> Consume<Single<T, F>>
    where
        T: FromPayload,
        F: Fn(T, Context) -> R + Send + Sync + 'static,
        R: Future<Output: IntoVerdict> + Send + 'static,
    {
        Consume::new(self.clone(), event, Single::new(handler))
    }

    /// Handles the messages of an event in batches of up to `size`, waiting up to `wait` for a full one.
    pub fn consume_batch<T, F, R>(&self, event: &str, size: usize, wait: Duration, handler: F) -> Consume<Batched<T, F>>
    where
        T: FromPayload,
        F: Fn(Vec<Item<T>>) -> R + Send + Sync + 'static,
        R: Future<Output: Into<BatchVerdict>> + Send + 'static,
    {
        Consume::new(self.clone(), event, Batched::new(size, wait, handler))
    }

    /// Messages as a stream; each is settled by its owner.
    ///
    /// # Errors
    /// As a consume.
    pub async fn stream<T: FromPayload>(&self, event: &str, options: ConsumeOptions) -> Result<Stream<T>> {
        let (sender, messages) = mpsc::channel(1);
        let consumer = self
            .consume(event, move |payload: T, context: Context| {
                let sender = sender.clone();
                async move {
                    let (verdict, said) = oneshot::channel();
                    if sender.send(Delivery { payload, context, verdict: Some(verdict) }).await.is_err() {
                        // Nobody takes messages any more: this one was not handled.
                        std::future::pending::<()>().await;
                    }
                    said.await.map_err(|_| Error::new(Code::Closed, "the message was dropped without a verdict"))
                }
            })
            .options(options)
            .await?;
        Ok(Stream { consumer, messages })
    }
}

impl Env {
    pub(crate) async fn start_consumer<H: Handler>(&self, event: &str, mut options: ConsumeOptions, handler: H) -> Result<Consumer> {
        let inner = self.inner();
        inner.access.allow(Call::Consume)?;
        let route = self.route(event).await?;
        let session = match options.session.take() {
            Some(session) => {
                let verified = self.sessions().check(&session).await?;
                Some(Arc::new(SessionRef { tag: verified.context.tag.clone(), id: verified.context.id.clone() }))
            }
            None => None,
        };
        if let Some(tag) = &options.cache {
            route.cache(tag)?;
        }
        let event = route.filed.address.event.clone();
        let what = What {
            product: self.product_tag().into(),
            env: self.slug().into(),
            event: event.clone(),
            group: options.group.as_deref().map(Into::into),
            ordered: route.topic.ordered && !options.unordered,
        };
        drop(route);
        let (env, handler) = (self.clone(), Arc::new(handler));
        let open = move |entry, is_left| -> BoxFuture<'static, Result<Arc<Engine>>> {
            let (env, options, session, handler) = (env.clone(), options.clone(), session.clone(), handler.clone());
            Box::pin(async move { env.start_engine(entry, is_left, options, session, handler).await })
        };
        let follow = Follow::start(inner, what, Box::new(open)).await?;
        let Some(engine) = follow.newest() else { return Err(Error::new(Code::Closed, "this instance is closed")) };
        Ok(Consumer { event, id: engine.member.clone(), group: engine.group.clone(), follow })
    }

    async fn start_engine<H: Handler>(
        &self,
        entry: Arc<RouteEntry>,
        is_left: bool,
        options: ConsumeOptions,
        session: Option<Arc<SessionRef>>,
        handler: Arc<H>,
    ) -> Result<Arc<Engine>> {
        let inner = self.inner();
        inner.access.allow(Call::Consume)?;
        let (entry, route) = if is_left {
            let route = inner.route_left(&entry).await?;
            (entry, route)
        } else {
            let route = self.route(entry.address.event.as_str()).await?;
            (inner.catalog.route(self.product_tag(), self.slug(), &entry.address.event)?, route)
        };
        let defaults = &entry.topic.defaults;
        let group: Arc<str> = options.group.as_deref().map_or_else(|| entry.default_group.clone(), Into::into);
        let physical: Arc<str> = entry.group_name(&group).into();
        let ordered = route.topic.ordered && !options.unordered;
        let schedule = options.retry.or_else(|| defaults.retry.clone().map(Into::into)).unwrap_or_default();
        let place = inner.plan(&entry, &schedule, ordered, &route.capabilities)?;
        let start = match options.from {
            Some(start) if start != Start::Latest && !route.capabilities.keeps_messages => {
                return Err(Error::new(
                    Code::CapabilityUnsupported,
                    format!("{} keeps no messages: a new group can only start with what comes", route.filed.provider),
                )
                .field("from")
                .next("leave out `from`"));
            }
            Some(start) => start,
            None if route.capabilities.keeps_messages => Start::Earliest,
            None => Start::Latest,
        };
        if !is_left && !entry.groups.iter().any(|known| known.name == group && !known.is_default) {
            inner.catalog.know_group(self.product_tag(), &route.filed.address.event, &group, Some(start.clone())).await?;
        }
        let lot: Arc<dyn Lot> = match route.lot_of(&group).filter(|_| place == LotPlace::Topics) {
            Some(lot) => lot,
            None => Arc::new(StoreLot::new(inner.store.clone(), route.filed.address.clone(), group.clone())),
        };
        let (window, open) = match (options.dedupe, defaults.dedupe) {
            (Some(window), _) => (Some(window), !options.dedupe_closed),
            (None, Some(policy_config::Dedupe::On { window, on_store_down })) => (Some(window), on_store_down == OnStoreDown::Open),
            (None, _) => (None, true),
        };
        let scope = format!("{}/{group}", route.filed.address);
        let dedupe = window.map(|window| Dedupe { scope, window, open_on_failure: open });
        let dead_letter = options.dead_letter.or_else(|| defaults.dead_letter.as_ref().map(ToString::to_string));
        let copy = match dead_letter {
            Some(event) => Some(self.dead_letter_copy(&event).await?),
            None => None,
        };
        let most = inner.hand.most();
        let bytes = options.prefetch_bytes.unwrap_or(most);
        if bytes > most {
            return Err(Error::input("prefetch_bytes", format!("`prefetch_bytes` is {bytes}, but all consumers have {most} together"))
                .next("lower it, or raise `in_hand_bytes` where the instance is opened"));
        }
        let concurrency = options.concurrency.or(defaults.concurrency.map(|n| n as usize)).unwrap_or(16);
        let count = options.prefetch.unwrap_or(1_000).max(concurrency);
        let parts = Parts {
            provider: route.provider.clone(),
            topic: route.topic.clone(),
            group_spec: GroupSpec { name: physical, start },
            group: group.clone(),
            member: MessageId::now().to_string().into(),
            filed: route.filed.clone(),
            store: inner.store.clone(),
            lot,
            tracker: inner.tracker.clone(),
            dedupe,
            dead_letter_copy: copy,
            route_epoch: entry.epoch,
            paused: inner.is_paused(&route.filed.address, &group),
            session,
            options: Options {
                concurrency,
                schedule,
                timeout: options.timeout.or(defaults.timeout).unwrap_or(Duration::from_secs(30)),
                grace: options.grace.unwrap_or(Duration::from_secs(30)),
                breaker: options.breaker.unwrap_or(true),
                ordered,
                never_wait: ordered && route.capabilities.broker_orders_keys,
                prefetch: Prefetch { count, bytes },
                waits_per_second: options.waits_per_second.unwrap_or(500.0),
                rate: options.rate,
            },
            payloads: route.payloads.clone(),
            share: inner.group_share(&route.filed.address, &group),
            hand: inner.hand.clone(),
        };
        let engine = Engine::start(parts, handler).await.map_err(subscribe_failed)?;
        inner.engines.lock().push(Arc::downgrade(&engine));
        // It may have been paused or resumed since the parts were made.
        engine.pause_by_group(inner.is_paused(&route.filed.address, &group));
        Ok(engine)
    }

    /// Produces a copy of each dead letter to another event, before the original is acked.
    async fn dead_letter_copy(&self, event: &str) -> Result<DeadLetterCopy> {
        self.route(event).await?;
        let (env, event) = (self.clone(), event.to_owned());
        Ok(Arc::new(move |entries| {
            let (env, event) = (env.clone(), event.clone());
            Box::pin(async move {
                let route = env.route(&event).await?;
                let copies = entries.into_iter().map(|entry| {
                    let mut headers = entry.message.headers.clone();
                    headers.set(header::REASON, entry.reason.unwrap_or_default());
                    headers.set(header::ATTEMPT, entry.attempts.to_string());
                    if let Some(error) = entry.error {
                        headers.set(header::ERROR, error);
                    }
                    // Derived, so that a copy made twice is recognised.
                    let id = MessageId::derived(entry.message.id.millis(), &[entry.message.id.as_bytes(), entry.group.as_bytes(), b"dead"]);
                    let options = ProduceOptions {
                        key: entry.message.key,
                        headers,
                        id: Some(id),
                        trusted: true,
                        admitted: true,
                        ..Default::default()
                    };
                    let route = route.clone();
                    async move { produce(&route, entry.message.payload, options).await }
                });
                futures_util::future::try_join_all(copies).await.map(drop)
            })
        }))
    }
}

/// What a subscription fails with, where the provider is not more precise.
fn subscribe_failed(error: Error) -> Error {
    match error.code() {
        Code::ConnectionFailed | Code::Timeout | Code::PublishFailed => {
            Error::new(Code::SubscribeFailed, error.message().to_owned()).detail("cause", error.code().as_str())
        }
        _ => error,
    }
}
