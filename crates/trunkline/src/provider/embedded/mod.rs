//! The embedded broker: a segmented log in a directory, shared by the processes of one host, without a server.
//!
//! - `segment` is the format, `encode` and `append` write it, `writer` merges what waits into one write and one fsync,
//!   `reader` and `index` read it, `retention` unlinks it.
//! - `control` is what the processes know in common while the machine runs; `topic` builds it again from the files.
//! - `lease` says who owns a shard, `group` hands it over, `owned` and `ack` know what of it is settled,
//!   `subscription` puts them together.
//! - `pulse` keeps leases alive and hears what other processes do.
//! - `disk` is all that is asked of the operating system.
//!
//! Two things make it safe against crashes. Readers never pass the durable end, which is raised after the fsync; and a
//! settle is in the ack log before it is answered, in a file that only its owner's epoch writes to.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Weak};
use std::time::Duration;
use std::time::Instant;

use async_trait::async_trait;
use parking_lot::{Condvar, Mutex};
use tokio::sync::{oneshot, watch};

use self::subscription::Live;
use self::topic::{Host, Topic};
use super::{
    Depth, Ensured, GroupSpec, Outgoing, Provider, ReadFrom, Remove, SendError, Stage, Start, Stored, SubscribeOptions, Subscription,
    TopicSpec, stage,
};
use crate::capability::{Capabilities, DeliveryCount, Durability};
use crate::delivery::Position;
use crate::error::{Code, Error, Result};
use crate::message::{MessageId, millis};

mod ack;
mod alone;
mod append;
pub mod config;
mod control;
pub mod disk;
mod encode;
mod error;
mod group;
mod index;
mod lease;
mod memory_disk;
mod meta;
mod names;
mod options;
mod owned;
mod pulse;
mod reader;
mod real_disk;
mod retention;
mod segment;
mod subscription;
#[cfg(test)]
mod tests;
mod topic;
mod writer;

pub use memory_disk::MemoryDisk;
pub use options::{Fsync, Options, Retention};
pub use real_disk::RealDisk;

/// Messages can be given back for at most this long.
const LONGEST_RETRY_MS: u64 = 60_000;
/// What is being removed is first renamed to this and a number.
const REMOVED: &str = ".removed-";
/// More shards than this are a mistake.
const MOST_SHARDS: u32 = 65_536;

/// The embedded broker, opened at one directory.
#[derive(Debug)]
pub struct Embedded {
    handle: Arc<Handle>,
    /// Gives nothing; closed when both threads ended.
    ended: watch::Receiver<()>,
    durability: Durability,
}

/// What the threads of an open broker share.
#[derive(Debug)]
struct Handle {
    host: Arc<Host>,
    topics: Mutex<HashMap<Arc<str>, Arc<Topic>>>,
    lives: Mutex<Vec<Weak<Live>>>,
    closed: AtomicBool,
    stop: Arc<(Mutex<bool>, Condvar)>,
}

impl Embedded {
    /// Opens the broker in a directory of this machine, which is created if missing.
    ///
    /// # Errors
    /// `STORE_FAILED` if the directory cannot be used, or holds what a newer version wrote.
    pub fn open(options: Options) -> Result<Self> {
        Self::with_disk(Arc::new(RealDisk), options)
    }

    /// Opens a broker in the memory of this process; it is gone with it. To share it, give clones of one
    /// [`MemoryDisk`] to [`Embedded::with_disk`].
    ///
    /// # Errors
    /// None for now.
    pub fn memory(options: Options) -> Result<Self> {
        Self::with_disk(Arc::new(MemoryDisk::new()), options)
    }

