//! One history: a directory that several processes of a host record to and query.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::error::Result;
use crate::message::{Millis, now_ms};

use super::files::failed;
use super::index::Index;
use super::maintain::Maintainer;
use super::reader::Readers;
use super::recorder::Recorder;

/// Where a history takes the time from.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Millis + Send + Sync>);

impl Clock {
    /// A clock of one's own, in milliseconds since 1970.
    pub fn new(now: impl Fn() -> Millis + Send + Sync + 'static) -> Self {
        Clock(Arc::new(now))
    }

    pub(super) fn now(&self) -> Millis {
        (self.0)()
    }
}

impl Default for Clock {
    fn default() -> Self {
        Clock::new(now_ms)
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

/// The bounds of a history.
#[derive(Debug, Clone)]
pub struct Options {
    /// Bytes on disk before the oldest are dropped. Default 8 GiB.
    pub max_bytes: u64,
    /// Bytes that wait while the index cannot be written. Default 64 MiB.
    pub max_spill_bytes: u64,
    /// Payload bytes in the recorder's queue; beyond them only metadata is kept. Default 64 MiB.
    pub queue_bytes: usize,
    /// Bytes of decompressed sections kept for queries. Default 32 MiB.
    pub cache_bytes: usize,
    /// How long to wait for another process that writes the index. Default 1 s.
    pub busy: Duration,
    /// How often the thread beside the recorder merges and drops; zero: only when asked. Default 5 s.
    pub maintain_every: Duration,
    /// The clock.
    pub clock: Clock,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            max_bytes: 8 << 30,
            max_spill_bytes: 64 << 20,
            queue_bytes: 64 << 20,
            cache_bytes: 32 << 20,
            busy: Duration::from_secs(1),
            maintain_every: Duration::from_secs(5),
            clock: Clock::default(),
        }
    }
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) root: PathBuf,
    pub(super) process: String,
    pub(super) options: Options,
    pub(super) readers: Readers,
    recorder: Mutex<Option<Recorder>>,
    pub(super) maintainer: Maintainer,
    /// The pages that connections to the index share are there as long as one connection is; on a full disk the next one
    /// could not make them, and nothing could be read.
    kept: Mutex<Option<Index>>,
}

/// The history in one data directory.
#[derive(Debug, Clone)]
pub struct History {
    pub(super) inner: Arc<Inner>,
}

impl History {
    /// Opens the history in `dir`, made if it is not there.
    ///
    /// # Errors
    /// `STORE_FAILED` with `details.reason`: `newer`, `damaged`, `read_only`, `disk_full`. Nothing is overwritten then.
    pub fn open(dir: &Path, options: Options) -> Result<History> {
        let root = dir.join("history");
        fs::create_dir_all(&root).map_err(failed("making the history's folder"))?;
        // Opened here too, so that what is wrong with it is said now and not by the first query.
        let kept = Mutex::new(Some(Index::open(&root.join("index.db"), options.busy)?));
        let process = format!("{}-{:08x}", std::process::id(), rand::random::<u32>());
        let readers = Readers::new(&root, options.cache_bytes, options.busy);
        let maintainer = Maintainer::new(&root, &process, &options, readers.blocks());
        Ok(History { inner: Arc::new(Inner { root, process, options, readers, recorder: Mutex::default(), maintainer, kept }) })
    }

    /// The recorder of this handle; its thread, and the one that merges and drops, are started by the first call.
    ///
    /// # Errors
    /// `STORE_FAILED` if no thread can be started.
    pub fn recorder(&self) -> Result<Recorder> {
        let inner = &self.inner;
        let mut recorder = inner.recorder.lock();
        if let Some(recorder) = &*recorder {
            return Ok(recorder.clone());
        }
        let started = Recorder::start(inner.root.clone(), inner.process.clone(), inner.options.clone())?;
        inner.maintainer.start()?;
        *recorder = Some(started.clone());
        Ok(started)
    }

    /// Gaps of this process that the index does not know yet.
    pub(super) fn unsaved_gaps(&self) -> Vec<super::index::Gap> {
        self.inner.recorder.lock().as_ref().map(Recorder::unsaved).unwrap_or_default()
    }

    /// One bounded step of merging small blocks and dropping what its time is over for; `false` if there is nothing more to
    /// do now, or another process is at it.
    ///
    /// # Errors
    /// `STORE_FAILED`.
    pub async fn maintain(&self) -> Result<bool> {
        let inner = self.inner.clone();
        self.inner.readers.run(move |_| inner.maintainer.step()).await
    }

    /// Writes what is left and ends the threads.
    ///
    /// # Errors
    /// `STORE_FAILED` if something could not be written: it waits in the spill, or is a gap.
    pub async fn close(&self) -> Result<()> {
        self.inner.maintainer.end();
        let recorder = self.inner.recorder.lock().clone();
        let closed = match recorder {
            Some(recorder) => recorder.close().await,
            None => Ok(()),
        };
        drop(self.inner.kept.lock().take());
        closed
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.maintainer.end();
        if let Some(recorder) = self.recorder.get_mut() {
            recorder.end();
        }
    }
}
