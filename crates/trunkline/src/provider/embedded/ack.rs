//! The ack log of one shard for one group: what its owner of one epoch settled.
//!
//! ```text
//! file    "TLKACKS\0" version:u32 shard:u32  records…
//! record  len:u32 crc:u32 body            the first one is a snapshot
//! body    1 cursor:u64 unclean:u32 runs:u32 suspects:u32 suspects_end:u64 (start:u64 len:u64)… (start:u64 len:u64 count:u32)…
//!         2 (start:u64 len:u32)…
//! ```
//!
//! Each owner writes a file of its own, named by its epoch, beginning with a snapshot of what it took over. So an owner
//! that was stopped and comes back writes where nobody reads.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::disk::{Disk, File, How, read_all};
use super::error;
use super::segment::{VERSION, len32, u32_at, u64_at};
use crate::error::Result;

const MAGIC: &[u8; 8] = b"TLKACKS\0";
const HEAD: usize = 16;
const SNAPSHOT: u8 = 1;
const SETTLED: u8 = 2;

/// Messages that were handed out when their owner died.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Suspects {
    pub(super) start: u64,
    pub(super) len: u64,
    /// How often that happened to them.
    pub(super) count: u32,
}

/// How far a group is with one shard.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct State {
    /// Everything below is settled.
    pub(super) cursor: u64,
    /// What is settled above it: start and end of each run; runs do not touch.
    pub(super) settled: BTreeMap<u64, u64>,
    pub(super) suspects: Vec<Suspects>,
    /// Behind the last of the suspects.
    pub(super) suspects_end: u64,
    /// How many owners in a row died with messages handed out.
    pub(super) unclean: u32,
}

impl State {
    /// A group that starts there.
    pub(super) fn at(cursor: u64) -> Self {
        State { cursor, ..State::default() }
    }

    /// Adds a run of settled messages.
    pub(super) fn settle(&mut self, start: u64, end: u64) {
        let (mut start, mut end) = (start.max(self.cursor), end);
        if start >= end {
            return;
        }
        if let Some((from, to)) = self.settled.range(..=start).next_back().map(|(from, to)| (*from, *to)).filter(|(_, to)| *to >= start) {
            self.settled.remove(&from);
            (start, end) = (from, end.max(to));
        }
        while let Some((from, to)) = self.settled.range(start..=end).next().map(|(from, to)| (*from, *to)) {
            self.settled.remove(&from);
            end = end.max(to);
        }
        if start <= self.cursor {
            self.cursor = end;
        } else {
            self.settled.insert(start, end);
        }
    }

    /// Cuts it to what the log still has, and has at all.
    pub(super) fn clamp(&mut self, first: u64, end: u64) {
        if self.cursor < first {
            self.cursor = first;
            for (from, to) in std::mem::take(&mut self.settled) {
                self.settle(from, to);
            }
        }
        self.cursor = self.cursor.min(end);
        self.settled =
            std::mem::take(&mut self.settled).into_iter().map(|(from, to)| (from, to.min(end))).filter(|(from, to)| from < to).collect();
        self.suspects_end = self.suspects_end.min(end);
    }

    /// How many above the cursor are settled.
    pub(super) fn exceptions(&self) -> u64 {
        self.settled.iter().map(|(from, to)| to - from).sum()
    }

    fn snapshot(&self) -> Vec<u8> {
        let mut body = vec![SNAPSHOT];
        body.extend_from_slice(&self.cursor.to_le_bytes());
        for number in [self.unclean, len32(self.settled.len()), len32(self.suspects.len())] {
            body.extend_from_slice(&number.to_le_bytes());
        }
        body.extend_from_slice(&self.suspects_end.to_le_bytes());
        for (from, to) in &self.settled {
            body.extend_from_slice(&from.to_le_bytes());
            body.extend_from_slice(&(to - from).to_le_bytes());
        }
        for run in &self.suspects {
            body.extend_from_slice(&run.start.to_le_bytes());
            body.extend_from_slice(&run.len.to_le_bytes());
            body.extend_from_slice(&run.count.to_le_bytes());
        }
        body
    }

    fn from_snapshot(body: &[u8]) -> Option<Self> {
        if body.len() < 29 || body[0] != SNAPSHOT {
            return None;
        }
        let (runs, suspects) = (u32_at(body, 13) as usize, u32_at(body, 17) as usize);
        if body.len() != 29 + runs.checked_mul(16)? + suspects.checked_mul(20)? {
            return None;
        }
        let mut state = State::at(u64_at(body, 1));
        state.unclean = u32_at(body, 9);
        state.suspects_end = u64_at(body, 21);
        for i in 0..runs {
            let at = 29 + i * 16;
            state.settle(u64_at(body, at), u64_at(body, at).checked_add(u64_at(body, at + 8))?);
        }
        let from = 29 + runs * 16;
        state.suspects = (0..suspects)
            .map(|i| from + i * 20)
            .map(|at| Suspects { start: u64_at(body, at), len: u64_at(body, at + 8), count: u32_at(body, at + 16) })
            .collect();
        Some(state)
    }