    /// Opens the broker on another disk.
    ///
    /// # Errors
    /// `STORE_FAILED` if the directory cannot be used, or holds what a newer version wrote.
    pub fn with_disk(disk: Arc<dyn disk::Disk>, mut options: Options) -> Result<Self> {
        options.max_payload = options.max_payload.min(1 << 30);
        let dir = options.dir.clone();
        let made = disk.make_dir(&dir.join("topics")).and_then(|()| disk.sync_dir(&dir));
        made.map_err(|e| error::disk(&e, "cannot create", &dir))?;
        // The name of the directory has to survive as well; one above that may not be opened is older than this.
        if let Some(above) = dir.parent() {
            let _ = disk.sync_dir(if above.as_os_str().is_empty() { Path::new(".") } else { above });
        }
        let bell = disk.page(&dir.join("bell"), disk::page_bytes(0)).map_err(|e| error::disk(&e, "cannot map", &dir))?;
        let durability = match options.fsync {
            _ if disk.volatile() => Durability::Memory,
            Fsync::Always => Durability::Fsynced,
            Fsync::Interval(_) => Durability::Written,
        };
        let boot = disk.boot_id();
        let host = Arc::new(Host { disk, options, bell, chunks: reader::Chunks::default(), alone: alone::Alone::default(), boot });
        let (threads, ended) = watch::channel(());
        let handle = Arc::new(Handle {
            host,
            topics: Mutex::default(),
            lives: Mutex::default(),
            closed: AtomicBool::new(false),
            stop: Arc::default(),
        });
        handle.start(threads).map_err(|e| error::disk(&e, "cannot start the threads of", &dir))?;
        Ok(Embedded { handle, ended, durability })
    }

    fn open_handle(&self) -> Result<&Arc<Handle>> {
        if self.handle.closed() { Err(error::closed()) } else { Ok(&self.handle) }
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.handle.leave();
    }
}

impl Handle {
    fn closed(&self) -> bool {
        self.closed.load(SeqCst)
    }

    /// Ends the subscriptions, then the threads.
    fn leave(&self) {
        for live in self.lives() {
            live.leave();
        }
        self.stop();
    }

    /// Ends the threads.
    fn stop(&self) {
        self.closed.store(true, SeqCst);
        *self.stop.0.lock() = true;
        self.stop.1.notify_all();
        self.host.ring();
    }

    fn lives(&self) -> Vec<Arc<Live>> {
        let mut lives = self.lives.lock();
        lives.retain(|live| live.strong_count() > 0);
        let alive: Vec<Arc<Live>> = lives.iter().filter_map(Weak::upgrade).collect();
        drop(lives);
        alive
    }

    fn open_topics(&self) -> Vec<Arc<Topic>> {
        self.topics.lock().values().map(Arc::clone).collect()
    }

    /// The topic, opened if it is there.
    fn topic(&self, name: &Arc<str>) -> Result<Arc<Topic>> {
        let mut topics = self.topics.lock();
        if let Some(topic) = topics.get(name) {
            if !topic.removed() {
                return Ok(Arc::clone(topic));
            }
            self.host.chunks.forget(topic.serial);
            topics.remove(name);
        }
        let topic = Topic::open(&self.host, name)?.ok_or_else(|| error::no_topic(name))?;
        topics.insert(Arc::clone(name), Arc::clone(&topic));
        Ok(topic)
    }

    /// Runs `work` while no other process creates or removes a topic.
    fn exclusive<R>(&self, work: impl FnOnce() -> Result<R>) -> Result<R> {
        let dir = &self.host.options.dir;
        let lock = self.host.disk.lock(&dir.join("lock")).map_err(|e| error::disk(&e, "cannot lock", dir))?;
        let _held = disk::Held::wait(&*lock).map_err(|e| error::disk(&e, "cannot lock", dir))?;
        work()
    }

