//! Backups: what comes back, and what is refused.

use trunkline::store::transfer::{Counts, backup, restore};

use super::*;

/// A bit of everything, with an entry in hand and a chain.
async fn fill(store: &dyn Store) {
    let doc = Doc { kind: DocKind::Product, path: "shop".to_owned(), body: json!({ "n": 1 }) };
    store.catalog_write(0, vec![DocChange::Put(doc)]).await.unwrap();
    let mut put: Vec<LotEntry> = (0..700).map(|n| entry(LotState::Dead, n)).collect();
    put.push(entry(LotState::Publish, 1_000));
    put.push(entry(LotState::Waiting, 1_001));
    put.extend((0..3).map(|n| LotEntry { chain: Some(7), ..entry(LotState::Waiting, 2_000 + n) }));
    store.lot_put(put).await.unwrap();
    store.lot_discard(&[1, 2, 3]).await.unwrap();
    let claim = IdempotencyClaim {
        key: "k".to_owned(),
        hash: [7; 32],
        id: MessageId::now(),
        owner: "a".to_owned(),
        lease: LEASE,
        window: LEASE * 10,
    };
    store.idempotency_claim(vec![claim.clone()]).await.unwrap();
    store.idempotency_sent(&[("k".to_owned(), claim.id)]).await.unwrap();
    store.dedupe_done("scope", &[claim.id], LEASE * 10).await.unwrap();
    store.job_put(&Job { cursor: 5, ..job("j") }).await.unwrap();
    assert_eq!(store.lease_take("work", "a", LEASE).await.unwrap(), Some(1));
}

async fn claimed(store: &dyn Store, shards: Option<&[u32]>) -> Vec<LotEntry> {
    let address = address("created");
    store.lot_claim(LotClaim { address: &address, group: "billing", shards, limit: 10, owner: "b", lease: LEASE }).await.unwrap()
}

pub async fn a_backup_brings_everything_back(bed: &dyn Bed) {
    let store = bed.open().await;
    fill(&*store).await;
    let before = store.lot_list(&LotFilter::default(), 10_000, 0, false).await.unwrap();
    assert_eq!(claimed(&*store, None).await.len(), 1, "this one is in hand at the time of the backup");
    let key = store.idempotency_get("k").await.unwrap();
    let file = tempfile::tempdir().unwrap();
    let path = file.path().join("backup");
    let counts = backup(&*store, "id", &path).await.unwrap();
    assert_eq!(counts, Counts { docs: 1, entries: 702, keys: 1, handled: 1, jobs: 1 });
    assert!(backup(&*store, "id", &path).await.is_err(), "a backup is never overwritten");

    store.clear().await.unwrap();
    assert_eq!(store.counts().await.unwrap(), Counts::default());
    assert_eq!(restore(&*store, "id", &path, false, &|_| {}).await.unwrap(), counts);
    let after = store.lot_list(&LotFilter::default(), 10_000, 0, false).await.unwrap();
    let same = |entry: &LotEntry| LotEntry { deliveries: 0, ..entry.clone() };
    assert_eq!(after.iter().map(same).collect::<Vec<_>>(), before);
    assert_eq!(store.catalog().await.unwrap().1.len(), 1);
    assert_eq!(store.idempotency_get("k").await.unwrap(), key);
    assert_eq!(store.dedupe_seen("scope", &[key.unwrap().id]).await.unwrap(), [true]);
    assert_eq!(store.job_get("j").await.unwrap().unwrap().cursor, 5);
    // What was in hand is handed out again, and counts as handed over; of the chain only the head.
    assert_eq!(claimed(&*store, None).await.iter().map(|entry| entry.deliveries).collect::<Vec<_>>(), [2]);
    let heads = claimed(&*store, Some(&[0])).await;
    assert_eq!(heads.iter().map(|entry| entry.seq).collect::<Vec<_>>(), [703]);
    // New entries come after all that were restored.
    store.lot_put(vec![entry(LotState::Dead, 9_000)]).await.unwrap();
    let newest = store.lot_list(&LotFilter::default(), 1, 0, true).await.unwrap();
    assert_eq!(newest[0].message.id, entry(LotState::Dead, 9_000).message.id);
}

pub async fn half_a_backup_and_a_full_store_are_refused(bed: &dyn Bed) {
    let store = bed.open().await;
    fill(&*store).await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("backup");
    let counts = backup(&*store, "id", &path).await.unwrap();
    let refused = async |key: &str, path: &std::path::Path, force| {
        let error = restore(&*store, key, path, force, &|_| {}).await.unwrap_err();
        assert_eq!(store.counts().await.unwrap(), counts, "nothing was changed");
        error.detail_str("reason").unwrap().to_owned()
    };
    assert_eq!(refused("id", &path, false).await, "not_empty");
    assert_eq!(refused("other", &path, true).await, "master_key");
    let whole = std::fs::read_to_string(&path).unwrap();
    let half = dir.path().join("half");
    for cut in [whole.len() / 2, whole.len() - 2, 10, 0] {
        std::fs::write(&half, &whole[..whole.floor_char_boundary(cut)]).unwrap();
        assert_eq!(refused("id", &half, true).await, "damaged", "{cut}");
    }
    let lines: Vec<&str> = whole.lines().collect();
    std::fs::write(&half, [&lines[..5], &lines[6..]].concat().join("\n")).unwrap();
    assert_eq!(refused("id", &half, true).await, "damaged", "a line is missing");
    assert_eq!(restore(&*store, "id", &path, true, &|_| {}).await.unwrap(), counts);
}
