//! One member of a group on streams.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::state::{Lane, State};
use super::{Core, error, keeper, reader};
use crate::delivery::{Settle, Settled, Token};
use crate::error::{Code, Error, Result};
use crate::provider::{Prefetch, Signal, SubscribeOptions, Subscription, SubscriptionState, TopicSpec};

/// How long a read is asked again to end, and how often.
const NUDGE: Duration = Duration::from_millis(50);

/// What the tasks of a member and its callers share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) core: Arc<Core>,
    pub(super) routes: Vec<TopicSpec>,
    pub(super) group: Arc<str>,
    pub(super) member: Arc<str>,
    pub(super) prefetch: Prefetch,
    pub(super) state: Mutex<State>,
    /// Told to those who wait in `next`.
    pub(super) arrived: Notify,
    /// Told to the reader: there is room, or something else to read.
    pub(super) wanted: Notify,
    /// Told to the keeper: something is due.
    pub(super) woken: Notify,
    pub(super) stop: CancellationToken,
    /// The connections are closed: not even a read that is under way is waited for.
    pub(super) cut: CancellationToken,
    /// Reads begun, and reads ended.
    pub(super) reads: watch::Sender<(u64, u64)>,
    /// The number of the reader's connection on the server.
    pub(super) reader: i64,
    /// One at a time looks at who owns which shard, or gives one up.
    pub(super) moving: tokio::sync::Mutex<()>,
    /// When entries were last found lost to somebody's trimming, while that is said.
    pub(super) trimmed: Mutex<Option<Instant>>,
}

impl Shared {
    /// Ends the subscription: `next` answers with this from now on.
    pub(super) fn end(&self, error: Error) {
        {
            let mut state = self.state.lock();
            state.ended.get_or_insert(error);
        }
        self.stop.cancel();
        self.arrived.notify_waiters();
    }

    /// Ends it together with its connection.
    pub(super) fn cut(&self) {
        self.end(error::closed());
        self.cut.cancel();
    }

    pub(super) fn lease(&self) -> Duration {
        self.core.options.lease
    }

    /// Says something beside deliveries.
    pub(super) fn signal(&self, signal: Signal) {
        self.state.lock().signals.push_back(signal);
        self.arrived.notify_waiters();
    }

    /// Waits until a read that is under way has ended, and what it brought is in hand. Asks the server to end it.
    pub(super) async fn quiet(&self, deadline: Instant) {
        let mut reads = self.reads.subscribe();
        let begun = reads.borrow_and_update().0;
        while reads.borrow().1 < begun && Instant::now() < deadline {
            let mut nudge = redis::cmd("CLIENT");
            nudge.arg("UNBLOCK").arg(self.reader);
            // Where the user may not do that, the read ends by itself a little later.
            let _ = tokio::time::timeout(NUDGE, self.core.work.ask(&nudge)).await;
            let _ = tokio::time::timeout(NUDGE, reads.wait_for(|(_, ended)| *ended >= begun)).await;
        }
    }
}

