//! The lot: put, claimed, settled, found, edited and revived.

use std::collections::BTreeSet;

use super::*;

fn waiting(range: std::ops::Range<u64>) -> Vec<LotEntry> {
    range.map(|n| entry(LotState::Waiting, n)).collect()
}

fn chained(n: u64, chain: u64, shard: u32, due_at: Millis) -> LotEntry {
    let mut entry = LotEntry { chain: Some(chain), due_at, ..entry(LotState::Waiting, n) };
    entry.message.position.shard = shard;
    entry
}

async fn claim(store: &dyn Store, owner: &str, shards: Option<&[u32]>, limit: usize) -> Vec<u64> {
    let address = address("created");
    let claim = LotClaim { address: &address, group: "billing", shards, limit, owner, lease: LEASE };
    store.lot_claim(claim).await.unwrap().into_iter().map(|entry| entry.seq).collect()
}

fn bury() -> LotSettle {
    LotSettle::Bury { reason: "buried".to_owned(), attempts: 4, error: Some("\n  bad input \nmore".to_owned()) }
}

async fn seqs(store: &dyn Store, filter: &LotFilter) -> Vec<u64> {
    store.lot_list(filter, usize::MAX, 0, false).await.unwrap().into_iter().map(|entry| entry.seq).collect()
}

fn dead() -> LotFilter {
    LotFilter { state: Some(LotState::Dead), ..LotFilter::default() }
}

pub async fn entries_come_back_as_they_were_put_and_only_once(bed: &dyn Bed) {
    let store = bed.open().await;
    let mut put = vec![entry(LotState::Waiting, 1), entry(LotState::Dead, 2), entry(LotState::Publish, 3), chained(4, u64::MAX, 7, START)];
    put[1].message.key = None;
    put[1].died_at = Some(START - 1);
    store.lot_put(put.clone()).await.unwrap();
    let mut again = put.clone();
    again[0].attempts = 99;
    again[2].address = address("paid");
    store.lot_put(again).await.unwrap();
    for (at, entry) in put.iter_mut().enumerate() {
        entry.seq = at as u64 + 1;
    }
    assert_eq!(store.lot_list(&LotFilter::default(), 10, 0, false).await.unwrap(), put);
    // The same message in another group is another delivery.
    store.lot_put(vec![LotEntry { group: "audit".into(), ..put[0].clone() }]).await.unwrap();
    assert_eq!(store.lot_count(&LotFilter::default()).await.unwrap(), 5);
}

pub async fn claims_of_two_stores_never_overlap(bed: &dyn Bed) {
    let stores = [bed.open().await, bed.open().await];
    stores[0].lot_put(waiting(0..500)).await.unwrap();
    let mut seen = BTreeSet::new();
    let claims = (0..40).map(|n| claim(&*stores[n % 2], if n % 2 == 0 { "a" } else { "b" }, None, 20));
    for claimed in futures_util::future::join_all(claims).await {
        assert!(claimed.into_iter().all(|seq| seen.insert(seq)));
    }
    assert_eq!(seen.len(), 500);
    // Renewed claims hold, the others come free.
    let kept = stores[0].lot_extend(&[1, 999], "a", Duration::from_secs(60)).await.unwrap();
    let kept_b = stores[1].lot_extend(&[1], "b", Duration::from_secs(60)).await.unwrap();
    assert!((kept[0] ^ kept_b[0]) && !kept[1]);
    bed.pass(30_000);
    assert_eq!(claim(&*stores[0], "c", None, 1000).await.len(), 499);
    assert_eq!(stores[0].lot_settle("b", vec![(2, LotSettle::Done)]).await.unwrap(), [false], "the claim was lost");
    assert_eq!(stores[0].lot_settle("c", vec![(2, LotSettle::Done)]).await.unwrap(), [true]);
    assert_eq!(stores[0].lot_settle("c", vec![(2, LotSettle::Done)]).await.unwrap(), [false]);
}

