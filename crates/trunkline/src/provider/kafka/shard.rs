//! One shard as its owner holds it: what came, what is in hand, what is settled, and what a crash may have left.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::BytesMut;

use super::envelope::Came;
use super::error::Fault;
use super::mark::Mark;
use super::queue::Queue;
use super::window::{Receipt, Window};
use crate::delivery::Deliveries;

/// Which route, and which of its shards.
pub(super) type Key = (usize, u32);

/// How far the commits of an ownership have come; outlives it, for who waits.
#[derive(Debug, Default)]
pub(super) struct Progress {
    committed: AtomicU64,
    lost: AtomicBool,
}

impl Progress {
    /// What was settled up to this turn is committed.
    pub(super) fn commit(&self, turn: u64) {
        self.committed.fetch_max(turn, Ordering::AcqRel);
    }

    pub(super) fn lose(&self) {
        self.lost.store(true, Ordering::Release);
    }

    pub(super) fn holds(&self, turn: u64) -> bool {
        self.committed.load(Ordering::Acquire) >= turn
    }

    pub(super) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }
}

/// The mark of a message that is handed out alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Start {
    None,
    /// To be committed.
    Asked(i64),
    /// Committed: the message may be handed out.
    Durable(i64),
}

/// A message to hand out, and how often it was, this time included.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) came: Came,
    pub(super) count: u32,
}

impl Ready {
    /// An upper bound: a message may have come to an owner that died before it saw it.
    pub(super) fn deliveries(&self) -> Deliveries {
        Deliveries::UpperBound(self.count)
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Shard {
    pub(super) epoch: u64,
    /// The last seek that was followed.
    pub(super) seek: u64,
    pub(super) progress: Arc<Progress>,
    /// Whether there is something to commit.
    pub(super) dirty: bool,
    /// To be given up: nothing more is handed out.
    pub(super) revoking: bool,
    /// Its position is not in the log any more: nothing comes before it is set back.
    pub(super) out_of_range: bool,
    /// It was set back since its position had expired, and nothing was settled since.
    pub(super) expired: bool,
    /// Messages in hand.
    pub(super) held: usize,
    window: Window,
    queue: Option<Queue>,
    arena: BytesMut,
    /// Taken from the queue, not received yet.
    stash: VecDeque<Came>,
    /// Received, waits for its start mark.
    ready: Option<Ready>,
    /// Released: to be handed out again before anything new.
    again: BTreeMap<i64, Ready>,
    suspects: u32,
    suspect_count: u32,
    started: Option<(i64, u32)>,
    start: Start,
    in_hand: u32,
    /// What messages weigh, on average.
    weight: usize,
}

/// Where an ownership starts.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) base: i64,
    pub(super) mark: Mark,
    /// The position that was committed is not in the log any more.
    pub(super) expired: bool,
}

impl Claim {
    /// What the new owner writes: its epoch, and what the last one may have left in hand. `behind`: how many offsets lie
    /// behind the base; what is produced later was in nobody's hand.
    pub(super) fn take_over((base, behind): (i64, i64), before: Option<Mark>, seek: u64, in_hand: u32, now: u64, expired: bool) -> Self {
        let unclean = before.as_ref().is_some_and(|mark| !mark.clean);
        let before = before.unwrap_or_default();
        let mut mark = Mark { epoch: now.max(before.epoch + 1), seek, in_hand, settled: before.settled, ..Mark::default() };
        if before.suspects > 0 {
            // It was going through what an earlier one left; only what it had started counts once more.
            (mark.suspects, mark.suspect_count) = (before.suspects, before.suspect_count);
            mark.started = before.started;
        } else if unclean {
            (mark.suspects, mark.suspect_count) = (before.in_hand, 1);
        }
        mark.suspects = mark.suspects.min(u32::try_from(behind).unwrap_or(if behind < 0 { 0 } else { u32::MAX }));
        Claim { base, mark, expired }
    }
}

impl Shard {
    pub(super) fn new(claim: Claim, queue: Queue) -> Self {
        let Claim { base, mark, expired } = claim;
        Shard {
            epoch: mark.epoch,
            seek: mark.seek,
            progress: Arc::default(),
            dirty: false,
            revoking: false,
            out_of_range: false,
            expired,
            held: 0,
            window: Window::new(base, &mark.settled),
            queue: Some(queue),
            arena: BytesMut::new(),
            stash: VecDeque::new(),
            ready: None,
            again: BTreeMap::new(),
            suspects: mark.suspects,
            suspect_count: mark.suspect_count,
            started: mark.started,
            start: Start::None,
            in_hand: mark.in_hand,
            weight: 1024,
        }
    }

    /// Takes from this queue from now on. The queues of a partition share their bell: the old one must be let go, with
    /// `None`, before the new one is made.
    pub(super) fn attach(&mut self, queue: Option<Queue>) {
        self.queue = queue;
    }

    /// Starts anew from an offset, under a new epoch: settles of what was handed out before settle nothing.
    pub(super) fn restart(&mut self, base: i64, seek: u64, now: u64) {
        self.progress.lose();
        self.progress = Arc::default();
        self.epoch = now.max(self.epoch + 1);
        self.seek = seek;
        self.window = Window::new(base, &[]);
        self.stash.clear();
        self.ready = None;
        self.again.clear();
        (self.suspects, self.started, self.start) = (0, None, Start::None);
        self.held = 0;
        self.out_of_range = false;
        self.dirty = true;
    }

