//! A disk in the memory of this process: the same engine without files. Clones share it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64};

use parking_lot::{Condvar, Mutex, RwLock};

use super::disk::{BELLS, Disk, File, How, Lock, Page};

/// A disk in memory; gone with the last clone.
#[derive(Debug, Clone, Default)]
pub struct MemoryDisk(Arc<Mutex<Tree>>);

#[derive(Debug, Default)]
struct Tree {
    files: BTreeMap<PathBuf, Arc<MemoryFile>>,
    pages: BTreeMap<PathBuf, Arc<MemoryPage>>,
    locks: BTreeMap<PathBuf, Arc<Latch>>,
    dirs: BTreeSet<PathBuf>,
}

impl MemoryDisk {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        MemoryDisk::default()
    }
}

impl Disk for MemoryDisk {
    fn open(&self, path: &Path, how: How) -> io::Result<Arc<dyn File>> {
        let mut tree = self.0.lock();
        let found = tree.files.get(path).map(Arc::clone);
        match (found, how) {
            (Some(_), How::CreateNew) => Err(io::ErrorKind::AlreadyExists.into()),
            (Some(file), _) => Ok(file),
            (None, How::CreateNew | How::Append) if path.parent().is_some_and(|dir| tree.dirs.contains(dir)) => {
                let file = Arc::new(MemoryFile::default());
                tree.files.insert(path.to_owned(), Arc::clone(&file));
                Ok(file)
            }
            (None, _) => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn page(&self, path: &Path, len: usize) -> io::Result<Arc<dyn Page>> {
        let mut tree = self.0.lock();
        let page = tree.pages.entry(path.to_owned()).or_insert_with(|| {
            Arc::new(MemoryPage {
                bells: (0..BELLS).map(|_| AtomicU32::new(0)).collect(),
                words: (0..(len - BELLS * 4) / 8).map(|_| AtomicU64::new(0)).collect(),
            })
        });
        Ok(Arc::clone(page) as Arc<dyn Page>)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Lock>> {
        Ok(Box::new(MemoryLock(Arc::clone(self.0.lock().locks.entry(path.to_owned()).or_default()))))
    }

    fn make_dir(&self, path: &Path) -> io::Result<()> {
        self.0.lock().dirs.extend(path.ancestors().map(Path::to_owned));
        Ok(())
    }

    fn sync_dir(&self, _path: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let tree = self.0.lock();
        if !tree.dirs.contains(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let all = tree.files.keys().chain(tree.pages.keys()).chain(tree.locks.keys()).chain(&tree.dirs);
        Ok(all.filter(|p| p.parent() == Some(path)).filter_map(|p| Some(p.file_name()?.to_string_lossy().into_owned())).collect())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut tree = self.0.lock();
        let moved =
            |path: &Path| path.strip_prefix(from).ok().map(|rest| if rest.as_os_str().is_empty() { to.into() } else { to.join(rest) });
        if !tree.files.contains_key(from) && !tree.dirs.contains(from) {
            return Err(io::ErrorKind::NotFound.into());
        }
        macro_rules! carry {
            ($($map:ident),*) => {$(
                let names: Vec<PathBuf> = tree.$map.keys().filter(|p| p.starts_with(from)).cloned().collect();
                for name in names {
                    if let (Some(value), Some(new)) = (tree.$map.remove(&name), moved(&name)) {
                        tree.$map.insert(new, value);
                    }
                }
            )*};
        }
        carry!(files, pages, locks);
        tree.dirs = std::mem::take(&mut tree.dirs).into_iter().map(|dir| moved(&dir).unwrap_or(dir)).collect();
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.0.lock().files.remove(path).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        let mut tree = self.0.lock();
        tree.files.retain(|p, _| !p.starts_with(path));
        tree.pages.retain(|p, _| !p.starts_with(path));
        tree.locks.retain(|p, _| !p.starts_with(path));
        tree.dirs.retain(|p| !p.starts_with(path));
        Ok(())
    }

    fn volatile(&self) -> bool {
        true
    }

    fn boot_id(&self) -> u128 {
        1
    }
}

#[derive(Debug, Default)]
struct MemoryFile(RwLock<Vec<u8>>);

fn index(at: u64) -> io::Result<usize> {
    usize::try_from(at).map_err(io::Error::other)
}

impl File for MemoryFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.0.read().len() as u64)
    }

    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        let data = self.0.read();
        let rest = data.get(index(at)?..).unwrap_or_default();
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let mut data = self.0.write();
        let (at, end) = (index(at)?, index(at)? + bytes.len());
        if at == data.len() {
            data.extend_from_slice(bytes);
            return Ok(());
        }
        if data.len() < end {
            data.resize(end, 0);
        }
        data[at..end].copy_from_slice(bytes);
        Ok(())
    }

    fn append(&self, bytes: &[u8]) -> io::Result<()> {
        self.0.write().extend_from_slice(bytes);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.0.write().resize(index(len)?, 0);
        Ok(())
    }
}

#[derive(Debug)]
struct MemoryPage {
    bells: Vec<AtomicU32>,
    words: Vec<AtomicU64>,
}

impl Page for MemoryPage {
    fn bells(&self) -> &[AtomicU32] {
        &self.bells
    }

    fn words(&self) -> &[AtomicU64] {
        &self.words
    }

    fn file(&self) -> [u64; 2] {
        [1, 1]
    }
}

#[derive(Debug, Default)]
struct Latch {
    taken: Mutex<bool>,
    freed: Condvar,
}

#[derive(Debug)]
struct MemoryLock(Arc<Latch>);

impl Lock for MemoryLock {
    fn lock(&self) -> io::Result<()> {
        let mut taken = self.0.taken.lock();
        while *taken {
            self.0.freed.wait(&mut taken);
        }
        *taken = true;
        Ok(())
    }

    fn unlock(&self) {
        *self.0.taken.lock() = false;
        self.0.freed.notify_one();
    }
}
