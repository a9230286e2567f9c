use super::*;
use crate::store::cache::{CacheClaim, CacheClaimed, CacheKey, CacheStore, VALUES_MOST};

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

#[tokio::test]
async fn the_life_of_a_value() {
    let bed = Bed::new();
    let (a, b) = (bed.open(), bed.open());
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

#[tokio::test]
async fn a_claim_is_given_back_by_its_owner_only() {
    let bed = Bed::new();
    let store = bed.open();
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

#[tokio::test]
async fn the_oldest_values_go_first() {
    let bed = Bed::new();
    let store = bed.open();
    let rows = VALUES_MOST as i64 + 5;
    store
        .write(1, move |db| {
            let sql = "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < ?1)
                INSERT INTO cache_value (scope, hash, env, event, id, owner, until, expiry, sent_at, expires_at, taken_over)
                SELECT 'shop/recent@1', CAST(n AS BLOB), 'dev', 'quotes:asked', randomblob(16), '', 0, 1, ?2 + n, ?2 + 999999999, 0 FROM n";
            db.run("fill", sql, rusqlite::params![rows, START as i64])
        })
        .await
        .unwrap();
    bed.pass(rows as u64);
    let zero = CacheClaim { key: CacheKey { hash: [0; 32], ..key(0) }, ..claim(0, "a") };
    store.cache_claim(zero).await.unwrap();
    let (newest, total) = store.cache_values("shop/recent@1", HOUR, 1, 0).await.unwrap();
    assert_eq!((total, newest[0].age_ms), (VALUES_MOST as u64, 0));
    let (oldest, _) = store.cache_values("shop/recent@1", HOUR, 10, VALUES_MOST - 1).await.unwrap();
    assert_eq!((oldest.len(), oldest[0].age_ms), (1, VALUES_MOST as u64 - 1));
}