    /// The offset to commit, and what is written beside it.
    pub(super) fn to_commit(&self, clean: bool, with_settled: bool) -> (i64, Mark) {
        let mark = Mark {
            clean: clean && self.suspects == 0,
            epoch: self.epoch,
            seek: self.seek,
            in_hand: self.in_hand,
            suspects: self.suspects,
            suspect_count: self.suspect_count,
            started: self.started.filter(|_| self.suspects > 0),
            settled: if with_settled { self.window.settled() } else { Vec::new() },
        };
        (self.window.base(), mark)
    }

    /// The start mark that a commit carries, to be handed to [`Shard::committed`].
    pub(super) fn asks(&self) -> Option<i64> {
        if let Start::Asked(offset) = self.start { Some(offset) } else { None }
    }

    /// A commit holds; `asked` is the start mark it carried. Whether a message may be handed out now.
    pub(super) fn committed(&mut self, turn: u64, asked: Option<i64>) -> bool {
        self.progress.commit(turn);
        let start = asked.is_some_and(|offset| self.start == Start::Asked(offset));
        if let (true, Some(offset)) = (start, asked) {
            self.start = Start::Durable(offset);
        }
        start
    }

    /// Settles a message that was handed out. `false` if it was not in hand.
    pub(super) fn done(&mut self, offset: i64) -> bool {
        self.held = self.held.saturating_sub(1);
        if self.suspects > 0 {
            self.suspects -= 1;
            (self.started, self.start) = (None, Start::None);
        }
        self.dirty = true;
        self.window.settle(offset)
    }

    /// Takes a message back, to be handed out again.
    pub(super) fn release(&mut self, ready: Ready) {
        self.held = self.held.saturating_sub(1);
        self.again.insert(ready.came.offset, ready);
    }

    /// The next message, if there is one for now. `bytes` is how much is wanted at most, for what is asked of the queue.
    pub(super) fn next(&mut self, want: usize, bytes: usize) -> Result<Option<Ready>, Fault> {
        if self.revoking || self.out_of_range || (self.suspects > 0 && self.held > 0) {
            return Ok(None);
        }
        if let Some((_, ready)) = self.again.pop_first() {
            self.held += 1;
            return Ok(Some(ready));
        }
        if self.ready.is_some() {
            return Ok(self.started_one());
        }
        loop {
            if self.stash.is_empty() {
                self.fetch((bytes / self.weight).clamp(1, want.max(1)))?;
            }
            let Some(came) = self.stash.pop_front() else { return Ok(None) };
            match self.window.receive(came.offset) {
                Receipt::Known => self.dirty = true,
                Receipt::Far => {
                    self.stash.push_front(came);
                    return Ok(None);
                }
                Receipt::New if self.suspects == 0 => {
                    self.held += 1;
                    return Ok(Some(Ready { came, count: 1 }));
                }
                Receipt::New => {
                    let before = self.started.filter(|(offset, _)| *offset == came.offset).map_or(self.suspect_count, |(_, n)| n);
                    let count = before + 1;
                    (self.started, self.start) = (Some((came.offset, count)), Start::Asked(came.offset));
                    self.dirty = true;
                    self.ready = Some(Ready { came, count });
                    return Ok(None);
                }
            }
        }
    }

    /// The message that waits for its start mark, once that is durable.
    fn started_one(&mut self) -> Option<Ready> {
        let ready = self.ready.take_if(|ready| self.start == Start::Durable(ready.came.offset))?;
        self.held += 1;
        Some(ready)
    }

    /// Takes from the queue. A fault may stand among the messages: those behind it are kept.
    fn fetch(&mut self, max: usize) -> Result<(), Fault> {
        let mut failed = Ok(());
        let mut messages = Vec::with_capacity(max.min(128));
        if let Some(queue) = &self.queue {
            queue.take(max, Duration::ZERO, &mut messages);
        }
        for message in messages {
            if let Some(fault) = message.fault() {
                failed = Err(fault);
                continue;
            }
            let came = Came::copy(&message, &mut self.arena);
            self.weight = (self.weight * 7 + came.size()) / 8;
            self.stash.push_back(came);
        }
        failed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(clean: bool) -> Mark {
        Mark { clean, epoch: 50, in_hand: 16, settled: vec![false, true], ..Mark::default() }
    }

    #[test]
    fn a_peaceful_end_leaves_no_suspects() {
        let claim = Claim::take_over((7, 99), Some(mark(true)), 3, 32, 40, false);
        assert_eq!((claim.base, claim.mark.epoch, claim.mark.seek, claim.mark.suspects), (7, 51, 3, 0));
        assert_eq!((claim.mark.in_hand, claim.mark.clean), (32, false));
        assert_eq!(claim.mark.settled, [false, true]);
        assert_eq!(Claim::take_over((7, 99), None, 0, 32, 40, false).mark.suspects, 0);
    }

    #[test]
    fn a_crash_leaves_what_was_in_hand() {
        let claim = Claim::take_over((7, 99), Some(mark(false)), 0, 32, 400, false);
        assert_eq!((claim.mark.epoch, claim.mark.suspects, claim.mark.suspect_count), (400, 16, 1));
        // The next owner crashes too, on the first it starts.
        let before = Mark { started: Some((7, 2)), ..claim.mark };
        let again = Claim::take_over((7, 99), Some(before), 0, 32, 400, false);
        assert_eq!((again.mark.epoch, again.mark.suspects, again.mark.started), (401, 16, Some((7, 2))));
        // Whatever it might have had in hand, there were three messages.
        for (behind, suspects) in [(3, 3), (0, 0)] {
            assert_eq!(Claim::take_over((7, behind), Some(mark(false)), 0, 32, 400, false).mark.suspects, suspects);
        }
    }
}
