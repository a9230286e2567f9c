//! A recorded run of the embedded broker, and what must hold in every state a crash leaves of it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use trunkline::delivery::{Delivery, EnvelopeId, Position, Settle, Settled};
use trunkline::provider::embedded::{Embedded, Options};
use trunkline::provider::{
    GroupSpec, Outgoing, Prefetch, Provider as _, ReadFrom, Signal, Start, SubscribeOptions, Subscription, TopicSpec,
};
use trunkline::{Headers, MessageId};

use super::replay::{Crash, World};
use super::{Faults, Op, RecordingDisk, Tape};
use crate::{Failure, Verdict};

const ROOT: &str = "/log";
const SHARDS: u32 = 3;
/// So short that every lease of the run has ended when it is replayed.
const LEASE: Duration = Duration::from_millis(100);

fn options() -> Options {
    Options { segment_bytes: 8 << 10, max_payload: 64 << 10, lease: LEASE, ..Options::new(ROOT) }
}

fn topic() -> TopicSpec {
    TopicSpec::new("crash", SHARDS, true)
}

fn groups() -> [GroupSpec; 2] {
    ["settles", "seeks"].map(|name| GroupSpec { name: name.into(), start: Start::Earliest })
}

/// A message that can be checked from its bytes alone: who sent it, as the how manieth, and then its id again and again.
fn message(sender: u8, number: u32, len: usize) -> Outgoing {
    let id = MessageId::now();
    let mut payload = vec![sender];
    payload.extend_from_slice(&number.to_le_bytes());
    payload.extend(id.as_bytes().iter().cycle().take(len));
    let shard = Some(number % SHARDS);
    Outgoing { id, shard, key: Some(Bytes::from(vec![sender])), headers: Headers::new(), payload: payload.into() }
}

/// Sender and number of an intact message.
fn check_payload(id: MessageId, payload: &[u8]) -> Verdict<(u8, u32)> {
    let fill = payload.get(5..).unwrap_or_default();
    let intact = payload.len() >= 5 && fill.chunks(16).all(|part| part == &id.as_bytes()[..part.len()]);
    check!(intact, "the payload of {id} is not what was sent");
    Ok((payload[0], u32::from_le_bytes([payload[1], payload[2], payload[3], payload[4]])))
}

/// One member of the run.
async fn join(provider: &Embedded, group: &GroupSpec) -> Verdict<Arc<dyn Subscription>> {
    let options = SubscribeOptions { member: "m".into(), prefetch: Prefetch { count: 100, bytes: 1 << 20 } };
    Ok(provider.subscribe(&[topic()], group, options).await?)
}

async fn take(member: &dyn Subscription, max: usize) -> Verdict<Vec<Delivery>> {
    let mut all = Vec::new();
    loop {
        let signals = member.next(max, usize::MAX, Duration::ZERO).await?;
        let nothing = signals.is_empty();
        for signal in signals {
            if let Signal::Deliveries { items, .. } = signal {
                all.extend(items);
            }
        }
        if nothing || all.len() >= max {
            return Ok(all);
        }
    }
}

fn id_of(delivery: &Delivery) -> Verdict<MessageId> {
    match delivery.id {
        EnvelopeId::Id(id) => Ok(id),
        other => Err(Failure::new(format!("{other:?} at {}", delivery.position))),
    }
}

/// What the sends of a run came to.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sends {
    /// Confirmed.
    pub confirmed: usize,
    /// Not confirmed, and said to be ambiguous.
    pub ambiguous: usize,
    /// Not confirmed, and surely not there.
    pub refused: usize,
}

struct Actor {
    disk: RecordingDisk,
    provider: Embedded,
    rng: StdRng,
    number: u32,
    sends: Sends,
}

impl Actor {
    fn tape(&self) -> &Tape {
        self.disk.tape()
    }

