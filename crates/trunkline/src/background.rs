//! The work behind: what every open process does now and then so that nobody has to.
//!
//! Delayed publishes and schedules that are due, the registry's heartbeats, catalogue changes and revoked sessions by other
//! processes, jobs that a dead process left, and the store's sweep. Work that one process at a time must do stands behind a
//! lease row.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::Weak;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use crate::access::Call;
use crate::consume::engine::Engine;
use crate::consume::state::State;
use crate::error::{Error, Result};
use crate::inner::Inner;
use crate::lot::topics::TopicLot;
use crate::lot::{ERASED, Lot, LotFeed};
use crate::message::{Millis, millis, now_ms};
use crate::policy::Schedule;
use crate::produce::{ProduceOptions, produce};
use crate::route::Route;
use crate::schedules::fire::fire_schedules;
use crate::store::{LotEntry, LotSettle, Member, MemberRole};

/// Changes by other processes are seen within this: a revoked key opens nothing after a second.
const LEARN: Duration = Duration::from_millis(500);
/// How often everything else is looked after.
const LOOK: Duration = Duration::from_secs(1);
/// How often live producers and consumers report.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// How often the store forgets what its time is over for.
const SWEEP: Duration = Duration::from_secs(60);
/// What is in hand when the access key no longer holds has so long to be settled.
const LEAVE: Duration = Duration::from_secs(30);
/// A claimed publish that is not settled within this is claimed again.
const CLAIM: Duration = Duration::from_secs(45);

