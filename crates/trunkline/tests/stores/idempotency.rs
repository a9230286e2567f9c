//! Idempotency keys and handled ids.

use super::*;

fn claim(key: &str, hash: u8, owner: &str) -> IdempotencyClaim {
    IdempotencyClaim {
        key: key.to_owned(),
        hash: [hash; 32],
        id: MessageId::now(),
        owner: owner.to_owned(),
        lease: LEASE,
        window: Duration::from_secs(3600),
    }
}

async fn one(store: &dyn Store, claim: IdempotencyClaim) -> Claimed {
    store.idempotency_claim(vec![claim]).await.unwrap().remove(0)
}

pub async fn of_racing_claims_each_key_is_given_once(bed: &dyn Bed) {
    let stores = [bed.open().await, bed.open().await];
    let all = stores.iter().enumerate().flat_map(|(s, store)| {
        (0..1000).map(move |n| async move { (n, one(&**store, claim(&format!("key-{n}"), 1, &format!("owner-{s}"))).await) })
    });
    let mut ours = [0; 1000];
    for (n, claimed) in futures_util::future::join_all(all).await {
        match claimed {
            Claimed::Ours(_) => ours[n] += 1,
            Claimed::InProgress { until } => assert_eq!(until, START + 30_000),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(ours, [1; 1000]);
}

pub async fn the_life_of_a_key(bed: &dyn Bed) {
    let (a, b) = (bed.open().await, bed.open().await);
    let first = claim("k", 1, "a");
    assert_eq!(one(&*a, first.clone()).await, Claimed::Ours(first.id));
    assert_eq!(one(&*b, claim("k", 2, "b")).await, Claimed::Conflict);
    assert_eq!(b.idempotency_get("k").await.unwrap(), Some(IdempotencyState { id: first.id, sent_at: None }));
    bed.pass(30_000);
    assert_eq!(one(&*b, claim("k", 1, "b")).await, Claimed::Ours(first.id), "taken over with the stored id");
    assert_eq!(one(&*a, claim("k", 1, "a")).await, Claimed::InProgress { until: START + 60_000 });
    b.idempotency_sent(&[("k".to_owned(), first.id)]).await.unwrap();
    assert_eq!(one(&*a, claim("k", 1, "a")).await, Claimed::Sent { id: first.id, at: START + 30_000 });
    assert_eq!(one(&*a, claim("k", 2, "a")).await, Claimed::Conflict);
    bed.pass(3_600_000);
    let again = claim("k", 2, "a");
    assert_eq!(one(&*a, again.clone()).await, Claimed::Ours(again.id), "forgotten after the window");
}

pub async fn a_claim_is_given_back_by_its_owner_only(bed: &dyn Bed) {
    let store = bed.open().await;
    let first = claim("k", 1, "a");
    one(&*store, first.clone()).await;
    bed.pass(30_000);
    assert_eq!(one(&*store, claim("k", 1, "b")).await, Claimed::Ours(first.id));
    store.idempotency_abandon("k", first.id, "a").await.unwrap();
    assert!(matches!(one(&*store, claim("k", 1, "c")).await, Claimed::InProgress { .. }), "b still sends it");
    store.idempotency_abandon("k", first.id, "b").await.unwrap();
    assert_eq!(one(&*store, claim("k", 1, "c")).await, Claimed::Ours(first.id), "a may have sent it: same id");
    let fresh = claim("l", 1, "a");
    one(&*store, fresh.clone()).await;
    store.idempotency_abandon("l", fresh.id, "a").await.unwrap();
    assert_eq!(store.idempotency_get("l").await.unwrap(), None);
}

pub async fn a_key_twice_in_one_call_is_given_once(bed: &dyn Bed) {
    let claims = vec![claim("k", 1, "a"), claim("k", 1, "a"), claim("k", 2, "a")];
    let id = claims[0].id;
    let claimed = bed.open().await.idempotency_claim(claims).await.unwrap();
    assert_eq!(claimed, [Claimed::Ours(id), Claimed::InProgress { until: START + 30_000 }, Claimed::Conflict]);
}

pub async fn handled_ids_are_known_for_their_window(bed: &dyn Bed) {
    let (a, b) = (bed.open().await, bed.open().await);
    let ids: Vec<MessageId> = (0..3).map(|_| MessageId::now()).collect();
    assert_eq!(a.dedupe_seen("s", &ids).await.unwrap(), [false; 3]);
    a.dedupe_done("s", &ids[..2], Duration::from_secs(60)).await.unwrap();
    assert_eq!(b.dedupe_seen("s", &ids).await.unwrap(), [true, true, false]);
    assert_eq!(b.dedupe_seen("other", &ids).await.unwrap(), [false; 3]);
    bed.pass(59_000);
    b.dedupe_done("s", &ids[1..2], Duration::from_secs(60)).await.unwrap();
    bed.pass(1_000);
    assert_eq!(a.dedupe_seen("s", &ids).await.unwrap(), [false, true, false]);
    one(&*a, claim("k", 1, "a")).await;
    assert_eq!(a.sweep().await.unwrap(), 1);
    bed.pass(3_600_000);
    assert_eq!(a.sweep().await.unwrap(), 2);
}
