//! From batches to blocks on disk: sorted, split by level, compressed, appended, and made visible in one transaction.

use std::path::Path;
use std::time::Duration;

use crate::error::Result;
use crate::message::Millis;

use super::compact;
use super::encode::{Encoder, Meta};
use super::files::Files;
use super::index::{BlockRow, Change, Gap, Index, NewBlock};
use super::levels;
use super::rollup::Deltas;
use super::row::Queued;
use super::{Batch, Capture, Class};

/// The days since 1970.
pub(super) fn day_of(now: Millis) -> u32 {
    (now / 86_400_000) as u32
}

/// A block that is not on disk yet.
#[derive(Debug)]
pub(super) struct Built {
    pub(super) class: Class,
    pub(super) day: u32,
    pub(super) generation: u8,
    pub(super) meta: Meta,
    pub(super) bytes: Vec<u8>,
}

/// What one run of the recorder comes to.
#[derive(Debug, Default)]
pub(super) struct Work {
    pub(super) blocks: Vec<Built>,
    pub(super) deltas: Deltas,
    pub(super) gaps: Vec<Gap>,
}

impl Work {
    pub(super) fn is_empty(&self) -> bool {
        self.blocks.is_empty() && self.deltas.is_empty() && self.gaps.is_empty()
    }
}

#[derive(Clone, Copy)]
struct Entry {
    id: u128,
    batch: u32,
    item: u32,
}

/// Builds blocks out of batches.
#[derive(Debug)]
pub(super) struct Builder {
    encoder: Encoder,
}

impl Builder {
    pub(super) fn new() -> Result<Self> {
        Ok(Builder { encoder: Encoder::new(1)? })
    }

    /// `block` is how many records a block holds at most; `hurry` trades disk for time.
    pub(super) fn build(&mut self, queued: &[Queued], now: Millis, block: usize, hurry: bool) -> Result<Work> {
        let mut work = Work::default();
        let mut classes: Vec<(Class, Vec<Entry>)> = Vec::new();
        for (at, batch) in queued.iter().enumerate() {
            count(batch, &mut work.deltas);
            let class = batch.class();
            if class.capture == Capture::Off {
                continue;
            }
            let slot = classes.iter().rposition(|(known, _)| *known == class).unwrap_or_else(|| {
                classes.push((class, Vec::new()));
                classes.len() - 1
            });
            let entry = |item| Entry { id: u128::from_be_bytes(*batch.id(item).as_bytes()), batch: at as u32, item: item as u32 };
            classes[slot].1.extend((0..batch.len()).map(entry));
        }
        self.encoder.set_effort(if hurry { -3 } else { 1 });
        for (class, mut entries) in classes {
            // Stable and fond of runs: batches are sorted already, and what happened to one message keeps its order.
            entries.sort_by_key(|entry| entry.id);
            let times: Vec<Millis> = entries.iter().map(|entry| (entry.id >> 80) as u64).collect();
            for part in levels::split(&times, None, block) {
                for at in part {
                    let entry = entries[at as usize];
                    self.encoder.push(&queued[entry.batch as usize].row(entry.item as usize))?;
                }
                let mut bytes = Vec::new();
                if let Some(meta) = self.encoder.finish(&mut bytes)? {
                    work.blocks.push(Built { class, day: day_of(now), generation: compact::generation(&meta), meta, bytes });
                }
            }
        }
        Ok(work)
    }
}

fn count(queued: &Queued, deltas: &mut Deltas) {
    let group = match &queued.batch {
        Batch::Attempts { group, .. } => Some(group),
        _ => None,
    };
    let series = deltas.series(queued.filed(), group);
    (0..queued.len()).for_each(|item| series.count(&queued.tally(item)));
}

/// Where work is written to.
#[derive(Debug)]
pub(super) struct Sink {
    pub(super) index: Index,
    files: Files,
}

impl Sink {
    pub(super) fn open(root: &Path, process: &str, max_bytes: u64, busy: Duration) -> Result<Self> {
        Ok(Sink { index: Index::open(&root.join("index.db"), busy)?, files: Files::new(root, process, max_bytes) })
    }

    /// Writes the bodies, then makes them visible together with their counts. `false` if there was nothing left to do: the
    /// spill file was replayed before, or the blocks to replace are gone.
    pub(super) fn commit(&mut self, work: &Work, removed: &[BlockRow], once: Option<&str>, now: Millis) -> Result<bool> {
        let mut places = Vec::with_capacity(work.blocks.len());
        for block in &work.blocks {
            places.push(self.files.append(block.class, block.day, &block.bytes)?);
        }
        let blocks = work.blocks.iter().zip(&places).map(|(block, (file, offset))| NewBlock {
            class: block.class,
            day: block.day,
            file,
            generation: block.generation,
            offset: *offset,
            len: block.bytes.len() as u32,
            meta: block.meta,
        });
        let change = Change { blocks: blocks.collect(), deltas: Some(&work.deltas), gaps: &work.gaps, removed, once, now };
        let applied = self.index.apply(&change);
        if applied.is_err() {
            // What was appended is not known to the index, and retention must be able to find the file.
            self.files.close();
        }
        applied
    }

    /// Lets go of the files of other days.
    pub(super) fn idle(&mut self, now: Millis) {
        self.files.close_others(day_of(now));
    }
}
