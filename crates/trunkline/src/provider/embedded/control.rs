//! The control pages: what the processes of a host know in common about a topic and about a group.
//!
//! A page is a cache of what the files say, for as long as the machine runs. It carries the boot id and the name of its own
//! file; under another boot, or in a copy that was put back, everything in it is built again from the files.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use super::disk::{Disk, Page, page_bytes};
use super::error;
use crate::error::Result;

const VERSION: u32 = 1;
const TOPIC_MAGIC: u64 = u64::from_le_bytes(*b"TLKT\0\0\0\0") << 32;
const GROUP_MAGIC: u64 = u64::from_le_bytes(*b"TLKG\0\0\0\0") << 32;

/// How many members a group can have at once.
pub(super) const MEMBERS: usize = 1000;
const FIXED: usize = 16;
const PER_SHARD: usize = 8;
/// Which file the page is of, see [`Page::file`].
const FILE: usize = 14;

fn open(disk: &dyn Disk, path: &Path, words: usize, magic: u64) -> Result<Arc<dyn Page>> {
    let page = disk.page(path, page_bytes(words)).map_err(|e| error::disk(&e, "cannot map", path))?;
    let found = page.words()[0].load(SeqCst);
    if found == 0 || found == magic | u64::from(VERSION) {
        return Ok(page);
    }
    let version = u32::try_from(found & 0xffff_ffff).unwrap_or(0);
    Err(if found & !0xffff_ffff == magic && version > VERSION {
        error::newer(path, version)
    } else {
        error::damaged(path, "it does not start as a control page")
    })
}

fn trusted(page: &dyn Page, boot: u128, shards: u32, magic: u64) -> bool {
    let words = page.words();
    let [low, high] = halves(boot);
    words[0].load(SeqCst) == magic | u64::from(VERSION)
        && words[1].load(SeqCst) == low
        && words[2].load(SeqCst) == high
        && words[3].load(SeqCst) == u64::from(shards)
        && [words[FILE].load(SeqCst), words[FILE + 1].load(SeqCst)] == page.file()
}

fn trust(page: &dyn Page, boot: u128, shards: u32, magic: u64) {
    let words = page.words();
    let [low, high] = halves(boot);
    words[1].store(low, SeqCst);
    words[2].store(high, SeqCst);
    words[3].store(u64::from(shards), SeqCst);
    let [number, disk] = page.file();
    words[FILE].store(number, SeqCst);
    words[FILE + 1].store(disk, SeqCst);
    words[0].store(magic | u64::from(VERSION), SeqCst);
}

fn halves(boot: u128) -> [u64; 2] {
    let bytes = boot.to_le_bytes();
    let half = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
    [half(0), half(8)]
}

