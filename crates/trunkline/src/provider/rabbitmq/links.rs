//! The connections of a provider: one to publish on, and as many to consume on as the channels need.
//!
//! They are apart because a server that is out of memory stops reading from connections that publish: acks must get
//! through all the same. Each owned shard of an ordered group has a connection of its own, too.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::connection::Link;
use super::error::closed;
use super::feed::Size;
use super::hello::Version;
use super::target::Target;
use crate::error::Result;

/// After this long a queue that was declared is on the server's disk ([`Version::SYNCED_QUEUES`]).
const SYNCED: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub(super) struct Links {
    pub(super) target: Arc<Target>,
    publishing: Mutex<Option<Arc<Link>>>,
    consuming: Mutex<Vec<Arc<Link>>>,
    /// The provider is closed.
    pub(super) end: CancellationToken,
    /// What works for its subscriptions.
    pub(super) tasks: TaskTracker,
    opened: AtomicU64,
    pub(super) version: Version,
    /// Topics that were given a queue a moment ago, and when that one is sure to be there after a crash of the server.
    young: parking_lot::Mutex<HashMap<Arc<str>, Instant>>,
    /// How large the messages of each group's queue are.
    sizes: parking_lot::Mutex<HashMap<String, Arc<Size>>>,
}

impl Links {
    pub(super) fn new(target: Arc<Target>, version: Version) -> Self {
        Links {
            target,
            publishing: Mutex::default(),
            consuming: Mutex::default(),
            end: CancellationToken::new(),
            tasks: TaskTracker::new(),
            opened: AtomicU64::new(0),
            version,
            young: parking_lot::Mutex::default(),
            sizes: parking_lot::Mutex::default(),
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.end.is_cancelled()
    }

    /// A queue of this topic was just declared.
    pub(super) fn declared(&self, topic: &Arc<str>) {
        if self.version < Version::SYNCED_QUEUES {
            self.young.lock().insert(topic.clone(), Instant::now() + SYNCED);
        }
    }

    /// Returns when the queues of this topic that were declared here are on the server's disk.
    pub(super) async fn synced(&self, topic: &Arc<str>) {
        let until = self.young.lock().get(topic).copied();
        if let Some(until) = until {
            tokio::time::sleep_until(until.into()).await;
            self.young.lock().retain(|_, until| *until > Instant::now());
        }
    }

    pub(super) fn size_of(&self, queue: &str) -> Arc<Size> {
        self.sizes.lock().entry(queue.to_owned()).or_default().clone()
    }

    async fn open(&self, what: &str) -> Result<Arc<Link>> {
        let number = self.opened.fetch_add(1, Ordering::Relaxed);
        let name = format!("trunkline {what} {}-{number}", std::process::id());
        tokio::select! {
            link = Link::open(&self.target, &name) => link,
            () = self.end.cancelled() => Err(closed()),
        }
    }

    /// A connection of the caller's own.
    pub(super) async fn owning(&self) -> Result<Arc<Link>> {
        if self.is_closed() {
            return Err(closed());
        }
        self.open("owns").await
    }

    /// The connection that publishes; a new one if the last one broke.
    pub(super) async fn publishing(&self) -> Result<Arc<Link>> {
        let mut current = self.publishing.lock().await;
        if self.is_closed() {
            return Err(closed());
        }
        if let Some(link) = current.as_ref().filter(|link| link.lives()) {
            return Ok(link.clone());
        }
        *current = None;
        let link = self.open("publishes").await?;
        Ok(current.insert(link).clone())
    }

    /// A connection with room for more channels that consume.
    pub(super) async fn consuming(&self) -> Result<Arc<Link>> {
        let mut all = self.consuming.lock().await;
        if self.is_closed() {
            return Err(closed());
        }
        all.retain(|link| link.lives());
        if let Some(link) = all.iter().find(|link| link.has_room()) {
            return Ok(link.clone());
        }
        let link = self.open("consumes").await?;
        all.push(link.clone());
        Ok(link)
    }

    /// Ends everything.
    pub(super) async fn close(&self, deadline: Instant) {
        self.end.cancel();
        self.tasks.close();
        let _ = tokio::time::timeout_at(deadline.into(), self.tasks.wait()).await;
        let all: Vec<Arc<Link>> = self.publishing.lock().await.take().into_iter().chain(self.consuming.lock().await.drain(..)).collect();
        futures_util::future::join_all(all.iter().map(|link| link.close(deadline))).await;
    }
}
