//! An open topic: its page, its segments, the lock under which it is appended to, and its groups.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;

use super::control::TopicPage;
use super::disk::{Disk, File, Held, How, Lock, Page, wake};
use super::error;
use super::group::Group;
use super::meta::Meta;
use super::names::escape;
use super::options::Options;
use super::reader::Segment;
use super::segment::{BatchView, SegmentHeader, file_name, start_of};
use super::writer::Queue;
use crate::error::Result;
use crate::message::now_ms;
use crate::provider::TopicSpec;

pub(super) const TOPIC: [u8; 8] = *b"TLKTOPIC";

/// What the topics of one handle have in common.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) options: Options,
    /// One word that all processes of the directory wait on: something was written, or an owner changed.
    pub(super) bell: Arc<dyn Page>,
    pub(super) chunks: super::reader::Chunks,
    pub(super) alone: super::alone::Alone,
    pub(super) boot: u128,
}

impl Host {
    /// Wakes who waits in other processes.
    pub(super) fn ring(&self) {
        let bell = &self.bell.bells()[0];
        bell.fetch_add(1, SeqCst);
        wake(bell);
    }

    pub(super) fn topic_dir(&self, name: &str) -> PathBuf {
        self.options.dir.join("topics").join(escape(name))
    }
}

/// An open topic.
#[derive(Debug)]
pub(super) struct Topic {
    pub(super) host: Arc<Host>,
    pub(super) name: Arc<str>,
    pub(super) dir: PathBuf,
    pub(super) shards: u32,
    pub(super) ordered: bool,
    /// Tells it from every other topic this process opened.
    pub(super) serial: u64,
    pub(super) page: TopicPage,
    pub(super) segments: RwLock<Vec<Arc<Segment>>>,
    lock: Box<dyn Lock>,
    appender: Mutex<Appender>,
    pub(super) groups: Mutex<HashMap<Arc<str>, Arc<Group>>>,
    listeners: Mutex<Vec<Weak<Notify>>>,
    pub(super) queue: Queue,
    /// Whether something confirmed waits for the next fsync of the interval.
    pub(super) unsynced: AtomicBool,
    /// The end of what was written and not synced when the keeper last came round.
    pub(super) orphan: AtomicU64,
    /// How far other processes' writes were noticed.
    noticed: AtomicU64,
}

/// What is only touched under the append lock.
#[derive(Debug, Default)]
pub(super) struct Appender {
    /// The segment this process writes to, with its start.
    pub(super) file: Option<(u64, Arc<dyn File>)>,
}

impl Topic {
    /// Creates what is missing of the topic; `true` if it was not there. Call under the directory's lock.
    pub(super) fn create(host: &Host, spec: &TopicSpec) -> Result<bool> {
        let dir = host.topic_dir(&spec.name);
        if Meta::load(&*host.disk, &dir, TOPIC)?.is_some() {
            return Ok(false);
        }
        let numbers = vec![u64::from(spec.shards), u64::from(spec.ordered), now_ms()];
        Meta { name: spec.name.to_string(), numbers }.store(&*host.disk, &dir, TOPIC)?;
        Ok(true)
    }

    /// Opens the topic if it is there.
    pub(super) fn open(host: &Arc<Host>, name: &str) -> Result<Option<Arc<Self>>> {
        static SERIAL: AtomicU64 = AtomicU64::new(0);
        let dir = host.topic_dir(name);
        let Some(meta) = Meta::load(&*host.disk, &dir, TOPIC)? else { return Ok(None) };
        let shards = meta.numbers.first().and_then(|n| u32::try_from(*n).ok()).filter(|n| *n > 0);
        let shards = shards.ok_or_else(|| error::damaged(&dir, "its number of shards is missing"))?;
        let lock = host.disk.lock(&dir.join("lock")).map_err(|e| error::disk(&e, "cannot lock", &dir))?;
        let page = TopicPage::open(&*host.disk, &dir.join("control"), shards)?;
        let topic = Arc::new(Topic {
            host: Arc::clone(host),
            name: name.into(),
            shards,
            ordered: meta.numbers.get(1) == Some(&1),
            serial: SERIAL.fetch_add(1, SeqCst),
            page,
            segments: RwLock::default(),
            lock,
            appender: Mutex::default(),
            groups: Mutex::default(),
            listeners: Mutex::default(),
            queue: Queue::default(),
            unsynced: AtomicBool::new(false),
            orphan: AtomicU64::new(0),
            noticed: AtomicU64::new(0),
            dir,
        });
        topic.check_page()?;
        topic.locked(|_| ())?;
        topic.noticed.store(topic.page.durable().load(SeqCst), SeqCst);
        Ok(Some(topic))
    }

    /// Runs `work` under the append lock, after putting in order what a dead writer or another boot left.
    pub(super) fn locked<R>(&self, work: impl FnOnce(&mut Appender) -> R) -> Result<R> {
        // The mutex keeps the threads of this handle apart, the lock the processes.
        let mut appender = self.appender.lock();
        let _held = Held::wait(&*self.lock).map_err(|e| error::disk(&e, "cannot lock", &self.dir))?;
        if self.removed() {
            return Err(error::no_topic(&self.name));
        }
        if !self.page.trusted(self.host.boot) || self.page.dirty().load(SeqCst) != 0 {
            appender.file = None;
            self.recover()?;
        }
        Ok(work(&mut appender))
    }

