//! A group on a topic: where it starts, its page, the hand-over of a shard, seek and depth.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use parking_lot::Mutex;

use super::ack::{self, AckLog, State, Suspects};
use super::control::GroupPage;
use super::disk::{Disk, Held, Lock};
use super::error;
use super::lease::{self, Member, Owner, Ownership};
use super::meta::Meta;
use super::names::escape;
use super::topic::Topic;
use crate::clock::uptime_ms;
use crate::error::Result;
use crate::message::now_ms;
use crate::provider::{Depth, GroupSpec, Start};

const GROUP: [u8; 8] = *b"TLKGROUP";

/// A group on a topic.
#[derive(Debug)]
pub(super) struct Group {
    disk: Arc<dyn Disk>,
    pub(super) dir: PathBuf,
    pub(super) page: GroupPage,
    /// Held for a hand-over or a seek, never while anything is delivered or settled.
    lock: Mutex<Box<dyn Lock>>,
    /// Where it started, per shard: where it is as long as nothing was settled.
    starts: Vec<u64>,
}

/// A shard that was taken over.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) epoch: u64,
    /// What the shard's word says as long as it is ours.
    pub(super) word: u64,
    pub(super) state: State,
    pub(super) ack: AckLog,
}

impl Topic {
    fn groups_dir(&self) -> PathBuf {
        self.dir.join("groups")
    }

    /// Creates the group if it is not there; `true` if it was not.
    pub(super) fn create_group(&self, spec: &GroupSpec) -> Result<bool> {
        let dir = self.groups_dir().join(escape(&spec.name));
        if self.group(&spec.name)?.is_some() {
            return Ok(false);
        }
        // Under the append lock: two that create it at once agree on where it starts, and retention sees it or not.
        let created = self.locked(|_| {
            if Meta::load(&*self.host.disk, &dir, GROUP)?.is_some() {
                return Ok(false);
            }
            let numbers = self.starts(&spec.start)?;
            self.host.disk.make_dir(&self.groups_dir()).map_err(|e| error::disk(&e, "cannot create", &dir))?;
            Meta { name: spec.name.to_string(), numbers }.store(&*self.host.disk, &dir, GROUP)?;
            self.host.disk.sync_dir(&self.dir).map_err(|e| error::disk(&e, "cannot create", &dir))?;
            Ok(true)
        })??;
        self.group(&spec.name)?;
        Ok(created)
    }

    fn starts(&self, start: &Start) -> Result<Vec<u64>> {
        match start {
            Start::Earliest => self.first_ordinals(),
            Start::Latest => Ok(self.page.ends()),
            Start::Time(at) => self.ordinals_at_time(*at),
            Start::Position { shard, offset } => {
                let (first, ends) = (self.first_ordinals()?, self.page.ends());
                let mut starts = first;
                if let (Some(start), Some(end)) = (starts.get_mut(*shard as usize), ends.get(*shard as usize)) {
                    *start = (*offset).clamp(*start, *end);
                }
                Ok(starts)
            }
        }
    }

    /// The group, if it is there.
    pub(super) fn group(&self, name: &str) -> Result<Option<Arc<Group>>> {
        self.group_dir(&escape(name))
    }

    fn group_dir(&self, escaped: &str) -> Result<Option<Arc<Group>>> {
        let mut groups = self.groups.lock();
        if let Some(group) = groups.get(escaped) {
            if !group.removed() {
                return Ok(Some(Arc::clone(group)));
            }
            groups.remove(escaped);
        }
        let Some(group) = Group::open(self, self.groups_dir().join(escaped))? else { return Ok(None) };
        let group = Arc::new(group);
        groups.insert(escaped.into(), Arc::clone(&group));
        Ok(Some(group))
    }

    /// All groups there are.
    pub(super) fn open_groups(&self) -> Result<Vec<Arc<Group>>> {
        let names = match self.host.disk.list(&self.groups_dir()) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            result => result.map_err(|e| error::disk(&e, "cannot list", &self.dir))?,
        };
        names.iter().filter(|name| !name.starts_with('.')).filter_map(|name| self.group_dir(name).transpose()).collect()
    }

    /// Removes the group with its state.
    pub(super) fn remove_group(&self, name: &str) -> Result<()> {
        let Some(group) = self.group(name)? else { return Ok(()) };
        group.page.removed().store(1, SeqCst);
        group.page.version().fetch_add(1, SeqCst);
        self.groups.lock().remove(escape(name).as_str());
        let away = self.groups_dir().join(format!("{}{}", super::REMOVED, uuid::Uuid::now_v7().simple()));
        let disk = &self.host.disk;
        let remove = || {
            disk.rename(&group.dir, &away)?;
            disk.sync_dir(&self.groups_dir())?;
            disk.remove_dir(&away)
        };
        match remove() {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(error::disk(&e, "cannot remove", &group.dir)),
            _ => self.host.ring(),
        }
        self.notify();
        Ok(())
    }
}