    fn ensure(&self, spec: &TopicSpec, groups: &[GroupSpec]) -> Result<Ensured> {
        if !(1..=MOST_SHARDS).contains(&spec.shards) {
            let text = format!("the embedded broker takes topics of 1 to {MOST_SHARDS} shards, not {}", spec.shards);
            return Err(Error::new(Code::CapabilityUnsupported, text).field("shards"));
        }
        let mut ensured = Ensured::default();
        let there = meta::Meta::load(&*self.host.disk, &self.host.topic_dir(&spec.name), topic::TOPIC)?.is_some();
        if !there && self.exclusive(|| Topic::create(&self.host, spec))? {
            ensured.created.push(format!("topic '{}' with {} shards", spec.name, spec.shards));
        }
        let topic = self.topic(&spec.name)?;
        if topic.shards != spec.shards {
            ensured.drift.push(format!("topic '{}' has {} shards, not {}", spec.name, topic.shards, spec.shards));
        }
        if topic.ordered != spec.ordered {
            let order = |ordered| if ordered { "ordered" } else { "unordered" };
            ensured.drift.push(format!("topic '{}' was created {}, not {}", spec.name, order(topic.ordered), order(spec.ordered)));
        }
        for group in groups {
            if topic.create_group(group)? {
                ensured.created.push(format!("group '{}' on topic '{}'", group.name, spec.name));
            }
        }
        Ok(ensured)
    }

    fn remove_topic(&self, name: &Arc<str>) -> Result<()> {
        self.exclusive(|| {
            let topic = match self.topic(name) {
                Err(e) if e.code() == Code::TopicNotFound => return Ok(()),
                result => result?,
            };
            let disk = &self.host.disk;
            let away = self.host.options.dir.join("topics").join(format!("{REMOVED}{}", uuid::Uuid::now_v7().simple()));
            // Under the append lock: nobody is in the middle of a write, and whoever comes after sees the mark.
            let moved = topic.locked(|_| {
                topic.page.removed().store(1, SeqCst);
                disk.rename(&topic.dir, &away)
            })?;
            // Another process may sweep it away at the same time.
            let removed = moved.and_then(|()| match disk.remove_dir(&away) {
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
                result => result,
            });
            removed.map_err(|e| error::disk(&e, "cannot remove", &topic.dir))?;
            self.host.chunks.forget(topic.serial);
            self.topics.lock().remove(name);
            topic.notify();
            self.host.ring();
            Ok(())
        })
    }

    fn subscribe(&self, routes: &[TopicSpec], group: &GroupSpec) -> Result<Arc<Live>> {
        let joined = routes.iter().map(|spec| {
            let topic = self.topic(&spec.name)?;
            let found = topic.group(&group.name)?.ok_or_else(|| error::no_group(&spec.name, &group.name))?;
            Ok((topic, found))
        });
        let live = Live::open(joined.collect::<Result<_>>()?, &group.name, self.host.options.lease)?;
        self.lives.lock().push(Arc::downgrade(&live));
        Ok(live)
    }

    fn read(&self, spec: &TopicSpec, from: ReadFrom, max: usize) -> Result<Vec<Stored>> {
        let topic = self.topic(&spec.name)?;
        let (ReadFrom::Position(Position { shard, .. }) | ReadFrom::Time { shard, .. }) = from;
        if shard >= topic.shards {
            return Err(Error::input("shard", format!("topic '{}' has {} shards", spec.name, topic.shards)));
        }
        let first = match from {
            ReadFrom::Position(position) => position.offset,
            ReadFrom::Time { at, .. } => topic.ordinals_at_time(at)?[shard as usize],
        };
        let mut reader = reader::Reader::new(&topic, shard, first);
        let mut out = Vec::new();
        while out.len() < max {
            let Some((offset, frame, stored_at)) = reader.next()? else { break };
            let id = frame.id.and_then(|bytes| MessageId::from_bytes(&bytes));
            let position = Position { shard, offset };
            out.push(Stored { position, id, key: frame.key, headers: frame.headers, payload: frame.payload, stored_at });
        }
        Ok(out)
    }

