//! The server goes away and comes back while it is being written to.

use std::time::{Duration, Instant};

use trunkline::store::{Claimed, IdempotencyClaim, LotFilter, LotState, Store};
use trunkline::{Code, MessageId};

use crate::bed::Schema;
use crate::stores::{LEASE, entry};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_confirmed_is_there_after_connections_were_cut() {
    let bed = Schema::new().await;
    let store = bed.store(bed.options()).await;
    let mut confirmed = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut n = 0;
    while confirmed.len() < 300 {
        assert!(Instant::now() < deadline, "it never came back");
        if n % 100 == 50 {
            bed.cut("%").await;
        }
        let one = entry(LotState::Dead, n);
        match store.lot_put(vec![one.clone()]).await {
            Ok(()) => confirmed.push(one.message.id),
            Err(error) => assert!(error.code() == Code::StoreFailed && error.retryable(), "{error:?}"),
        }
        n += 1;
    }
    let there = store.lot_count(&LotFilter { ids: confirmed.clone(), ..LotFilter::default() }).await.unwrap();
    assert_eq!(there, confirmed.len() as u64);
    let key = IdempotencyClaim {
        key: "a\0key".to_owned(),
        hash: [1; 32],
        id: MessageId::now(),
        owner: "a".to_owned(),
        lease: LEASE,
        window: LEASE,
    };
    assert_eq!(store.idempotency_claim(vec![key.clone()]).await.unwrap(), [Claimed::Ours(key.id)]);
    bed.end().await;
}