macro_rules! words {
    ($($(#[$doc:meta])* $name:ident = $at:expr;)*) => {
        $($(#[$doc])* pub(super) fn $name(&self) -> &AtomicU64 { &self.page.words()[$at] })*
    };
}

/// The page of a topic. Written under the append lock, but for `durable`, which only rises.
#[derive(Debug, Clone)]
pub(super) struct TopicPage {
    page: Arc<dyn Page>,
    shards: u32,
}

impl TopicPage {
    pub(super) fn open(disk: &dyn Disk, path: &Path, shards: u32) -> Result<Self> {
        Ok(TopicPage { page: open(disk, path, FIXED + shards as usize, TOPIC_MAGIC)?, shards })
    }

    pub(super) fn trusted(&self, boot: u128) -> bool {
        trusted(&*self.page, boot, self.shards, TOPIC_MAGIC)
    }

    pub(super) fn trust(&self, boot: u128) {
        trust(&*self.page, boot, self.shards, TOPIC_MAGIC);
    }

    /// From now on everything in it is to be built again.
    pub(super) fn distrust(&self) {
        self.page.words()[1].store(0, SeqCst);
        self.page.words()[2].store(0, SeqCst);
    }

    /// Whether it was written as this file, be it before the machine was started anew: a copy may be of another moment than
    /// the log beside it.
    pub(super) fn original(&self) -> bool {
        self.page.words()[FILE].load(SeqCst) == self.page.file()[0]
    }

    words! {
        /// Set while a writer changes the rest: who finds it set took the lock over from a dead one.
        dirty = 4;
        /// Set after an fsync failed: the next write must begin a new segment.
        poisoned = 5;
        /// Where the segment begins that is written to.
        segment = 6;
        /// Where the next batch goes.
        write_end = 7;
        /// Up to here everything is as durable as it was asked for; readers stop here.
        durable = 8;
        /// The time of the last batch; the next one is not earlier.
        last_at = 9;
        /// How often something written was cut off again.
        cuts = 10;
        /// Where the oldest segment begins.
        oldest = 11;
        /// Set when the topic was removed.
        removed = 12;
        /// Set once something was confirmed before it was synced: then `durable` may be ahead of the disk.
        lax = 13;
    }

    /// The ordinal the next message of the shard gets.
    pub(super) fn end(&self, shard: u32) -> &AtomicU64 {
        &self.page.words()[FIXED + shard as usize]
    }

    pub(super) fn ends(&self) -> Vec<u64> {
        (0..self.shards).map(|shard| self.end(shard).load(SeqCst)).collect()
    }
}

/// The page of a group on a topic. Every word is changed by compare-and-swap or by its one owner.
#[derive(Debug, Clone)]
pub(super) struct GroupPage {
    page: Arc<dyn Page>,
    shards: u32,
}

impl GroupPage {
    pub(super) fn open(disk: &dyn Disk, path: &Path, shards: u32) -> Result<Self> {
        let words = FIXED + MEMBERS + PER_SHARD * shards as usize;
        Ok(GroupPage { page: open(disk, path, words, GROUP_MAGIC)?, shards })
    }

    pub(super) fn trusted(&self, boot: u128) -> bool {
        trusted(&*self.page, boot, self.shards, GROUP_MAGIC)
    }

    pub(super) fn trust(&self, boot: u128) {
        trust(&*self.page, boot, self.shards, GROUP_MAGIC);
    }

    words! {
        /// Raised whenever a member or an owner changes.
        version = 4;
        /// Set when the group was removed.
        removed = 5;
        /// No slot at or above this one was ever taken.
        slots = 6;
    }

    /// The slots that may be taken.
    pub(super) fn used(&self) -> std::ops::Range<usize> {
        0..usize::try_from(self.slots().load(SeqCst)).unwrap_or(MEMBERS).min(MEMBERS)
    }

    pub(super) fn member(&self, slot: usize) -> &AtomicU64 {
        &self.page.words()[FIXED + slot]
    }

    pub(super) fn shard(&self, shard: u32) -> ShardWords<'_> {
        let at = FIXED + MEMBERS + PER_SHARD * shard as usize;
        ShardWords(&self.page.words()[at..at + PER_SHARD])
    }

    pub(super) fn shards(&self) -> u32 {
        self.shards
    }

    /// Forgets all members, owners and mirrors.
    pub(super) fn clear(&self) {
        for word in &self.page.words()[4..FIXED + MEMBERS + PER_SHARD * self.shards as usize] {
            word.store(0, SeqCst);
        }
    }
}

/// What the page says about one shard for one group.
#[derive(Debug, Clone, Copy)]
pub(super) struct ShardWords<'a>(&'a [AtomicU64]);

impl<'a> ShardWords<'a> {
    /// Epoch, slot and tag of the owner, see `lease`.
    pub(super) fn owner(self) -> &'a AtomicU64 {
        &self.0[0]
    }

    /// Everything from the cursor up to here was handed out by the owner.
    pub(super) fn handed(self) -> &'a AtomicU64 {
        &self.0[1]
    }

    /// One more than the ordinal that is handed out alone, 0 if none is.
    pub(super) fn single(self) -> &'a AtomicU64 {
        &self.0[2]
    }

    /// Everything below is settled.
    pub(super) fn cursor(self) -> &'a AtomicU64 {
        &self.0[3]
    }

    /// How many above the cursor are settled.
    pub(super) fn settled(self) -> &'a AtomicU64 {
        &self.0[4]
    }

    /// How many are handed out and not settled.
    pub(super) fn in_flight(self) -> &'a AtomicU64 {
        &self.0[5]
    }
}