impl Inner {
    /// Starts the work; it ends with the instance.
    pub(crate) fn start_background(self: &Arc<Self>) {
        let each = |every: Duration, work: fn(Arc<Inner>) -> BoxFuture<'static, Result<()>>| {
            let (weak, end) = (Arc::downgrade(self), self.end.clone());
            self.tasks.spawn(async move {
                loop {
                    tokio::select! {
                        () = tokio::time::sleep(every) => {}
                        () = end.cancelled() => return,
                    }
                    let Some(inner) = weak.upgrade() else { return };
                    if let Err(error) = work(inner).await {
                        tracing::warn!(%error, "work behind failed; it is tried again");
                    }
                }
            });
        };
        self.tasks.spawn(follow_catalog(Arc::downgrade(self), self.end.clone()));
        each(LEARN, |inner| Box::pin(async move { inner.follow_connections().await }));
        each(LOOK, |inner| Box::pin(async move { inner.tend_moves().await }));
        each(LOOK, |inner| Box::pin(async move { inner.sessions.tend().await }));
        each(HEARTBEAT, |inner| Box::pin(async move { inner.heartbeat().await }));
        each(SWEEP, |inner| Box::pin(async move { inner.sweep().await }));
        each(Duration::from_secs(5), |inner| Box::pin(async move { inner.adopt_jobs().await }));
        each(Duration::from_secs(5), |inner| Box::pin(async move { inner.tend_lots().await }));
        self.tasks.spawn(fire_schedules(Arc::downgrade(self), self.end.clone(), self.scheduled.clone()));
        self.tasks.spawn(publish_delayed(Arc::downgrade(self), self.end.clone(), self.delayed.clone()));
    }

    /// Learns what other processes changed: catalogue, secrets, and whether the access key still holds. Without one that does,
    /// the consumers of this process end.
    pub(crate) async fn follow_catalogue(&self) -> Result<()> {
        self.catalog.refresh().await?;
        self.access.refresh().await?;
        self.vault.refresh(self.catalog.version()).await?;
        if !self.access.may(Call::Consume) {
            for engine in self.engines.lock().drain(..).filter_map(|engine| engine.upgrade()) {
                self.tasks.spawn(async move { engine.close(LEAVE).await });
            }
        }
        Ok(())
    }

    /// Brings groups and connections to what was learned, once for each version of the catalogue.
    async fn follow_connections(self: &Arc<Self>) -> Result<()> {
        let version = self.catalog.version();
        if self.followed.load(Ordering::Acquire) != version {
            self.vault.refresh(version).await?;
            self.apply_pauses();
            self.follow_moves().await;
            self.followed.store(version, Ordering::Release);
        }
        Ok(())
    }

    /// Brings the consumers of this process to what the catalogue says of their groups.
    pub(crate) fn apply_pauses(&self) {
        for engine in self.engines.lock().iter().filter_map(Weak::upgrade) {
            engine.pause_by_group(self.is_paused(&engine.filed.address, &engine.group));
        }
    }

    /// Looks after the lots on the brokers: what was set back to waiting goes there, what other hosts buried is indexed here.
    async fn tend_lots(&self) -> Result<()> {
        let mut failed = Ok(());
        for route in self.open_routes() {
            // Of a topic that another process removed there is nothing to look after.
            for lot in self.lots_on_broker(&route, None).unwrap_or_default() {
                let tended = async {
                    lot.forward(&self.process).await?;
                    lot.catch_up().await
                };
                // One broker that is away keeps nobody from the others.
                if let Err(error) = tended.await {
                    failed = Err(error.context("the lot on the broker"));
                }
            }
        }
        failed
    }

    async fn sweep(&self) -> Result<()> {
        if self.store.lease_take("sweep", &self.process, SWEEP * 2).await?.is_some() {
            self.store.sweep().await?;
        }
        Ok(())
    }

    /// Goes on with jobs whose process died.
    async fn adopt_jobs(self: Arc<Self>) -> Result<()> {
        for product in self.catalog.list_products() {
            for job in self.store.jobs(&product.tag).await?.into_iter().filter(|job| job.state == "running") {
                let Some(env) = job.spec["env"].as_str() else { continue };
                let env = crate::trunkline::Env::new(self.clone(), &job.product, env);
                // Returns at once where another process holds the job's lease.
                env.run_reprocess(&job.id).await?;
            }
        }
        Ok(())
    }

    async fn heartbeat(&self) -> Result<()> {
        let members = self.live_members();
        let here: HashSet<String> = members.iter().map(|member| member.id.clone()).collect();
        let gone: Vec<String> = {
            let mut reported = self.reported.lock();
            let gone = reported.difference(&here).cloned().collect();
            *reported = here;
            gone
        };
        if !gone.is_empty() {
            self.store.members_leave(&gone).await?;
        }
        if members.is_empty() { Ok(()) } else { self.store.members_report(&members).await }
    }

    fn member(&self, id: String, role: MemberRole, route_epoch: u64, address: crate::store::Address) -> Member {
        Member {
            id,
            role,
            address,
            group: None,
            host: self.host.clone(),
            pid: std::process::id(),
            sdk: self.sdk.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            state: "live".into(),
            rate: 0.0,
            in_flight: 0,
            route_epoch,
            session: None,
            last_progress_at: None,
            last_seen_at: 0,
        }
    }

    fn live_members(&self) -> Vec<Member> {
        let mut members = Vec::new();
        for route in self.open_routes() {
            let Some((rate, last)) = route.pulse.beat(route.sender.confirmed()) else { continue };
            members.push(Member {
                rate,
                last_progress_at: last,
                in_flight: route.sender.pending() as u64,
                ..self.member(
                    format!("{}/{}", self.process, route.filed.address),
                    MemberRole::Producer,
                    route.epoch,
                    route.filed.address.clone(),
                )
            });
        }
        // What was handed to a server before the env left it may still be on its way there.
        for route in self.left_routes().iter().filter(|route| route.sender.pending() > 0) {
            let (address, epoch) = (route.filed.address.clone(), route.epoch);
            let id = format!("{}/{address}@{epoch}", self.process);
            members.push(Member { in_flight: route.sender.pending() as u64, ..self.member(id, MemberRole::Producer, epoch, address) });
        }
        let mut engines = self.engines.lock();
        engines.retain(|engine| engine.strong_count() > 0);
        let open = |engine: &Arc<Engine>| *engine.state().borrow() != State::Closed;
        for engine in engines.iter().filter_map(Weak::upgrade).filter(open) {
            let (rate, last) = engine.pulse.beat(engine.settled.load(Ordering::Relaxed)).unwrap_or((0.0, None));
            members.push(Member {
                group: Some(engine.group.to_string()),
                state: engine.state().borrow().text(),
                rate,
                last_progress_at: last,
                in_flight: engine.in_hand() as u64,
                session: engine.session.as_deref().cloned(),
                ..self.member(engine.member.to_string(), MemberRole::Consumer, engine.route_epoch, engine.filed.address.clone())
            });
        }
        members
    }

    pub(crate) async fn leave_registry(&self) {
        let ids: Vec<String> = self.reported.lock().drain().collect();
        // Whoever cannot say good-bye ages out.
        let _ = self.store.members_leave(&ids).await;
    }
}