    /// Tells whether the directory can be written.
    fn try_directory(&self) -> Result<(), Error> {
        let dir = &self.host.options.dir;
        let name = format!("probe-{}", uuid::Uuid::now_v7().simple());
        let disk = &*self.host.disk;
        let try_it = || {
            disk::write_whole(disk, dir, &name, b"probe")?;
            disk.remove_file(&dir.join(&name))
        };
        try_it().map_err(|e| error::disk(&e, "cannot write in", dir))
    }

    /// Writes to a topic of its own, and reads it back.
    async fn round_trip(&self) -> Result<(), Error> {
        let name: Arc<str> = format!("trunkline-probe-{}", uuid::Uuid::now_v7().simple()).into();
        let spec = TopicSpec::new(Arc::clone(&name), 1, false);
        self.ensure(&spec, &[])?;
        let payload = bytes::Bytes::from_static(b"probe");
        let message = Outgoing { id: MessageId::now(), shard: None, key: None, headers: crate::Headers::new(), payload: payload.clone() };
        let sent = self.topic(&name)?.send(Arc::new(vec![message])).await.into_iter().next();
        let read = match sent {
            Some(Ok(position)) => self.read(&spec, ReadFrom::Position(position), 1),
            Some(Err(failed)) => Err(failed.error),
            None => Ok(Vec::new()),
        };
        self.remove_topic(&name)?;
        if read?.first().is_some_and(|stored| stored.payload == payload) {
            Ok(())
        } else {
            Err(error::damaged(Path::new(&*name), "what was written is not what is read"))
        }
    }
}

/// Runs what waits for the disk where it holds nobody up.
async fn blocking<R: Send + 'static>(work: impl FnOnce() -> Result<R> + Send + 'static) -> Result<R> {
    let (answer, answered) = oneshot::channel();
    tokio::task::spawn_blocking(move || {
        let _ = answer.send(work());
    });
    answered.await.unwrap_or_else(|_| Err(Error::store("a call of the embedded broker was cut off")))
}

#[async_trait]
impl Provider for Embedded {
    fn capabilities(&self, _topic: &TopicSpec) -> Capabilities {
        Capabilities {
            durability: self.durability,
            ordered_shards: true,
            broker_orders_keys: false,
            keeps_messages: true,
            native_delay_max_ms: LONGEST_RETRY_MS,
            delivery_count: DeliveryCount::UpperBound,
            release_uncounted: true,
            extends_leases: true,
            lossy: false,
            max_message_bytes: self.handle.host.options.max_payload,
            dedup_window_ms: 0,
            max_wait_ms: u64::MAX,
            takeover_ms: millis(self.handle.host.options.lease + self.handle.host.options.heartbeat() * 2),
        }
    }

    async fn ensure(&self, topic: &TopicSpec, groups: &[GroupSpec]) -> Result<Ensured> {
        let (handle, topic, groups) = (Arc::clone(self.open_handle()?), topic.clone(), groups.to_vec());
        blocking(move || handle.ensure(&topic, &groups)).await
    }

    async fn remove(&self, what: Remove<'_>) -> Result<()> {
        let handle = Arc::clone(self.open_handle()?);
        match what {
            Remove::Topic(topic) => {
                let name = Arc::clone(&topic.name);
                blocking(move || handle.remove_topic(&name)).await
            }
            Remove::Group(topic, group) => {
                let (name, group) = (Arc::clone(&topic.name), group.to_owned());
                blocking(move || match handle.topic(&name) {
                    Err(e) if e.code() == Code::TopicNotFound => Ok(()),
                    result => result?.remove_group(&group),
                })
                .await
            }
        }
    }

    async fn send(&self, topic: &TopicSpec, batch: Arc<Vec<Outgoing>>) -> Vec<Result<Position, SendError>> {
        let n = batch.len();
        match self.open_handle().and_then(|handle| handle.topic(&topic.name)) {
            Ok(topic) => topic.send(batch).await,
            Err(error) => vec![Err(error::refused(error)); n],
        }
    }

    fn sends_at_once(&self) -> usize {
        // The writer's thread goes on with the second one without waiting to be told.
        2
    }

