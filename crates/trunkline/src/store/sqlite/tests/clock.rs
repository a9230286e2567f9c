//! The store's clock, while somebody sets the wall clock.

use super::*;

const HOUR: u64 = 3_600_000;

/// A wall clock that is set, and an uptime that is not.
struct Machine {
    dir: tempfile::TempDir,
    wall: Arc<AtomicU64>,
    uptime: Arc<AtomicU64>,
}

impl Machine {
    fn new() -> Self {
        Machine { dir: tempfile::tempdir().unwrap(), wall: Arc::new(AtomicU64::new(START)), uptime: Arc::new(AtomicU64::new(50_000)) }
    }

    fn open(&self, boot: u128) -> SqliteStore {
        let (wall, uptime) = (self.wall.clone(), self.uptime.clone());
        let clock = Clock::with_uptime(move || wall.load(Ordering::SeqCst), move || uptime.load(Ordering::SeqCst), boot);
        SqliteStore::open(self.dir.path(), Options { clock, ..Options::default() }).unwrap()
    }

    fn pass(&self, ms: u64) {
        self.wall.fetch_add(ms, Ordering::SeqCst);
        self.uptime.fetch_add(ms, Ordering::SeqCst);
    }

    fn set(&self, wall: u64) {
        self.wall.store(wall, Ordering::SeqCst);
    }
}

fn claim<'a>(address: &'a Address, owner: &'a str) -> LotClaim<'a> {
    LotClaim { address, group: "billing", shards: None, limit: 10, owner, lease: LEASE }
}

#[tokio::test]
async fn a_wall_clock_that_is_set_moves_no_lease_no_wait_and_no_window() {
    for to in [START + HOUR, START - HOUR] {
        let machine = Machine::new();
        let store = machine.open(1);
        let address = address("created");
        let wait = |n, after| LotEntry { due_at: store.now() + after, ..entry(LotState::Waiting, n) };
        store.lot_put(vec![wait(1, 0), wait(2, 60_000)]).await.unwrap();
        assert_eq!(store.lot_claim(claim(&address, "a")).await.unwrap().len(), 1);
        assert_eq!(store.lease_take("job", "a", LEASE).await.unwrap(), Some(1));
        let key = IdempotencyClaim {
            key: "k".into(),
            hash: [0; 32],
            id: MessageId::now(),
            owner: "a".into(),
            lease: LEASE,
            window: Duration::from_secs(600),
        };
        assert_eq!(store.idempotency_claim(vec![key.clone()]).await.unwrap(), [Claimed::Ours(key.id)]);
        store.dedupe_done("scope", &[key.id], Duration::from_secs(600)).await.unwrap();

        machine.set(to);
        machine.pass(1_000);
        // One that comes only now agrees with the one that was there.
        let other = machine.open(1);
        assert_eq!((store.now(), other.now()), (START + 1_000, START + 1_000));
        for store in [&store, &other] {
            assert_eq!(store.lot_claim(claim(&address, "b")).await.unwrap(), [], "a claim that is kept is nobody else's");
            assert_eq!(store.lease_take("job", "b", LEASE).await.unwrap(), None);
            let stolen = IdempotencyClaim { owner: "b".into(), ..key.clone() };
            assert!(matches!(store.idempotency_claim(vec![stolen]).await.unwrap()[..], [Claimed::InProgress { .. }]));
            assert_eq!(store.dedupe_seen("scope", &[key.id]).await.unwrap(), [true]);
        }
        // And all of it ends after its own time, not an hour later.
        machine.pass(30_000);
        assert_eq!(other.lot_claim(claim(&address, "b")).await.unwrap().len(), 1);
        assert_eq!(other.lease_take("job", "b", LEASE).await.unwrap(), Some(2));
        let taken_over = IdempotencyClaim { owner: "b".into(), id: MessageId::now(), ..key.clone() };
        assert_eq!(other.idempotency_claim(vec![taken_over]).await.unwrap(), [Claimed::Ours(key.id)]);
        machine.pass(30_000);
        let due = other.lot_claim(claim(&address, "c")).await.unwrap();
        assert!(due.iter().any(|entry| entry.message.id == wait(2, 0).message.id), "due a minute after it was put");
        // What people read is wall time.
        other.lot_settle("c", vec![(due[0].seq, LotSettle::Bury { reason: "test".into(), attempts: 1, error: None })]).await.unwrap();
        let dead = other.lot_list(&LotFilter { state: Some(LotState::Dead), ..LotFilter::default() }, 1, 0, false).await.unwrap();
        assert_eq!(dead[0].died_at, Some(to + 61_000));
    }
}

#[tokio::test]
async fn a_machine_that_starts_with_a_clock_far_behind_does_not_turn_the_store_back() {
    let machine = Machine::new();
    let store = machine.open(1);
    machine.pass(HOUR);
    store.sweep().await.unwrap();
    store.lot_put(vec![LotEntry { due_at: store.now() + 60_000, ..entry(LotState::Waiting, 1) }]).await.unwrap();
    store.close().await;
    // No battery behind its clock: it is 1970 again.
    machine.set(1_000);
    machine.uptime.store(500, Ordering::SeqCst);
    let store = machine.open(2);
    assert_eq!(store.now(), START + HOUR);
    machine.pass(60_000);
    assert_eq!(store.lot_claim(claim(&address("created"), "a")).await.unwrap().len(), 1);
}
