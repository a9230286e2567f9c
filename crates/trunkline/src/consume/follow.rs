//! What a consumer consists of over time: an engine on the server that its env leads to, and one on each server that the env
//! is leaving, as the catalogue has it.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::future::{BoxFuture, join_all, select_all};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::catalog::RouteEntry;
use crate::consume::engine::Engine;
use crate::consume::state::State;
use crate::error::Result;
use crate::event::Event;
use crate::inner::Inner;

/// How soon what could not be opened is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// What is in hand on a server that is left has so long to be settled.
const LEAVE: Duration = Duration::from_secs(30);

/// Opens an engine on a side: where the env leads to, or (`true`) where it led to before.
pub(crate) type Open = Box<dyn Fn(Arc<RouteEntry>, bool) -> BoxFuture<'static, Result<Arc<Engine>>> + Send + Sync>;

/// What is followed.
pub(crate) struct What {
    pub(crate) product: Arc<str>,
    pub(crate) env: Arc<str>,
    pub(crate) event: Event,
    /// The group, if the consume named one; else the default one of each side.
    pub(crate) group: Option<Arc<str>>,
    /// A new side is opened only when nothing is left on the old one.
    pub(crate) ordered: bool,
}

struct Side {
    epoch: u64,
    connection: Option<u64>,
    engine: Arc<Engine>,
}

/// See the module.
pub(crate) struct Follow {
    what: What,
    open: Open,
    /// Oldest first.
    sides: Mutex<Vec<Side>>,
    /// One change at a time.
    changing: tokio::sync::Mutex<()>,
    state: watch::Sender<State>,
    paused: AtomicBool,
    /// Settled on sides that are gone.
    settled: AtomicU64,
    end: CancellationToken,
}

impl fmt::Debug for Follow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Follow").field("event", &self.what.event).field("sides", &self.sides.lock().len()).finish_non_exhaustive()
    }
}

/// A side as it should be.
struct Wanted {
    entry: Arc<RouteEntry>,
    is_left: bool,
    /// `None`: a secret in its config cannot be resolved.
    connection: Option<u64>,
}

impl Wanted {
    fn new(inner: &Inner, entry: Arc<RouteEntry>, is_left: bool) -> Self {
        Wanted { connection: inner.connection_of(&entry).ok(), entry, is_left }
    }
}

impl Follow {
    /// Opens what the catalogue says now; follows it from then on.
    pub(crate) async fn start(inner: &Arc<Inner>, what: What, open: Open) -> Result<Arc<Follow>> {
        let follow = Arc::new(Follow {
            what,
            open,
            sides: Mutex::default(),
            changing: tokio::sync::Mutex::default(),
            state: watch::Sender::new(State::Connecting),
            paused: AtomicBool::new(false),
            settled: AtomicU64::new(0),
            end: CancellationToken::new(),
        });
        let catalogue = inner.catalog.watch();
        let wanted = follow.wanted(inner)?;
        // Where the env leads to must be open for the consume to be live; an old server that is away is tried again.
        let (needed, others): (Vec<_>, Vec<_>) =
            if wanted.iter().any(|side| !side.is_left) { wanted.into_iter().partition(|side| !side.is_left) } else { (wanted, Vec::new()) };
        for side in needed {
            follow.add(side).await?;
        }
        let mut whole = true;
        for side in others {
            whole &= follow.add(side).await.is_ok();
        }
        follow.show(whole);
        inner.tasks.spawn(run(Arc::downgrade(&follow), Arc::downgrade(inner), catalogue, follow.end.clone(), inner.end.clone(), whole));
        Ok(follow)
    }

    fn wanted(&self, inner: &Inner) -> Result<Vec<Wanted>> {
        let entry = inner.catalog.route(&self.what.product, &self.what.env, &self.what.event)?;
        let is_through = |side: &RouteEntry| side.through.contains(&**self.what.group.as_ref().unwrap_or(&side.default_group));
        let left = entry.leaving.iter().filter(|side| !is_through(side));
        let mut wanted: Vec<_> = left.map(|side| Wanted::new(inner, side.clone(), true)).collect();
        if self.what.ordered && !wanted.is_empty() {
            // One after the other, as they were left.
            wanted.truncate(1);
        } else {
            wanted.push(Wanted::new(inner, entry, false));
        }
        Ok(wanted)
    }