impl Group {
    fn open(topic: &Topic, dir: PathBuf) -> Result<Option<Self>> {
        let disk = Arc::clone(&topic.host.disk);
        let Some(meta) = Meta::load(&*disk, &dir, GROUP)? else { return Ok(None) };
        if meta.numbers.len() != topic.shards as usize {
            return Err(error::damaged(&dir, "it has another number of shards"));
        }
        let page = GroupPage::open(&*disk, &dir.join("control"), topic.shards)?;
        let lock = Mutex::new(disk.lock(&dir.join("lock")).map_err(|e| error::disk(&e, "cannot lock", &dir))?);
        let group = Group { disk, dir, page, lock, starts: meta.numbers };
        if !group.page.trusted(topic.host.boot) {
            group.locked(|| group.rebuild(topic.host.boot))??;
        }
        Ok(Some(group))
    }

    fn locked<R>(&self, work: impl FnOnce() -> R) -> Result<R> {
        let lock = self.lock.lock();
        let _held = Held::wait(&**lock).map_err(|e| error::disk(&e, "cannot lock", &self.dir))?;
        Ok(work())
    }

    pub(super) fn removed(&self) -> bool {
        self.page.removed().load(SeqCst) != 0
    }

    /// Builds the page from the files, after the machine was started anew.
    fn rebuild(&self, boot: u128) -> Result<()> {
        if self.page.trusted(boot) {
            return Ok(());
        }
        // Who created the group may have died before its names were sure to stay.
        for dir in self.dir.ancestors().take(3) {
            self.disk.sync_dir(dir).map_err(|e| error::disk(&e, "cannot sync", dir))?;
        }
        self.page.clear();
        let files = ack::files(&*self.disk, &self.dir)?;
        for shard in 0..self.page.shards() {
            let (epoch, state) = self.load(&files, shard)?;
            self.page.shard(shard).owner().store(Ownership { epoch, owner: Owner::Free }.pack(), SeqCst);
            self.mirror(shard, &state);
        }
        self.page.trust(boot);
        Ok(())
    }

    fn load(&self, files: &std::collections::BTreeMap<(u32, u64), PathBuf>, shard: u32) -> Result<(u64, State)> {
        let start = self.starts.get(shard as usize).copied().unwrap_or(0);
        Ok(ack::load(&*self.disk, files, shard)?.unwrap_or_else(|| (0, State::at(start))))
    }

    fn mirror(&self, shard: u32, state: &State) {
        let words = self.page.shard(shard);
        words.cursor().store(state.cursor, SeqCst);
        words.settled().store(state.exceptions(), SeqCst);
        words.handed().store(state.cursor, SeqCst);
        words.single().store(0, SeqCst);
        words.in_flight().store(0, SeqCst);
    }

    /// Sets back what was settled beyond the end of a log that lost its end with the power.
    pub(super) fn clamp(&self, topic: &Topic) -> Result<()> {
        self.locked(|| {
            let files = ack::files(&*self.disk, &self.dir)?;
            for shard in 0..self.page.shards() {
                let (epoch, mut state) = self.load(&files, shard)?;
                let end = topic.page.end(shard).load(SeqCst);
                if state.cursor > end || state.settled.values().any(|to| *to > end) {
                    state.clamp(0, end);
                    self.replace(shard, epoch, &state)?;
                }
            }
            Ok(())
        })?
    }

    /// Puts a state in place that the next owner goes on with; the owner of now loses the shard.
    fn replace(&self, shard: u32, known: u64, state: &State) -> Result<()> {
        let word = self.page.shard(shard).owner();
        let mut seen = word.load(SeqCst);
        let epoch = loop {
            let epoch = now_ms().max(Ownership::unpack(seen).epoch + 1).max(known + 1);
            let free = Ownership { epoch, owner: Owner::Free }.pack();
            match word.compare_exchange(seen, free, SeqCst, SeqCst) {
                Ok(_) => break epoch,
                Err(now) => seen = now,
            }
        };
        let ack = AckLog::create(&self.disk, &self.dir, shard, epoch, state)?;
        let sync = || {
            ack.file().sync()?;
            self.disk.sync_dir(&self.dir)
        };
        sync().map_err(|e| error::disk(&e, "cannot sync", &self.dir))?;
        self.mirror(shard, state);
        Ok(())
    }

    /// Sets the group to start there.
    pub(super) fn seek(&self, topic: &Topic, to: &Start) -> Result<()> {
        let starts = topic.starts(to)?;
        let only = if let Start::Position { shard, .. } = to { Some(*shard) } else { None };
        self.locked(|| {
            for (shard, start) in (0..self.page.shards()).zip(starts).filter(|(shard, _)| only.is_none_or(|only| only == *shard)) {
                self.replace(shard, 0, &State::at(start))?;
            }
            Ok(())
        })??;
        self.changed(topic);
        Ok(())
    }

    /// Tells all members that an owner changed.
    pub(super) fn changed(&self, topic: &Topic) {
        self.page.version().fetch_add(1, SeqCst);
        topic.notify();
        topic.host.ring();
    }

