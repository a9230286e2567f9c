//! The reader of a member: fetches into the buffer while there is room, on a connection of its own.

use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::{Pipeline, Value};
use tokio::time::timeout;

use super::admin::entries;
use super::envelope::bytes;
use super::error;
use super::id::EntryId;
use super::link::{Argument, int, items, strange};
use super::script::CLAIM;
use super::state::{Came, Phase, Place, Plan};
use super::subscription::Shared;
use super::target::Wire;
use crate::error::{Code, Error, Result};
use crate::provider::{Signal, SubscriptionState};

/// A read may be this much later than it was asked to wait: then its connection is taken for dead.
const LATE: Duration = Duration::from_secs(5);
/// One read asks for at most this many entries, one look at what is pending for this many.
const MOST: usize = 1_000;
const PAGE: usize = 500;
/// Of so many streams the rounds are asked together with the read; of more, only of those that brought something.
const PIPED: usize = 8;

/// Reads until the subscription ends, or ends it.
pub(super) async fn read(shared: Arc<Shared>, wire: Wire, mut was_lost: bool) {
    let mut reader = Reader { shared, wire, window: 0, empty: 0 };
    while !reader.shared.stop.is_cancelled() {
        match reader.step().await {
            Ok(()) => {}
            Err(error) => return reader.shared.end(error),
        }
        if was_lost && reader.shared.reads.borrow().1 > 0 {
            was_lost = false;
            reader.shared.signal(Signal::State(SubscriptionState::Live));
        }
    }
}

struct Reader {
    shared: Arc<Shared>,
    wire: Wire,
    /// Where the next window begins, if there are more streams than room.
    window: usize,
    /// How many streams were found empty since something came.
    empty: usize,
}