    async fn send(&mut self) {
        let n = self.rng.random_range(1..6);
        let batch: Vec<_> = (0..n)
            .map(|_| {
                self.number += 1;
                message(0, self.number, [0, 20, 300, 1500][self.rng.random_range(0..4)])
            })
            .collect();
        let ids: Vec<_> = batch.iter().map(|message| message.id).collect();
        self.tape().push(Op::Sending(ids.clone()));
        for (id, result) in ids.into_iter().zip(self.provider.send(&topic(), Arc::new(batch)).await) {
            match result {
                Ok(position) => {
                    self.tape().push(Op::Confirmed(id, position));
                    self.sends.confirmed += 1;
                }
                Err(error) if error.ambiguous => self.sends.ambiguous += 1,
                Err(_) => self.sends.refused += 1,
            }
        }
    }

    async fn settle(&mut self, member: &dyn Subscription) -> Verdict {
        let max = self.rng.random_range(1..20);
        let mut done = Vec::new();
        let mut back = Vec::new();
        for delivery in take(member, max).await? {
            if self.rng.random_bool(0.7) { done.push(delivery) } else { back.push((delivery.token, Settle::Release)) }
        }
        let ids = done.iter().map(id_of).collect::<Verdict<Vec<_>>>()?;
        self.tape().push(Op::Settling(ids.clone()));
        let items: Vec<_> = done.iter().map(|delivery| (delivery.token, Settle::Done)).collect();
        for (id, answer) in ids.into_iter().zip(member.settle(&items).await) {
            if answer == Settled::Settled {
                self.tape().push(Op::Settled(id));
            }
        }
        if self.rng.random_bool(0.5) {
            member.settle(&back).await;
        }
        Ok(())
    }
}

/// Records a run of so many rounds. Some of its sends fail if the disk has faults; nothing else does.
pub async fn record(seed: u64, rounds: usize, faults: Faults) -> Verdict<(RecordingDisk, Sends)> {
    let disk = RecordingDisk::recording(Path::new(ROOT));
    let open = || Embedded::with_disk(Arc::new(disk.clone()), options());
    let provider = open()?;
    provider.ensure(&topic(), &groups()).await?;
    disk.tape().push(Op::Ensured);
    disk.set_faults(faults);
    let mut actor = Actor { disk: disk.clone(), provider, rng: StdRng::seed_from_u64(seed), number: 0, sends: Sends::default() };
    let [settles, seeks] = groups();
    let mut member = join(&actor.provider, &settles).await?;
    for _ in 0..rounds {
        actor.send().await;
        match actor.rng.random_range(0..10) {
            0..4 => actor.settle(&*member).await?,
            4 => member = join(&actor.provider, &settles).await?,
            5 => {
                let shard = actor.rng.random_range(0..SHARDS);
                let to = [Start::Earliest, Start::Latest, Start::Position { shard, offset: 3 }];
                let to = &to[actor.rng.random_range(0..3)];
                // A seek syncs what it writes, so it may fail on a faulty disk; it promises nothing then.
                let _ = actor.provider.seek(&topic(), &seeks.name, to).await;
            }
            6 => {
                drop(member);
                actor.provider = open()?;
                member = join(&actor.provider, &settles).await?;
            }
            _ => {}
        }
    }
    Ok((disk, actor.sends))
}

/// Records four senders at once, each in batches of its own.
pub async fn record_many(rounds: u32) -> Verdict<RecordingDisk> {
    let disk = RecordingDisk::recording(Path::new(ROOT));
    let provider = Arc::new(Embedded::with_disk(Arc::new(disk.clone()), options())?);
    provider.ensure(&topic(), &groups()).await?;
    disk.tape().push(Op::Ensured);
    let mut tasks = tokio::task::JoinSet::new();
    for sender in 0..4 {
        let (provider, tape) = (Arc::clone(&provider), Arc::clone(disk.tape()));
        tasks.spawn(async move {
            for round in 0..rounds {
                let batch: Vec<_> = (0..3).map(|n| message(sender, round * 3 + n, 100)).collect();
                let ids: Vec<_> = batch.iter().map(|message| message.id).collect();
                tape.push(Op::Sending(ids.clone()));
                for (id, result) in ids.into_iter().zip(provider.send(&topic(), Arc::new(batch)).await) {
                    if let Ok(position) = result {
                        tape.push(Op::Confirmed(id, position));
                    }
                }
            }
        });
    }
    tasks.join_all().await;
    Ok(disk)
}