/// The handle of a member. Dropping it is its death: what it holds goes to others when its leases end.
#[derive(Debug)]
pub(super) struct StreamSubscription {
    pub(super) shared: Arc<Shared>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl StreamSubscription {
    pub(super) async fn open(core: &Arc<Core>, routes: &[TopicSpec], group: &Arc<str>, options: SubscribeOptions) -> Result<Self> {
        core.work.wire().await?;
        let wire = core.target.open(None).await?;
        let mut lanes = Vec::new();
        for (route, topic) in routes.iter().enumerate() {
            for shard in 0..topic.shards.max(1) {
                lanes.push(Lane::new(route, topic, shard, group));
            }
        }
        let shared = Arc::new(Shared {
            core: Arc::clone(core),
            routes: routes.to_vec(),
            group: Arc::clone(group),
            member: options.member,
            prefetch: options.prefetch,
            state: Mutex::new(State::new(lanes)),
            arrived: Notify::new(),
            wanted: Notify::new(),
            woken: Notify::new(),
            stop: CancellationToken::new(),
            cut: CancellationToken::new(),
            reads: watch::Sender::new((0, 0)),
            reader: wire.hello.id,
            moving: tokio::sync::Mutex::new(()),
            trimmed: Mutex::new(None),
        });
        let was_lost = {
            let mut lost = core.lost.lock();
            routes.iter().filter(|topic| lost.remove(&topic.name)).count() > 0
        };
        if was_lost {
            shared.signal(Signal::State(SubscriptionState::Degraded("data_gone")));
        }
        // Joined before it says so.
        for route in 0..routes.len() {
            shared.own(route).await?;
        }
        {
            let mut members = core.members.lock();
            members.retain(|member| member.strong_count() > 0);
            members.push(Arc::downgrade(&shared));
        }
        let tasks = vec![tokio::spawn(reader::read(Arc::clone(&shared), wire, was_lost)), tokio::spawn(keeper::keep(Arc::clone(&shared)))];
        Ok(StreamSubscription { shared, tasks: Mutex::new(tasks) })
    }
}

impl Drop for StreamSubscription {
    fn drop(&mut self) {
        self.shared.end(error::closed());
        for task in self.tasks.lock().drain(..) {
            task.abort();
        }
    }
}

#[async_trait]
impl Subscription for StreamSubscription {
    async fn next(&self, max: usize, max_bytes: usize, wait: Duration) -> Result<Vec<Signal>> {
        let shared = &self.shared;
        let end = tokio::time::Instant::now() + wait;
        loop {
            let arrived = shared.arrived.notified();
            tokio::pin!(arrived);
            arrived.as_mut().enable();
            {
                let mut state = shared.state.lock();
                // What it died of comes after what there is to say of it.
                let dead = state.ended.clone();
                if dead.as_ref().is_none_or(|error| error.code() != Code::Closed) {
                    let signals = state.take(max, if dead.is_some() { 0 } else { max_bytes.max(1) });
                    if !signals.is_empty() {
                        drop(state);
                        shared.wanted.notify_one();
                        return Ok(signals);
                    }
                }
                if let Some(error) = dead {
                    return Err(error);
                }
            }
            if tokio::time::timeout_at(end, arrived).await.is_err() {
                return Ok(Vec::new());
            }
        }
    }

    async fn settle(&self, items: &[(Token, Settle)]) -> Vec<Settled> {
        self.shared.settle(items).await
    }

    async fn extend(&self, tokens: &[Token]) -> Vec<bool> {
        self.shared.extend(tokens).await
    }

    async fn yield_shard(&self, route: usize, shard: u32) {
        self.shared.yield_shard(route, shard).await;
    }

    async fn pause(&self) {
        let shared = &self.shared;
        shared.state.lock().paused = true;
        shared.quiet(Instant::now() + shared.core.options.block() * 2).await;
        // Others take what only waited here.
        shared.give_back_buffered().await;
    }

    async fn resume(&self) {
        self.shared.state.lock().paused = false;
        self.shared.arrived.notify_waiters();
        self.shared.wanted.notify_one();
        self.shared.woken.notify_one();
    }

    async fn close(&self, deadline: Instant) {
        let shared = &self.shared;
        let was_alive = shared.state.lock().ended.is_none();
        shared.end(error::closed());
        let tasks = std::mem::take(&mut *self.tasks.lock());
        let reachable = was_alive && !shared.core.work.is_closed();
        if reachable {
            // The last read may still bring something: it is given back with the rest.
            let _ = tokio::time::timeout_at(deadline.into(), shared.quiet(deadline)).await;
        }
        // Both notice the end by themselves; what they are in the middle of must not meet what is given back.
        for mut task in tasks {
            if !reachable || tokio::time::timeout_at(deadline.into(), &mut task).await.is_err() {
                task.abort();
                let _ = task.await;
            }
        }
        if reachable {
            let _ = tokio::time::timeout_at(deadline.into(), shared.leave()).await;
        }
    }
}
