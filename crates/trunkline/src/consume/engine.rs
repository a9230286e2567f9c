//! One consumer: its subscription, what it has in hand, its workers, and the tasks that end with it.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::consume::handler::Handler;
use crate::consume::lanes::Lanes;
use crate::consume::settle::{Finished, Then};
use crate::consume::shared::{GroupShare, Hand};
use crate::consume::state::{Cause, Health, State};
use crate::error::Result;
use crate::history::Filed;
use crate::lot::{Lot, LotFeed};
use crate::payloads::Payloads;
use crate::policy::Schedule;
use crate::provider::{GroupSpec, Prefetch, Provider, SubscribeOptions, Subscription, TopicSpec};
use crate::store::{LotEntry, SessionRef, Store};
use crate::tracker::Tracker;

/// How a consumer works. Defaults are the documented ones.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) concurrency: usize,
    pub(crate) schedule: Schedule,
    pub(crate) timeout: Duration,
    pub(crate) grace: Duration,
    pub(crate) breaker: bool,
    pub(crate) ordered: bool,
    /// The broker itself orders keys: a message with one is never acked to let it wait, and no member owns a shard.
    pub(crate) never_wait: bool,
    pub(crate) prefetch: Prefetch,
    pub(crate) waits_per_second: f64,
    pub(crate) rate: Option<f64>,
}

/// Which ids were handled before are passed over.
#[derive(Debug, Clone)]
pub(crate) struct Dedupe {
    pub(crate) scope: String,
    pub(crate) window: Duration,
    pub(crate) open_on_failure: bool,
}

/// Also sends dead letters to a topic of the user's.
pub(crate) type DeadLetterCopy = Arc<dyn Fn(Vec<LotEntry>) -> BoxFuture<'static, Result<()>> + Send + Sync>;

/// Who has paused the consumer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Paused {
    owner: bool,
    group: bool,
}

impl Paused {
    pub(super) fn any(self) -> bool {
        self.owner || self.group
    }
}

/// All that an engine is made of.
pub(crate) struct Parts {
    pub(crate) provider: Arc<dyn Provider>,
    pub(crate) topic: TopicSpec,
    pub(crate) group_spec: GroupSpec,
    pub(crate) group: Arc<str>,
    pub(crate) member: Arc<str>,
    pub(crate) filed: Arc<Filed>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) lot: Arc<dyn Lot>,
    pub(crate) tracker: Tracker,
    pub(crate) dedupe: Option<Dedupe>,
    pub(crate) dead_letter_copy: Option<DeadLetterCopy>,
    pub(crate) route_epoch: u64,
    /// Whether its group is paused: then nothing is received before it is resumed.
    pub(crate) paused: bool,
    /// The session it consumes with.
    pub(crate) session: Option<Arc<SessionRef>>,
    pub(crate) options: Options,
    /// Checks payloads against the topic's schema.
    pub(crate) payloads: Arc<Payloads>,
    /// Shared with the other consumers of the group in this process.
    pub(crate) share: Arc<GroupShare>,
    /// Shared with all consumers of this process.
    pub(crate) hand: Arc<Hand>,
}

/// See the module. What it was made of is read as if it were its own.
pub(crate) struct Engine {
    parts: Parts,
    pub(crate) pulse: crate::background::Pulse,
    pub(crate) lanes: Mutex<Lanes>,
    pub(crate) work: Notify,
    pub(crate) finished: Mutex<Vec<Finished>>,
    pub(crate) finished_some: Notify,
    pub(crate) held_some: Notify,
    pub(crate) space: Notify,
    pub(crate) feed: Mutex<Option<Arc<dyn LotFeed>>>,
    pub(super) subscription: Mutex<(Option<Arc<dyn Subscription>>, u64)>,
    pub(super) running: Mutex<Vec<Option<(u32, CancellationToken)>>>,
    pub(crate) settled: AtomicU64,
    /// Told when messages have left the hand, for a shard that is being given up.
    pub(crate) drained: Notify,
    /// By the consumer's owner, and by the catalogue for the whole group.
    pub(super) paused: watch::Sender<Paused>,
    pub(crate) health: Health,
    /// Stop receiving and starting.
    pub(super) stop: CancellationToken,
    /// The deadline of the close has passed.
    pub(crate) give_up: CancellationToken,
    pub(crate) settle_end: CancellationToken,
    pub(super) tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl Deref for Engine {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.parts
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("address", &self.filed.address).field("group", &self.group).finish_non_exhaustive()
    }
}