impl Reader {
    async fn step(&mut self) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let block = shared.core.options.block();
        let plan = shared.state.lock().plan(shared.prefetch, Instant::now(), block * 2);
        match plan {
            Plan::Drain(lane, from, room) => shared.drain(lane, from, room.min(PAGE)).await,
            Plan::Read(lanes, room) => {
                shared.reads.send_modify(|(begun, _)| *begun += 1);
                let came = self.fetch(&lanes, room.min(MOST), block).await;
                shared.reads.send_modify(|(_, ended)| *ended += 1);
                came
            }
            Plan::Wait => {
                tokio::select! {
                    () = shared.wanted.notified() => {}
                    () = shared.stop.cancelled() => {}
                    // An ownership that was renewed says nothing.
                    () = tokio::time::sleep(shared.core.options.tick()) => {}
                }
                Ok(())
            }
        }
    }

    /// One read of these lanes. The count is per stream, so where there are more streams than room they are read in windows,
    /// and waited for together only when all were empty.
    async fn fetch(&mut self, lanes: &[usize], room: usize, block: Duration) -> Result<()> {
        let windowed = lanes.len() > room && self.empty < lanes.len();
        let chosen: Vec<usize> = if windowed {
            let from = self.window % lanes.len();
            self.window = from + room;
            lanes.iter().cycle().skip(from).take(room).copied().collect()
        } else {
            lanes.to_vec()
        };
        let asked: Vec<Asked> = {
            let state = self.shared.state.lock();
            let ask = |at: &usize| Asked { lane: *at, place: state.lanes[*at].place() };
            chosen.iter().map(ask).collect()
        };
        let mut pipeline = Pipeline::new();
        let cmd = pipeline.cmd("XREADGROUP").arg("GROUP").arg(&*self.shared.group).arg(&*self.shared.member);
        cmd.arg("COUNT").arg((room / asked.len()).max(1));
        if !windowed {
            cmd.arg("BLOCK").arg(crate::message::millis(block));
        }
        cmd.arg("STREAMS");
        for of in &asked {
            cmd.arg(&*of.place.stream);
        }
        for _ in &asked {
            cmd.arg(">");
        }
        // Behind the read, and so not earlier than it: what the round is by then.
        let piped = asked.len() <= PIPED;
        if piped {
            asked.iter().for_each(|of| of.ask(&mut pipeline));
        }
        let mut answers = self.say(&pipeline, block + LATE).await?.into_iter();
        let came = match answers.next() {
            Some(Value::ServerError(refused)) => return Err(self.shared.refused(error::server(&refused, Code::SubscribeFailed))),
            Some(answer) => items(answer),
            None => Vec::new(),
        };
        self.empty = if came.is_empty() { self.empty.saturating_add(asked.len()) } else { 0 };
        if came.is_empty() {
            return Ok(());
        }
        let now = Instant::now();
        let rounds: Vec<Value> = answers.collect();
        // The streams of the answer stand in the order they were asked for.
        let mut left = asked.into_iter().enumerate();
        let mut came = came.into_iter().filter_map(|stream| {
            let mut stream = items(stream).into_iter();
            let (name, list) = (bytes(stream.next()?), stream.next()?);
            let (at, of) = left.find(|(_, of)| of.place.stream.as_bytes() == name)?;
            let round = rounds.get(at).map(round);
            Some((of, round, entries(list).map(|(id, fields)| (id, fields, 1)).collect::<Vec<Came>>()))
        });
        let came: Vec<_> = came.by_ref().collect();
        let rounds = if piped { Vec::new() } else { self.rounds(&came).await? };
        for (at, (of, piped, came)) in came.into_iter().enumerate() {
            let now_round = piped.or_else(|| rounds.get(at).map(round)).unwrap_or(0);
            self.shared.admit_read(&of, now_round, came, now).await?;
        }
        self.shared.arrived.notify_waiters();
        Ok(())
    }

    /// The rounds of streams that brought something, asked after they did.
    async fn rounds(&mut self, came: &[(Asked, Option<u64>, Vec<Came>)]) -> Result<Vec<Value>> {
        let mut pipeline = Pipeline::new();
        came.iter().for_each(|(of, _, _)| of.ask(&mut pipeline));
        self.say(&pipeline, LATE).await
    }

    /// Speaks on the reader's own connection.
    async fn say(&mut self, pipeline: &Pipeline, within: Duration) -> Result<Vec<Value>> {
        let said = timeout(within, self.wire.connection.send_packed_commands(pipeline, 0, pipeline.len()));
        let answer = tokio::select! {
            answer = said => answer,
            () = self.shared.cut.cancelled() => return Err(error::closed()),
        };
        answer.map_err(|_| error::silence("a read"))?.map_err(|broken| error::transport(&broken))
    }
}

/// A lane as it was when it was read.
struct Asked {
    lane: usize,
    place: Place,
}

impl Asked {
    fn ask(&self, pipeline: &mut Pipeline) {
        pipeline.cmd("HGET").arg(&*self.place.meta).arg(&*self.place.field);
    }
}

/// A round in a reply; none was counted where the group was never set back.
pub(super) fn round(value: &Value) -> u64 {
    int(value).and_then(|round| u64::try_from(round).ok()).unwrap_or(0)
}

impl Shared {
    /// Takes what a read brought. If the group was set back about that time, only what is pending in the new round.
    async fn admit_read(&self, of: &Asked, round: u64, mut came: Vec<Came>, now: Instant) -> Result<()> {
        {
            let mut state = self.state.lock();
            let lane = &state.lanes[of.lane];
            // Something of the lane was given back meanwhile: these come after it, and are pending until then.
            if lane.phase != Phase::Reading || lane.held_back {
                return Ok(());
            }
            if round == of.place.round && lane.round == round {
                state.admit(of.lane, came, now, self.lease());
                return Ok(());
            }
            state.set_round(of.lane, round);
        }
        let ids: Vec<EntryId> = came.iter().map(|(id, _, _)| *id).collect();
        let lost = self.keep_ids(of.lane, &ids).await?;
        came.retain(|(id, _, _)| !lost.contains(id));
        self.state.lock().admit(of.lane, came, now, self.lease());
        Ok(())
    }

