//! Real processes on one directory, killed, stopped and gone on: confirmed ⊆ handled, and nobody settles what is another's.
//!
//! `TRUNKLINE_KILLS` says how many are killed (12).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use rustix::process::Signal as Kill;
use tempfile::TempDir;
use trunkline::delivery::{Settle, Settled};
use trunkline::provider::{Provider, Signal};
use trunkline_suite::kill::{AT_ONCE, LEASE, Worker, group, ids, join, open, topic};
use trunkline_suite::ledger::{Account, Entry, Ledger, now, read};

const PATIENCE: Duration = Duration::from_secs(30);

struct Run {
    dir: TempDir,
    workers: Vec<(Worker, &'static str, Duration)>,
    ledgers: Vec<PathBuf>,
    provider: Arc<dyn Provider>,
}

impl Run {
    async fn new() -> Self {
        let dir = TempDir::new().expect("a directory");
        let provider = open(&dir.path().join("log")).expect("the broker");
        provider.ensure(&topic(), &[group()]).await.expect("a topic");
        Run { dir, workers: Vec::new(), ledgers: Vec::new(), provider }
    }

    fn worker(&mut self, what: &'static str, hold: Duration) -> Worker {
        let ledger = self.dir.path().join(format!("{}.ledger", self.ledgers.len()));
        self.ledgers.push(ledger.clone());
        Worker::start(env!("CARGO_BIN_EXE_suite-worker"), what, &self.dir.path().join("log"), ledger, hold)
    }

    fn start(&mut self, what: &'static str, hold: Duration) {
        let worker = self.worker(what, hold);
        self.workers.push((worker, what, hold));
    }

    /// Waits until a worker wrote down more than this. There is no event to wait for: it is another process's file.
    fn wait_for_progress(&mut self, at: usize, beyond: u64) {
        let end = Instant::now() + PATIENCE;
        while self.workers[at].0.progress() <= beyond {
            let (worker, what, _) = &mut self.workers[at];
            assert!(!worker.ended(), "the process that was to {what} ended by itself");
            assert!(Instant::now() < end, "the process that was to {what} did nothing for {PATIENCE:?}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Kills all, handles what is left, and adds everything up.
    async fn settle(mut self) -> Account {
        self.workers.clear();
        let path = self.dir.path().join("last.ledger");
        drain(&self.provider, &path).await;
        self.ledgers.push(path);
        let mut account = Account::default();
        for ledger in &self.ledgers {
            account.add(&read(ledger).unwrap_or_default());
        }
        account
    }
}

/// Handles everything that waits.
async fn drain(provider: &Arc<dyn Provider>, ledger: &Path) {
    let mut ledger = Ledger::open(ledger).expect("a ledger");
    let member = join(&**provider).await.expect("a member");
    let end = Instant::now() + PATIENCE;
    loop {
        for signal in member.next(1024, usize::MAX, Duration::from_millis(100)).await.expect("a subscription that lives") {
            match signal {
                Signal::Assigned { shard, epoch, .. } => ledger.write(&[Entry::Assigned { at: now(), shard, epoch }]).expect("the ledger"),
                Signal::Deliveries { shard, epoch, items, .. } => {
                    for (id, item) in ids(items) {
                        let begun = now();
                        let position = item.position;
                        assert_eq!(member.settle(&[(item.token, Settle::Done)]).await, [Settled::Settled]);
                        let settled = Entry::Settled { begun, id, shard, epoch };
                        ledger.write(&[Entry::Handled { id, position, epoch }, settled]).expect("the ledger");
                    }
                }
                _ => {}
            }
        }
        let depth = provider.depth(&topic(), &group().name).await.expect("a depth");
        if depth.ready + depth.in_flight == 0 {
            return;
        }
        assert!(Instant::now() < end, "{depth:?} is left after {PATIENCE:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_confirmed_is_lost_to_kills() {
    let kills: usize = std::env::var("TRUNKLINE_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(12);
    let mut run = Run::new().await;
    let mut rng = StdRng::seed_from_u64(1);
    for what in ["produce", "produce", "consume", "consume"] {
        run.start(what, Duration::ZERO);
    }
    let (begun, mut consumers) = (Instant::now(), 2);
    for _ in 0..kills {
        let victim = rng.random_range(0..run.workers.len());
        run.wait_for_progress(victim, 0);
        // At any moment of what it does.
        std::thread::sleep(Duration::from_micros(rng.random_range(0..30_000)));
        let (mut worker, what, hold) = run.workers.swap_remove(victim);
        worker.kill();
        consumers += usize::from(what == "consume");
        run.start(what, hold);
    }
    let took = begun.elapsed();
    let account = run.settle().await;
    println!("{kills} kills in {took:?}: {} confirmed, {} repeated", account.confirmed(), account.duplicates());
    assert!(account.confirmed() > kills, "hardly anything was confirmed");
    // Each consumer that died, the last two too, leaves at most what it had in its hands.
    account.check(consumers * AT_ONCE).expect("an account that adds up");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_stopped_settles_nothing_of_others() {
    let mut run = Run::new().await;
    run.start("produce", Duration::ZERO);
    let hold = Duration::from_millis(100);
    run.start("consume", hold);
    run.start("consume", hold);
    let stops = 4;
    for round in 0..stops {
        let (victim, other) = if round % 2 == 0 { (1, 2) } else { (2, 1) };
        run.wait_for_progress(victim, run.workers[victim].0.progress());
        run.workers[victim].0.signal(Kill::STOP);
        std::thread::sleep(LEASE * 2 + LEASE / 2);
        run.wait_for_progress(other, run.workers[other].0.progress());
        run.workers[victim].0.signal(Kill::CONT);
        run.wait_for_progress(victim, run.workers[victim].0.progress());
    }
    let account = run.settle().await;
    println!("{stops} stops: {} confirmed, {} repeated, {} stale", account.confirmed(), account.duplicates(), account.stale());
    assert!(account.stale() > 0, "nobody was stopped with messages in its hands");
    account.check((stops + 2) * AT_ONCE * 2).expect("an account that adds up");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_member_is_counted_and_replaced() {
    let mut run = Run::new().await;
    run.start("produce", Duration::ZERO);
    run.wait_for_progress(0, 500);
    run.workers.clear();
    // Holds what it has for ever: it dies with it.
    run.start("consume", Duration::from_secs(3600));
    let mut held = Vec::new();
    while held.is_empty() {
        run.wait_for_progress(0, 0);
        held = read(&run.ledgers[1]).expect("a ledger");
        held.retain(|entry| matches!(entry, Entry::Handled { .. }));
    }
    run.workers.clear();
    let died = Instant::now();
    let member = join(&*run.provider).await.expect("a member");
    let mut counts = Vec::new();
    while counts.len() < held.len() {
        assert!(died.elapsed() < Duration::from_secs(5), "{} of {} messages came within 5 s of a death", counts.len(), held.len());
        for signal in member.next(1, usize::MAX, Duration::from_millis(100)).await.expect("a subscription that lives") {
            let Signal::Deliveries { items, .. } = signal else { continue };
            for (id, item) in ids(items) {
                if held.iter().any(|entry| matches!(entry, Entry::Handled { id: other, .. } if *other == id)) {
                    counts.push(item.deliveries.count());
                }
                member.settle(&[(item.token, Settle::Done)]).await;
            }
        }
    }
    assert!(counts.iter().all(|count| *count >= 2), "handed out twice, and counted {counts:?}");
}
