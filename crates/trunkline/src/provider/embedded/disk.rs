//! Everything the embedded broker asks of an operating system: files, shared pages, locks.
//!
//! All I/O goes through [`Disk`], so that a test can put another one in its place: one in memory, one that is full,
//! one whose fsync fails, one that records every write and replays each prefix of them as a crash.

use std::fmt::Debug;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64};

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// An existing one, for reading.
    Read,
    /// An existing one, for reading and writing.
    Write,
    /// For reading and writing; must not exist yet.
    CreateNew,
    /// Every write goes to its end; created if missing.
    Append,
}

/// A place for files that several processes may share.
pub trait Disk: Debug + Send + Sync {
    /// Must open the file.
    fn open(&self, path: &Path, how: How) -> io::Result<Arc<dyn File>>;

    /// Must map at least `len` bytes of the file as memory shared by all that map it; zeros where nothing was written.
    /// The blocks must be there when it returns: a full disk is an error here, never a signal later.
    fn page(&self, path: &Path, len: usize) -> io::Result<Arc<dyn Page>>;

    /// Must return a lock of its own on the file, created if missing; not locked yet.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Lock>>;

    /// Must create the directory and those above it; one that exists is fine.
    fn make_dir(&self, path: &Path) -> io::Result<()>;

    /// Must make the names in a directory survive a power failure.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;

    /// Must name what lies in a directory.
    fn list(&self, path: &Path) -> io::Result<Vec<String>>;

    /// Must rename atomically, replacing what was there.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Must unlink the file.
    fn remove_file(&self, path: &Path) -> io::Result<()>;

    /// Must remove the directory with all it holds.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;

    /// Must say whether all of it is gone with the process.
    fn volatile(&self) -> bool;

    /// Must name this run of the machine: pages written under another name are not to be trusted.
    fn boot_id(&self) -> u128;
}

/// An open file.
pub trait File: Debug + Send + Sync {
    /// Its length in bytes.
    fn size(&self) -> io::Result<u64>;
    /// Must fill `buf` from `at` on as far as the file goes and return how much that was.
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize>;
    /// Must write all of it at `at`.
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()>;
    /// Must write all of it at the end, in one piece as other processes see it.
    fn append(&self, bytes: &[u8]) -> io::Result<()>;
    /// Must not return `Ok` before data and length are on the disk.
    fn sync(&self) -> io::Result<()>;
    /// Must cut the file to `len` bytes.
    fn truncate(&self, len: u64) -> io::Result<()>;
}

/// Memory that all processes see: some 32-bit words to wait on, then 64-bit words.
pub trait Page: Debug + Send + Sync {
    /// [`BELLS`] words for waiting and waking.
    fn bells(&self) -> &[AtomicU32];
    /// The words after them.
    fn words(&self) -> &[AtomicU64];
    /// Must name the file: its number, then that of its disk. A copy of it has other ones.
    fn file(&self) -> [u64; 2];
}

/// An exclusive lock that the system frees when its holder dies. Locked by one thread at a time.
pub trait Lock: Debug + Send + Sync {
    /// Must wait for the lock.
    fn lock(&self) -> io::Result<()>;
    /// Must free it.
    fn unlock(&self);
}

/// A lock that is held until this goes.
#[derive(Debug)]
pub(super) struct Held<'a>(&'a dyn Lock);

impl<'a> Held<'a> {
    pub(super) fn wait(lock: &'a dyn Lock) -> io::Result<Self> {
        lock.lock().map(|()| Held(lock))
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.unlock();
    }
}

/// How many 32-bit words a page starts with.
pub const BELLS: usize = 16;

/// Bytes of a page with this many 64-bit words.
#[must_use]
pub(super) fn page_bytes(words: usize) -> usize {
    (BELLS * 4 + words * 8).next_multiple_of(4096)
}

/// Fills `buf` from `at` on; a file that ends before is an error.
pub(super) fn read_exact_at(file: &dyn File, buf: &mut [u8], at: u64) -> io::Result<()> {
    let n = file.read_at(buf, at)?;
    if n == buf.len() { Ok(()) } else { Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file ends early")) }
}

/// All of a file.
pub(super) fn read_all(file: &dyn File) -> io::Result<Vec<u8>> {
    let mut buf = vec![0; usize::try_from(file.size()?).map_err(io::Error::other)?];
    let n = file.read_at(&mut buf, 0)?;
    buf.truncate(n);
    Ok(buf)
}

/// Puts a whole file in place so that a crash leaves the old one or the new one. `dir` must hold `name`.
pub(super) fn write_whole(disk: &dyn Disk, dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let path = dir.join(name);
    let temporary = dir.join(format!("{name}.{}.tmp", uuid::Uuid::now_v7().simple()));
    let write = || {
        let file = disk.open(&temporary, How::CreateNew)?;
        file.write_at(bytes, 0)?;
        file.sync()?;
        disk.rename(&temporary, &path)?;
        disk.sync_dir(dir)
    };
    write().inspect_err(|_| {
        let _ = disk.remove_file(&temporary);
    })
}

/// Waits until the word is no longer `seen`, for at most `timeout`; may return early.
#[cfg(target_os = "linux")]
pub(super) fn wait(word: &AtomicU32, seen: u32, timeout: std::time::Duration) {
    use rustix::thread::futex;
    let timeout =
        futex::Timespec { tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX), tv_nsec: i64::from(timeout.subsec_nanos()) };
    // Interrupted, timed out or changed already: the caller looks again in each case.
    let _ = futex::wait(word, futex::Flags::empty(), seen, Some(&timeout));
}

/// Wakes all that wait on the word, in every process.
#[cfg(target_os = "linux")]
pub(super) fn wake(word: &AtomicU32) {
    use rustix::thread::futex;
    let _ = futex::wake(word, futex::Flags::empty(), i32::MAX as u32);
}

/// Waits until the word is no longer `seen`, for at most `timeout`: looks often at first, then less and less.
#[cfg(not(target_os = "linux"))]
pub(super) fn wait(word: &AtomicU32, seen: u32, timeout: std::time::Duration) {
    use std::time::{Duration, Instant};
    let end = Instant::now() + timeout;
    let mut pause = Duration::from_micros(100);
    while word.load(std::sync::atomic::Ordering::Acquire) == seen && Instant::now() < end {
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// Those who wait look by themselves.
#[cfg(not(target_os = "linux"))]
pub(super) fn wake(_word: &AtomicU32) {}