/// What was promised up to a moment of the run.
#[derive(Debug, Default, Clone)]
struct Promised {
    ensured: bool,
    sent: BTreeSet<MessageId>,
    confirmed: BTreeMap<MessageId, Position>,
    settling: BTreeSet<MessageId>,
    settled: BTreeSet<MessageId>,
}

impl Promised {
    fn step(&mut self, op: &Op) {
        match op {
            Op::Ensured => self.ensured = true,
            Op::Sending(ids) => self.sent.extend(ids),
            Op::Confirmed(id, position) => {
                self.confirmed.insert(*id, *position);
            }
            Op::Settling(ids) => self.settling.extend(ids),
            Op::Settled(id) => {
                self.settled.insert(*id);
            }
            _ => {}
        }
    }
}

/// What a replay came to.
#[derive(Debug, Default)]
pub struct Report {
    /// How many crashes were looked at.
    pub crashes: usize,
    /// What did not hold after which of them, at most a few.
    pub failures: Vec<String>,
}

impl Report {
    fn note(&mut self, verdict: Verdict, crash: impl FnOnce() -> String) {
        self.crashes += 1;
        if let (Err(failure), true) = (verdict, self.failures.len() < 5) {
            self.failures.push(format!("after {}: {failure}", crash()));
        }
    }
}

/// Replays every crash of a tape, `mixed` of each prefix by chance, on `threads` threads.
#[must_use]
pub fn replay(tape: &Tape, mixed: u64, threads: usize) -> Report {
    let ops = tape.ops();
    let work = |thread: usize| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (mut world, mut promised, mut report) = (World::new(&tape.root), Promised::default(), Report::default());
        let mut unheeded = false;
        for (place, (op, pages)) in ops.iter().enumerate() {
            world.step(op, pages);
            promised.step(op);
            unheeded = match op {
                Op::SyncFailed { .. } => true,
                Op::Sending(_) | Op::Settling(_) | Op::Truncate { .. } | Op::Create { .. } => false,
                _ => unheeded,
            };
            if place % threads != thread {
                continue;
            }
            for crash in world.crashes(mixed) {
                report.note(runtime.block_on(check_crash(&world, crash, &promised)), || format!("step {place} ({}), {crash:?}", short(op)));
            }
            // A process that dies between the failure of its sync and writing that down takes the knowledge with it, and the
            // system tells nobody else: three faults at once are beyond what is promised.
            if unheeded {
                continue;
            }
            // Killed here, another process goes on, and only then the power fails.
            match runtime.block_on(second_life(&world, &promised)) {
                Ok((world, promised)) => {
                    for crash in [Crash::Dropped, Crash::Kept, Crash::Mixed(place as u64)] {
                        let verdict = runtime.block_on(check_crash(&world, crash, &promised));
                        report.note(verdict, || format!("step {place} ({}), killed, gone on, {crash:?}", short(op)));
                    }
                }
                Err(failure) => report.note(Err(failure), || format!("step {place} ({}), killed, going on", short(op))),
            }
        }
        report
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|thread| scope.spawn(move || work(thread))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).fold(Report::default(), |mut all, one| {
            all.crashes += one.crashes;
            all.failures.extend(one.failures);
            all
        })
    })
}

fn short(op: &Op) -> String {
    let text = format!("{op:?}");
    text.chars().take(80).collect()
}

/// The world after its process was killed and another one sent a little more.
async fn second_life(world: &World, promised: &Promised) -> Verdict<(World, Promised)> {
    let disk = world.second_life(Path::new(ROOT));
    let tape = Arc::clone(disk.tape());
    let provider = Embedded::with_disk(Arc::new(disk), options()).map_err(|e| Failure::from(e).context("opening"))?;
    provider.ensure(&topic(), &groups()).await.map_err(|e| Failure::from(e).context("ensuring"))?;
    tape.push(Op::Ensured);
    for number in 0..2 {
        let message = message(u8::MAX - 1, number, 0);
        let id = message.id;
        tape.push(Op::Sending(vec![id]));
        match provider.send(&topic(), Arc::new(vec![message])).await.pop() {
            Some(Ok(position)) => tape.push(Op::Confirmed(id, position)),
            other => check!(false, "a send after the death was answered {other:?}"),
        }
    }
    drop(provider);
    let (mut world, mut promised) = (world.clone(), promised.clone());
    for (op, pages) in tape.ops() {
        world.step(&op, &pages);
        promised.step(&op);
    }
    Ok((world, promised))
}