pub async fn settling_waits_buries_and_gives_back(bed: &dyn Bed) {
    let store = bed.open().await;
    store.lot_put(waiting(0..4)).await.unwrap();
    assert_eq!(claim(&*store, "a", None, 10).await, [1, 2, 3, 4]);
    assert_eq!(store.lot_next_due(Some((&address("created"), "billing"))).await.unwrap(), Some(START + 30_000), "when a claim would end");
    let wait = LotSettle::Wait { due_at: START + 1000, attempts: 4, error: Some("é".repeat(4096)) };
    let items = vec![(1, LotSettle::Done), (2, wait), (3, bury()), (4, LotSettle::Release)];
    assert_eq!(store.lot_settle("a", items).await.unwrap(), [true; 4]);
    assert_eq!(claim(&*store, "a", None, 10).await, [4]);
    let counts = store.lot_counts(&address("created"), Some("billing")).await.unwrap();
    assert_eq!(counts, LotCounts { waiting: 2, dead: 1, publish: 0, failing: 0, next_due: Some(START + 1000) });
    let listed = store.lot_list(&LotFilter::default(), 10, 0, false).await.unwrap();
    assert_eq!((listed[0].attempts, listed[0].error.as_ref().map(String::len)), (4, Some(4096)));
    assert_eq!((listed[1].state, listed[1].died_at, listed[1].reason.as_deref()), (LotState::Dead, Some(START), Some("buried")));
    let bad = LotFilter { error: Some("bad input".to_owned()), ..dead() };
    assert_eq!(seqs(&*store, &bad).await, [3]);
    bed.pass(1000);
    assert_eq!(claim(&*store, "a", None, 10).await, [2]);
}

pub async fn only_the_head_of_a_chain_is_handed_out(bed: &dyn Bed) {
    let (a, b) = (bed.open().await, bed.open().await);
    a.lot_put(vec![
        chained(1, 10, 0, START + 5000), // holds 2 and 3 back
        chained(2, 10, 0, START),
        chained(3, 10, 0, START),
        chained(4, 11, 0, START),
        chained(5, 12, 1, START),
        chained(6, 11, 0, START),
    ])
    .await
    .unwrap();
    assert!(claim(&*a, "a", None, 10).await.is_empty(), "chained entries go to the owner of their shard");
    assert_eq!(claim(&*a, "a", Some(&[0]), 10).await, [4]);
    assert!(claim(&*b, "b", Some(&[0]), 10).await.is_empty(), "one at a time");
    assert_eq!(claim(&*b, "b", Some(&[1, 2]), 10).await, [5]);
    let mut chains = a.lot_chains(&address("created"), "billing", 0).await.unwrap();
    chains.sort_unstable();
    assert_eq!(chains.iter().map(|(chain, n, _)| (*chain, *n)).collect::<Vec<_>>(), [(10, 3), (11, 2)]);
    assert!(chains.iter().all(|(_, n, bytes)| *bytes > n * 10));

    a.lot_settle("a", vec![(4, LotSettle::Wait { due_at: START + 9000, attempts: 1, error: None })]).await.unwrap();
    assert!(claim(&*a, "a", Some(&[0]), 10).await.is_empty(), "4 waits, so 6 waits");
    bed.pass(5000);
    assert_eq!(claim(&*a, "a", Some(&[0]), 10).await, [1]);
    a.lot_settle("a", vec![(1, bury())]).await.unwrap();
    assert_eq!(claim(&*a, "a", Some(&[0]), 10).await, [2], "after a burial the key goes on");
    a.lot_settle("a", vec![(2, LotSettle::Done)]).await.unwrap();
    bed.pass(30_000);
    assert_eq!(claim(&*b, "c", Some(&[0, 1]), 10).await, [3, 4, 5], "also those whose claim ran out");
}

