//! What consumers of one process have in common: those of one group its breaker and the pace of its waits, all of them
//! the bytes they have in hand.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::breaker::{Breaker, Gate};
use crate::consume::engine::Engine;
use crate::consume::state::Cause;

/// At most so many bytes of messages are in hand in one process, over all its consumers.
pub(crate) const IN_HAND: usize = 64 << 20;

/// What the consumers of one group on one topic share in this process.
#[derive(Debug)]
pub(crate) struct GroupShare {
    breaker: Mutex<Breaker>,
    /// Whether the breaker is open, without its lock: every message asks.
    open: AtomicBool,
    next_wait: Mutex<tokio::time::Instant>,
    consumers: Mutex<Vec<Weak<Engine>>>,
    /// One at a time tells a consumer how it is, so that the last to do so told the truth.
    telling: Mutex<()>,
    names: AtomicU64,
}

impl GroupShare {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(GroupShare {
            breaker: Mutex::new(Breaker::new()),
            open: AtomicBool::new(false),
            next_wait: Mutex::new(tokio::time::Instant::now()),
            consumers: Mutex::default(),
            telling: Mutex::default(),
            names: AtomicU64::new(0),
        })
    }

    /// The breaker as one consumer sees it; with `enabled: false` it never opens for that one, and hears nothing of it.
    pub(crate) fn side(self: &Arc<Self>, enabled: bool) -> Side {
        Side { share: self.clone(), name: self.names.fetch_add(1, Ordering::Relaxed), enabled }
    }

    /// From now on the consumer is told what becomes of the breaker.
    pub(crate) fn join(&self, engine: &Arc<Engine>) {
        let mut consumers = self.consumers.lock();
        consumers.retain(|engine| engine.strong_count() > 0);
        consumers.push(Arc::downgrade(engine));
        drop(consumers);
        self.tell(engine);
    }

    fn consumers(&self) -> Vec<Arc<Engine>> {
        self.consumers.lock().iter().filter_map(Weak::upgrade).collect()
    }

    fn tell(&self, engine: &Engine) {
        let _one = self.telling.lock();
        engine.note(Cause::HandlerFailing, engine.options.breaker && self.open.load(Ordering::SeqCst));
    }

    /// The breaker opened or closed: all of the group's consumers stop, or go on.
    pub(crate) fn changed(&self) {
        for engine in self.consumers() {
            self.tell(&engine);
            engine.work.notify_waiters();
            engine.space.notify_one();
        }
    }

    /// A probe ended and the breaker is still open: the next one may come from any of the group's consumers.
    pub(crate) fn probe_over(&self) {
        for engine in self.consumers() {
            engine.work.notify_one();
        }
    }

    /// How long the settles must pause before so many more waits are written. A burst of one second's worth passes at once, and
    /// no more, however many come together.
    pub(crate) fn pace(&self, waits: usize, per_second: f64) -> Duration {
        let mut next = self.next_wait.lock();
        let now = tokio::time::Instant::now();
        let at = (*next).max(now);
        *next = at + Duration::from_secs_f64(waits as f64 / per_second.max(1.0));
        next.duration_since(now).saturating_sub(Duration::from_secs(1))
    }
}

/// One consumer's side of its group's breaker.
#[derive(Debug)]
pub(crate) struct Side {
    share: Arc<GroupShare>,
    name: u64,
    enabled: bool,
}

impl Side {
    /// Whether it is open: failures are not counted.
    pub(crate) fn is_open(&self) -> bool {
        self.enabled && self.share.open.load(Ordering::SeqCst)
    }

    /// Whether a message may start; after [`Gate::Probe`] one must.
    pub(crate) fn gate(&self, now: Instant) -> Gate {
        if self.is_open() { self.share.breaker.lock().gate(now, self.name) } else { Gate::Go }
    }

    /// A handler's success or failure. `true` if the breaker opened or closed by it.
    pub(crate) fn outcome(&self, now: Instant, ok: bool, probe: bool) -> bool {
        if !self.enabled {
            return false;
        }
        let mut breaker = self.share.breaker.lock();
        let changed = breaker.outcome(now, ok, probe);
        if changed {
            self.share.open.store(breaker.is_open(), Ordering::SeqCst);
        }
        changed
    }

    /// This consumer's probe, if one is running, ended without an outcome that counts.
    pub(crate) fn probe_ended(&self) -> bool {
        self.enabled && self.share.breaker.lock().probe_ended(self.name)
    }
}

/// The bytes that the consumers of a process have in hand, and how many they may have.
#[derive(Debug)]
pub(crate) struct Hand {
    bytes: AtomicUsize,
    most: usize,
    /// Somebody waits for room.
    awaited: AtomicBool,
    freed: Notify,
}

impl Hand {
    pub(crate) fn new(most: usize) -> Arc<Self> {
        Arc::new(Hand { bytes: AtomicUsize::new(0), most, awaited: AtomicBool::new(false), freed: Notify::new() })
    }