/// Takes over what other processes change in the catalogue: when the store says so, and by a look twice a second in any case.
async fn follow_catalog(inner: Weak<Inner>, end: CancellationToken) {
    loop {
        let Some(store) = inner.upgrade().map(|inner| inner.store.clone()) else { return };
        tokio::select! {
            () = tokio::time::sleep(LEARN) => {}
            () = store.catalog_changed() => {}
            () = end.cancelled() => return,
        }
        let Some(inner) = inner.upgrade() else { return };
        if let Err(error) = inner.follow_catalogue().await {
            tracing::warn!(%error, "the catalogue cannot be read; the known one stays in force");
        }
        // Changes of this process are there without a refresh.
        inner.follow_topics();
    }
}

/// Counts since the last heartbeat.
#[derive(Debug, Default)]
pub(crate) struct Pulse(parking_lot::Mutex<Option<(Instant, u64, Option<u64>)>>);

impl Pulse {
    /// Rate since the last beat and when the count last grew; `None` while nothing was ever counted.
    pub(crate) fn beat(&self, count: u64) -> Option<(f64, Option<u64>)> {
        let mut last = self.0.lock();
        let now = Instant::now();
        let (since, before, progress) = last.unwrap_or((now, 0, None));
        let progress = if count > before { Some(now_ms()) } else { progress };
        let span = now.duration_since(since).as_secs_f64();
        *last = Some((now, count, progress));
        (count > 0).then(|| (if span > 0.0 { (count - before) as f64 / span } else { 0.0 }, progress))
    }
}

/// Produces delayed publishes of the store when they are due, whatever process put them.
async fn publish_delayed(inner: Weak<Inner>, end: CancellationToken, put: Arc<tokio::sync::Notify>) {
    loop {
        let Some(strong) = inner.upgrade() else { return };
        let wait = match strong.publish_due().await {
            Ok(wait) => wait,
            Err(error) => {
                tracing::warn!(%error, "delayed publishes cannot be looked up");
                LOOK
            }
        };
        drop(strong);
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = put.notified() => {}
            () = end.cancelled() => return,
        }
    }
}

impl Inner {
    /// Produces what is due; how long until the next look.
    async fn publish_due(self: &Arc<Self>) -> Result<Duration> {
        let due = self.store.lot_claim_publishes(256, &self.process, CLAIM).await?;
        if due.is_empty() {
            let next = self.store.lot_next_due(None).await?;
            let wait = next.map_or(LOOK, |at| Duration::from_millis(at.saturating_sub(self.store.now()).max(1)));
            return Ok(wait.min(LOOK));
        }
        let settles = futures_util::future::join_all(due.into_iter().map(|entry| self.publish_one(entry))).await;
        self.store.lot_settle(&self.process, settles).await?;
        Ok(Duration::ZERO)
    }

    async fn publish_one(self: &Arc<Self>, entry: LotEntry) -> (u64, LotSettle) {
        if entry.is_erased() {
            return (entry.seq, LotSettle::Bury { reason: ERASED.into(), attempts: entry.attempts, error: None });
        }
        let address = &entry.address;
        let sent = async {
            let route = self.route(&address.product, &address.env, address.event.as_str()).await?;
            publish(&route, &entry).await?;
            // It was a dead letter that was handed over again: the other hosts are told that it is one no longer.
            match route.lot_of("") {
                Some(lot) => lot.gone(std::slice::from_ref(&entry)).await,
                None => Ok(()),
            }
        };
        let settle = match sent.await {
            Ok(()) => LotSettle::Done,
            Err(error) => unpublished(&entry, &error, self.store.now(), rand::random()),
        };
        (entry.seq, settle)
    }
}

/// What becomes of a delayed publish that failed: it is tried again on the schedule that handlers have by default, then it is
/// a dead letter without a group, which a reprocess publishes.
fn unpublished(entry: &LotEntry, error: &Error, now: Millis, roll: f64) -> LotSettle {
    let (attempts, text) = (entry.attempts + 1, Some(error.to_string()));
    tracing::warn!(%error, address = %entry.address, id = %entry.message.id, attempts, "a delayed publish failed");
    match Schedule::default().after(attempts, roll) {
        Some((_, after)) => LotSettle::Wait { due_at: now + millis(after), attempts, error: text },
        None => LotSettle::Bury { reason: "publish_failed".into(), attempts, error: text },
    }
}