pub async fn a_revived_head_waits_for_the_one_in_hand(bed: &dyn Bed) {
    let store = bed.open().await;
    store.lot_put((1..=3).map(|n| chained(n, 10, 0, START)).collect()).await.unwrap();
    assert_eq!(claim(&*store, "a", Some(&[0]), 10).await, [1]);
    store.lot_settle("a", vec![(1, bury())]).await.unwrap();
    assert_eq!(claim(&*store, "a", Some(&[0]), 10).await, [2]);
    store.job_put(&job("j")).await.unwrap();
    assert_eq!(store.lot_revive("j", &dead(), None, 10).await.unwrap().len(), 1);
    assert!(claim(&*store, "b", Some(&[0]), 10).await.is_empty());
    store.lot_settle("a", vec![(2, LotSettle::Done)]).await.unwrap();
    assert_eq!(claim(&*store, "b", Some(&[0]), 10).await, [1]);
    store.lot_settle("b", vec![(1, LotSettle::Done)]).await.unwrap();
    assert_eq!(claim(&*store, "b", Some(&[0]), 10).await, [3]);
}

pub async fn delayed_publishes_are_claimed_by_time_over_all_topics(bed: &dyn Bed) {
    let (a, b) = (bed.open().await, bed.open().await);
    let put: Vec<LotEntry> = (0..4_u64)
        .map(|n| LotEntry {
            due_at: START + (3 - n) * 10,
            address: address(if n % 2 == 0 { "x" } else { "y" }),
            ..entry(LotState::Publish, n)
        })
        .collect();
    a.lot_put(put).await.unwrap();
    assert_eq!(a.lot_next_due(None).await.unwrap(), Some(START));
    bed.pass(20);
    let claimed = a.lot_claim_publishes(2, "a", LEASE).await.unwrap();
    assert_eq!(claimed.iter().map(|entry| entry.seq).collect::<Vec<_>>(), [4, 3]);
    assert_eq!(b.lot_claim_publishes(9, "b", LEASE).await.unwrap().len(), 1);
    assert_eq!(a.lot_counts(&address("x"), None).await.unwrap().publish, 2);
    a.lot_settle("a", vec![(4, bury())]).await.unwrap();
    a.job_put(&job("j")).await.unwrap();
    let revived = a.lot_revive("j", &dead(), None, 10).await.unwrap();
    assert_eq!(revived[0].state, LotState::Publish, "what was to be published is published");
    assert_eq!(b.lot_claim_publishes(9, "b", LEASE).await.unwrap().len(), 1);
}

