//! A shard this member owns: what of it is handed out, what is settled, what comes again.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Instant;

use tokio::sync::Notify;

use super::ack::{AckLog, State, Suspects};
use super::group::{Claim, Group};
use super::reader::Reader;
use super::segment::FrameOut;
use super::topic::Topic;
use crate::delivery::{Deliveries, Delivery, EnvelopeId, Position, Settle, Token};
use crate::error::Result;
use crate::message::{MessageId, Millis};

/// One message between the cursor and the end of what was handed out: two bits of what became of it, four bits that
/// tell its hand-overs apart, and a byte that counts the failures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry(u16);

const OPEN: u16 = 0;
const HANDED: u16 = 1;
const SETTLED: u16 = 2;

impl Entry {
    fn what(self) -> u16 {
        self.0 & 3
    }

    fn round(self) -> u64 {
        u64::from(self.0 >> 2 & 15)
    }

    fn failures(self) -> u32 {
        u32::from(self.0 >> 8)
    }

    fn set(&mut self, what: u16) {
        self.0 = self.0 & !3 | what;
    }

    /// Given back: the next hand-over is another one.
    fn back(&mut self, failed: bool) {
        let round = (self.round() as u16 + 1) & 15;
        let failures = (self.0 >> 8) + u16::from(failed && self.0 >> 8 < 255);
        self.0 = failures << 8 | round << 2 | OPEN;
    }
}

const ORDINAL_BITS: u32 = 40;
const ROUND_BITS: u32 = 4;
/// Ownerships have so many names before they come again.
pub(super) const NAMES: u32 = 1 << (64 - ORDINAL_BITS - ROUND_BITS);

/// The ownership a token speaks of.
pub(super) fn name_of(token: Token) -> u32 {
    u32::try_from(token.0 >> (ORDINAL_BITS + ROUND_BITS)).unwrap_or(0)
}

/// So many may lie between the cursor and what is handed out last; two bytes each.
const WINDOW: usize = 4 << 20;

/// A shard this member owns.
#[derive(Debug)]
pub(super) struct Owned {
    /// Names this ownership in tokens.
    pub(super) name: u32,
    pub(super) route: usize,
    pub(super) topic: Arc<Topic>,
    pub(super) group: Arc<Group>,
    pub(super) shard: u32,
    pub(super) epoch: u64,
    word: u64,
    cursor: u64,
    window: VecDeque<Entry>,
    /// The first that was never read in this ownership.
    next: u64,
    reader: Reader,
    /// To be handed out again, now and later.
    again: BTreeSet<u64>,
    later: BTreeSet<(Instant, u64)>,
    again_reader: Option<Reader>,
    ack: AckLog,
    /// Settled, and not in the ack log yet.
    pending: Vec<(u64, u32)>,
    in_flight: u64,
    exceptions: u64,
    suspects: Vec<Suspects>,
    suspects_end: u64,
    unclean: u32,
    /// Whether suspects go out one at a time,
    single: bool,
    /// and who this is among all that have some, told by this bell when it may be its turn; else it asks again then.
    serial: u64,
    bell: Arc<Notify>,
    ask_again: Option<Instant>,
    /// Until when the shard is to be given up.
    pub(super) revoking: Option<Instant>,
    /// Whether the files of earlier owners were removed.
    swept: bool,
}

/// How much `fill` may hand out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    pub(super) messages: usize,
    pub(super) bytes: usize,
}

