//! The catalogue: products × brokers × envs × topics, and the route from an event to a topic on a server.
//!
//! All reads are answered from an immutable snapshot in memory. A change is worked out on the newest snapshot and written
//! if no other process was faster, else worked out again. Input is JSON, so that file, API, CLI and SDK validate alike.

mod breaking;
mod broker;
mod cache;
mod docs;
mod group;
mod input;
mod product;
mod record;
mod route;
mod seal;
mod session;
mod snapshot;
mod topic;

use std::sync::Arc;
use std::sync::atomic::{self, AtomicU64};
use std::time::Duration;

use parking_lot::RwLock;
use serde_json::Value;
use tokio::sync::{Mutex, watch};

pub use breaking::Breaking;
pub use broker::{BrokerUpdate, EnvMove, LeftBehind};
pub use cache::{CacheDoc, CacheUpdate};
pub use product::ProductUpdate;
pub use record::{
    BrokerDoc, BrokerView, EnvDoc, EnvView, GroupDoc, Leaving, LeavingView, Ordering, OwnName, ProductDoc, QueueUrl, TopicDoc,
};
pub use route::{KnownGroup, RouteEntry};
pub use seal::Seal;
pub(crate) use seal::reseal_doc;
pub use session::{Period, SessionDoc, SessionUpdate};
pub use snapshot::Snapshot;
pub use topic::TopicUpdate;

use crate::access::{Access, Call};
use crate::error::{Error, Result};
use crate::event::Event;
use crate::store::{DocChange, Store};
use docs::{Docs, Memory};
use input::{BrokerInput, CacheInput, SessionInput, TopicInput};

/// How often a change is worked out anew because another process was faster.
const ATTEMPTS: u32 = 50;

/// The catalogue of a workspace. Cheap to share; all calls may run at the same time.
#[derive(Debug)]
pub struct Catalog {
    docs: Arc<dyn Docs>,
    seal: Arc<dyn Seal>,
    current: RwLock<Arc<Snapshot>>,
    /// The version of `current`, for those who only want to know whether it changed.
    version: AtomicU64,
    /// One change at a time in this process: the store would refuse the others anyway.
    changing: Mutex<()>,
    changed: watch::Sender<u64>,
    /// Who may change it, and what is written down of that.
    access: Arc<Access>,
}

impl Catalog {
    /// Reads the catalogue of a store.
    ///
    /// # Errors
    /// `STORE_FAILED` if it cannot be read.
    pub async fn open(store: Arc<dyn Store>, seal: Arc<dyn Seal>) -> Result<Self> {
        Catalog::over(Arc::new(store), seal).await
    }

    pub(crate) async fn over(docs: Arc<dyn Docs>, seal: Arc<dyn Seal>) -> Result<Self> {
        let (version, all) = docs.read().await?;
        let snapshot = Arc::new(Snapshot::build(version, all)?);
        Ok(Catalog {
            docs,
            seal,
            current: RwLock::new(snapshot),
            version: AtomicU64::new(version),
            changing: Mutex::new(()),
            changed: watch::Sender::new(version),
            access: Arc::new(Access::unguarded()),
        })
    }

    /// The same, with every change allowed and audited by `access`.
    pub(crate) fn guarded(self, access: Arc<Access>) -> Self {
        Catalog { access, ..self }
    }

    /// A copy in memory, to try changes on.
    pub(crate) async fn scratch(&self) -> Result<Catalog> {
        let snapshot = self.snapshot();
        let memory = Memory::new(self.docs.now(), snapshot.version(), snapshot.docs()?);
        Catalog::over(Arc::new(memory), self.seal.clone()).await
    }

    /// The catalogue as this process knows it now.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.current.read().clone()
    }

    /// The version this process knows now, without a lock.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version.load(atomic::Ordering::Acquire)
    }

    /// Tells each new version this process learns of.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Looks for changes by other processes, by the store's version; whether there were any.
    ///
    /// # Errors
    /// `STORE_FAILED`; the known catalogue then stays in force.
    pub async fn refresh(&self) -> Result<bool> {
        if self.docs.version().await? == self.snapshot().version() {
            return Ok(false);
        }
        let (version, docs) = self.docs.read().await?;
        self.install(Snapshot::build(version, docs)?);
        Ok(true)
    }

    fn install(&self, next: Snapshot) {
        let version = next.version();
        *self.current.write() = Arc::new(next);
        self.version.store(version, atomic::Ordering::Release);
        self.changed.send_replace(version);
    }

    /// A change that somebody asks for: allowed and audited.
    async fn change<T: Send>(
        &self,
        call: Call,
        target: &str,
        work: impl Fn(&Snapshot) -> Result<(T, Vec<DocChange>)> + Send + Sync,
    ) -> Result<T> {
        self.access.audited(call, target, self.note(work)).await
    }

    /// Works a change out on the newest snapshot and writes it; again from the start if another process was faster.
    async fn note<T: Send>(&self, work: impl Fn(&Snapshot) -> Result<(T, Vec<DocChange>)> + Send + Sync) -> Result<T> {
        let _one_at_a_time = self.changing.lock().await;
        for attempt in 0..ATTEMPTS {
            self.refresh().await?;
            let snapshot = self.snapshot();
            let (result, changes) = work(&snapshot)?;
            if changes.is_empty() {
                return Ok(result);
            }
            if let Some(version) = self.docs.write(snapshot.version(), changes.clone()).await? {
                self.install(snapshot.with(version, &changes)?);
                return Ok(result);
            }
            tokio::time::sleep(Duration::from_millis(u64::from(attempt.min(20)) * rand::random_range(1..=4))).await;
        }
        Err(Error::store("the catalogue is being changed by too many processes at once").with_retryable(true))
    }
}

/// Checks what `create_broker` would take, without a catalogue; the broker's tag.
pub(crate) fn check_broker(product: Option<&str>, input: &Value) -> Result<String> {
    BrokerInput::create(product, input).map(|input| input.tag.unwrap_or_default())
}

/// Checks what `create_topic` would take, but for its name; the topic's event.
pub(crate) fn check_topic(product: Option<&str>, input: &Value) -> Result<Event> {
    TopicInput::update(product, input)?.event.ok_or_else(|| Error::input("tag", "`tag` is required"))
}

/// Checks what `create_session` would take, without a catalogue; the session's tag.
pub(crate) fn check_session(product: Option<&str>, input: &Value) -> Result<String> {
    SessionInput::create(product, input).map(|input| input.tag.unwrap_or_default())
}

/// Checks what `create_cache` would take; the cache's tag.
pub(crate) fn check_cache(product: Option<&str>, input: &Value) -> Result<String> {
    CacheInput::create(product, input).map(|input| input.tag.unwrap_or_default())
}

#[cfg(test)]
pub(crate) mod tests;