    /// Follows the records of a file; `None` if it does not begin with a whole snapshot.
    fn replay(mut bytes: &[u8]) -> Option<Self> {
        let mut state = None;
        while bytes.len() >= 8 {
            let len = u32_at(bytes, 0) as usize;
            let Some(body) = bytes.get(8..8 + len).filter(|body| crc32fast::hash(body) == u32_at(bytes, 4)) else { break };
            match (&mut state, body.first()) {
                (_, Some(&SNAPSHOT)) => state = Some(State::from_snapshot(body)?),
                (Some(state), Some(&SETTLED)) => {
                    for run in body[1..].chunks_exact(12) {
                        state.settle(u64_at(run, 0), u64_at(run, 0).saturating_add(u64::from(u32_at(run, 8))));
                    }
                }
                _ => break,
            }
            bytes = &bytes[8 + len..];
        }
        state
    }
}

fn record(out: &mut Vec<u8>, body: &[u8]) {
    out.extend_from_slice(&len32(body.len()).to_le_bytes());
    out.extend_from_slice(&crc32fast::hash(body).to_le_bytes());
    out.extend_from_slice(body);
}

fn file_name(shard: u32, epoch: u64) -> String {
    format!("{shard}.{epoch:020}.ack")
}

fn parse_name(name: &str) -> Option<(u32, u64)> {
    let (shard, epoch) = name.strip_suffix(".ack")?.split_once('.')?;
    Some((shard.parse().ok()?, epoch.parse().ok()?))
}

/// The files of a group, by shard and epoch.
pub(super) fn files(disk: &dyn Disk, dir: &Path) -> Result<BTreeMap<(u32, u64), PathBuf>> {
    let names = disk.list(dir).map_err(|e| error::disk(&e, "cannot list", dir))?;
    Ok(names.iter().filter_map(|name| Some((parse_name(name)?, dir.join(name)))).collect())
}

/// The latest state of a shard that stands in a file, with the epoch of that file.
pub(super) fn load(disk: &dyn Disk, files: &BTreeMap<(u32, u64), PathBuf>, shard: u32) -> Result<Option<(u64, State)>> {
    for ((_, epoch), path) in files.range((shard, 0)..=(shard, u64::MAX)).rev() {
        let bytes = match disk.open(path, How::Read).and_then(|file| read_all(&*file)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            result => result.map_err(|e| error::disk(&e, "cannot read", path))?,
        };
        if bytes.len() >= HEAD && &bytes[..8] == MAGIC {
            if u32_at(&bytes, 8) > VERSION {
                return Err(error::newer(path, u32_at(&bytes, 8)));
            }
            if let Some(state) = State::replay(&bytes[HEAD..]) {
                return Ok(Some((*epoch, state)));
            }
        } else if bytes.len() >= HEAD && bytes[..8] != [0; 8] {
            return Err(error::damaged(path, "it does not start as an ack log"));
        }
        // Begun by one who died, or lost with the power, before it was synced: the one before it is still there.
    }
    Ok(None)
}

/// The file an owner writes to.
#[derive(Debug)]
pub(super) struct AckLog {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    shard: u32,
    epoch: u64,
    file: Arc<dyn File>,
    size: u64,
    /// Whether something was written since the last sync.
    pub(super) unsynced: bool,
    /// Whether the end of the file is torn by a write that failed.
    broken: bool,
    buf: Vec<u8>,
    body: Vec<u8>,
}

/// A file that grew larger than this is written anew.
const LARGE: u64 = 1 << 20;

impl AckLog {
    /// Begins the file of an epoch with a snapshot.
    pub(super) fn create(disk: &Arc<dyn Disk>, dir: &Path, shard: u32, epoch: u64, state: &State) -> Result<Self> {
        let path = dir.join(file_name(shard, epoch));
        let begin = || {
            let (file, size) = begin(&**disk, &path, shard, state)?;
            Ok((file, size))
        };
        let (file, size) = begin().map_err(|e: io::Error| error::disk(&e, "cannot create", &path))?;
        let disk = Arc::clone(disk);
        Ok(AckLog { disk, dir: dir.into(), shard, epoch, file, size, unsynced: true, broken: false, buf: Vec::new(), body: Vec::new() })
    }

    /// Whether [`AckLog::rewrite`] is due.
    pub(super) fn large(&self) -> bool {
        self.size > LARGE || self.broken
    }

    /// Adds runs of settled messages: in one write, so that it holds against the death of this process.
    pub(super) fn settled(&mut self, runs: &[(u64, u32)]) -> io::Result<()> {
        self.body.clear();
        self.body.push(SETTLED);
        for (start, len) in runs {
            self.body.extend_from_slice(&start.to_le_bytes());
            self.body.extend_from_slice(&len.to_le_bytes());
        }
        self.buf.clear();
        record(&mut self.buf, &self.body);
        self.write()
    }

    /// Adds a snapshot.
    pub(super) fn snapshot(&mut self, state: &State) -> io::Result<()> {
        self.buf.clear();
        record(&mut self.buf, &state.snapshot());
        self.write()
    }