    /// A page that does not say where the log ends is of another moment than the log: files were put back beside it.
    fn check_page(&self) -> Result<()> {
        let _held = Held::wait(&*self.lock).map_err(|e| error::disk(&e, "cannot lock", &self.dir))?;
        let (page, starts) = (&self.page, self.list_segments()?);
        // What a writer is in the middle of, or left, is looked at anyway.
        let calm = page.trusted(self.host.boot) && page.dirty().load(SeqCst) == 0 && page.poisoned().load(SeqCst) == 0;
        if !calm || self.removed() {
            return Ok(());
        }
        let (start, end) = (page.segment().load(SeqCst), page.write_end().load(SeqCst));
        let path = self.segment_path(start);
        let ends_there = || -> io::Result<bool> {
            let file = self.host.disk.open(&path, How::Read)?;
            Ok(file.size()? >= end - start && !stands(&*file, start, end)?)
        };
        if starts.last() != Some(&start) || !ends_there().map_err(|e| error::disk(&e, "cannot read", &path))? {
            tracing::warn!(topic = %self.name, "the control page does not fit the log: it is built again");
            page.distrust();
        }
        Ok(())
    }

    /// Whether the topic was removed, by any process.
    pub(super) fn removed(&self) -> bool {
        self.page.removed().load(SeqCst) != 0
    }

    pub(super) fn segment_path(&self, start: u64) -> PathBuf {
        self.dir.join(file_name(start))
    }

    /// The starts of all segments in the directory, rising.
    pub(super) fn list_segments(&self) -> Result<Vec<u64>> {
        let names = self.host.disk.list(&self.dir).map_err(|e| error::disk(&e, "cannot list", &self.dir))?;
        let mut starts: Vec<u64> = names.iter().filter_map(|name| start_of(name)).collect();
        starts.sort_unstable();
        Ok(starts)
    }

    /// Wakes a subscription whenever there may be something new.
    pub(super) fn listen(&self, listener: &Arc<Notify>) {
        let mut listeners = self.listeners.lock();
        listeners.retain(|weak| weak.strong_count() > 0);
        listeners.push(Arc::downgrade(listener));
    }

    /// Wakes the subscriptions of this process.
    pub(super) fn notify(&self) {
        for listener in self.listeners.lock().iter().filter_map(Weak::upgrade) {
            listener.notify_one();
        }
    }

    /// Wakes the subscriptions of this process if another process wrote something.
    pub(super) fn notice(&self) {
        let durable = self.page.durable().load(SeqCst);
        if self.noticed.swap(durable, SeqCst) != durable {
            self.notify();
        }
    }

    /// Raises the end of what readers see, and wakes them.
    pub(super) fn raise(&self, end: u64) {
        self.page.durable().fetch_max(end, SeqCst);
        self.notify();
        self.host.ring();
    }

    /// Builds the page from the segments: finds the last whole batch, cuts off what was torn, makes the rest durable.
    fn recover(&self) -> Result<()> {
        let page = &self.page;
        let same_boot = page.trusted(self.host.boot);
        page.dirty().store(1, SeqCst);
        // After a failed fsync what lies beyond the durable end may be in the cache only.
        let limit = if same_boot && page.poisoned().load(SeqCst) != 0 { page.durable().load(SeqCst) } else { u64::MAX };
        let mut starts = self.list_segments()?;
        let (header, file) = loop {
            let Some(start) = starts.last().copied() else { break self.first_segment()? };
            match self.open_segment(start)? {
                Some(found) => break found,
                // Its header was never synced, so nothing was ever written behind it.
                None => self.host.disk.remove_file(&self.segment_path(start)).map_err(|e| error::disk(&e, "cannot remove", &self.dir))?,
            }
            starts.pop();
        };
        let scan = self.scan(&header, &*file, limit)?;
        if page.original() && page.lax().load(SeqCst) == 0 && limit == u64::MAX && scan.end < page.durable().load(SeqCst) {
            // Confirmed batches are never cut off as if they were torn.
            return Err(error::damaged(&self.segment_path(header.start), "a confirmed batch fails its checksum"));
        }
        let cut = || -> io::Result<()> {
            if file.size()? > scan.end - header.start {
                file.truncate(scan.end - header.start)?;
            }
            // The names too: of the topic itself, if who created it died first, and the removal of a segment that was never
            // used, which must not be undone under what is written now.
            file.sync()?;
            self.host.disk.sync_dir(&self.dir)?;
            self.dir.parent().map_or(Ok(()), |above| self.host.disk.sync_dir(above))
        };
        cut().map_err(|e| error::disk(&e, "cannot recover", &self.segment_path(header.start)))?;
        for (shard, end) in (0..self.shards).zip(&scan.ends) {
            page.end(shard).store(*end, SeqCst);
        }
        page.oldest().store(starts.first().copied().unwrap_or(header.start), SeqCst);
        page.segment().store(header.start, SeqCst);
        page.last_at().store(scan.at, SeqCst);
        page.write_end().store(scan.end, SeqCst);
        page.durable().store(scan.end, SeqCst);
        page.poisoned().store(0, SeqCst);
        if !same_boot {
            page.cuts().store(0, SeqCst);
            self.segments.write().clear();
            // Before anything is appended: a cursor beyond the end would skip what comes next.
            for group in self.open_groups()? {
                group.clamp(self)?;
            }
        }
        page.trust(self.host.boot);
        page.dirty().store(0, SeqCst);
        Ok(())
    }