    async fn add(&self, side: Wanted) -> Result<()> {
        let (epoch, connection) = (side.entry.epoch, side.connection);
        let engine = (self.open)(side.entry, side.is_left).await?;
        engine.pause_by_owner(self.paused.load(Ordering::SeqCst));
        let mut sides = self.sides.lock();
        sides.push(Side { epoch, connection, engine });
        sides.sort_by_key(|side| side.epoch);
        Ok(())
    }

    /// Brings the sides to what the catalogue says; whether all are there.
    async fn adjust(&self, inner: &Inner) -> bool {
        let _one = self.changing.lock().await;
        if self.end.is_cancelled() {
            return true;
        }
        if let Err(error) = inner.vault.refresh(inner.catalog.version()).await {
            tracing::warn!(%error, "the secrets cannot be read");
            return false;
        }
        // Of a topic that is gone, what is there goes on until its owner ends it.
        let Ok(wanted) = self.wanted(inner) else { return true };
        let gone: Vec<_> = self.sides.lock().extract_if(.., |side| !wanted.iter().any(|of| of.entry.epoch == side.epoch)).collect();
        let is_other = |side: &Side, of: &Wanted| side.epoch == of.entry.epoch && side.connection != of.connection;
        let (renewed, wanted) = wanted.into_iter().partition(|of| self.sides.lock().iter().any(|side| is_other(side, of)));
        let mut whole = self.renew(renewed).await;
        let missing = |sides: &[Side], of: &Wanted| !sides.iter().any(|side| side.epoch == of.entry.epoch);
        let new: Vec<_> = wanted.into_iter().filter(|of| missing(&self.sides.lock(), of)).collect();
        let open = async {
            for side in new {
                let address = side.entry.address.clone();
                if let Err(error) = self.add(side).await {
                    tracing::warn!(%error, %address, "a server that the env leads to, or led to, cannot be opened; it is tried again");
                    whole = false;
                }
            }
        };
        let leave = async {
            join_all(gone.iter().map(|side| side.engine.close(LEAVE))).await;
            self.settled.fetch_add(gone.iter().map(|side| side.engine.settled.load(Ordering::Relaxed)).sum(), Ordering::Relaxed);
        };
        if self.what.ordered {
            // What is in hand on the old side is settled before the new one begins.
            leave.await;
            open.await;
        } else {
            tokio::join!(open, leave);
        }
        whole
    }

    /// Opens sides anew whose config or secret changed. The new one first, so that the group is never without a member; where
    /// that fails the old one stays, unless its secret is gone.
    async fn renew(&self, renewed: Vec<Wanted>) -> bool {
        let mut whole = true;
        for side in renewed {
            let (epoch, connection, address) = (side.entry.epoch, side.connection, side.entry.address.clone());
            if let Err(error) = self.add(side).await {
                tracing::warn!(%error, %address, "a connection that changed cannot be opened anew; it is tried again");
                whole = false;
                if connection.is_some() {
                    continue;
                }
            }
            let is_old = |side: &mut Side| side.epoch == epoch && side.connection != connection;
            let gone: Vec<Side> = self.sides.lock().extract_if(.., is_old).collect();
            join_all(gone.iter().map(|side| side.engine.close(LEAVE))).await;
            self.settled.fetch_add(gone.iter().map(|side| side.engine.settled.load(Ordering::Relaxed)).sum(), Ordering::Relaxed);
        }
        whole
    }

    /// Shows the state: the worst of the sides.
    fn show(&self, whole: bool) {
        let states: Vec<State> = self.sides.lock().iter().map(|side| *side.engine.state().borrow()).collect();
        self.state.send_if_modified(|shown| {
            let state = of(&states, whole, *shown);
            std::mem::replace(shown, state) != state
        });
    }