pub async fn filters_find_what_they_say_however_many_topics_there_are(bed: &dyn Bed) {
    let store = bed.open().await;
    let mut all = Vec::new();
    for n in 0..300_u64 {
        let state = [LotState::Dead, LotState::Dead, LotState::Waiting][n as usize % 3];
        let mut entry = LotEntry { address: address(&format!("t{}", n % 100)), group: format!("g{}", n % 2).into(), ..entry(state, n) };
        entry.died_at = (state == LotState::Dead).then_some(START + n);
        entry.due_at = START + n;
        entry.error = Some(format!("error {}", n % 7));
        all.push(entry);
    }
    store.lot_put(all.clone()).await.unwrap();
    for (at, entry) in all.iter_mut().enumerate() {
        entry.seq = at as u64 + 1;
    }
    let filters = [
        LotFilter::default(),
        dead(),
        LotFilter { topic: Some("t7".to_owned()), ..LotFilter::default() },
        LotFilter { topic: Some("t7".to_owned()), group: Some("g0".to_owned()), ..dead() },
        LotFilter { product: Some("none".to_owned()), ..LotFilter::default() },
        LotFilter { env: Some("dev".to_owned()), broker: Some("orders".to_owned()), error: Some("error 3".to_owned()), ..dead() },
        LotFilter { topic: Some("t7".to_owned()), error: Some("error 3".to_owned()), ..dead() },
        LotFilter { topic: Some("t9".to_owned()), error: Some("attempts_exhausted".to_owned()), ..LotFilter::default() },
        LotFilter { error: Some("attempts_exhausted".to_owned()), ..dead() },
        LotFilter { from: Some(START + 10), to: Some(START + 20), ..LotFilter::default() },
        LotFilter { after: Some(290), ..dead() },
        LotFilter { ids: all[5..9].iter().map(|entry| entry.message.id).collect(), ..LotFilter::default() },
        LotFilter { ids: all[5..9].iter().map(|entry| entry.message.id).collect(), topic: Some("t7".to_owned()), ..dead() },
    ];
    for filter in &filters {
        let at = |entry: &LotEntry| if entry.state == LotState::Dead { entry.died_at.unwrap() } else { entry.due_at };
        let matches = |entry: &&LotEntry| {
            let is = |wanted: &Option<String>, found: &str| wanted.as_deref().is_none_or(|wanted| wanted == found);
            is(&filter.product, &entry.address.product)
                && is(&filter.env, &entry.address.env)
                && is(&filter.broker, entry.address.event.broker())
                && is(&filter.topic, entry.address.event.topic())
                && is(&filter.group, &entry.group)
                && filter.state.is_none_or(|state| state == entry.state)
                && (filter.ids.is_empty() || filter.ids.contains(&entry.message.id))
                && filter.error.as_ref().is_none_or(|error| entry.error.as_ref() == Some(error) || entry.reason.as_ref() == Some(error))
                && filter.from.is_none_or(|from| at(entry) >= from)
                && filter.to.is_none_or(|to| at(entry) < to)
                && filter.after.is_none_or(|after| entry.seq > after)
        };
        let wanted: Vec<LotEntry> = all.iter().filter(matches).cloned().collect();
        assert_eq!(store.lot_list(filter, 1000, 0, false).await.unwrap(), wanted, "{filter:?}");
        assert_eq!(store.lot_count(filter).await.unwrap(), wanted.len() as u64, "{filter:?}");
        let page: Vec<u64> = store.lot_list(filter, 5, 2, true).await.unwrap().iter().map(|entry| entry.seq).collect();
        assert_eq!(page, wanted.iter().rev().skip(2).take(5).map(|entry| entry.seq).collect::<Vec<_>>(), "{filter:?}");
        let grouped: u64 = store.lot_groups(filter).await.unwrap().iter().map(|group| group.count).sum();
        assert_eq!(grouped, wanted.iter().filter(|entry| entry.state == LotState::Dead).count() as u64, "{filter:?}");
    }
}

pub async fn the_dead_are_grouped_by_the_first_line_of_their_error(bed: &dyn Bed) {
    let store = bed.open().await;
    let mut all: Vec<LotEntry> = (0..5).map(|n| LotEntry { died_at: Some(START + n), ..entry(LotState::Dead, n) }).collect();
    all.push(LotEntry { error: None, reason: Some("expired".to_owned()), ..entry(LotState::Dead, 9) });
    // The same topic in another env adds to the same line.
    all.push(LotEntry {
        address: Address { env: "prd".into(), ..address("created") },
        died_at: Some(START + 7),
        ..entry(LotState::Dead, 0)
    });
    store.lot_put(all).await.unwrap();
    let groups = store.lot_groups(&LotFilter::default()).await.unwrap();
    let lines: Vec<_> =
        groups.iter().map(|g| (g.error.as_str(), g.reason.as_str(), g.count, g.first_at - START, g.last_at - START)).collect();
    assert_eq!(
        lines,
        [
            ("no connection 0", "attempts_exhausted", 3, 0, 7),
            ("no connection 1", "attempts_exhausted", 2, 1, 4),
            ("expired", "expired", 1, 0, 0),
            ("no connection 2", "attempts_exhausted", 1, 2, 2)
        ]
    );
    assert!(store.lot_groups(&LotFilter { state: Some(LotState::Waiting), ..LotFilter::default() }).await.unwrap().is_empty());
}

