//! The catalogue, leases, members, jobs, and the end.

use super::*;

pub async fn the_catalogue_is_written_by_whoever_saw_the_last_version(bed: &dyn Bed) {
    let (a, b) = (bed.open().await, bed.open().await);
    let put = |path: &str, n: i32| DocChange::Put(Doc { kind: DocKind::Topic, path: path.to_owned(), body: json!({ "n": n }) });
    assert_eq!(a.catalog().await.unwrap(), (0, vec![]));
    assert_eq!(a.catalog_write(0, vec![put("shop/orders:created", 1), put("shop/orders:paid", 1)]).await.unwrap(), Some(1));
    assert_eq!(b.catalog_write(0, vec![put("shop/orders:created", 2)]).await.unwrap(), None);
    assert_eq!(b.catalog_version().await.unwrap(), 1);
    let remove = DocChange::Remove(DocKind::Topic, "shop/orders:paid".to_owned());
    assert_eq!(b.catalog_write(1, vec![put("shop/orders:created", 2), remove]).await.unwrap(), Some(2));
    let (version, docs) = a.catalog().await.unwrap();
    assert_eq!((version, docs.len(), &docs[0].body), (2, 1, &json!({ "n": 2 })));
}

pub async fn a_lease_has_one_owner_and_its_epoch_never_comes_again(bed: &dyn Bed) {
    let (a, b) = (bed.open().await, bed.open().await);
    assert_eq!(a.lease_take("work", "a", LEASE).await.unwrap(), Some(1));
    assert_eq!(b.lease_take("work", "b", LEASE).await.unwrap(), None);
    assert_eq!(a.lease_take("work", "a", LEASE).await.unwrap(), Some(1), "renewed");
    bed.pass(30_000);
    assert_eq!(b.lease_take("work", "b", LEASE).await.unwrap(), Some(2), "expired");
    a.lease_release("work", "a").await.unwrap();
    assert_eq!(a.lease_take("work", "a", LEASE).await.unwrap(), None, "what is not ours is not given back");
    b.lease_release("work", "b").await.unwrap();
    assert_eq!(b.lease_take("work", "b", LEASE).await.unwrap(), Some(3));
}

pub async fn members_age_and_leave(bed: &dyn Bed) {
    let store = bed.open().await;
    let member = |id: &str, topic: &str, rate: f64| Member {
        id: id.to_owned(),
        role: MemberRole::Consumer,
        address: address(topic),
        group: Some("billing".to_owned()),
        session: None,
        host: "h".to_owned(),
        pid: 1,
        sdk: "rust".to_owned(),
        version: "0".to_owned(),
        state: "live".to_owned(),
        rate,
        in_flight: 0,
        route_epoch: 1,
        last_progress_at: None,
        last_seen_at: 0,
    };
    store.members_report(&[member("a", "created", 1.0), member("b", "paid", f64::INFINITY)]).await.unwrap();
    bed.pass(10_000);
    store.members_report(&[member("b", "paid", 2.0)]).await.unwrap();
    let ids = |members: Vec<Member>| members.into_iter().map(|m| (m.id, m.last_seen_at - START)).collect::<Vec<_>>();
    assert_eq!(ids(store.members(None, Duration::from_secs(60)).await.unwrap()), [("a".to_owned(), 0), ("b".to_owned(), 10_000)]);
    assert_eq!(ids(store.members(None, Duration::from_secs(5)).await.unwrap()), [("b".to_owned(), 10_000)]);
    assert_eq!(ids(store.members(Some(&address("created")), Duration::MAX).await.unwrap()), [("a".to_owned(), 0)]);
    store.members_leave(&["a".to_owned()]).await.unwrap();
    bed.pass(2 * 24 * 3600 * 1000);
    assert_eq!(store.sweep().await.unwrap(), 1);
    assert!(store.members(None, Duration::MAX).await.unwrap().is_empty());
}

pub async fn a_job_put_with_an_old_ledger_keeps_the_newer_one(bed: &dyn Bed) {
    let store = bed.open().await;
    assert_eq!(store.job_get("j").await.unwrap(), None);
    store.job_put(&Job { cursor: 5, done: 5, results: vec![json!({ "seq": 5 })], ..job("j") }).await.unwrap();
    store.job_put(&Job { state: "cancelled".to_owned(), ..job("j") }).await.unwrap();
    let read = store.job_get("j").await.unwrap().unwrap();
    assert_eq!((read.state.as_str(), read.cursor, read.done, read.results.len()), ("cancelled", 5, 5, 1));
    store.job_put(&Job { created_at: START + 1, ..job("k") }).await.unwrap();
    let ids: Vec<String> = store.jobs("shop").await.unwrap().into_iter().map(|job| job.id).collect();
    assert_eq!(ids, ["k", "j"]);
    bed.pass(31 * 24 * 3600 * 1000);
    assert_eq!(store.sweep().await.unwrap(), 1, "what still runs stays");
}

pub async fn a_closed_store_says_so_and_finishes_what_it_was_given(bed: &dyn Bed) {
    let store = bed.open().await;
    let put = store.lot_put(vec![entry(LotState::Dead, 1)]);
    let (put, ()) = tokio::join!(put, store.close());
    put.unwrap();
    store.close().await;
    assert_eq!(store.probe().await.unwrap_err().code(), Code::Closed);
    assert_eq!(store.catalog_version().await.unwrap_err().code(), Code::Closed);
    assert_eq!(store.lot_put(vec![entry(LotState::Dead, 2)]).await.unwrap_err().code(), Code::Closed);
    assert_eq!(bed.open().await.lot_count(&LotFilter::default()).await.unwrap(), 1);
}