    pub(crate) fn state(&self) -> State {
        let states: Vec<State> = self.sides.lock().iter().map(|side| *side.engine.state().borrow()).collect();
        match *self.state.borrow() {
            shown @ State::Degraded(SWITCHING) => shown,
            shown => of(&states, true, shown),
        }
    }

    pub(crate) fn states(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// The engine of the newest side, if it is not just between two.
    pub(crate) fn newest(&self) -> Option<Arc<Engine>> {
        self.sides.lock().last().map(|side| side.engine.clone())
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.sides.lock().iter().map(|side| side.engine.in_hand()).sum()
    }

    pub(crate) fn settled(&self) -> u64 {
        let now: u64 = self.sides.lock().iter().map(|side| side.engine.settled.load(Ordering::Relaxed)).sum();
        now + self.settled.load(Ordering::Relaxed)
    }

    pub(crate) fn pause(&self, paused: bool) {
        self.paused.store(paused, Ordering::SeqCst);
        self.sides.lock().iter().for_each(|side| side.engine.pause_by_owner(paused));
    }

    pub(crate) async fn close(&self, within: Duration) {
        self.end.cancel();
        let _one = self.changing.lock().await;
        let engines: Vec<_> = self.sides.lock().iter().map(|side| side.engine.clone()).collect();
        join_all(engines.iter().map(|engine| engine.close(within))).await;
        self.show(true);
    }

    /// Stops at once.
    pub(crate) fn abandon(&self) {
        self.end.cancel();
        self.sides.lock().iter().for_each(|side| side.engine.abandon());
        self.show(true);
    }
}

/// The state of a consumer that a side of which cannot be opened.
const SWITCHING: &str = "switching";

fn of(states: &[State], whole: bool, shown: State) -> State {
    let find = |is: fn(&State) -> bool| states.iter().rev().copied().find(is);
    match () {
        // Between two sides, on an ordered topic; or what was left cannot be opened anew.
        () if states.is_empty() => {
            if whole {
                shown
            } else {
                State::Degraded(SWITCHING)
            }
        }
        () if states.iter().all(|state| *state == State::Closed) => State::Closed,
        () if !whole => State::Degraded(SWITCHING),
        () => {
            find(|state| matches!(state, State::Degraded(_))).or_else(|| find(|state| *state == State::Connecting)).unwrap_or(State::Live)
        }
    }
}

async fn run(
    follow: Weak<Follow>,
    inner: Weak<Inner>,
    mut catalogue: watch::Receiver<u64>,
    end: CancellationToken,
    closed: CancellationToken,
    mut whole: bool,
) {
    loop {
        let mut states = match follow.upgrade() {
            Some(follow) => follow.sides.lock().iter().map(|side| side.engine.state()).collect::<Vec<_>>(),
            None => return,
        };
        // What changed between the last look and now is seen here.
        states.iter_mut().for_each(watch::Receiver::mark_unchanged);
        if let Some(follow) = follow.upgrade() {
            follow.show(whole);
        }
        let some_state = async {
            if states.is_empty() {
                std::future::pending::<()>().await;
            }
            let any = select_all(states.iter_mut().map(|state| Box::pin(state.changed()))).await;
            drop(any);
        };
        let moved = tokio::select! {
            () = end.cancelled() => return,
            () = closed.cancelled() => return,
            () = some_state => false,
            changed = catalogue.changed() => {
                if changed.is_err() {
                    return;
                }
                true
            }
            () = tokio::time::sleep(AGAIN), if !whole => true,
        };
        let (Some(follow), Some(inner)) = (follow.upgrade(), inner.upgrade()) else { return };
        if moved && inner.check_open().is_ok() {
            whole = follow.adjust(&inner).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_of_the_sides_is_shown() {
        let live = State::Live;
        assert_eq!(of(&[], true, live), live, "between two sides");
        assert_eq!(of(&[], false, live), State::Degraded(SWITCHING), "the only one is gone, and cannot be opened anew");
        assert_eq!(of(&[live], false, live), State::Degraded(SWITCHING));
        assert_eq!(of(&[live, State::Connecting], true, live), State::Connecting);
        assert_eq!(of(&[State::Closed, State::Closed], false, live), State::Closed);
    }
}
