//! Figures, on demand: `cargo test --release -p trunkline --lib sqlite::tests::speed -- --ignored --nocapture`.

use std::time::Instant;

use super::*;

fn rate(what: &str, n: u64, since: Instant) {
    let seconds = since.elapsed().as_secs_f64();
    println!("{what}: {n} in {seconds:.2} s = {:.0}/s", n as f64 / seconds);
}

/// A data directory on a real disk, if `TRUNKLINE_TEST_DIR` names one.
fn bed() -> Bed {
    let dir = std::env::var_os("TRUNKLINE_TEST_DIR").map_or_else(tempfile::tempdir, tempfile::tempdir_in).unwrap();
    Bed { dir, ..Bed::new() }
}

#[tokio::test]
#[ignore = "takes seconds and shows figures"]
async fn the_lot_at_300_000_dead_letters() {
    let (bed, n, step) = (bed(), 300_000_u64, 1000_u64);
    let store = bed.open();
    let since = Instant::now();
    for from in (0..n).step_by(step as usize) {
        let entries = (from..from + step).map(|n| LotEntry { error: Some(format!("error {}", n % 20)), ..entry(LotState::Dead, n) });
        store.lot_put(entries.collect()).await.unwrap();
    }
    rate("lot_put, batches of 1,000", n, since);
    let since = Instant::now();
    assert_eq!(store.lot_groups(&LotFilter::default()).await.unwrap().len(), 20);
    rate("lot_groups", 1, since);
    let since = Instant::now();
    store.lot_counts(&address("created"), None).await.unwrap();
    rate("lot_counts", 1, since);
    let since = Instant::now();
    for _ in 0..100 {
        let filter = LotFilter { state: Some(LotState::Dead), error: Some("error 7".to_owned()), ..LotFilter::default() };
        assert_eq!(store.lot_list(&filter, 50, 0, true).await.unwrap().len(), 50);
    }
    rate("lot_list of 50 of one error, newest first", 100, since);
    store.job_put(&job("j")).await.unwrap();
    let since = Instant::now();
    let mut revived = 0;
    while revived < n {
        revived += store.lot_revive("j", &LotFilter::default(), None, 1000).await.unwrap().len() as u64;
    }
    rate("lot_revive, steps of 1,000", n, since);
    let address = address("created");
    let since = Instant::now();
    let mut settled = 0;
    while settled < n {
        let claim = LotClaim { address: &address, group: "billing", shards: None, limit: 500, owner: "a", lease: LEASE };
        let claimed = store.lot_claim(claim).await.unwrap();
        settled += claimed.len() as u64;
        store.lot_settle("a", claimed.into_iter().map(|entry| (entry.seq, LotSettle::Done)).collect()).await.unwrap();
    }
    rate("lot_claim and lot_settle of 500", n, since);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes seconds and shows figures"]
async fn idempotency_claims_with_1_000_callers() {
    let bed = bed();
    let store = Arc::new(bed.open());
    let since = Instant::now();
    let callers = (0..1000_u64).map(|caller| {
        let store = store.clone();
        tokio::spawn(async move {
            for n in 0..100 {
                let claim = IdempotencyClaim {
                    key: format!("shop/dev/orders:created/{caller}-{n}"),
                    hash: [1; 32],
                    id: MessageId::now(),
                    owner: "a".to_owned(),
                    lease: LEASE,
                    window: LEASE,
                };
                let (key, id) = (claim.key.clone(), claim.id);
                assert_eq!(store.idempotency_claim(vec![claim]).await.unwrap(), [Claimed::Ours(id)]);
                if n % 2 == 0 {
                    store.idempotency_sent(&[(key, id)]).await.unwrap();
                }
            }
        })
    });
    futures_util::future::join_all(callers).await;
    rate("idempotency_claim (and sent for half of them)", 100_000, since);
    let since = Instant::now();
    for _ in 0..200 {
        store.probe().await.unwrap();
    }
    rate("one write after the other, each with its own fsync", 200, since);
}
