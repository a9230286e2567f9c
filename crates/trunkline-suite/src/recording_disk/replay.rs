//! The states a crash may leave, for every prefix of a tape.
//!
//! Data is durable once a sync of its file ended; until then each sector of it may be as it was after any of the writes
//! so far, and the length too, and the last write may be cut anywhere. Names are durable once their directory was
//! synced; until then those of one directory may be there up to any point.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::SeqCst;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use trunkline::provider::embedded::disk::{Disk as _, How};

use super::RecordingDisk;
use super::tape::{Op, Pages, Tape, rename};

#[derive(Debug, Clone)]
enum Change {
    Write { at: u64, bytes: std::sync::Arc<[u8]> },
    Truncate(u64),
}

/// A change that no sync covered.
#[derive(Debug, Clone)]
struct Pending {
    file: u64,
    change: Change,
    /// A sync of it failed: no later one makes it durable.
    doomed: bool,
    /// The tape's place, for what a sync covers.
    place: usize,
}

#[derive(Debug, Clone)]
enum Name {
    File(u64),
    Dir,
    Gone,
}

/// What becomes of a change that no sync covered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Kept,
    Dropped,
    /// Only so many bytes of it.
    Cut(usize),
    /// The length, but not the bytes.
    Zeros,
}

/// What a disk writes as a whole.
const SECTOR: usize = 512;

/// How a crash leaves the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crash {
    /// The process was killed: everything asked of the system is there, and the pages as they were.
    Killed,
    /// The power failed, nothing unsynced is there.
    Dropped,
    /// The power failed, everything is there.
    Kept,
    /// The power failed, the last write is there up to this byte.
    Torn(usize),
    /// The power failed, the last write left its length and zeros.
    Zeroed,
    /// The power failed, each unsynced sector, length and name is as it was at some time, by chance.
    Mixed(u64),
}

/// A disk in the course of a tape: what is durable, and what is not yet.
#[derive(Debug, Clone)]
pub struct World {
    names: BTreeMap<PathBuf, Name>,
    files: BTreeMap<u64, Vec<u8>>,
    pending: Vec<Pending>,
    pending_names: BTreeMap<PathBuf, Vec<Vec<(PathBuf, Name)>>>,
    syncs: BTreeMap<u64, (u64, usize)>,
    place: usize,
    /// Names as every process sees them.
    seen: BTreeMap<PathBuf, Name>,
    pages: Pages,
}

fn apply(data: &mut Vec<u8>, change: &Change, fate: Fate) {
    match change {
        Change::Truncate(len) if fate == Fate::Kept => data.resize(*len as usize, 0),
        Change::Truncate(_) => {}
        Change::Write { at, bytes } => {
            let at = *at as usize;
            let kept = match fate {
                Fate::Kept => &bytes[..],
                Fate::Cut(n) => &bytes[..n.min(bytes.len())],
                Fate::Zeros => {
                    data.resize(data.len().max(at + bytes.len()), 0);
                    return;
                }
                Fate::Dropped => return,
            };
            data.resize(data.len().max(at + kept.len()), 0);
            data[at..at + kept.len()].copy_from_slice(kept);
        }
    }
}

