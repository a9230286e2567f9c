//! What processes confirmed and handled, in files that survive their death, and whether it adds up.
//!
//! Every process writes a file of its own, a line for each thing that happened, before or after it as its name says. A
//! line that a death cut is no line. Times are of the monotonic clock, which the processes of a host share.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::Path;

use rustix::time::{ClockId, clock_gettime};
use trunkline::MessageId;
use trunkline::delivery::Position;

use crate::Verdict;

/// Nanoseconds on the clock of the ledger.
#[must_use]
pub fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

/// One thing that happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// A message was confirmed.
    Confirmed(MessageId),
    /// A shard was assigned, some time before.
    Assigned {
        /// When that was written down.
        at: u64,
        /// The shard.
        shard: u32,
        /// The number of the ownership.
        epoch: u64,
    },
    /// A message is being handled.
    Handled {
        /// Which.
        id: MessageId,
        /// Where it lies.
        position: Position,
        /// Under which ownership.
        epoch: u64,
    },
    /// A message was settled as done, and that holds.
    Settled {
        /// When the call began.
        begun: u64,
        /// Which.
        id: MessageId,
        /// The shard.
        shard: u32,
        /// Under which ownership.
        epoch: u64,
    },
    /// A settle was stale.
    Stale(MessageId),
}

impl Entry {
    fn line(&self) -> String {
        match self {
            Entry::Confirmed(id) => format!("C {id}\n"),
            Entry::Assigned { at, shard, epoch } => format!("A {at} {shard} {epoch}\n"),
            Entry::Handled { id, position, epoch } => format!("H {id} {} {} {epoch}\n", position.shard, position.offset),
            Entry::Settled { begun, id, shard, epoch } => format!("S {begun} {id} {shard} {epoch}\n"),
            Entry::Stale(id) => format!("T {id}\n"),
        }
    }

    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let kind = words.next()?;
        let mut word = || words.next();
        Some(match kind {
            "C" => Entry::Confirmed(word()?.parse().ok()?),
            "A" => Entry::Assigned { at: word()?.parse().ok()?, shard: word()?.parse().ok()?, epoch: word()?.parse().ok()? },
            "H" => Entry::Handled {
                id: word()?.parse().ok()?,
                position: Position { shard: word()?.parse().ok()?, offset: word()?.parse().ok()? },
                epoch: word()?.parse().ok()?,
            },
            "S" => Entry::Settled {
                begun: word()?.parse().ok()?,
                id: word()?.parse().ok()?,
                shard: word()?.parse().ok()?,
                epoch: word()?.parse().ok()?,
            },
            "T" => Entry::Stale(word()?.parse().ok()?),
            _ => return None,
        })
    }
}

/// The file of one process.
#[derive(Debug)]
pub struct Ledger(File);

impl Ledger {
    /// Opens it, created if missing.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Ledger(OpenOptions::new().create(true).append(true).open(path)?))
    }

    /// Writes these down in one call: what is in the file then survives the death of this process.
    pub fn write(&mut self, entries: &[Entry]) -> io::Result<()> {
        let lines: String = entries.iter().map(Entry::line).collect();
        self.0.write_all(lines.as_bytes())
    }
}

/// All entries of a file, but for a line that a death cut.
pub fn read(path: &Path) -> io::Result<Vec<Entry>> {
    let text = std::fs::read_to_string(path)?;
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    Ok(whole.lines().filter_map(Entry::parse).collect())
}

/// What all processes together came to.
#[derive(Debug, Default)]
pub struct Account {
    confirmed: HashSet<MessageId>,
    handled: HashMap<MessageId, usize>,
    settled: HashMap<MessageId, usize>,
    stale: usize,
    /// Per shard and epoch, when that was first known, and by how many processes.
    owners: BTreeMap<(u32, u64), (u64, usize)>,
    settles: Vec<(u64, MessageId, u32, u64)>,
}