/// The same id each time, so that a crash between confirm and settle gives a duplicate that dedupe recognises.
async fn publish(route: &Arc<Route>, entry: &LotEntry) -> Result<()> {
    let options = ProduceOptions {
        key: entry.message.key.clone(),
        headers: entry.message.headers.clone(),
        id: Some(entry.message.id),
        trusted: true,
        admitted: true,
        ..ProduceOptions::default()
    };
    produce(route, entry.message.payload.clone(), options).await.map(drop)
}

/// Produces delayed publishes that wait on the broker, for as long as the route is open.
pub(crate) fn publish_from_topics(
    inner: Weak<Inner>,
    route: Weak<Route>,
    lot: Arc<TopicLot>,
    end: CancellationToken,
) -> BoxFuture<'static, ()> {
    Box::pin(publish_while_open(inner, route, lot, end))
}

async fn publish_while_open(inner: Weak<Inner>, route: Weak<Route>, lot: Arc<TopicLot>, end: CancellationToken) {
    let mut feed: Option<Arc<dyn LotFeed>> = None;
    while !end.is_cancelled() {
        let work = async {
            let feed = match &feed {
                Some(feed) => feed.clone(),
                None => {
                    let Some(member) = inner.upgrade().map(|inner| inner.process.clone()) else { return Ok(false) };
                    feed.insert(lot.feed(member).await?).clone()
                }
            };
            let due = feed.next(64, None, Duration::from_millis(500)).await?;
            let (Some(inner), Some(route)) = (inner.upgrade(), route.upgrade()) else { return Ok(false) };
            let mut settles = Vec::with_capacity(due.len());
            for (handle, entry) in due {
                // To where the env leads now, which may be another server than the one that it waited on.
                let address = &route.filed.address;
                let sent = async { publish(&inner.route(&address.product, &address.env, address.event.as_str()).await?, &entry).await };
                let settle = match sent.await {
                    Ok(()) => LotSettle::Done,
                    Err(error) => unpublished(&entry, &error, route.store.now(), rand::random()),
                };
                settles.push((handle, settle));
            }
            if !settles.is_empty() {
                feed.settle(settles).await?;
            }
            Ok::<_, Error>(true)
        };
        let result = tokio::select! {
            result = work => result,
            () = end.cancelled() => break,
        };
        match result {
            Ok(true) => {}
            Ok(false) => break,
            Err(error) => {
                tracing::warn!(%error, "delayed publishes on the broker cannot be read");
                tokio::select! {
                    () = tokio::time::sleep(LOOK) => {}
                    () = end.cancelled() => break,
                }
            }
        }
    }
    if let Some(feed) = feed {
        feed.close().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;
    use crate::store::{Address, LotMessage, LotState};

    #[test]
    fn a_publish_that_fails_backs_off_and_is_then_a_dead_letter() {
        let event = "orders:created".parse().expect("an event");
        let message = LotMessage {
            id: crate::MessageId::now(),
            key: None,
            headers: crate::Headers::new(),
            payload: bytes::Bytes::new(),
            produced_at: 0,
            position: crate::delivery::Position::default(),
        };
        let mut entry = LotEntry {
            seq: 1,
            state: LotState::Publish,
            address: Address { product: "shop".into(), env: "prd".into(), event },
            group: "".into(),
            chain: None,
            due_at: 0,
            attempts: 0,
            reason: None,
            error: None,
            died_at: None,
            job: None,
            deliveries: 0,
            message,
        };
        let error = Error::new(Code::PublishFailed, "the broker is away");
        let mut waits = Vec::new();
        while let LotSettle::Wait { due_at, attempts, error: text } = unpublished(&entry, &error, 1_000, 0.5) {
            assert!(text.is_some_and(|text| text.contains("the broker is away")));
            waits.push((due_at - 1_000) / 1_000);
            entry.attempts = attempts;
        }
        assert_eq!(waits, [1, 5, 30, 120, 600, 1_800, 7_200, 21_600]);
        let LotSettle::Bury { reason, attempts, .. } = unpublished(&entry, &error, 1_000, 0.5) else { panic!("it is not lost") };
        assert_eq!((reason.as_str(), attempts), ("publish_failed", 9));
    }
}