impl World {
    /// Before anything was asked of the disk.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        let names: BTreeMap<_, _> = root.ancestors().map(|dir| (dir.to_owned(), Name::Dir)).collect();
        World {
            seen: names.clone(),
            names,
            files: BTreeMap::new(),
            pending: Vec::new(),
            pending_names: BTreeMap::new(),
            syncs: BTreeMap::new(),
            place: 0,
            pages: Pages::default(),
        }
    }

    fn name(&mut self, changes: Vec<(PathBuf, Name)>) {
        let Some(dir) = changes.first().and_then(|(path, _)| path.parent()).map(Path::to_owned) else { return };
        for (path, name) in &changes {
            match name {
                Name::Gone => self.seen.remove(path),
                name => self.seen.insert(path.clone(), name.clone()),
            };
        }
        self.pending_names.entry(dir).or_default().push(changes);
    }

    /// Takes the next step of the tape.
    pub(super) fn step(&mut self, op: &Op, pages: &Pages) {
        self.place += 1;
        self.pages = Pages::clone(pages);
        let place = self.place;
        self.supersede(op);
        let mut pend = |file: u64, change: Change| self.pending.push(Pending { file, change, doomed: false, place });
        match op {
            Op::Create { file, path } => {
                self.files.insert(*file, Vec::new());
                self.name(vec![(path.clone(), Name::File(*file))]);
            }
            Op::Write { file, at, bytes } => pend(*file, Change::Write { at: *at, bytes: bytes.clone() }),
            Op::Truncate { file, len } => pend(*file, Change::Truncate(*len)),
            Op::SyncBegin { file, number } => {
                self.syncs.insert(*number, (*file, place));
            }
            Op::SyncEnd { number } => self.synced(*number),
            Op::SyncFailed { file } => {
                self.pending.iter_mut().filter(|pending| pending.file == *file).for_each(|pending| pending.doomed = true);
            }
            Op::MakeDir(path) => {
                let mut missing: Vec<_> = path.ancestors().filter(|dir| !self.seen.contains_key(*dir)).map(Path::to_owned).collect();
                missing.reverse();
                missing.into_iter().for_each(|dir| self.name(vec![(dir, Name::Dir)]));
            }
            Op::SyncDir(path) => {
                for (path, name) in self.pending_names.remove(path).into_iter().flatten().flatten() {
                    self.names.insert(path, name);
                }
            }
            Op::Rename { from, to } => match self.seen.get(from) {
                Some(Name::Dir) => self.move_dir(from, to),
                Some(file) => {
                    let file = file.clone();
                    self.name(vec![(to.clone(), file), (from.clone(), Name::Gone)]);
                }
                None => {}
            },
            Op::RemoveFile(path) => self.name(vec![(path.clone(), Name::Gone)]),
            Op::RemoveDir(path) => {
                self.seen.retain(|name, _| !name.starts_with(path));
                self.names.retain(|name, _| !name.starts_with(path));
                self.pending_names.retain(|dir, _| !dir.starts_with(path));
            }
            Op::Ensured | Op::Sending(_) | Op::Confirmed(..) | Op::Settling(_) | Op::Settled(_) => {}
        }
    }

    /// What no sync can save any more is gone for good once it is cut off or written over.
    fn supersede(&mut self, op: &Op) {
        let (of, from, to) = match op {
            Op::Truncate { file, len } => (*file, *len, u64::MAX),
            Op::Write { file, at, bytes } => (*file, *at, *at + bytes.len() as u64),
            _ => return,
        };
        self.pending.retain(|pending| match &pending.change {
            Change::Write { at, bytes } if pending.doomed && pending.file == of => *at + bytes.len() as u64 <= from || *at >= to,
            _ => true,
        });
    }

    /// Directories are moved at once and for good: half a move is not what is looked at here.
    fn move_dir(&mut self, from: &Path, to: &Path) {
        rename(&mut self.seen, from, to);
        rename(&mut self.names, from, to);
        rename(&mut self.pending_names, from, to);
        for changes in self.pending_names.values_mut().flatten().flatten() {
            if let Ok(rest) = changes.0.strip_prefix(from) {
                changes.0 = to.join(rest);
            }
        }
    }

    fn synced(&mut self, number: u64) {
        let Some((file, begun)) = self.syncs.remove(&number) else { return };
        let data = self.files.entry(file).or_default();
        // A sector is written as it is: with what an earlier sync failed to write into it.
        let mut sectors = BTreeSet::new();
        for pending in self.pending.iter().filter(|pending| pending.file == file && pending.place < begun && !pending.doomed) {
            if let Change::Write { at, bytes } = &pending.change {
                sectors.extend(*at as usize / SECTOR..=(*at as usize + bytes.len().max(1) - 1) / SECTOR);
            }
        }
        self.pending.retain(|pending| {
            let mine = pending.file == file && pending.place < begun;
            match &pending.change {
                Change::Write { at, bytes } if mine && pending.doomed => {
                    for (n, byte) in (*at as usize..).zip(bytes.iter()).filter(|(n, _)| sectors.contains(&(n / SECTOR))) {
                        data.resize(data.len().max(n + 1), 0);
                        data[n] = *byte;
                    }
                }
                change if mine => apply(data, change, Fate::Kept),
                _ => {}
            }
            !mine || pending.doomed
        });
    }

    /// The crashes worth looking at now: `mixed` of them by chance.
    #[must_use]
    pub fn crashes(&self, mixed: u64) -> Vec<Crash> {
        let mut all = vec![Crash::Killed, Crash::Dropped];
        if self.pending.is_empty() && self.pending_names.is_empty() {
            return all;
        }
        all.push(Crash::Kept);
        if let Some(Change::Write { bytes, .. }) = self.pending.last().map(|pending| &pending.change) {
            let cuts = BTreeSet::from([1, bytes.len() / 3, bytes.len() / 2, bytes.len().saturating_sub(1), 512]);
            all.extend(cuts.into_iter().filter(|cut| (1..bytes.len()).contains(cut)).map(Crash::Torn));
            all.push(Crash::Zeroed);
        }
        let seed = (self.place as u64) << 16;
        all.extend((0..mixed).map(|n| Crash::Mixed(seed + n)));
        all
    }

    /// The disk after the crash.
    #[must_use]
    pub fn after(&self, crash: Crash) -> RecordingDisk {
        let mut rng = StdRng::seed_from_u64(if let Crash::Mixed(seed) = crash { seed } else { 0 });
        let last = self.pending.len().saturating_sub(1);
        let mut files = self.files.clone();
        if let Crash::Mixed(_) = crash {
            self.mix(&mut files, &mut rng);
        } else {
            for (at, pending) in self.pending.iter().enumerate() {
                let fate = match crash {
                    Crash::Dropped => Fate::Dropped,
                    Crash::Torn(cut) if at == last => Fate::Cut(cut),
                    Crash::Zeroed if at == last => Fate::Zeros,
                    _ => Fate::Kept,
                };
                apply(files.entry(pending.file).or_default(), &pending.change, fate);
            }
        }
        let mut names = self.names.clone();
        for changes in self.pending_names.values() {
            let kept = match crash {
                Crash::Dropped => 0,
                Crash::Mixed(_) => rng.random_range(0..=changes.len()),
                _ => changes.len(),
            };
            names.extend(changes[..kept].iter().flatten().cloned());
        }
        let disk = RecordingDisk::plain(if crash == Crash::Killed { 1 } else { 2 });
        fill(&disk, &names, &files);
        if crash == Crash::Killed {
            self.put_pages(&disk);
        }
        disk
    }

    /// The disk after its process was killed, recording what the next one does. [`World::step`] goes on with that.
    #[must_use]
    pub(super) fn second_life(&self, root: &Path) -> RecordingDisk {
        let files = self.seen.iter().filter_map(|(path, name)| match name {
            Name::File(file) => Some((path.clone(), *file)),
            Name::Dir | Name::Gone => None,
        });
        let tape = Tape::going_on(root, files.collect());
        RecordingDisk { tape: Some(std::sync::Arc::new(tape)), ..self.after(Crash::Killed) }
    }

    /// Gives each sector and the length of each file what some moment since the last sync gave them.
    fn mix(&self, files: &mut BTreeMap<u64, Vec<u8>>, rng: &mut StdRng) {
        let dirty: BTreeSet<_> = self.pending.iter().map(|pending| pending.file).collect();
        for file in dirty {
            let mut moments = vec![files.remove(&file).unwrap_or_default()];
            for pending in self.pending.iter().filter(|pending| pending.file == file) {
                let mut next = moments[moments.len() - 1].clone();
                apply(&mut next, &pending.change, Fate::Kept);
                moments.push(next);
            }
            let last = moments.len() - 1;
            let pick = |rng: &mut StdRng| if rng.random_bool(0.4) { last } else { rng.random_range(0..=last) };
            let mut data = vec![0; moments[pick(rng)].len()];
            for (at, sector) in data.chunks_mut(SECTOR).enumerate() {
                let from = moments[pick(rng)].get(at * SECTOR..).unwrap_or_default();
                let n = from.len().min(sector.len());
                sector[..n].copy_from_slice(&from[..n]);
            }
            files.insert(file, data);
        }
    }

    fn put_pages(&self, disk: &RecordingDisk) {
        for (path, bells, words) in &*self.pages {
            let len = bells.len() * 4 + words.len() * 8;
            let page = disk.inner.page(path, len).unwrap();
            page.bells().iter().zip(bells).for_each(|(to, from)| to.store(*from, SeqCst));
            page.words().iter().zip(words).for_each(|(to, from)| to.store(*from, SeqCst));
        }
    }
}

/// Puts names and bytes onto an empty disk. What lies in a directory that is not there is not there either.
fn fill(disk: &RecordingDisk, names: &BTreeMap<PathBuf, Name>, files: &BTreeMap<u64, Vec<u8>>) {
    let there = |path: &Path| path.ancestors().skip(1).all(|dir| matches!(names.get(dir), Some(Name::Dir)));
    for (path, name) in names.iter().filter(|(path, _)| there(path)) {
        match name {
            Name::Dir => disk.inner.make_dir(path).unwrap(),
            Name::File(file) => {
                let data = files.get(file).map(Vec::as_slice).unwrap_or_default();
                disk.inner.open(path, How::CreateNew).and_then(|to| to.write_at(data, 0)).unwrap();
            }
            Name::Gone => {}
        }
    }
}