    /// Takes the shard over, if nobody who is alive owns it.
    pub(super) fn claim(&self, topic: &Topic, shard: u32, member: Member) -> Result<Option<Claim>> {
        let word = self.page.shard(shard).owner();
        if lease::owned(&self.page, shard, uptime_ms()) {
            return Ok(None);
        }
        self.locked(|| {
            let seen = word.load(SeqCst);
            if lease::owned(&self.page, shard, uptime_ms()) {
                return Ok(None);
            }
            let before = Ownership::unpack(seen);
            let epoch = now_ms().max(before.epoch + 1);
            let ours = Ownership { epoch, owner: member.owner() }.pack();
            if word.compare_exchange(seen, ours, SeqCst, SeqCst).is_err() {
                return Ok(None);
            }
            let claim = self.take_over(topic, shard, epoch, before.owner != Owner::Free);
            if claim.is_err() {
                let owner = if before.owner == Owner::Free { Owner::Free } else { Owner::Dead };
                let _ = word.compare_exchange(ours, Ownership { epoch, owner }.pack(), SeqCst, SeqCst);
            }
            claim.map(|(state, ack)| Some(Claim { epoch, word: ours, state, ack }))
        })?
    }

    fn take_over(&self, topic: &Topic, shard: u32, epoch: u64, unclean: bool) -> Result<(State, AckLog)> {
        let (_, mut state) = self.load(&ack::files(&*self.disk, &self.dir)?, shard)?;
        let first = topic.first_ordinals()?.get(shard as usize).copied().unwrap_or(0);
        state.clamp(first, topic.page.end(shard).load(SeqCst));
        if unclean {
            let words = self.page.shard(shard);
            blame(&mut state, words.handed().load(SeqCst), words.single().load(SeqCst).checked_sub(1));
        }
        let ack = AckLog::create(&self.disk, &self.dir, shard, epoch, &state)?;
        // Only now that it is written down who was handed out: a death before this is counted once more, not forgotten.
        self.mirror(shard, &state);
        Ok((state, ack))
    }

    /// Gives the shard back; `word` is what it says while it is ours.
    pub(super) fn release(&self, shard: u32, word: u64) {
        let words = self.page.shard(shard);
        let free = Ownership { epoch: Ownership::unpack(word).epoch, owner: Owner::Free };
        if words.owner().load(SeqCst) == word {
            words.in_flight().store(0, SeqCst);
            words.single().store(0, SeqCst);
            words.handed().store(words.cursor().load(SeqCst), SeqCst);
            let _ = words.owner().compare_exchange(word, free.pack(), SeqCst, SeqCst);
        }
    }

    /// What waits, over all shards.
    pub(super) fn depth(&self, topic: &Topic) -> Result<Depth> {
        let mut depth = Depth { exact: true, ..Depth::default() };
        let now = uptime_ms();
        for shard in 0..self.page.shards() {
            let words = self.page.shard(shard);
            let cursor = words.cursor().load(SeqCst);
            let open = topic.page.end(shard).load(SeqCst).saturating_sub(cursor).saturating_sub(words.settled().load(SeqCst));
            let in_flight = if lease::owned(&self.page, shard, now) { words.in_flight().load(SeqCst).min(open) } else { 0 };
            depth.in_flight += in_flight;
            depth.ready += open - in_flight;
            if open > 0 {
                let oldest = topic.time_of(shard, cursor)?;
                depth.oldest = depth.oldest.into_iter().chain(oldest).min();
            }
        }
        Ok(depth)
    }
}

/// Counts once more what was handed out when its owner died: everything up to `handed`, or the one that went alone.
fn blame(state: &mut State, handed: u64, single: Option<u64>) {
    let open = |ordinal: &u64| *ordinal >= state.cursor && state.settled.range(..=ordinal).next_back().is_none_or(|(_, to)| to <= ordinal);
    let guilty: Vec<u64> = (state.cursor..handed).chain(single.filter(|one| *one >= handed.max(state.cursor))).filter(open).collect();
    if guilty.is_empty() {
        return;
    }
    let counted =
        |ordinal: u64| state.suspects.iter().find(|run| (run.start..run.start + run.len).contains(&ordinal)).map_or(0, |run| run.count);
    let mut all: std::collections::BTreeMap<u64, u32> = (state.cursor..state.suspects_end.max(state.cursor))
        .filter(open)
        .filter_map(|ordinal| Some((ordinal, counted(ordinal))).filter(|(_, count)| *count > 0))
        .collect();
    for ordinal in guilty {
        *all.entry(ordinal).or_default() += 1;
    }
    let mut suspects: Vec<Suspects> = Vec::new();
    for (ordinal, count) in &all {
        match suspects.last_mut() {
            Some(run) if run.count == *count && run.start + run.len == *ordinal => run.len += 1,
            _ => suspects.push(Suspects { start: *ordinal, len: 1, count: *count }),
        }
    }
    state.suspects_end = suspects.last().map_or(0, |run| run.start + run.len);
    state.suspects = suspects;
    state.unclean += 1;
}