    pub(crate) fn most(&self) -> usize {
        self.most
    }

    /// Sets aside what there is of so many bytes, so that two consumers that ask at once do not both get them.
    pub(crate) fn ask(self: &Arc<Self>, bytes: usize) -> Asked {
        let mut given = 0;
        let _ = self.bytes.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |held| {
            given = bytes.min(self.most.saturating_sub(held));
            Some(held + given)
        });
        Asked { hand: self.clone(), bytes: given }
    }

    pub(crate) fn add(&self, bytes: usize) {
        self.bytes.fetch_add(bytes, Ordering::SeqCst);
    }

    pub(crate) fn sub(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::SeqCst);
        if self.awaited.load(Ordering::SeqCst) && self.room() > 0 {
            self.awaited.store(false, Ordering::SeqCst);
            self.freed.notify_waiters();
        }
    }

    /// How many more may be taken in hand.
    pub(crate) fn room(&self) -> usize {
        self.most.saturating_sub(self.bytes.load(Ordering::SeqCst))
    }

    /// Waits until there is room.
    pub(crate) async fn freed(&self) {
        loop {
            let freed = self.freed.notified();
            self.awaited.store(true, Ordering::SeqCst);
            if self.room() > 0 {
                return;
            }
            freed.await;
        }
    }
}

/// Bytes that are set aside for what is being received, until it is in hand.
#[derive(Debug)]
pub(crate) struct Asked {
    hand: Arc<Hand>,
    pub(crate) bytes: usize,
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.hand.sub(self.bytes);
    }
}

/// How much a consumer asks for: little while nothing comes, so that many idle ones set little aside.
#[derive(Debug)]
pub(crate) struct Appetite(usize);

impl Appetite {
    pub(crate) const LEAST: usize = 256 << 10;

    pub(crate) fn new() -> Self {
        Appetite(Self::LEAST)
    }

    pub(crate) fn bytes(&self) -> usize {
        self.0
    }

    /// Grows when what it asked for came, and starts anew when it did not.
    pub(crate) fn fed(&mut self, bytes: usize) {
        self.0 = if bytes >= self.0 / 2 { (self.0 * 2).min(IN_HAND) } else { Self::LEAST };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_failures_of_all_consumers_of_a_group_open_one_breaker() {
        let (share, now) = (GroupShare::new(), Instant::now());
        let (a, b, off) = (share.side(true), share.side(true), share.side(false));
        let opened = (0..20).map(|n| if n % 2 == 0 { &a } else { &b }).filter(|side| side.outcome(now, false, false)).count();
        assert_eq!((opened, a.is_open(), b.is_open(), off.is_open()), (1, true, true, false));
        assert!((0..100).all(|_| !off.outcome(now, false, false)), "one without a breaker counts for nobody");
        let later = now + Duration::from_secs(1);
        // One probes for all.
        assert_eq!((b.gate(later), a.gate(later), off.gate(later)), (Gate::Probe, Gate::Wait, Gate::Go));
        // Only who probes can end the probe.
        assert!(!a.probe_ended() && b.probe_ended());
        assert_eq!(a.gate(later), Gate::Probe);
        assert!(a.outcome(later, true, true));
        assert_eq!((a.is_open(), b.is_open()), (false, false));
    }

    #[tokio::test(start_paused = true)]
    async fn the_waits_of_all_consumers_of_a_group_have_one_pace() {
        let share = GroupShare::new();
        assert_eq!(share.pace(250, 500.0), Duration::ZERO);
        assert_eq!(share.pace(250, 500.0), Duration::ZERO, "a burst of a second's worth");
        assert_eq!(share.pace(500, 500.0), Duration::from_secs(1));
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(share.pace(1, 500.0), Duration::ZERO);
    }

    #[test]
    fn what_is_asked_for_is_set_aside() {
        let hand = Hand::new(100);
        let (first, second) = (hand.ask(70), hand.ask(70));
        assert_eq!((first.bytes, second.bytes, hand.room()), (70, 30, 0));
        drop(first);
        assert_eq!(hand.ask(1_000).bytes, 70);
        let mut appetite = Appetite::new();
        appetite.fed(appetite.bytes());
        assert_eq!(appetite.bytes(), Appetite::LEAST * 2);
        appetite.fed(0);
        assert_eq!(appetite.bytes(), Appetite::LEAST);
    }

    #[tokio::test]
    async fn who_waits_for_room_is_told() {
        let hand = Hand::new(100);
        hand.add(150);
        assert_eq!(hand.room(), 0);
        let waiting = tokio::spawn({
            let hand = hand.clone();
            async move { hand.freed().await }
        });
        while !hand.awaited.load(Ordering::SeqCst) {
            tokio::task::yield_now().await;
        }
        hand.sub(50);
        assert_eq!(hand.room(), 0, "still full");
        hand.sub(1);
        tokio::time::timeout(Duration::from_secs(10), waiting).await.expect("told").expect("no panic");
        assert_eq!(hand.room(), 1);
    }
}
