//! Schedules: what is due is fired once, by whoever claimed it.

use trunkline::store::schedule::{ScheduleFilter, ScheduleMessage, ScheduleRecord, ScheduleSettle, ScheduleState};

use super::*;

fn schedule(n: u64) -> ScheduleRecord {
    ScheduleRecord {
        id: MessageId::derived(START + n, &[b"schedule"]),
        address: address("created"),
        state: ScheduleState::Active,
        timing: json!({ "every": "1m" }),
        message: ScheduleMessage {
            key: Some(Bytes::from_static(b"k")),
            headers: Headers::from_iter([("tenant", Bytes::from_static(b"a"))]),
            payload: Bytes::from_static(b"{}"),
            cache: None,
        },
        next_at: Some(START + 60_000),
        retry_at: None,
        firing_at: None,
        fired: 0,
        missed: 0,
        failures: 0,
        error: None,
        last_at: None,
        last_id: None,
        created_at: START + n,
        updated_at: START + n,
    }
}

pub async fn a_due_schedule_is_claimed_by_one(bed: &dyn Bed) {
    let (a, b) = (bed.open().await, bed.open().await);
    for n in 0..50 {
        a.schedule_add(&schedule(n)).await.unwrap();
    }
    assert_eq!(a.schedule_next().await.unwrap(), Some(START + 60_000));
    assert!(a.schedule_claim(100, "a", LEASE).await.unwrap().is_empty(), "nothing is due yet");
    bed.pass(60_000);
    let (of_a, of_b) = tokio::join!(a.schedule_claim(100, "a", LEASE), b.schedule_claim(100, "b", LEASE));
    let claimed = [of_a.unwrap(), of_b.unwrap()].concat();
    assert_eq!(claimed.len(), 50);
    assert!(claimed.iter().all(|(record, taken_over)| record.firing_at == Some(START + 60_000) && !taken_over));
    assert_eq!(a.schedule_next().await.unwrap(), None);
}

pub async fn what_a_dead_owner_was_firing_is_fired_again(bed: &dyn Bed) {
    let store = bed.open().await;
    let one = schedule(1);
    store.schedule_add(&one).await.unwrap();
    assert_eq!(store.schedule_get(one.id).await.unwrap(), Some(one.clone()));
    bed.pass(60_000);
    store.schedule_claim(10, "a", LEASE).await.unwrap();
    assert!(store.schedule_skip(one.id, "a", START + 60_500, 2).await.unwrap());
    bed.pass(30_000);
    let (again, taken_over) = store.schedule_claim(10, "b", LEASE).await.unwrap().remove(0);
    assert_eq!((again.firing_at, again.missed, taken_over), (Some(START + 60_500), 2, true));
    let fired = |next_at| ScheduleSettle::Fired { id: one.id, next_at };
    assert!(!store.schedule_settle(one.id, "a", fired(None)).await.unwrap(), "the claim is no longer a's");
    assert!(store.schedule_settle(one.id, "b", fired(Some(START + 120_000))).await.unwrap());
    let now = store.schedule_get(one.id).await.unwrap().unwrap();
    assert_eq!((now.fired, now.last_at, now.next_at, now.firing_at), (1, Some(START + 60_500), Some(START + 120_000), None));
    bed.pass(30_000);
    store.schedule_claim(10, "b", LEASE).await.unwrap();
    assert!(store.schedule_settle(one.id, "b", fired(None)).await.unwrap());
    assert_eq!(store.schedule_get(one.id).await.unwrap().unwrap().state, ScheduleState::Done);
}

pub async fn a_failed_firing_waits_and_is_shown(bed: &dyn Bed) {
    let store = bed.open().await;
    let one = schedule(1);
    store.schedule_add(&one).await.unwrap();
    bed.pass(60_000);
    store.schedule_claim(10, "a", LEASE).await.unwrap();
    let failed = ScheduleSettle::Failed { error: "CONNECTION_FAILED: no".into(), retry_at: START + 61_000 };
    assert!(store.schedule_settle(one.id, "a", failed).await.unwrap());
    assert!(store.schedule_claim(10, "a", LEASE).await.unwrap().is_empty());
    let filter = ScheduleFilter { product: Some("shop".into()), failing: true, ..Default::default() };
    let (shown, total) = store.schedules(&filter, 10, 0).await.unwrap();
    assert_eq!((shown[0].failures, shown[0].error.as_deref(), total), (1, Some("CONNECTION_FAILED: no"), 1));
    bed.pass(1_000);
    store.schedule_claim(10, "a", LEASE).await.unwrap();
    assert!(store.schedule_settle(one.id, "a", ScheduleSettle::Release).await.unwrap());
    let (again, _) = store.schedule_claim(10, "b", LEASE).await.unwrap().remove(0);
    assert_eq!(again.firing_at, Some(START + 60_000));
}

pub async fn a_change_of_state_ends_the_claim(bed: &dyn Bed) {
    use ScheduleState::{Active, Cancelled, Done, Paused};
    let store = bed.open().await;
    let one = schedule(1);
    store.schedule_add(&one).await.unwrap();
    bed.pass(60_000);
    store.schedule_claim(10, "a", LEASE).await.unwrap();
    assert!(store.schedule_turn(one.id, &[Active], Paused, Some(START + 60_000)).await.unwrap());
    assert!(!store.schedule_settle(one.id, "a", ScheduleSettle::Fired { id: one.id, next_at: None }).await.unwrap());
    assert!(store.schedule_claim(10, "a", LEASE).await.unwrap().is_empty(), "it is paused");
    assert!(store.schedule_turn(one.id, &[Paused], Active, Some(START + 60_000)).await.unwrap());
    assert_eq!(store.schedule_claim(10, "a", LEASE).await.unwrap().len(), 1);
    assert!(store.schedule_turn(one.id, &[Active, Paused], Cancelled, None).await.unwrap());
    assert!(!store.schedule_turn(one.id, &[Done], Active, None).await.unwrap());
    bed.pass(31 * 24 * 3_600_000);
    assert_eq!(store.sweep().await.unwrap(), 1);
    assert_eq!(store.schedule_get(one.id).await.unwrap(), None);
}