pub async fn dead_letters_are_edited_and_discarded_others_are_not(bed: &dyn Bed) {
    let store = bed.open().await;
    store.lot_put(vec![entry(LotState::Dead, 1), entry(LotState::Waiting, 2)]).await.unwrap();
    let edit = LotEdit { payload: Some(Bytes::from_static(b"new")), headers: Some(Headers::new()) };
    assert!(store.lot_edit(1, edit.clone()).await.unwrap());
    assert!(!store.lot_edit(2, edit.clone()).await.unwrap() && !store.lot_edit(3, edit).await.unwrap());
    let listed = store.lot_list(&dead(), 1, 0, false).await.unwrap();
    assert_eq!((&listed[0].message.payload[..], listed[0].message.headers.len()), (&b"new"[..], 0));
    assert_eq!(store.lot_discard(&[1, 1, 2, 3]).await.unwrap(), 1);
    assert_eq!(seqs(&*store, &LotFilter::default()).await, [2]);
}

pub async fn a_revive_that_is_interrupted_goes_on_where_it_stopped(bed: &dyn Bed) {
    let store = bed.open().await;
    store.lot_put((0..1000).map(|n| entry(LotState::Dead, n)).collect()).await.unwrap();
    assert_eq!(store.lot_revive("j", &dead(), None, 10).await.unwrap_err().code(), Code::JobNotFound);
    store.job_put(&job("j")).await.unwrap();
    let filter = LotFilter { error: Some("no connection 1".to_owned()), ..LotFilter::default() };
    let edit = LotEdit { payload: Some(Bytes::from_static(b"fixed")), headers: None };
    let mut revived = BTreeSet::new();
    let mut store = store;
    for round in 0.. {
        let moved = store.lot_revive("j", &filter, Some(&edit), 50).await.unwrap();
        if moved.is_empty() {
            break;
        }
        for entry in moved {
            assert!(revived.insert(entry.seq), "each once");
            assert_eq!((entry.state, entry.attempts, entry.due_at, entry.job.as_deref()), (LotState::Waiting, 0, START, Some("j")));
            assert_eq!(&entry.message.payload[..], b"fixed");
        }
        // One that dies again at once is not taken a second time by the same job.
        let again = claim(&*store, "a", None, 1).await;
        let settle = LotSettle::Bury { reason: "buried".to_owned(), attempts: 1, error: Some("no connection 1".to_owned()) };
        store.lot_settle("a", vec![(again[0], settle)]).await.unwrap();
        if round == 2 {
            store.close().await;
            store = bed.open().await;
        }
    }
    let wanted: BTreeSet<u64> = (0..1000).filter(|n| n % 3 == 1).map(|n| n + 1).collect();
    assert_eq!(revived, wanted);
    let job = store.job_get("j").await.unwrap().unwrap();
    assert_eq!((job.done, job.cursor, job.results.len()), (333, 998, 333));
    assert_eq!(store.lot_count(&LotFilter { state: Some(LotState::Waiting), ..LotFilter::default() }).await.unwrap(), 333 - 7);
}

