//! What was asked of a disk, in order.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use parking_lot::Mutex;
use trunkline::MessageId;
use trunkline::delivery::Position;
use trunkline::provider::embedded::disk::Page;

/// One thing that happened, on the disk or to who uses it.
#[derive(Debug, Clone)]
pub enum Op {
    /// A file appeared.
    Create {
        /// Its number; names change, numbers do not.
        file: u64,
        /// Where.
        path: PathBuf,
    },
    /// Bytes were written.
    Write {
        /// The file.
        file: u64,
        /// Where in it.
        at: u64,
        /// What.
        bytes: Arc<[u8]>,
    },
    /// A file was cut.
    Truncate {
        /// The file.
        file: u64,
        /// To how many bytes.
        len: u64,
    },
    /// A sync of a file was asked for: what was written before is durable when it ends.
    SyncBegin {
        /// The file.
        file: u64,
        /// Which sync.
        number: u64,
    },
    /// That sync ended.
    SyncEnd {
        /// Which sync.
        number: u64,
    },
    /// A sync failed: what was to be synced may be there or not, and no later sync changes that.
    SyncFailed {
        /// The file.
        file: u64,
    },
    /// A directory was made, and those above it.
    MakeDir(PathBuf),
    /// The names in a directory became durable.
    SyncDir(PathBuf),
    /// A name changed.
    Rename {
        /// From.
        from: PathBuf,
        /// To.
        to: PathBuf,
    },
    /// A file went.
    RemoveFile(PathBuf),
    /// A directory went with all it held.
    RemoveDir(PathBuf),
    /// The topic and its groups were ensured.
    Ensured,
    /// These are about to be sent.
    Sending(Vec<MessageId>),
    /// This was confirmed.
    Confirmed(MessageId, Position),
    /// These are about to be settled as done.
    Settling(Vec<MessageId>),
    /// This was settled as done.
    Settled(MessageId),
}

/// The pages at one moment, each as its bells and words.
pub(super) type Pages = Arc<Vec<(PathBuf, Vec<u32>, Vec<u64>)>>;

/// What was recorded.
#[derive(Debug)]
pub struct Tape {
    pub(super) root: PathBuf,
    ops: Mutex<Vec<(Op, Pages)>>,
    pages: Mutex<Vec<(PathBuf, Arc<dyn Page>)>>,
    pub(super) names: Mutex<BTreeMap<PathBuf, u64>>,
    /// Held while a file is changed and that is written down.
    pub(super) order: Mutex<()>,
    numbers: AtomicU64,
}

impl Tape {
    pub(super) fn new(root: &Path) -> Self {
        Tape {
            root: root.to_owned(),
            ops: Mutex::default(),
            pages: Mutex::default(),
            names: Mutex::default(),
            order: Mutex::default(),
            numbers: AtomicU64::new(1),
        }
    }

    /// A tape of what happens to a disk with these files, after another tape ended.
    pub(super) fn going_on(root: &Path, names: BTreeMap<PathBuf, u64>) -> Self {
        Tape { names: Mutex::new(names), numbers: AtomicU64::new(1 << 32), ..Tape::new(root) }
    }

    /// Writes something down, with what the pages say now.
    pub fn push(&self, op: Op) {
        let mut ops = self.ops.lock();
        let read = |page: &dyn Page| {
            let bells = page.bells().iter().map(|bell| bell.load(SeqCst)).collect::<Vec<_>>();
            (bells, page.words().iter().map(|word| word.load(SeqCst)).collect::<Vec<_>>())
        };
        let pages: Vec<_> = self
            .pages
            .lock()
            .iter()
            .map(|(path, page)| {
                let (bells, words) = read(&**page);
                (path.clone(), bells, words)
            })
            .collect();
        let last = ops.last().map(|(_, pages)| Arc::clone(pages)).filter(|last| **last == pages);
        ops.push((op, last.unwrap_or_else(|| Arc::new(pages))));
    }

    /// Everything so far.
    pub(super) fn ops(&self) -> Vec<(Op, Pages)> {
        self.ops.lock().clone()
    }

    pub(super) fn new_file(&self) -> u64 {
        self.numbers.fetch_add(1, SeqCst)
    }

    pub(super) fn watch(&self, path: &Path, page: &Arc<dyn Page>) {
        let mut pages = self.pages.lock();
        if !pages.iter().any(|(known, _)| known == path) {
            pages.push((path.to_owned(), Arc::clone(page)));
        }
    }
}

/// Gives a name and all below it another one.
pub(super) fn rename<T>(names: &mut BTreeMap<PathBuf, T>, from: &Path, to: &Path) {
    let moved: Vec<_> = names.keys().filter(|name| name.starts_with(from)).cloned().collect();
    for name in moved {
        let Some(value) = names.remove(&name) else { continue };
        let rest = name.strip_prefix(from).unwrap_or(Path::new(""));
        names.insert(if rest.as_os_str().is_empty() { to.to_owned() } else { to.join(rest) }, value);
    }
}