impl Account {
    /// Adds what one process wrote.
    pub fn add(&mut self, entries: &[Entry]) {
        let mut own = HashSet::new();
        for entry in entries {
            match *entry {
                Entry::Confirmed(id) => {
                    self.confirmed.insert(id);
                }
                Entry::Assigned { at, shard, epoch } => {
                    let owner = self.owners.entry((shard, epoch)).or_insert((at, 0));
                    owner.0 = owner.0.min(at);
                    owner.1 += usize::from(own.insert((shard, epoch)));
                }
                Entry::Handled { id, .. } => *self.handled.entry(id).or_default() += 1,
                Entry::Settled { begun, id, shard, epoch } => {
                    *self.settled.entry(id).or_default() += 1;
                    self.settles.push((begun, id, shard, epoch));
                }
                Entry::Stale(_) => self.stale += 1,
            }
        }
    }

    /// How many messages were confirmed.
    #[must_use]
    pub fn confirmed(&self) -> usize {
        self.confirmed.len()
    }

    /// How many confirmed messages were not handled yet.
    #[must_use]
    pub fn unhandled(&self) -> usize {
        self.confirmed.iter().filter(|id| !self.handled.contains_key(id)).count()
    }

    /// How many hand-overs there were beyond one for each message.
    #[must_use]
    pub fn duplicates(&self) -> usize {
        self.handled.values().map(|n| n - 1).sum()
    }

    /// How many settles were stale.
    #[must_use]
    pub fn stale(&self) -> usize {
        self.stale
    }

    /// Everything confirmed was handled; at most `duplicates` hand-overs were repeated; what was settled stayed so; no
    /// ownership was given twice; nothing was settled under an ownership after a later one had begun.
    pub fn check(&self, duplicates: usize) -> Verdict {
        let lost = self.unhandled();
        check!(lost == 0, "{lost} of {} confirmed messages were never handled", self.confirmed.len());
        check!(self.duplicates() <= duplicates, "{} hand-overs were repeated, of at most {duplicates}", self.duplicates());
        let twice = self.settled.values().filter(|n| **n > 1).count();
        check!(twice == 0, "{twice} messages were settled twice");
        for ((shard, epoch), (_, processes)) in &self.owners {
            check!(*processes == 1, "shard {shard} was given to {processes} processes under epoch {epoch}");
        }
        for (begun, id, shard, epoch) in &self.settles {
            let later = self.owners.range((*shard, epoch + 1)..=(*shard, u64::MAX)).find(|(_, (known, _))| known < begun);
            check!(later.is_none(), "{id} was settled under epoch {epoch} of shard {shard}, while {later:?} had begun");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(entries: &[&[Entry]]) -> Account {
        let mut account = Account::default();
        entries.iter().for_each(|entries| account.add(entries));
        account
    }

    #[test]
    fn entries_survive_their_lines() {
        let id = MessageId::now();
        let position = Position { shard: 3, offset: 9 };
        let entries = [
            Entry::Confirmed(id),
            Entry::Assigned { at: 1, shard: 2, epoch: 3 },
            Entry::Handled { id, position, epoch: 4 },
            Entry::Settled { begun: 5, id, shard: 3, epoch: 4 },
            Entry::Stale(id),
        ];
        let path = tempfile::NamedTempFile::new().unwrap();
        Ledger::open(path.path()).unwrap().write(&entries).unwrap();
        assert_eq!(read(path.path()).unwrap(), entries);
        let text = std::fs::read_to_string(path.path()).unwrap();
        std::fs::write(path.path(), &text[..text.len() - 5]).unwrap();
        assert_eq!(read(path.path()).unwrap(), entries[..4]);
    }

    #[test]
    fn what_does_not_add_up_is_found() {
        let id = MessageId::now();
        let handled = Entry::Handled { id, position: Position::default(), epoch: 1 };
        let owner = |at, epoch| Entry::Assigned { at, shard: 0, epoch };
        let settled = |begun, epoch| Entry::Settled { begun, id, shard: 0, epoch };
        assert!(account(&[&[Entry::Confirmed(id)], &[owner(1, 1), handled, settled(2, 1)]]).check(0).is_ok());
        assert!(account(&[&[Entry::Confirmed(id)]]).check(0).is_err(), "never handled");
        assert!(account(&[&[handled, handled]]).check(0).is_err(), "handled twice");
        assert!(account(&[&[settled(1, 1), settled(2, 1)]]).check(0).is_err(), "settled twice");
        assert!(account(&[&[owner(1, 1)], &[owner(2, 1)]]).check(0).is_err(), "two owners");
        assert!(account(&[&[owner(1, 1), settled(9, 1)], &[owner(5, 2)]]).check(0).is_err(), "settled by who had lost it");
    }
}