/// Opens the broker on what the crash left, and holds it to what was promised.
async fn check_crash(world: &World, crash: Crash, promised: &Promised) -> Verdict {
    let disk = Arc::new(world.after(crash));
    let provider = Embedded::with_disk(disk, options()).map_err(|e| Failure::from(e).context("opening"))?;
    let ensured = provider.ensure(&topic(), &groups()).await.map_err(|e| Failure::from(e).context("ensuring"))?;
    if promised.ensured {
        check!(ensured.created.is_empty() && ensured.drift.is_empty(), "topic or group was lost: {ensured:?}");
    }
    let before = read(&provider, promised).await?;
    for (id, position) in &promised.confirmed {
        let found = before.get(position);
        check!(found == Some(id), "{id} was confirmed at {position}, where {found:?} lies");
    }
    let member = join(&provider, &groups()[0]).await?;
    let mut came = BTreeMap::new();
    for delivery in take(&*member, usize::MAX).await? {
        let before = came.insert(delivery.position, id_of(&delivery)?);
        check!(before.is_none(), "{} came twice", delivery.position);
    }
    let missing = promised.confirmed.iter().find(|(id, position)| !promised.settling.contains(*id) && came.get(*position) != Some(*id));
    check!(missing.is_none(), "{missing:?} was confirmed and not settled, and does not come");
    if crash == Crash::Killed {
        let again = came.values().find(|id| promised.settled.contains(*id));
        check!(again.is_none(), "{again:?} was settled before the process was killed, and comes again");
    }
    // What is sent after the crash goes behind all that, and is found.
    let new: Vec<_> = (0..SHARDS).map(|shard| message(u8::MAX, shard, 40)).collect();
    let ids: Vec<_> = new.iter().map(|message| message.id).collect();
    let mut after = Promised { sent: promised.sent.clone(), ..Promised::default() };
    after.sent.extend(&ids);
    let results = provider.send(&topic(), Arc::new(new)).await;
    let now = read(&provider, &after).await?;
    check!(before.iter().all(|(position, id)| now.get(position) == Some(id)), "a send after the crash changed what was there");
    for (id, result) in ids.iter().zip(results) {
        match result {
            Ok(position) => {
                check!(!before.contains_key(&position), "a send after the crash was confirmed at {position}, which is taken");
                check!(now.get(&position) == Some(id), "a send after the crash is not at {position}");
            }
            Err(error) => check!(false, "a send after the crash failed: {:?}", error.error),
        }
    }
    Ok(())
}

/// All that is there. It must have been sent, be intact, and stand in the order of its sender.
async fn read(provider: &Embedded, promised: &Promised) -> Verdict<BTreeMap<Position, MessageId>> {
    let mut all = BTreeMap::new();
    for shard in 0..SHARDS {
        let mut last: BTreeMap<u8, u32> = BTreeMap::new();
        let stored = provider.read(&topic(), ReadFrom::Position(Position { shard, offset: 0 }), usize::MAX).await?;
        for (next, stored) in (0_u64..).zip(stored) {
            let id = stored.id.ok_or_else(|| Failure::new(format!("no id at {}", stored.position)))?;
            check!(promised.sent.contains(&id), "{id} at {} was never sent", stored.position);
            check!(stored.position.offset == next, "{} follows after offset {next} was due", stored.position);
            let (sender, number) = check_payload(id, &stored.payload)?;
            let before = last.insert(sender, number);
            check!(before.is_none_or(|before| before < number), "message {number} of sender {sender} follows {before:?}");
            all.insert(stored.position, id);
        }
    }
    Ok(all)
}