    fn write(&mut self) -> io::Result<()> {
        if self.broken {
            return Err(io::Error::other("the end of the ack log is torn"));
        }
        self.file.append(&self.buf).inspect_err(|_| self.broken = true)?;
        self.size += self.buf.len() as u64;
        self.unsynced = true;
        Ok(())
    }

    /// Replaces the file by one with only a snapshot.
    pub(super) fn rewrite(&mut self, state: &State) -> io::Result<()> {
        let path = self.dir.join(file_name(self.shard, self.epoch));
        let temporary = path.with_extension("new");
        let _ = self.disk.remove_file(&temporary);
        let (file, size) = begin(&*self.disk, &temporary, self.shard, state)?;
        file.sync()?;
        self.disk.rename(&temporary, &path)?;
        (self.file, self.size, self.broken, self.unsynced) = (file, size, false, true);
        Ok(())
    }

    /// What to sync, without holding the owner up.
    pub(super) fn file(&self) -> Arc<dyn File> {
        Arc::clone(&self.file)
    }
}

fn begin(disk: &dyn Disk, path: &Path, shard: u32, state: &State) -> io::Result<(Arc<dyn File>, u64)> {
    let file = disk.open(path, How::Append)?;
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&shard.to_le_bytes());
    record(&mut bytes, &state.snapshot());
    file.append(&bytes)?;
    Ok((file, bytes.len() as u64))
}

#[cfg(test)]
mod tests {
    use super::super::memory_disk::MemoryDisk;
    use super::*;

    fn state(cursor: u64, runs: &[(u64, u64)]) -> State {
        State { cursor, settled: runs.iter().copied().collect(), ..State::default() }
    }

    #[test]
    fn runs_join_and_move_the_cursor() {
        let mut at = State::at(10);
        at.settle(12, 14);
        at.settle(16, 18);
        at.settle(0, 5);
        assert_eq!(at, state(10, &[(12, 14), (16, 18)]));
        at.settle(14, 16);
        assert_eq!(at, state(10, &[(12, 18)]));
        assert_eq!(at.exceptions(), 6);
        at.settle(10, 12);
        assert_eq!(at, state(18, &[]));
        at.settle(20, 30);
        at.clamp(0, 25);
        assert_eq!(at, state(18, &[(20, 25)]));
        at.clamp(20, 25);
        assert_eq!(at, state(25, &[]));
    }

    #[test]
    fn a_file_torn_at_any_byte_gives_a_state_it_once_held() {
        let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::new());
        let dir = Path::new("/group");
        disk.make_dir(dir).expect("made");
        let mut start = state(5, &[(8, 9)]);
        (start.suspects, start.suspects_end, start.unclean) = (vec![Suspects { start: 5, len: 2, count: 1 }], 7, 1);
        let mut log = AckLog::create(&disk, dir, 3, 77, &start).expect("created");
        let mut states = vec![start.clone()];
        for (from, len) in [(10, 2), (5, 3), (9, 1), (20, 1)] {
            log.settled(&[(from, len)]).expect("written");
            start.settle(from, from + u64::from(len));
            states.push(start.clone());
        }
        let whole = read_all(&*log.file()).expect("read");
        for len in 0..=whole.len() {
            log.file().truncate(0).expect("cut");
            log.file().append(&whole[..len]).expect("written");
            let found = load(&*disk, &files(&*disk, dir).expect("listed"), 3).expect("loaded");
            if let Some((epoch, state)) = found {
                assert_eq!(epoch, 77);
                assert!(states.contains(&state), "{len} bytes: {state:?}");
            } else {
                assert!(len < whole.len() - 4 * 21, "{len} bytes");
            }
        }
        log.rewrite(&start).expect("rewritten");
        assert_eq!(load(&*disk, &files(&*disk, dir).expect("listed"), 3).expect("loaded"), Some((77, start)));
    }

    #[test]
    fn the_latest_epoch_counts_and_others_stand_in_for_a_torn_one() {
        let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::new());
        let dir = Path::new("/group");
        disk.make_dir(dir).expect("made");
        AckLog::create(&disk, dir, 0, 9, &State::at(1)).expect("created");
        let later = AckLog::create(&disk, dir, 0, 10, &State::at(2)).expect("created");
        AckLog::create(&disk, dir, 1, 11, &State::at(3)).expect("created");
        let latest = || load(&*disk, &files(&*disk, dir).expect("listed"), 0);
        assert_eq!(latest().expect("loaded"), Some((10, State::at(2))));
        later.file().truncate(20).expect("cut");
        assert_eq!(latest().expect("loaded"), Some((9, State::at(1))));
        later.file().truncate(0).expect("cut");
        later.file().append(b"random bytes that say nothing").expect("written");
        assert_eq!(latest().expect_err("damaged").detail_str("reason"), Some("damaged"));
        later.file().write_at(b"TLKACKS\0\x02\0\0\0", 0).expect("written");
        assert_eq!(latest().expect_err("newer").detail_str("reason"), Some("newer_version"));
    }
}
