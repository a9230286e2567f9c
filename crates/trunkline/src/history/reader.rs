//! Reading blocks: a few threads of their own, so that no query stops a runtime, and a bounded cache of what was decompressed.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::error::{Code, Error, Result};
use crate::message::MessageId;

use super::block::{self, AT_FILTER, AT_FIXED, AT_IDS, AT_PAYLOAD, AT_VARIED, FIXED_HEAD, Fault, Head, Read, Section};
use super::decode::{Table, Varied};
use super::files::read_at;
use super::index::{BlockRow, Index};
use super::terms;

/// Threads that answer queries.
const THREADS: usize = 2;
/// Files held open for reading.
const FILES: usize = 128;

#[derive(Debug, Clone)]
enum Part {
    Table(Arc<Table>),
    Varied(Arc<Varied>),
    Payloads(Arc<Vec<u8>>),
}

impl Part {
    fn size(&self) -> usize {
        match self {
            Part::Table(table) => table.size(),
            Part::Varied(varied) => varied.size(),
            Part::Payloads(bytes) => bytes.len(),
        }
    }
}

/// What was decompressed last, within a bound of bytes.
#[derive(Debug, Default)]
struct Cache {
    parts: HashMap<(i64, u64, usize), (Part, u64)>,
    bytes: usize,
    max: usize,
    tick: u64,
}

impl Cache {
    fn get(&mut self, key: (i64, u64, usize)) -> Option<Part> {
        self.tick += 1;
        let (part, used) = self.parts.get_mut(&key)?;
        *used = self.tick;
        Some(part.clone())
    }

    fn put(&mut self, key: (i64, u64, usize), part: Part) {
        let size = part.size();
        if size > self.max / 2 {
            return;
        }
        if self.bytes + size > self.max {
            // The older half goes at once: cheaper than keeping a list in order on every hit.
            let mut ticks: Vec<u64> = self.parts.values().map(|(_, used)| *used).collect();
            let middle = ticks.len() / 2;
            let (_, limit, _) = ticks.select_nth_unstable(middle);
            let limit = *limit;
            self.parts.retain(|_, (_, used)| *used > limit);
            self.bytes = self.parts.values().map(|(part, _)| part.size()).sum();
        }
        self.tick += 1;
        self.bytes += size;
        if let Some((old, _)) = self.parts.insert(key, (part, self.tick)) {
            self.bytes -= old.size();
        }
    }
}

/// The blocks on disk.
#[derive(Debug)]
pub(super) struct Blocks {
    root: PathBuf,
    files: Mutex<HashMap<i64, Arc<File>>>,
    cache: Mutex<Cache>,
}

impl Blocks {
    fn new(root: &Path, cache_bytes: usize) -> Self {
        Blocks { root: root.to_owned(), files: Mutex::default(), cache: Mutex::new(Cache { max: cache_bytes, ..Cache::default() }) }
    }

    fn file(&self, index: &Index, id: i64) -> Read<Arc<File>> {
        if let Some(file) = self.files.lock().get(&id) {
            return Ok(file.clone());
        }
        let name = index.file_name(id).map_err(|_| Fault::Damaged)?.ok_or(Fault::Gone)?;
        let file = match File::open(self.root.join(name)) {
            Ok(file) => Arc::new(file),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(Fault::Gone),
            Err(_) => return Err(Fault::Damaged),
        };
        let mut files = self.files.lock();
        if files.len() >= FILES {
            files.clear();
        }
        files.insert(id, file.clone());
        Ok(file)
    }

    fn read(&self, index: &Index, block: &BlockRow, at: u64, len: usize, out: &mut Vec<u8>) -> Read<()> {
        if at + len as u64 > u64::from(block.len) {
            return Err(Fault::Damaged);
        }
        out.resize(len, 0);
        read_at(&*self.file(index, block.file)?, block.offset + at, out).map_err(|_| Fault::Damaged)
    }

    /// The whole block.
    pub(super) fn whole(&self, index: &Index, block: &BlockRow) -> Read<Vec<u8>> {
        let mut bytes = Vec::new();
        self.read(index, block, 0, block.len as usize, &mut bytes)?;
        Ok(bytes)
    }