pub async fn claims_that_end_without_an_outcome_are_counted(bed: &dyn Bed) {
    let store = bed.open().await;
    store.lot_put(waiting(0..3)).await.unwrap();
    let address = address("created");
    let claimed = async |owner: &str| {
        let claim = LotClaim { address: &address, group: "billing", shards: None, limit: 10, owner, lease: LEASE };
        let mut out: Vec<_> = store.lot_claim(claim).await.unwrap().iter().map(|entry| (entry.seq, entry.deliveries)).collect();
        out.sort_unstable();
        out
    };
    assert_eq!(claimed("a").await, [(1, 1), (2, 1), (3, 1)]);
    // What is given back was not handled, what waits again had an outcome: neither counts.
    let wait = LotSettle::Wait { due_at: START, attempts: 4, error: None };
    store.lot_settle("a", vec![(2, LotSettle::Release), (3, wait.clone())]).await.unwrap();
    bed.pass(30_000);
    assert_eq!(claimed("b").await, [(1, 2), (2, 1), (3, 1)]);
    bed.pass(30_000);
    // The first one saw two of its owners die, so it goes alone among its like; the others saw one.
    assert_eq!(claimed("c").await, [(1, 3), (2, 2), (3, 2)]);
    bed.pass(30_000);
    // Now all three are suspects: one at a time goes out, whoever asks.
    let first = claimed("d").await;
    assert_eq!(first.len(), 1);
    assert_eq!(claimed("e").await, []);
    store.lot_settle("d", vec![(first[0].0, LotSettle::Done)]).await.unwrap();
    let second = claimed("e").await;
    assert_eq!(second.len(), 1);
    // It dies: only its own count rises.
    bed.pass(30_000);
    let third = claimed("f").await;
    assert!(third.len() == 1 && third[0].1 == 3, "{third:?}");
    store.lot_settle("f", vec![(third[0].0, wait)]).await.unwrap();
    // With an outcome it is a suspect no longer.
    let rest = claimed("g").await;
    assert!(rest.contains(&(third[0].0, 1)) && rest.contains(&(second[0].0, 4)), "{rest:?}");
}

pub async fn hand_overs_of_a_lot_on_the_broker_are_counted(bed: &dyn Bed) {
    let store = bed.open().await;
    let (address, ids): (_, Vec<MessageId>) = (address("created"), (0..3).map(|n| entry(LotState::Waiting, n).message.id).collect());
    let start = async |ids: &[MessageId], suspect| store.lot_start(&address, "billing", ids, suspect).await.unwrap();
    assert_eq!(start(&ids, true).await, [Some(1), Some(1), Some(1)]);
    store.lot_end(&address, "billing", &[(ids[0], true), (ids[1], false)]).await.unwrap();
    assert_eq!(start(&ids, true).await, [Some(1), Some(1), Some(2)]);
    assert_eq!(start(&ids, true).await, [Some(2), Some(2), Some(3)]);
    // All are suspects now: one goes, the others are not counted.
    assert_eq!(start(&ids, true).await, [Some(3), None, None]);
    assert_eq!(start(&ids, false).await, [None, None, None]);
    assert_eq!(start(&ids[1..], true).await, [Some(3), None]);
    // Another group counts for itself, and what nobody came back to is forgotten.
    assert_eq!(store.lot_start(&address, "audit", &ids, true).await.unwrap(), [Some(1), Some(1), Some(1)]);
    bed.pass(8 * 24 * 3_600_000);
    assert_eq!(start(&ids, true).await, [Some(1), Some(1), Some(1)]);
    assert!(store.sweep().await.unwrap() >= 3);
}