impl Owned {
    pub(super) fn new(
        name: u32,
        route: usize,
        topic: &Arc<Topic>,
        group: &Arc<Group>,
        shard: u32,
        claim: Claim,
        bell: &Arc<Notify>,
    ) -> Self {
        let Claim { epoch, word, state, ack } = claim;
        let cursor = state.cursor;
        let mut owned = Owned {
            name,
            route,
            topic: Arc::clone(topic),
            group: Arc::clone(group),
            shard,
            epoch,
            word,
            cursor,
            window: VecDeque::new(),
            next: cursor,
            reader: Reader::new(topic, shard, cursor),
            again: BTreeSet::new(),
            later: BTreeSet::new(),
            again_reader: None,
            ack,
            pending: Vec::new(),
            in_flight: 0,
            exceptions: 0,
            single: state.unclean >= 2 && state.suspects_end > cursor,
            serial: topic.host.alone.serial(),
            bell: Arc::clone(bell),
            ask_again: None,
            suspects: state.suspects,
            suspects_end: state.suspects_end,
            unclean: state.unclean,
            revoking: None,
            swept: false,
        };
        for (from, to) in state.settled {
            owned.widen(to);
            for ordinal in from..to {
                owned.entry(ordinal).set(SETTLED);
            }
            owned.exceptions += to - from;
        }
        if owned.single {
            // The order stays: first those, each alone, then what was never handed out.
            owned.widen(owned.suspects_end);
            owned.again = (cursor..owned.suspects_end).filter(|o| owned.window[index(*o - cursor)].what() == OPEN).collect();
            owned.next = owned.suspects_end;
            owned.reader.seek(owned.next);
        }
        owned
    }

    fn widen(&mut self, end: u64) {
        let len = index(end.saturating_sub(self.cursor));
        if self.window.len() < len {
            self.window.resize(len, Entry(OPEN));
        }
    }

    fn entry(&mut self, ordinal: u64) -> &mut Entry {
        &mut self.window[index(ordinal - self.cursor)]
    }

    /// Whether the shard is still this member's.
    pub(super) fn ours(&self) -> bool {
        self.group.page.shard(self.shard).owner().load(SeqCst) == self.word
    }

    /// When something given back is due.
    pub(super) fn due(&self) -> Option<Instant> {
        if self.revoking.is_some() { None } else { self.later.first().map(|(at, _)| *at).into_iter().chain(self.ask_again).min() }
    }

    /// Hands messages out, in order, as many as there are and have room.
    pub(super) fn fill(&mut self, room: Room) -> Result<Vec<Delivery>, FillError> {
        if self.revoking.is_some() {
            return Ok(Vec::new());
        }
        if !self.ours() {
            return Err(FillError::Lost);
        }
        self.wake_later();
        let mut out = Vec::new();
        let mut bytes = 0;
        if self.single {
            self.fill_single(&mut out)?;
        }
        while !self.single && out.len() < room.messages && bytes < room.bytes {
            let Some(delivery) = self.take()? else { break };
            bytes += delivery.size();
            out.push(delivery);
        }
        if !out.is_empty() {
            let words = self.group.page.shard(self.shard);
            if !self.single {
                words.handed().store(self.next, SeqCst);
            }
            words.in_flight().store(self.in_flight, SeqCst);
        }
        Ok(out)
    }

    /// Of messages whose owners died one after the other, the next goes out when the one before is settled, here and in all
    /// shards of this process: if one of them kills it, the others' counts stay.
    fn fill_single(&mut self, out: &mut Vec<Delivery>) -> Result<(), FillError> {
        let words = self.group.page.shard(self.shard);
        self.ask_again = None;
        if self.in_flight == 0 {
            if let Some(ordinal) = self.again.first().copied() {
                if let Err(at) = self.topic.host.alone.take(self.serial, &self.bell) {
                    self.ask_again = Some(at);
                    return Ok(());
                }
                words.single().store(ordinal + 1, SeqCst);
                out.extend(self.take()?);
            } else if self.later.is_empty() {
                words.single().store(0, SeqCst);
                self.single = false;
            }
        }
        Ok(())
    }

    fn wake_later(&mut self) {
        if self.later.is_empty() {
            return;
        }
        let now = Instant::now();
        while let Some((at, ordinal)) = self.later.first().copied().filter(|(at, _)| *at <= now) {
            self.later.remove(&(at, ordinal));
            self.again.insert(ordinal);
        }
    }