    /// Whether the block may hold all of `all` and one of `any` (if there are any).
    pub(super) fn may_hold(&self, index: &Index, block: &BlockRow, all: &[u64], any: &[u64], buffer: &mut Vec<u8>) -> Read<bool> {
        if all.is_empty() && any.is_empty() {
            return Ok(true);
        }
        self.read(index, block, 0, block.meta.head as usize, buffer)?;
        let head = Head::parse(buffer)?;
        let filter = block::slice(buffer, &head.sections[AT_FILTER])?;
        Ok(terms::may_hold(filter, all) && (any.is_empty() || any.iter().any(|term| terms::may_hold(filter, &[*term]))))
    }

    /// Whether one of the blocks of this bundle may hold what is asked for. What cannot be read says perhaps.
    pub(super) fn bundle_may_hold(&self, index: &Index, bundle: i64, all: &[u64], any: &[u64], buffer: &mut Vec<u8>) -> bool {
        let Ok(Some((file, offset, len))) = index.bundle(bundle) else { return true };
        buffer.resize(len as usize, 0);
        let read = self.file(index, file).is_ok_and(|file| read_at(&file, offset, buffer).is_ok());
        match buffer.split_first_chunk::<4>() {
            Some((crc, filter)) if read && u32::from_le_bytes(*crc) == crc32fast::hash(filter) => {
                terms::may_hold(filter, all) && (any.is_empty() || any.iter().any(|term| terms::may_hold(filter, &[*term])))
            }
            _ => true,
        }
    }

    /// The table of the block if it holds the id.
    pub(super) fn find(&self, index: &Index, block: &BlockRow, id: MessageId, buffer: &mut Vec<u8>) -> Read<Option<Arc<Table>>> {
        if let Some(Part::Table(table)) = self.cache.lock().get((block.file, block.offset, AT_FIXED)) {
            return Ok((!table.find(id).is_empty()).then_some(table));
        }
        self.read(index, block, 0, block.meta.top as usize, buffer)?;
        let head = Head::parse(buffer)?;
        let ids = block::slice(buffer, &head.sections[AT_IDS])?;
        if block::find(ids, head.records as usize, head.base, id).is_empty() {
            return Ok(None);
        }
        self.table(index, block).map(Some)
    }

    /// The metadata of a block.
    pub(super) fn table(&self, index: &Index, block: &BlockRow) -> Read<Arc<Table>> {
        let key = (block.file, block.offset, AT_FIXED);
        if let Some(Part::Table(table)) = self.cache.lock().get(key) {
            return Ok(table);
        }
        let mut buffer = Vec::new();
        self.read(index, block, 0, block.meta.top as usize, &mut buffer)?;
        let head = Head::parse(&buffer)?;
        let ids = block::slice(&buffer, &head.sections[AT_IDS])?.to_vec();
        let fixed = self.section(index, block, &head.sections[AT_FIXED])?;
        let table = Arc::new(Table::new(head, ids, &fixed)?);
        self.cache.lock().put(key, Part::Table(table.clone()));
        Ok(table)
    }

    /// Keys, headers and the like of a block.
    pub(super) fn varied(&self, index: &Index, block: &BlockRow, table: &Table) -> Read<Arc<Varied>> {
        let key = (block.file, block.offset, AT_VARIED);
        if let Some(Part::Varied(varied)) = self.cache.lock().get(key) {
            return Ok(varied);
        }
        let varied = Arc::new(Varied::new(self.section(index, block, &table.head.sections[AT_VARIED])?)?);
        self.cache.lock().put(key, Part::Varied(varied.clone()));
        Ok(varied)
    }