impl Engine {
    /// Subscribes and starts working. Live when it returns.
    pub(crate) async fn start<H: Handler>(parts: Parts, handler: Arc<H>) -> Result<Arc<Engine>> {
        let concurrency = parts.options.concurrency.max(1);
        let engine = Arc::new(Engine {
            lanes: Mutex::new(Lanes::new(concurrency, parts.options.rate, parts.share.side(parts.options.breaker), parts.hand.clone())),
            pulse: crate::background::Pulse::default(),
            work: Notify::new(),
            finished: Mutex::new(Vec::new()),
            finished_some: Notify::new(),
            held_some: Notify::new(),
            space: Notify::new(),
            feed: Mutex::new(None),
            subscription: Mutex::new((None, 0)),
            running: Mutex::new((0..concurrency).map(|_| None).collect()),
            settled: AtomicU64::new(0),
            drained: Notify::new(),
            paused: watch::Sender::new(Paused { owner: false, group: parts.paused }),
            health: Health::new(),
            stop: CancellationToken::new(),
            give_up: CancellationToken::new(),
            settle_end: CancellationToken::new(),
            tasks: Mutex::new(Vec::new()),
            parts,
        });
        let feed = engine.lot.feed(engine.member.clone()).await?;
        *engine.feed.lock() = Some(feed.clone());
        let first = match engine.subscribe().await {
            Ok(subscription) => subscription,
            Err(error) => {
                feed.close().await;
                return Err(error);
            }
        };
        engine.note(Cause::Connecting, false);
        engine.share.join(&engine);
        let mut tasks = vec![
            tokio::spawn(engine.clone().supervise(first)),
            tokio::spawn(engine.clone().wake_held()),
            tokio::spawn(engine.clone().feed_due(feed)),
            tokio::spawn(engine.clone().settle_all()),
        ];
        tasks.extend((0..concurrency).map(|slot| tokio::spawn(engine.clone().work(slot, handler.clone()))));
        *engine.tasks.lock() = tasks;
        Ok(engine)
    }

    pub(super) async fn subscribe(&self) -> Result<Arc<dyn Subscription>> {
        self.provider.ensure(&self.topic, std::slice::from_ref(&self.group_spec)).await?;
        let options = SubscribeOptions { member: self.member.clone(), prefetch: self.options.prefetch };
        let subscription = self.provider.subscribe(std::slice::from_ref(&self.topic), &self.group_spec, options).await?;
        let mut current = self.subscription.lock();
        *current = (Some(subscription.clone()), current.1 + 1);
        Ok(subscription)
    }

    /// The live subscription and its generation.
    pub(crate) fn current(&self) -> (Option<Arc<dyn Subscription>>, u64) {
        self.subscription.lock().clone()
    }

    pub(crate) fn set_running(&self, slot: usize, what: Option<(u32, CancellationToken)>) {
        self.running.lock()[slot] = what;
    }

    /// Notes what is the matter, or no longer is; whether that is news.
    pub(crate) fn note(&self, cause: Cause, holds: bool) -> bool {
        let news = self.health.set(cause, holds);
        if news {
            let state = self.health.state().borrow().text();
            tracing::info!(address = %self.filed.address, group = %self.group, ?cause, holds, state, "consumer");
        }
        news
    }

    pub(crate) fn state(&self) -> watch::Receiver<State> {
        self.health.state()
    }