    async fn subscribe(&self, routes: &[TopicSpec], group: &GroupSpec, _options: SubscribeOptions) -> Result<Arc<dyn Subscription>> {
        // Nothing is fetched ahead: messages are read from the log when `next` asks for them.
        let (handle, routes, group) = (Arc::clone(self.open_handle()?), routes.to_vec(), group.clone());
        Ok(blocking(move || handle.subscribe(&routes, &group)).await?)
    }

    async fn depth(&self, topic: &TopicSpec, group: &str) -> Result<Depth> {
        let (handle, name, group) = (Arc::clone(self.open_handle()?), Arc::clone(&topic.name), group.to_owned());
        blocking(move || {
            let topic = handle.topic(&name)?;
            topic.group(&group)?.ok_or_else(|| error::no_group(&name, &group))?.depth(&topic)
        })
        .await
    }

    async fn read(&self, topic: &TopicSpec, from: ReadFrom, max: usize) -> Result<Vec<Stored>> {
        let (handle, topic) = (Arc::clone(self.open_handle()?), topic.clone());
        blocking(move || handle.read(&topic, from, max)).await
    }

    async fn seek(&self, topic: &TopicSpec, group: &str, to: &Start) -> Result<()> {
        let (handle, name, group, to) = (Arc::clone(self.open_handle()?), Arc::clone(&topic.name), group.to_owned(), to.clone());
        blocking(move || {
            let topic = handle.topic(&name)?;
            topic.group(&group)?.ok_or_else(|| error::no_group(&name, &group))?.seek(&topic, &to)?;
            // The members of this handle need not wait for the pulse.
            handle.lives().iter().for_each(|live| live.beat(false));
            Ok(())
        })
        .await
    }

    async fn probe(&self, deadline: Instant) -> Vec<Stage> {
        let mut stages = Vec::new();
        let since = Instant::now();
        let handle = match self.open_handle() {
            Ok(handle) => Arc::clone(handle),
            Err(error) => return vec![stage("permissions", since, Err((error, "open the broker again")))],
        };
        let left = |at: Instant| tokio::time::Instant::from_std(at);
        let late = || Error::new(Code::Timeout, "the disk did not answer in time");
        let directory = Arc::clone(&handle);
        let tried = tokio::time::timeout_at(left(deadline), blocking(move || directory.try_directory())).await;
        let tried = tried.unwrap_or_else(|_| Err(late()));
        let failed = tried.is_err();
        stages.push(stage("permissions", since, tried.map_err(|e| (e, "make the directory writable, or free space"))));
        if failed {
            return stages;
        }
        let since = Instant::now();
        let trip = tokio::time::timeout_at(left(deadline), handle.round_trip()).await.unwrap_or_else(|_| Err(late()));
        stages.push(stage("round_trip", since, trip.map_err(|e| (e, "look at the disk of the log"))));
        stages
    }

    async fn close(&self, deadline: Instant) {
        self.handle.leave();
        let mut ended = self.ended.clone();
        // Fails as soon as the last thread dropped its end.
        let _ = tokio::time::timeout_at(deadline.into(), ended.changed()).await;
    }
}

impl Embedded {
    /// Opens it as a config says; a relative or absent path lies in the data directory.
    ///
    /// # Errors
    /// As [`Embedded::open`].
    pub fn open_config(config: &config::EmbeddedConfig, data: &Path) -> Result<Embedded> {
        let mut options = Options::new(data.join(config.path.as_deref().unwrap_or("log")));
        options.max_payload = config.max_payload;
        options.retention = Retention { age: config.retention.age, bytes: config.retention.bytes };
        options.fsync = match config.fsync {
            config::Fsync::Always => Fsync::Always,
            config::Fsync::Interval => Fsync::Interval(Duration::from_secs(1)),
        };
        if config.memory { Embedded::memory(options) } else { Embedded::open(options) }
    }
}