    /// What a refused read means for the subscription.
    pub(super) fn refused(&self, error: Error) -> Error {
        if error.detail_str("reason") == Some("data_gone") {
            tracing::warn!(group = %self.group, reason = "data_gone", "the group is gone from the server");
            self.signal(Signal::State(SubscriptionState::Degraded("data_gone")));
        }
        error
    }

    /// Fetches pending entries of a lane: of all consumers where a shard has one owner, else of this one.
    async fn drain(&self, lane: usize, from: EntryId, page: usize) -> Result<()> {
        let (place, owner, key, drains) = {
            let state = self.state.lock();
            let of = &state.lanes[lane];
            (of.place(), if of.ordered { self.owner(of) } else { String::new() }, self.owner_key(of), of.drains)
        };
        let ordered = !owner.is_empty();
        let mut cmd = redis::cmd("XPENDING");
        cmd.arg(&*place.stream).arg(&*self.group).arg(from).arg("+").arg(page);
        if !ordered {
            cmd.arg(&*self.member);
        }
        let pending = self.core.work.call(&cmd, Code::SubscribeFailed).await.map_err(|error| self.refused(error))?;
        let pending: Vec<(EntryId, u32)> = items(pending).into_iter().filter_map(counted).collect();
        let next = if pending.len() < page { None } else { pending.last().map(|(id, _)| id.after()) };
        let wanted: Vec<(EntryId, u32)> = {
            let state = self.state.lock();
            pending.into_iter().filter(|(id, _)| !state.holds(lane, *id)).collect()
        };
        let mut came: Vec<Came> = Vec::new();
        let now = Instant::now();
        if !wanted.is_empty() {
            let mut keys = vec![&*place.stream, &*place.meta];
            keys.extend(ordered.then_some(&*key));
            let ids: Vec<EntryId> = wanted.iter().map(|(id, _)| *id).collect();
            let args: [&dyn Argument; 5] = [&&*self.group, &place, &&*self.member, &owner, &ids];
            let claimed = self.core.work.run(&CLAIM, &keys, &args, Code::SubscribeFailed).await?;
            if claimed == Value::Nil {
                self.state.lock().lose_lane(lane);
                self.arrived.notify_waiters();
                return Ok(());
            }
            let mut claimed = items(claimed).into_iter();
            let (Some(now_round), Some(claimed)) = (claimed.next(), claimed.next()) else { return Err(strange("a claim")) };
            self.state.lock().set_round(lane, round(&now_round));
            let count = |id: EntryId| wanted.iter().find(|(of, _)| *of == id).map_or(1, |(_, count)| count.saturating_add(1));
            came = entries(claimed).map(|(id, fields)| (id, fields, count(id))).collect();
            if came.len() < wanted.len() {
                self.note_trimmed(wanted.len() - came.len());
            }
        }
        {
            let mut state = self.state.lock();
            // Something was given back meanwhile: the drain begins again.
            let of = &state.lanes[lane];
            if of.phase == Phase::Draining(from) && of.drains == drains && !of.held_back {
                state.admit(lane, came, now, self.lease());
                if state.lanes[lane].is_owned() {
                    state.lanes[lane].phase = next.map_or(Phase::Reading, Phase::Draining);
                }
            }
        }
        self.arrived.notify_waiters();
        Ok(())
    }

    /// Pending entries that are not in the stream any more: somebody trims it without regard to its groups.
    pub(super) fn note_trimmed(&self, lost: usize) {
        tracing::warn!(group = %self.group, lost, reason = "messages_trimmed", "unsettled entries were removed from a stream by another client");
        if self.trimmed.lock().replace(Instant::now()).is_none() {
            self.signal(Signal::State(SubscriptionState::Degraded("messages_trimmed")));
        }
    }
}

/// An entry of a list of pending ones: its id and how often it was handed out.
fn counted(entry: Value) -> Option<(EntryId, u32)> {
    let entry = items(entry);
    let id = EntryId::of(entry.first()?)?;
    Some((id, entry.get(3).and_then(int).and_then(|count| u32::try_from(count).ok()).unwrap_or(1)))
}