    pub(crate) fn in_hand(&self) -> usize {
        self.lanes.lock().count
    }

    /// Takes over what finished; the settler sees it at once.
    pub(crate) fn hand_over(&self, mut finished: Vec<Finished>) {
        if finished.is_empty() {
            return;
        }
        let first = {
            let mut queue = self.finished.lock();
            let first = queue.is_empty();
            queue.append(&mut finished);
            first
        };
        if first {
            self.finished_some.notify_one();
        }
    }

    pub(crate) fn pause_by_owner(&self, paused: bool) {
        self.paused.send_if_modified(|now| std::mem::replace(&mut now.owner, paused) != paused);
    }

    pub(crate) fn pause_by_group(&self, paused: bool) {
        self.paused.send_if_modified(|now| std::mem::replace(&mut now.group, paused) != paused);
    }

    /// Stops receiving, lets what runs finish until the deadline, gives back the rest, settles, leaves the group.
    pub(crate) async fn close(&self, within: Duration) {
        let deadline = Instant::now() + within;
        self.stop.cancel();
        let waiting = {
            let mut lanes = self.lanes.lock();
            lanes.closing = true;
            lanes.take_waiting(None)
        };
        self.hand_over(waiting.iter().map(|work| Finished::of(work, Then::Release, None, false)).collect());
        self.work.notify_waiters();
        let mut tasks = std::mem::take(&mut *self.tasks.lock());
        if tasks.is_empty() {
            return;
        }
        let settler = tasks.remove(3);
        let all = async {
            for task in &mut tasks {
                // A worker notices the close when its handler returns; one that just went idle needs another word.
                while !task.is_finished() {
                    self.work.notify_waiters();
                    let _ = tokio::time::timeout(Duration::from_millis(20), &mut *task).await;
                }
            }
        };
        if tokio::time::timeout_at(deadline.into(), all).await.is_err() {
            self.give_up.cancel();
            for (_, token) in self.running.lock().iter().flatten() {
                token.cancel();
            }
            // Handlers that listen return now; the others are ended, their messages are handed out again.
            let _ = tokio::time::timeout(Duration::from_millis(500), async {
                for task in &mut tasks {
                    if !task.is_finished() {
                        let _ = (&mut *task).await;
                    }
                }
            })
            .await;
            tasks.iter().for_each(JoinHandle::abort);
        }
        // Held retries that a worker put back while it closed.
        let late = self.lanes.lock().take_waiting(None);
        self.hand_over(late.iter().map(|work| Finished::of(work, Then::Release, None, false)).collect());
        self.settle_end.cancel();
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_secs(1));
        let mut settler = settler;
        if tokio::time::timeout(left, &mut settler).await.is_err() {
            self.give_up.cancel();
            let _ = tokio::time::timeout(Duration::from_secs(1), &mut settler).await;
            settler.abort();
        }
        let feed = self.feed.lock().take();
        if let Some(feed) = feed {
            feed.close().await;
        }
        let subscription = self.subscription.lock().0.take();
        if let Some(subscription) = subscription {
            subscription.close(Instant::now() + left.min(Duration::from_secs(5))).await;
        }
        self.leave_group();
        self.note(Cause::Closed, true);
    }
}

impl Engine {
    /// Nothing of this consumer runs any more: if it was probing for its group, another one may.
    fn leave_group(&self) {
        if self.lanes.lock().breaker.probe_ended() {
            self.share.probe_over();
        }
    }

    /// Stops at once: nothing is settled any more, what is in hand is handed out again when its lease ends.
    pub(crate) fn abandon(&self) {
        self.stop.cancel();
        self.give_up.cancel();
        self.settle_end.cancel();
        for task in self.tasks.lock().drain(..) {
            task.abort();
        }
        self.leave_group();
        self.note(Cause::Closed, true);
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        for task in self.tasks.lock().iter() {
            task.abort();
        }
        self.leave_group();
    }
}