    /// One run of payloads of a block; empty for the run that an empty payload without one names.
    pub(super) fn payloads(&self, index: &Index, block: &BlockRow, table: &Table, run: usize) -> Read<Arc<Vec<u8>>> {
        let Some(section) = run.checked_add(AT_PAYLOAD).and_then(|at| table.head.sections.get(at)) else { return Ok(Arc::default()) };
        let key = (block.file, block.offset, AT_PAYLOAD + run);
        if let Some(Part::Payloads(bytes)) = self.cache.lock().get(key) {
            return Ok(bytes);
        }
        let bytes = Arc::new(self.section(index, block, section)?);
        self.cache.lock().put(key, Part::Payloads(bytes.clone()));
        Ok(bytes)
    }

    fn section(&self, index: &Index, block: &BlockRow, section: &Section) -> Read<Vec<u8>> {
        debug_assert!(section.offset >= FIXED_HEAD as u64);
        let mut stored = Vec::new();
        self.read(index, block, section.offset, section.stored as usize, &mut stored)?;
        block::unpack(&stored, section)
    }
}

/// What a query works with.
#[derive(Debug)]
pub(super) struct Reader {
    pub(super) index: Index,
    pub(super) blocks: Arc<Blocks>,
}

type Job = Box<dyn FnOnce(&Path, Duration, &mut Option<Reader>) + Send>;

/// The threads that answer queries; they start with the first.
#[derive(Debug)]
pub(super) struct Readers {
    root: PathBuf,
    busy: Duration,
    blocks: Arc<Blocks>,
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
}

impl Readers {
    pub(super) fn new(root: &Path, cache_bytes: usize, busy: Duration) -> Self {
        Readers { root: root.to_owned(), busy, blocks: Arc::new(Blocks::new(root, cache_bytes)), jobs: Mutex::default() }
    }

    pub(super) fn blocks(&self) -> Arc<Blocks> {
        self.blocks.clone()
    }

    fn sender(&self) -> Result<mpsc::Sender<Job>> {
        let mut jobs = self.jobs.lock();
        if let Some(sender) = &*jobs {
            return Ok(sender.clone());
        }
        let (sender, receiver) = mpsc::channel::<Job>();
        let receiver = Arc::new(Mutex::new(receiver));
        for _ in 0..THREADS {
            let (receiver, root, busy) = (receiver.clone(), self.root.clone(), self.busy);
            std::thread::Builder::new()
                .name("trunkline-query".into())
                .spawn(move || {
                    let mut reader = None;
                    loop {
                        let job = receiver.lock().recv();
                        let Ok(job) = job else { return };
                        job(&root, busy, &mut reader);
                    }
                })
                .map_err(|e| Error::store(format!("a query's thread cannot be started: {e}")))?;
        }
        *jobs = Some(sender.clone());
        Ok(sender)
    }

    /// Runs `work` on one of the threads.
    pub(super) async fn run<T: Send + 'static>(&self, work: impl FnOnce(&Reader) -> Result<T> + Send + 'static) -> Result<T> {
        let (answer, answered) = oneshot::channel();
        let blocks = self.blocks.clone();
        let job: Job = Box::new(move |root, busy, reader| {
            if reader.is_none() {
                match Index::open(&root.join("index.db"), busy) {
                    Ok(index) => *reader = Some(Reader { index, blocks }),
                    Err(e) => {
                        let _ = answer.send(Err(e));
                        return;
                    }
                }
            }
            if let Some(ready) = reader {
                let result = work(ready);
                if result.is_err() {
                    // Whatever was wrong with the connection: the next query begins with a new one.
                    *reader = None;
                }
                let _ = answer.send(result);
            }
        });
        let closed = || Error::new(Code::Closed, "the history is closed");
        self.sender()?.send(job).map_err(|_| closed())?;
        answered.await.map_err(|_| closed())?
    }
}

/// A typed error for a block that cannot be read.
pub(super) fn unreadable(fault: Fault, block: &BlockRow) -> Error {
    let (what, reason) = match fault {
        Fault::Newer => ("was written by a newer Trunkline", "newer"),
        _ => ("is damaged", "damaged"),
    };
    Error::store(format!("block {} of the history {what}; the others can still be read", block.id))
        .reason(reason)
        .detail("from", block.meta.id_from)
        .detail("to", block.meta.id_to)
        .detail("count", block.meta.records)
}
