//! Caches: who produces a message, and who gets the first result.

use trunkline::store::cache::{CacheClaim, CacheClaimed, CacheKey};

use super::*;

const HOUR: Duration = Duration::from_secs(3_600);

fn key(n: u64) -> CacheKey {
    let mut hash = [1; 32];
    hash[1..9].copy_from_slice(&n.to_be_bytes());
    CacheKey { scope: "shop/recent@1".into(), hash }
}

fn claim(n: u64, owner: &str) -> CacheClaim {
    CacheClaim {
        key: key(n),
        env: "dev".into(),
        event: "quotes:asked".parse().unwrap(),
        id: MessageId::now(),
        owner: owner.into(),
        lease: LEASE,
        expiry: HOUR,
    }
}

pub async fn the_life_of_a_value(bed: &dyn Bed) {
    let (a, b) = (bed.open().await, bed.open().await);
    let first = claim(1, "a");
    assert_eq!(a.cache_claim(first.clone()).await.unwrap(), CacheClaimed::Ours(first.id));
    assert_eq!(b.cache_claim(claim(1, "b")).await.unwrap(), CacheClaimed::InProgress { until: START + 30_000 });
    bed.pass(30_000);
    assert_eq!(b.cache_claim(claim(1, "b")).await.unwrap(), CacheClaimed::Ours(first.id), "taken over with the stored id");
    a.cache_sent(&key(1), MessageId::now(), "a").await.unwrap();
    assert!(matches!(a.cache_claim(claim(1, "a")).await.unwrap(), CacheClaimed::InProgress { .. }), "the claim is no longer a's");
    b.cache_sent(&key(1), first.id, "b").await.unwrap();
    bed.pass(1_000);
    assert_eq!(a.cache_claim(claim(1, "a")).await.unwrap(), CacheClaimed::Hit { id: first.id });
    let (values, total) = a.cache_values("shop/recent@1", HOUR, 10, 0).await.unwrap();
    assert_eq!((values[0].process_id, values[0].age_ms, values[0].at, total), (first.id, 1_000, START + 30_000, 1));
    let short = CacheClaim { expiry: Duration::from_millis(500), ..claim(1, "a") };
    assert_eq!(a.cache_claim(short.clone()).await.unwrap(), CacheClaimed::Ours(short.id), "too old by the expiry of today");
    bed.pass(3_600_000);
    assert_eq!(a.sweep().await.unwrap(), 1);
}

pub async fn a_claim_is_given_back_by_its_owner_only(bed: &dyn Bed) {
    let store = bed.open().await;
    let first = claim(1, "a");
    store.cache_claim(first.clone()).await.unwrap();
    store.cache_abandon(&key(1), "b").await.unwrap();
    assert!(matches!(store.cache_claim(claim(1, "c")).await.unwrap(), CacheClaimed::InProgress { .. }));
    bed.pass(30_000);
    assert_eq!(store.cache_claim(claim(1, "b")).await.unwrap(), CacheClaimed::Ours(first.id));
    store.cache_abandon(&key(1), "b").await.unwrap();
    assert_eq!(store.cache_claim(claim(1, "c")).await.unwrap(), CacheClaimed::Ours(first.id), "a may have sent it: same id");
    store.cache_clear("shop/recent@1").await.unwrap();
    assert!(matches!(store.cache_claim(claim(1, "d")).await.unwrap(), CacheClaimed::InProgress { .. }), "a claim is no value yet");
}

pub async fn of_racing_claims_one_produces(bed: &dyn Bed) {
    let (a, b) = (bed.open().await, bed.open().await);
    for n in 0..20 {
        let (of_a, of_b) = (claim(n, "a"), claim(n, "b"));
        let (first, second) = tokio::join!(a.cache_claim(of_a.clone()), b.cache_claim(of_b.clone()));
        let claimed = [first.unwrap(), second.unwrap()];
        let until = CacheClaimed::InProgress { until: START + 30_000 };
        let won = [[CacheClaimed::Ours(of_a.id), until], [until, CacheClaimed::Ours(of_b.id)]];
        assert!(won.contains(&claimed), "{claimed:?}");
    }
}
