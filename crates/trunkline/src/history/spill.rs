//! When the index cannot be written, work waits in files of its own, within a bound, and is applied later: once.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::message::Millis;

use super::encode::Meta;
use super::files::failed;
use super::index::Gap;
use super::rollup::Deltas;
use super::sink::{Built, Sink, Work};
use super::wire::{Input, put, put_bytes};
use super::{Capture, Class};

const MAGIC: &[u8; 6] = b"TLHS\x01\x00";

/// The spilled work of all processes on one history.
#[derive(Debug)]
pub(super) struct Spill {
    folder: PathBuf,
    process: String,
    max_bytes: u64,
    made: u64,
    /// Files that cannot be read; they are left where they are.
    unreadable: HashSet<PathBuf>,
}

impl Spill {
    pub(super) fn new(root: &Path, process: &str, max_bytes: u64) -> Self {
        Spill { folder: root.join("spill"), process: process.to_owned(), max_bytes, made: 0, unreadable: HashSet::new() }
    }

    fn files(&self) -> Vec<(PathBuf, u64)> {
        let Ok(entries) = fs::read_dir(&self.folder) else { return Vec::new() };
        let mut files: Vec<_> = entries
            .flatten()
            .filter(|entry| entry.path().extension().is_some_and(|ext| ext == "spill"))
            .map(|entry| (entry.path(), entry.metadata().map_or(0, |meta| meta.len())))
            .collect();
        files.sort();
        files
    }

    /// Keeps work for later; an error if there is no room for it.
    pub(super) fn keep(&mut self, work: &Work) -> Result<()> {
        let mut body = Vec::new();
        encode(work, &mut body);
        let used: u64 = self.files().iter().map(|(_, len)| len).sum();
        if used + body.len() as u64 > self.max_bytes {
            return Err(Error::store("the spill of the history is full").reason("spill_full"));
        }
        fs::create_dir_all(&self.folder).map_err(failed("making the spill folder"))?;
        self.made += 1;
        let path = self.folder.join(format!("{}-{:08}.spill", self.process, self.made));
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&crc32fast::hash(&body).to_le_bytes());
        bytes.extend_from_slice(&body);
        let part = path.with_extension("part");
        fs::write(&part, bytes).and_then(|()| fs::rename(&part, &path)).map_err(|e| {
            let _ = fs::remove_file(&part);
            failed("writing the spill")(e)
        })
    }

    /// Applies what waits, oldest first, until it fails.
    pub(super) fn replay(&mut self, sink: &mut Sink, now: Millis) -> Result<u64> {
        let mut applied = 0;
        for (path, _) in self.files() {
            if self.unreadable.contains(&path) {
                continue;
            }
            let Ok(bytes) = fs::read(&path) else { continue };
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let Some(work) = decode(&bytes) else {
                tracing::warn!(file = name, "a spill file of the history cannot be read and is left alone");
                self.unreadable.insert(path);
                continue;
            };
            // The index remembers the name, so that a crash before the removal does not count it twice.
            sink.commit(&work, &[], Some(&name), now)?;
            fs::remove_file(&path).map_err(failed("removing a replayed spill file"))?;
            applied += 1;
        }
        Ok(applied)
    }
}

fn encode(work: &Work, out: &mut Vec<u8>) {
    put(out, work.gaps.len() as u64);
    for gap in &work.gaps {
        [gap.from, gap.to, gap.count].iter().for_each(|n| put(out, *n));
        put_bytes(out, gap.reason.as_bytes());
    }
    work.deltas.encode(out);
    put(out, work.blocks.len() as u64);
    for block in &work.blocks {
        let (class, meta) = (&block.class, &block.meta);
        out.extend_from_slice(&[class.capture as u8, block.generation, meta.level]);
        [class.age_ms, class.bytes, u64::from(block.day), meta.id_from, meta.id_to].iter().for_each(|n| put(out, *n));
        [meta.records, meta.messages, meta.head, meta.top].iter().for_each(|n| put(out, u64::from(*n)));
        put_bytes(out, &block.bytes);
    }
}

fn decode(bytes: &[u8]) -> Option<Work> {
    let body = bytes.strip_prefix(MAGIC)?;
    let (crc, body) = body.split_first_chunk::<4>()?;
    if u32::from_le_bytes(*crc) != crc32fast::hash(body) {
        return None;
    }
    let mut input = Input::new(body);
    let mut work = Work::default();
    for _ in 0..input.number()? {
        let (from, to, count) = (input.number()?, input.number()?, input.number()?);
        work.gaps.push(Gap { from, to, count, reason: input.text()?.to_owned() });
    }
    work.deltas = Deltas::decode(&mut input)?;
    for _ in 0..input.number()? {
        let capture = match input.byte()? {
            0 => Capture::Full,
            1 => Capture::Metadata,
            _ => return None,
        };
        let (generation, level) = (input.byte()?, input.byte()?);
        let class = Class { capture, age_ms: input.number()?, bytes: input.number()? };
        let day = input.small()?;
        let (id_from, id_to) = (input.number()?, input.number()?);
        let (records, messages, head, top) = (input.small()?, input.small()?, input.small()?, input.small()?);
        let meta = Meta { level, id_from, id_to, records, messages, head, top };
        work.blocks.push(Built { class, day, generation, meta, bytes: input.bytes()?.to_vec() });
    }
    input.is_empty().then_some(work)
}
