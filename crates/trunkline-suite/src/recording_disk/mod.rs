//! A disk that writes down everything the embedded broker asks of it, and can give each moment of that back as a crash.
//!
//! - [`RecordingDisk`] is the disk, with a [`Tape`] or without one, and with faults if wanted.
//! - [`replay`] turns a prefix of a tape into what a crash may leave: unsynced writes dropped, kept, torn, zeroed, or any
//!   mix of them.
//! - [`run`] is a recorded run of the broker, and what must hold in every state a crash leaves of it.

pub mod replay;
pub mod run;
mod tape;

use std::io;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use trunkline::provider::embedded::MemoryDisk;
use trunkline::provider::embedded::disk::{Disk, File, How, Lock, Page};

pub use self::tape::{Op, Tape};

/// What goes wrong on a disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Faults {
    /// A sync answers `Ok` and does nothing.
    pub skip_syncs: bool,
    /// Every so many syncs of a file fail; what was to be synced is lost, as on Linux.
    pub fail_every: Option<u64>,
    /// Failed syncs answer `Ok` all the same.
    pub hide_failures: bool,
    /// Bytes that still fit; what does not is written as far as it goes and refused.
    pub room: Option<u64>,
}

/// A disk in memory that records.
#[derive(Debug, Clone)]
pub struct RecordingDisk {
    inner: MemoryDisk,
    boot: u128,
    tape: Option<Arc<Tape>>,
    faults: Arc<Mutex<(Faults, u64)>>,
}

impl RecordingDisk {
    /// An empty disk that writes down what is asked of it. `root` is there and stays there.
    #[must_use]
    pub fn recording(root: &Path) -> Self {
        let disk = RecordingDisk { tape: Some(Arc::new(Tape::new(root))), ..Self::plain(1) };
        disk.inner.make_dir(root).unwrap();
        disk
    }

    /// An empty disk of a machine that was started for the `boot`th time, and records nothing.
    #[must_use]
    pub fn plain(boot: u128) -> Self {
        RecordingDisk { inner: MemoryDisk::new(), boot, tape: None, faults: Arc::default() }
    }

    /// What was recorded.
    ///
    /// # Panics
    /// If nothing is being recorded.
    #[must_use]
    pub fn tape(&self) -> &Arc<Tape> {
        self.tape.as_ref().unwrap()
    }

    /// Changes what goes wrong from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.faults.lock().0 = faults;
    }

    fn record(&self, op: impl FnOnce() -> Op) {
        if let Some(tape) = &self.tape {
            tape.push(op());
        }
    }

    /// How many of `len` bytes fit.
    fn fits(&self, len: usize) -> usize {
        let faults = &mut self.faults.lock().0;
        let Some(room) = &mut faults.room else { return len };
        let fits = len.min(usize::try_from(*room).unwrap_or(usize::MAX));
        *room -= fits as u64;
        fits
    }
}

impl Disk for RecordingDisk {
    fn open(&self, path: &Path, how: How) -> io::Result<Arc<dyn File>> {
        let Some(tape) = &self.tape else {
            let inner = self.inner.open(path, how)?;
            return Ok(Arc::new(RecordingFile { inner, id: 0, disk: self.clone() }));
        };
        let mut names = tape.names.lock();
        let inner = self.inner.open(path, how)?;
        let id = names.get(path).copied().unwrap_or_else(|| {
            let id = tape.new_file();
            names.insert(path.to_owned(), id);
            tape.push(Op::Create { file: id, path: path.to_owned() });
            id
        });
        Ok(Arc::new(RecordingFile { inner, id, disk: self.clone() }))
    }

    fn page(&self, path: &Path, len: usize) -> io::Result<Arc<dyn Page>> {
        let page = self.inner.page(path, len)?;
        if let Some(tape) = &self.tape {
            tape.watch(path, &page);
        }
        Ok(page)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Lock>> {
        self.inner.lock(path)
    }

    fn make_dir(&self, path: &Path) -> io::Result<()> {
        self.inner.make_dir(path)?;
        self.record(|| Op::MakeDir(path.to_owned()));
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        if !self.faults.lock().0.skip_syncs {
            self.record(|| Op::SyncDir(path.to_owned()));
        }
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        self.inner.list(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let Some(tape) = &self.tape else { return self.inner.rename(from, to) };
        let mut names = tape.names.lock();
        self.inner.rename(from, to)?;
        tape::rename(&mut names, from, to);
        tape.push(Op::Rename { from: from.to_owned(), to: to.to_owned() });
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let Some(tape) = &self.tape else { return self.inner.remove_file(path) };
        let mut names = tape.names.lock();
        self.inner.remove_file(path)?;
        names.remove(path);
        tape.push(Op::RemoveFile(path.to_owned()));
        Ok(())
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        let Some(tape) = &self.tape else { return self.inner.remove_dir(path) };
        let mut names = tape.names.lock();
        self.inner.remove_dir(path)?;
        names.retain(|name, _| !name.starts_with(path));
        tape.push(Op::RemoveDir(path.to_owned()));
        Ok(())
    }

    fn volatile(&self) -> bool {
        false
    }

    fn boot_id(&self) -> u128 {
        self.boot
    }
}

#[derive(Debug)]
struct RecordingFile {
    inner: Arc<dyn File>,
    id: u64,
    disk: RecordingDisk,
}

impl RecordingFile {
    /// Does it and writes it down in one step, so that the tape has the order of the disk.
    fn write(&self, bytes: &[u8], at: Option<u64>) -> io::Result<()> {
        let fits = self.disk.fits(bytes.len());
        let write = |tape: Option<&Tape>| {
            let at = at.map_or_else(|| self.inner.size(), Ok)?;
            self.inner.write_at(&bytes[..fits], at)?;
            if let Some(tape) = tape {
                tape.push(Op::Write { file: self.id, at, bytes: bytes[..fits].into() });
            }
            io::Result::Ok(())
        };
        match &self.disk.tape {
            Some(tape) => {
                let _order = tape.order.lock();
                write(Some(tape))?;
            }
            None => write(None)?,
        }
        if fits == bytes.len() { Ok(()) } else { Err(io::ErrorKind::StorageFull.into()) }
    }
}

impl File for RecordingFile {
    fn size(&self) -> io::Result<u64> {
        self.inner.size()
    }

    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        self.inner.read_at(buf, at)
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.write(bytes, Some(at))
    }

    fn append(&self, bytes: &[u8]) -> io::Result<()> {
        self.write(bytes, None)
    }

    fn sync(&self) -> io::Result<()> {
        let (skip, fail, hide) = {
            let (faults, syncs) = &mut *self.disk.faults.lock();
            *syncs += 1;
            (faults.skip_syncs, faults.fail_every.is_some_and(|every| syncs.is_multiple_of(every)), faults.hide_failures)
        };
        if fail {
            self.disk.record(|| Op::SyncFailed { file: self.id });
            return if hide { Ok(()) } else { Err(io::Error::other("the disk did not take it")) };
        }
        let Some(tape) = self.disk.tape.as_ref().filter(|_| !skip) else { return Ok(()) };
        let number = tape.new_file();
        tape.push(Op::SyncBegin { file: self.id, number });
        // Others get on meanwhile, as with a disk that takes its time.
        std::thread::yield_now();
        tape.push(Op::SyncEnd { number });
        Ok(())
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        let _order = self.disk.tape.as_ref().map(|tape| tape.order.lock());
        self.inner.truncate(len)?;
        self.disk.record(|| Op::Truncate { file: self.id, len });
        Ok(())
    }
}