    /// The next message: one that comes again, else one that was never handed out.
    fn take(&mut self) -> Result<Option<Delivery>> {
        while let Some(ordinal) = self.again.pop_first() {
            let reader = self.again_reader.get_or_insert_with(|| Reader::new(&self.topic, self.shard, ordinal));
            reader.seek(ordinal);
            let Some((found, frame, at)) = reader.next()? else {
                self.again.insert(ordinal);
                return Ok(None);
            };
            if self.again.is_empty() {
                self.again_reader = None;
            }
            if found == ordinal {
                return Ok(Some(self.hand(ordinal, frame, at)));
            }
            // Retention never takes what is not settled; if somebody else did, it is gone.
            self.done(ordinal);
        }
        loop {
            if self.window.len() >= WINDOW {
                return Ok(None);
            }
            let Some((ordinal, frame, at)) = self.reader.next()? else { return Ok(None) };
            self.widen(ordinal + 1);
            for gone in self.next..ordinal {
                // The cursor may be further already: it also passes what an earlier owner settled.
                if gone >= self.cursor && self.entry(gone).what() == OPEN {
                    self.done(gone);
                }
            }
            self.next = ordinal + 1;
            if ordinal >= self.cursor && self.entry(ordinal).what() == OPEN {
                return Ok(Some(self.hand(ordinal, frame, at)));
            }
        }
    }

    fn hand(&mut self, ordinal: u64, frame: FrameOut, stored_at: Millis) -> Delivery {
        self.in_flight += 1;
        let blamed = if ordinal < self.suspects_end { self.blamed(ordinal) } else { 0 };
        let entry = self.entry(ordinal);
        entry.set(HANDED);
        let (round, failures) = (entry.round(), entry.failures());
        let token = u64::from(self.name) << (ORDINAL_BITS + ROUND_BITS) | round << ORDINAL_BITS | low(ordinal);
        Delivery {
            token: Token(token),
            position: Position { shard: self.shard, offset: ordinal },
            id: match frame.id {
                Some(bytes) => MessageId::from_bytes(&bytes).map_or(EnvelopeId::Broken, EnvelopeId::Id),
                None => EnvelopeId::Foreign,
            },
            key: frame.key,
            payload: Some(frame.payload),
            headers: frame.headers,
            deliveries: Deliveries::UpperBound(1 + blamed + failures),
            stored_at,
            lease_end: None,
        }
    }

    fn blamed(&self, ordinal: u64) -> u32 {
        self.suspects.iter().find(|run| (run.start..run.start + run.len).contains(&ordinal)).map_or(0, |run| run.count)
    }

    /// The message of a token that is handed out and not settled.
    fn handed(&self, token: Token) -> Option<u64> {
        let ahead = token.0.wrapping_sub(self.cursor) & ((1 << ORDINAL_BITS) - 1);
        let entry = self.window.get(index(ahead))?;
        (entry.what() == HANDED && entry.round() == token.0 >> ORDINAL_BITS & 15).then_some(self.cursor + ahead)
    }

    /// Whether the token's message is handed out, and still ours.
    pub(super) fn holds(&self, token: Token) -> bool {
        self.handed(token).is_some() && self.ours()
    }

    /// Notes what becomes of a message; `false` if the token is of an earlier hand-over. Holds after [`Owned::flush`].
    pub(super) fn settle(&mut self, token: Token, settle: Settle) -> bool {
        let Some(ordinal) = self.handed(token) else { return false };
        self.in_flight -= 1;
        if self.single && self.in_flight == 0 {
            self.group.page.shard(self.shard).single().store(0, SeqCst);
            self.topic.host.alone.leave(self.serial);
            // Here too, the next one may go.
            self.bell.notify_one();
        }
        match settle {
            Settle::Done => self.done(ordinal),
            Settle::Release => {
                self.entry(ordinal).back(false);
                self.again.insert(ordinal);
            }
            Settle::Retry { after, counted } => {
                self.entry(ordinal).back(counted);
                self.later.insert((Instant::now() + after, ordinal));
            }
        }
        true
    }

    fn done(&mut self, ordinal: u64) {
        self.entry(ordinal).set(SETTLED);
        match self.pending.last_mut() {
            Some((start, len)) if *start + u64::from(*len) == ordinal && *len < u32::MAX => *len += 1,
            _ => self.pending.push((ordinal, 1)),
        }
        self.exceptions += 1;
        while self.window.front().is_some_and(|entry| entry.what() == SETTLED) {
            self.window.pop_front();
            self.cursor += 1;
            self.exceptions -= 1;
        }
    }

