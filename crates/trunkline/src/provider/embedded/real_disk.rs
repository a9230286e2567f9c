//! The disk of this machine.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64};

use memmap2::MmapRaw;
use rustix::fs::FlockOperation;

use super::disk::{BELLS, Disk, File, How, Lock, Page};

/// The disk of this machine, shared by its processes.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn open(&self, path: &Path, how: How) -> io::Result<Arc<dyn File>> {
        let mut options = OpenOptions::new();
        match how {
            How::Read => options.read(true),
            How::Write => options.read(true).write(true),
            How::CreateNew => options.read(true).write(true).create_new(true),
            How::Append => options.append(true).create(true),
        };
        Ok(Arc::new(RealFile(options.open(path)?)))
    }

    fn page(&self, path: &Path, len: usize) -> io::Result<Arc<dyn Page>> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        if file.metadata()?.len() < len as u64 {
            allocate(&file, len as u64)?;
        }
        let (map, about) = (MmapRaw::map_raw(&file)?, file.metadata()?);
        Ok(Arc::new(RealPage { map, len, file: [about.ino(), about.dev()] }))
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Lock>> {
        Ok(Box::new(RealLock(OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?)))
    }

    fn make_dir(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        fs::File::open(path)?.sync_all()
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        fs::read_dir(path)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir_all(path)
    }

    fn volatile(&self) -> bool {
        false
    }

    fn boot_id(&self) -> u128 {
        crate::clock::boot_id()
    }
}

/// Blocks that are only promised (a sparse file) would turn a full disk into a SIGBUS at a later store.
fn allocate(file: &fs::File, len: u64) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, len) {
        Err(rustix::io::Errno::OPNOTSUPP) => {}
        result => return result.map_err(io::Error::from),
    }
    let from = file.metadata()?.len();
    file.write_all_at(&vec![0; usize::try_from(len - from).map_err(io::Error::other)?], from)
}

#[derive(Debug)]
struct RealFile(fs::File);

impl File for RealFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            match self.0.read_at(&mut buf[done..], at + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, at)
    }

    fn append(&self, bytes: &[u8]) -> io::Result<()> {
        use io::Write as _;
        (&self.0).write_all(bytes)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
}

#[derive(Debug)]
struct RealLock(fs::File);

impl Lock for RealLock {
    fn lock(&self) -> io::Result<()> {
        loop {
            match rustix::fs::flock(&self.0, FlockOperation::LockExclusive) {
                Err(rustix::io::Errno::INTR) => {}
                result => return result.map_err(io::Error::from),
            }
        }
    }

    fn unlock(&self) {
        let _ = rustix::fs::flock(&self.0, FlockOperation::Unlock);
    }
}

#[derive(Debug)]
struct RealPage {
    map: MmapRaw,
    len: usize,
    file: [u64; 2],
}

impl Page for RealPage {
    fn bells(&self) -> &[AtomicU32] {
        // SAFETY: the mapping is page-aligned, at least `len` ≥ 4096 bytes long, writable, and lives as long as `self`.
        // Every process reaches these bytes as 32-bit atomics only, and the file is never made shorter.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().cast::<AtomicU32>(), BELLS) }
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: as above; the words start 8-aligned behind the bells, end within `len`, and are reached as 64-bit
        // atomics only.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().add(BELLS * 4).cast::<AtomicU64>(), (self.len - BELLS * 4) / 8) }
    }

    fn file(&self) -> [u64; 2] {
        self.file
    }
}
