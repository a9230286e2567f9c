use super::*;
use crate::store::cache::{CacheClaim, CacheKey, CacheStore, VALUES_MOST};

const HOUR: Duration = Duration::from_secs(3_600);

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
    let zero = CacheClaim {
        key: CacheKey { scope: "shop/recent@1".into(), hash: [0; 32] },
        env: "dev".into(),
        event: "quotes:asked".parse().unwrap(),
        id: MessageId::now(),
        owner: "a".into(),
        lease: LEASE,
        expiry: HOUR,
    };
    store.cache_claim(zero).await.unwrap();
    let (newest, total) = store.cache_values("shop/recent@1", HOUR, 1, 0).await.unwrap();
    assert_eq!((total, newest[0].age_ms), (VALUES_MOST as u64, 0));
    let (oldest, _) = store.cache_values("shop/recent@1", HOUR, 10, VALUES_MOST - 1).await.unwrap();
    assert_eq!((oldest.len(), oldest[0].age_ms), (1, VALUES_MOST as u64 - 1));
}