pub async fn the_index_follows_the_dead_topic(bed: &dyn Bed) {
    let store = bed.open().await;
    let address = address("created");
    let died = |n: u64, at: u64| LotEntry { died_at: Some(START + at), ..entry(LotState::Dead, n) };
    let gone = |n: u64, at: u64| LotRecord::Gone { id: entry(LotState::Dead, n).message.id, died_at: START + at };
    let index = async |from, to, records| store.lot_index(&address, "billing", from, to, records).await.unwrap();
    assert_eq!(store.lot_indexed(&address, "billing").await.unwrap(), 0);
    assert!(index(0, 2, vec![LotRecord::Dead(Box::new(died(1, 10))), LotRecord::Dead(Box::new(died(2, 10)))]).await);
    // Another process was faster: nothing is done twice.
    assert!(!index(0, 2, vec![gone(1, 10)]).await);
    assert_eq!((seqs(&*store, &dead()).await, store.lot_indexed(&address, "billing").await.unwrap()), (vec![1, 2], 2));
    // An edit changes the letter, and the word that an older death is over does not touch it.
    let mut edited = died(1, 20);
    edited.message.payload = "edited".into();
    assert!(index(2, 4, vec![LotRecord::Dead(Box::new(edited)), gone(1, 10)]).await);
    let found = store.lot_list(&dead(), 10, 0, false).await.unwrap();
    assert_eq!((found.len(), &found[0].message.payload[..], found[0].died_at), (2, &b"edited"[..], Some(START + 20)));
    // What is on its way back to its group is no letter of the same death any more, but one of a new death.
    store.job_put(&job("j")).await.unwrap();
    store.lot_revive("j", &dead(), None, 10).await.unwrap();
    assert!(index(4, 5, vec![LotRecord::Dead(Box::new(died(2, 10)))]).await);
    assert_eq!(seqs(&*store, &dead()).await, [0; 0]);
    assert!(index(5, 6, vec![LotRecord::Dead(Box::new(died(2, 30)))]).await);
    assert_eq!(seqs(&*store, &dead()).await, [2]);
    assert!(index(6, 7, vec![gone(2, 30)]).await);
    assert_eq!(store.lot_count(&dead()).await.unwrap(), 0);
}

/// Two owners of different shards put, claim and settle at the same time; every key comes out in its order.
pub async fn chains_keep_their_order_while_all_of_them_move(bed: &dyn Bed) {
    let stores = [bed.open().await, bed.open().await];
    let work = async |at: usize| {
        let (store, owner) = (&*stores[at], ["a", "b"][at]);
        let mut out: Vec<(u64, u64)> = Vec::new();
        for round in 0..8_u64 {
            let put = (0..20_u64).map(|n| chained(at as u64 * 10_000 + round * 100 + n, n % 5, at as u32, START)).collect();
            store.lot_put(put).await.unwrap();
            let address = address("created");
            let claim = LotClaim { address: &address, group: "billing", shards: Some(&[at as u32]), limit: 10, owner, lease: LEASE };
            let claimed = store.lot_claim(claim).await.unwrap();
            assert!(claimed.len() <= 5, "one of each chain");
            out.extend(claimed.iter().map(|entry| (entry.chain.unwrap(), entry.seq)));
            let settle = claimed.iter().map(|entry| (entry.seq, LotSettle::Done)).collect();
            assert!(store.lot_settle(owner, settle).await.unwrap().into_iter().all(|settled| settled));
        }
        out
    };
    let (a, b) = tokio::join!(work(0), work(1));
    for out in [a, b] {
        assert_eq!(out.len(), 40);
        for chain in 0..5 {
            let seqs: Vec<u64> = out.iter().filter(|(of, _)| *of == chain).map(|(_, seq)| *seq).collect();
            assert!(seqs.is_sorted(), "{seqs:?}");
        }
    }
}

pub async fn an_entry_settled_twice_is_settled_once(bed: &dyn Bed) {
    let store = bed.open().await;
    store.lot_put(waiting(0..2)).await.unwrap();
    assert_eq!(claim(&*store, "a", None, 10).await, [1, 2]);
    let items = vec![(1, LotSettle::Done), (1, bury()), (2, LotSettle::Release), (9, LotSettle::Done)];
    assert_eq!(store.lot_settle("a", items).await.unwrap(), [true, false, true, false]);
    assert_eq!(store.lot_count(&dead()).await.unwrap(), 0);
    // A text that PostgreSQL would not take comes through, but for what cannot be shown.
    assert_eq!(claim(&*store, "a", None, 10).await, [2]);
    let odd = LotSettle::Bury { reason: "buried".to_owned(), attempts: 1, error: Some("a\0b".to_owned()) };
    assert_eq!(store.lot_settle("a", vec![(2, odd)]).await.unwrap(), [true]);
    let error = store.lot_list(&dead(), 1, 0, false).await.unwrap().remove(0).error.unwrap();
    assert!(error.starts_with('a') && error.ends_with('b'));
}