    /// Makes what was settled hold against the death of this process.
    pub(super) fn flush(&mut self) -> Result<(), FlushError> {
        if !self.ours() {
            return Err(FlushError::Lost);
        }
        if !self.pending.is_empty() {
            self.ack.settled(&self.pending).map_err(FlushError::Disk)?;
            self.pending.clear();
        }
        if self.unclean > 0 && self.cursor >= self.suspects_end {
            self.unclean = 0;
            self.suspects.clear();
            let calm = self.state();
            self.ack.snapshot(&calm).map_err(FlushError::Disk)?;
        }
        // Once more: who took the shard over meanwhile has read the file, maybe without this.
        if !self.ours() {
            return Err(FlushError::Lost);
        }
        let words = self.group.page.shard(self.shard);
        words.cursor().store(self.cursor, SeqCst);
        words.settled().store(self.exceptions, SeqCst);
        words.in_flight().store(self.in_flight, SeqCst);
        Ok(())
    }

    fn state(&self) -> State {
        let mut state = State::at(self.cursor);
        let mut from = None;
        for (ordinal, entry) in (self.cursor..).zip(self.window.iter().copied().chain([Entry(OPEN)])) {
            match (entry.what() == SETTLED, from) {
                (true, None) => from = Some(ordinal),
                (false, Some(start)) => {
                    state.settled.insert(start, ordinal);
                    from = None;
                }
                _ => {}
            }
        }
        (state.suspects, state.suspects_end, state.unclean) = (self.suspects.clone(), self.suspects_end, self.unclean);
        state
    }

    /// Gives the shard back: what is not settled goes to the next owner, uncounted.
    pub(super) fn release(mut self) {
        // What cannot be written down now is handed out again.
        let _ = self.flush();
        self.group.release(self.shard, self.word);
        self.group.changed(&self.topic);
    }

    /// Keeps the ack log short; what comes back is to be synced, and then the files of earlier epochs can go.
    pub(super) fn tidy(&mut self) -> io::Result<Option<Tidy>> {
        if !self.ours() {
            return Ok(None);
        }
        if self.ack.large() {
            let state = self.state();
            self.ack.rewrite(&state)?;
            self.pending.clear();
        }
        if !std::mem::take(&mut self.ack.unsynced) {
            return Ok(None);
        }
        let sweep = !std::mem::replace(&mut self.swept, true);
        Ok(Some(Tidy {
            group: Arc::clone(&self.group),
            topic: Arc::clone(&self.topic),
            ack: self.ack.file(),
            shard: self.shard,
            epoch: self.epoch,
            sweep,
        }))
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        self.topic.host.alone.leave(self.serial);
    }
}

/// What is to be done about an ack log outside of all locks.
#[derive(Debug)]
pub(super) struct Tidy {
    group: Arc<Group>,
    topic: Arc<Topic>,
    ack: Arc<dyn super::disk::File>,
    shard: u32,
    epoch: u64,
    sweep: bool,
}

impl Tidy {
    pub(super) fn run(self) -> Result<()> {
        let disk = &self.topic.host.disk;
        let fail = |e: io::Error| super::error::disk(&e, "cannot sync the acks in", &self.group.dir);
        self.ack.sync().map_err(fail)?;
        if self.sweep {
            // Not before the new file is sure to be there after a power failure.
            disk.sync_dir(&self.group.dir).map_err(fail)?;
            for ((shard, epoch), path) in super::ack::files(&**disk, &self.group.dir)? {
                if shard == self.shard && epoch < self.epoch {
                    let _ = disk.remove_file(&path);
                }
            }
        }
        Ok(())
    }
}

/// Why nothing is handed out.
#[derive(Debug)]
pub(super) enum FillError {
    Lost,
    Failed(crate::Error),
}

impl From<crate::Error> for FillError {
    fn from(error: crate::Error) -> Self {
        FillError::Failed(error)
    }
}

/// Why a settle does not hold.
#[derive(Debug)]
pub(super) enum FlushError {
    Lost,
    Disk(io::Error),
}

fn index(distance: u64) -> usize {
    usize::try_from(distance).unwrap_or(usize::MAX)
}

fn low(ordinal: u64) -> u64 {
    ordinal & ((1 << ORDINAL_BITS) - 1)
}