    fn first_segment(&self) -> Result<(SegmentHeader, Arc<dyn File>)> {
        let header = SegmentHeader { start: 0, previous_end: 0, at: now_ms(), ordinals: vec![0; self.shards as usize] };
        let file = self.create_segment(&header).map_err(|e| error::disk(&e, "cannot create", &self.segment_path(0)))?;
        Ok((header, file))
    }

    /// Creates the file of a segment so that it survives a power failure.
    pub(super) fn create_segment(&self, header: &SegmentHeader) -> io::Result<Arc<dyn File>> {
        let (disk, path) = (&self.host.disk, self.segment_path(header.start));
        let create = || {
            let file = match disk.open(&path, How::CreateNew) {
                // Left by one who died before it was used.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                    disk.remove_file(&path)?;
                    disk.open(&path, How::CreateNew)?
                }
                result => result?,
            };
            file.write_at(&header.encode(), 0)?;
            file.sync()?;
            disk.sync_dir(&self.dir)?;
            Ok(file)
        };
        create().inspect_err(|_| {
            let _ = disk.remove_file(&path);
        })
    }

    /// The segment that starts there; `None` if its creation was never finished.
    fn open_segment(&self, start: u64) -> Result<Option<(SegmentHeader, Arc<dyn File>)>> {
        let path = self.segment_path(start);
        let read = || {
            let file = self.host.disk.open(&path, How::Write)?;
            let mut head = vec![0; usize::try_from(SegmentHeader::len(self.shards)).map_err(io::Error::other)?];
            let n = file.read_at(&mut head, 0)?;
            head.truncate(n);
            Ok((file.size()?, head, file))
        };
        let (size, head, file) = read().map_err(|e| error::disk(&e, "cannot open", &path))?;
        match SegmentHeader::decode(&head, self.shards, &path) {
            Ok(header) => Ok(Some((header, file))),
            Err(e) if size <= SegmentHeader::len(self.shards) && e.detail_str("reason") != Some("newer_version") => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Reads the whole batches of a segment, as far as `limit`.
    pub(super) fn scan(&self, header: &SegmentHeader, file: &dyn File, limit: u64) -> Result<Scan> {
        let mut scan = Scan { end: header.start + SegmentHeader::len(self.shards), ends: header.ordinals.clone(), at: header.at };
        let fail = |e: io::Error| error::disk(&e, "cannot read", &self.segment_path(header.start));
        let mut buf = Vec::new();
        let mut want = 1 << 20;
        'fill: loop {
            buf.resize(want, 0);
            let n = file.read_at(&mut buf, scan.end - header.start).map_err(fail)?;
            let mut at = 0;
            while scan.end < limit {
                let Ok(batch) = BatchView::parse(&buf[at..n], scan.end) else { break };
                if n - at < batch.len() {
                    break;
                }
                if !batch.intact() {
                    break 'fill;
                }
                for extent in batch.extents() {
                    if let Some(end) = scan.ends.get_mut(extent.shard as usize) {
                        *end = extent.base + u64::from(extent.count);
                    }
                }
                scan.at = scan.at.max(batch.at());
                scan.end += batch.len() as u64;
                at += batch.len();
            }
            if n < want || scan.end >= limit {
                break;
            }
            // Nothing whole in what was read: a batch larger than the buffer, or the end of what was written here.
            match BatchView::parse(&buf[at..n], scan.end) {
                Ok(batch) => want = want.max(batch.len()),
                Err(super::segment::NoBatch::Short(n)) => want = want.max(n),
                Err(super::segment::NoBatch::Wrong) => break,
            }
        }
        Ok(scan)
    }
}

/// Whether a whole batch stands at `at` in the segment that begins at `start`.
fn stands(file: &dyn File, start: u64, at: u64) -> io::Result<bool> {
    let mut want = 4_096;
    loop {
        let mut buf = vec![0; want];
        let n = file.read_at(&mut buf, at - start)?;
        want = match BatchView::parse(&buf[..n], at) {
            Ok(batch) if batch.len() <= n => return Ok(batch.intact()),
            Ok(batch) if n == want => batch.len(),
            Err(super::segment::NoBatch::Short(more)) if n == want => more,
            _ => return Ok(false),
        };
    }
}

/// What the batches of a segment come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Scan {
    /// Behind the last whole one.
    pub(super) end: u64,
    /// The next ordinal, per shard.
    pub(super) ends: Vec<u64>,
    /// The time of the last one.
    pub(super) at: u64,
}
