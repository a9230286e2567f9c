//! Groups: members, hand-overs, redelivery, seek.

use super::*;

#[tokio::test]
async fn who_died_is_replaced_and_its_messages_are_counted() {
    let dir = tempfile::tempdir().expect("a directory");
    let topic = topic(2);
    let a = Embedded::open(options(dir.path())).expect("opened");
    let b = Embedded::open(options(dir.path())).expect("opened");
    a.ensure(&topic, &[group("g")]).await.expect("ensured");
    send_all(&a, &topic, numbered(Some(0), 0..20)).await;
    let first = join(&a, &topic, "g").await;
    let got = receive(&*first, 10).await;
    settle_done(&*first, &got[..4]).await;
    settle_done(&*first, &got[6..7]).await;
    kill(a, first);
    let since = Instant::now();
    let second = join(&b, &topic, "g").await;
    let rest = receive(&*second, 15).await;
    assert!(since.elapsed() < LEASE * 4);
    let counts: Vec<(u64, u32)> = rest.iter().map(|d| (d.position.offset, d.deliveries.count())).collect();
    let expected: Vec<(u64, u32)> = [4, 5, 7, 8, 9].map(|n| (n, 2)).into_iter().chain((10..20).map(|n| (n, 1))).collect();
    assert_eq!(counts, expected);
    settle_done(&*second, &rest).await;
    assert_eq!(b.depth(&topic, "g").await.expect("depth").ready, 0);
}

#[tokio::test]
async fn one_that_was_stopped_finds_its_shards_lost() {
    let dir = tempfile::tempdir().expect("a directory");
    let topic = topic(1);
    let a = Embedded::open(options(dir.path())).expect("opened");
    let b = Embedded::open(options(dir.path())).expect("opened");
    a.ensure(&topic, &[group("g")]).await.expect("ensured");
    send_all(&a, &topic, numbered(Some(0), 0..3)).await;
    let first = join(&a, &topic, "g").await;
    let got = receive(&*first, 3).await;
    a.handle.stop();
    let second = join(&b, &topic, "g").await;
    let again = receive(&*second, 3).await;
    assert_eq!(first.extend(&[got[0].token]).await, [false]);
    assert_eq!(first.settle(&done(&got)).await, [Settled::Stale; 3]);
    until(&*first, |signal| matches!(signal, Signal::Lost { route: 0, shard: 0 })).await;
    assert_eq!(second.extend(&[again[0].token]).await, [true]);
    settle_done(&*second, &again).await;
}

#[tokio::test]
async fn a_poison_message_does_not_raise_its_neighbours_counts() {
    let dir = tempfile::tempdir().expect("a directory");
    let topic = topic(1);
    let broker = Embedded::open(options(dir.path())).expect("opened");
    broker.ensure(&topic, &[group("g")]).await.expect("ensured");
    send_all(&broker, &topic, numbered(Some(0), 0..6)).await;
    for _ in 0..2 {
        let doomed = Embedded::open(options(dir.path())).expect("opened");
        let subscription = join(&doomed, &topic, "g").await;
        receive(&*subscription, 5).await;
        kill(doomed, subscription);
    }
    for round in 0..3 {
        let doomed = Embedded::open(options(dir.path())).expect("opened");
        let subscription = join(&doomed, &topic, "g").await;
        let one = receive(&*subscription, 1).await;
        assert_eq!((one[0].position.offset, one[0].deliveries.count()), (0, 3 + round));
        assert!(deliveries(subscription.next(10, 1000, Duration::from_millis(20)).await.expect("alive")).is_empty());
        kill(doomed, subscription);
    }
    let subscription = join(&broker, &topic, "g").await;
    let mut counts = Vec::new();
    for _ in 0..5 {
        let one = receive(&*subscription, 1).await;
        counts.push(one[0].deliveries.count());
        settle_done(&*subscription, &one).await;
    }
    assert_eq!(counts, [6, 3, 3, 3, 3]);
    send_all(&broker, &topic, numbered(Some(0), 6..8)).await;
    let calm = receive(&*subscription, 3).await;
    assert_eq!(calm.iter().map(|d| d.deliveries.count()).collect::<Vec<_>>(), [1; 3]);
}

#[tokio::test]
async fn suspects_of_all_shards_and_groups_of_a_process_take_turns() {
    let dir = tempfile::tempdir().expect("a directory");
    let topic = topic(3);
    let broker = Embedded::open(options(dir.path())).expect("opened");
    broker.ensure(&topic, &[group("g"), group("other")]).await.expect("ensured");
    for shard in 0..3 {
        send_all(&broker, &topic, numbered(Some(shard), 0..2)).await;
    }
    for _ in 0..2 {
        let doomed = Embedded::open(options(dir.path())).expect("opened");
        let subscriptions = [join(&doomed, &topic, "g").await, join(&doomed, &topic, "other").await];
        for subscription in &subscriptions {
            receive(&**subscription, 6).await;
        }
        doomed.handle.stop();
        std::mem::forget((doomed, subscriptions));
    }
    let (g, other) = (join(&broker, &topic, "g").await, join(&broker, &topic, "other").await);
    let more = async |subscription: &dyn Subscription| {
        deliveries(subscription.next(10, 1000, Duration::from_millis(20)).await.expect("alive")).len()
    };
    let mut one = receive(&*g, 1).await;
    for left in (0..6).rev() {
        assert_eq!((more(&*g).await, more(&*other).await), (0, 0), "a second suspect beside the first");
        let waits = Arc::clone(&g);
        let next = tokio::spawn(async move { receive(&*waits, usize::from(left > 0)).await });
        settle_done(&*g, &one).await;
        // The one that asks next gets it; nobody waits for a clock.
        one = tokio::time::timeout(SOON / 4, next).await.expect("it is told").expect("no panic");
        assert!(one.iter().all(|delivery| delivery.deliveries.count() == 3));
    }
    // Now it is the other group's turn.
    for _ in 0..6 {
        let one = receive(&*other, 1).await;
        assert_eq!(more(&*other).await, 0);
        settle_done(&*other, &one).await;
    }
    // And it is over: several at a time again.
    for shard in 0..3 {
        send_all(&broker, &topic, numbered(Some(shard), 2..4)).await;
    }
    let calm = receive(&*g, 6).await;
    assert!(calm.iter().all(|delivery| delivery.deliveries.count() == 1));
}

#[tokio::test]
async fn shards_are_shared_evenly_and_come_back() {
    let dir = tempfile::tempdir().expect("a directory");
    let topic = topic(5);
    let a = Embedded::open(options(dir.path())).expect("opened");
    let b = Embedded::open(options(dir.path())).expect("opened");
    a.ensure(&topic, &[group("g")]).await.expect("ensured");
    let first = join(&a, &topic, "g").await;
    let assigned = |signals: &[Signal]| signals.iter().filter(|s| matches!(s, Signal::Assigned { .. })).count();
    assert_eq!(assigned(&first.next(1, 1, Duration::ZERO).await.expect("alive")), 5);
    let second = join(&b, &topic, "g").await;
    for _ in 0..2 {
        let Signal::Revoking { route, shard, .. } = until(&*first, |s| matches!(s, Signal::Revoking { .. })).await else { continue };
        first.yield_shard(route, shard).await;
        // `until` drops what came with it: ask again for what is still to be yielded.
        for shard in 0..5 {
            first.yield_shard(0, shard).await;
        }
        break;
    }
    let mut got = 0;
    while got < 2 {
        got += assigned(&second.next(1, 1, SOON).await.expect("alive"));
    }
    first.close(Instant::now() + SOON).await;
    let since = Instant::now();
    while got < 5 {
        got += assigned(&second.next(1, 1, SOON).await.expect("alive"));
    }
    assert!(since.elapsed() < LEASE, "{:?}", since.elapsed());
    assert!(first.next(1, 1, Duration::ZERO).await.is_err());
}

#[tokio::test]
async fn what_is_given_back_comes_again_with_a_new_token() {
    let broker = Embedded::memory(options(Path::new("/memory"))).expect("opened");
    let topic = topic(1);
    broker.ensure(&topic, &[group("g")]).await.expect("ensured");
    send_all(&broker, &topic, numbered(Some(0), 0..5)).await;
    let subscription = join(&broker, &topic, "g").await;
    let all = receive(&*subscription, 5).await;
    let retry = Settle::Retry { after: Duration::from_millis(60), counted: true };
    let since = Instant::now();
    subscription.settle(&[(all[1].token, Settle::Release), (all[3].token, retry)]).await;
    assert_eq!(broker.depth(&topic, "g").await.expect("depth").in_flight, 3);
    let again = receive(&*subscription, 1).await;
    assert_eq!((texts(&again)[0].as_str(), again[0].deliveries.count()), ("1", 1));
    assert_eq!(subscription.settle(&done(&all[1..2])).await, [Settled::Stale], "the token of the first hand-over");
    let later = receive(&*subscription, 1).await;
    assert!(since.elapsed() >= Duration::from_millis(60));
    assert_eq!((texts(&later)[0].as_str(), later[0].deliveries.count()), ("3", 2));
    settle_done(&*subscription, &[&again[..], &later, &all[..1], &all[2..3], &all[4..]].concat()).await;
    assert_eq!(broker.depth(&topic, "g").await.expect("depth"), Depth { exact: true, ..Depth::default() });
}

#[tokio::test]
async fn a_pause_holds_deliveries_back() {
    let broker = Embedded::memory(options(Path::new("/memory"))).expect("opened");
    let topic = topic(1);
    broker.ensure(&topic, &[group("g")]).await.expect("ensured");
    send_all(&broker, &topic, numbered(Some(0), 0..5)).await;
    let subscription = join(&broker, &topic, "g").await;
    subscription.pause().await;
    assert!(deliveries(subscription.next(10, 1000, Duration::from_millis(20)).await.expect("alive")).is_empty());
    assert!(deliveries(subscription.next(10, 1000, Duration::from_millis(20)).await.expect("alive")).is_empty());
    subscription.resume().await;
    receive(&*subscription, 5).await;
}

#[tokio::test]
async fn seek_moves_a_live_group() {
    let dir = tempfile::tempdir().expect("a directory");
    let topic = topic(2);
    let a = Embedded::open(options(dir.path())).expect("opened");
    let b = Embedded::open(options(dir.path())).expect("opened");
    a.ensure(&topic, &[group("g")]).await.expect("ensured");
    send_all(&a, &topic, numbered(Some(0), 0..10)).await;
    let middle = loop {
        let now = crate::message::now_ms();
        if now > a.read(&topic, ReadFrom::Position(Position::default()), 1).await.expect("read")[0].stored_at {
            break now;
        }
        tokio::task::yield_now().await;
    };
    send_all(&a, &topic, numbered(Some(0), 10..20)).await;
    let subscription = join(&a, &topic, "g").await;
    let all = receive(&*subscription, 20).await;
    settle_done(&*subscription, &all[..15]).await;
    b.seek(&topic, "g", &Start::Position { shard: 0, offset: 4 }).await.expect("sought");
    let again = receive(&*subscription, 16).await;
    assert_eq!(again[0].position.offset, 4);
    assert_eq!(subscription.settle(&done(&all[15..16])).await, [Settled::Stale]);
    b.seek(&topic, "g", &Start::Time(middle)).await.expect("sought");
    assert_eq!(receive(&*subscription, 10).await[0].position.offset, 10);
    b.seek(&topic, "g", &Start::Latest).await.expect("sought");
    send_all(&b, &topic, numbered(Some(0), 20..21)).await;
    assert_eq!(receive(&*subscription, 1).await[0].position.offset, 20);
    b.seek(&topic, "g", &Start::Earliest).await.expect("sought");
    assert_eq!(receive(&*subscription, 21).await[0].position.offset, 0);
}

#[tokio::test]
async fn groups_are_independent_and_start_where_they_say() {
    let dir = tempfile::tempdir().expect("a directory");
    let topic = topic(1);
    let broker = Embedded::open(options(dir.path())).expect("opened");
    broker.ensure(&topic, &[group("early")]).await.expect("ensured");
    send_all(&broker, &topic, numbered(Some(0), 0..5)).await;
    let late = GroupSpec { name: "late".into(), start: Start::Latest };
    broker.ensure(&topic, std::slice::from_ref(&late)).await.expect("ensured");
    send_all(&broker, &topic, numbered(Some(0), 5..7)).await;
    broker.ensure(&topic, &[GroupSpec { start: Start::Earliest, ..late }]).await.expect("ensured");
    assert_eq!(broker.depth(&topic, "early").await.expect("depth").ready, 7);
    assert_eq!(broker.depth(&topic, "late").await.expect("depth").ready, 2);
    let subscription = join(&broker, &topic, "late").await;
    let two = receive(&*subscription, 2).await;
    assert_eq!(two[0].position.offset, 5);
    broker.remove(Remove::Group(&topic, "late")).await.expect("removed");
    assert_eq!(broker.depth(&topic, "late").await.expect_err("gone").code(), Code::GroupNotFound);
    let end = Instant::now() + SOON;
    while subscription.next(10, 1000, Duration::from_millis(50)).await.is_ok() {
        assert!(Instant::now() < end);
    }
}

#[tokio::test]
async fn other_handles_are_woken() {
    let dir = tempfile::tempdir().expect("a directory");
    let topic = topic(1);
    let a = Embedded::open(Options::new(dir.path())).expect("opened");
    let b = Embedded::open(Options::new(dir.path())).expect("opened");
    a.ensure(&topic, &[group("g")]).await.expect("ensured");
    let subscription = join(&b, &topic, "g").await;
    subscription.next(1, 1, Duration::ZERO).await.expect("alive");
    let mut best = Duration::MAX;
    for n in 0..5 {
        let (since, _) = tokio::join!(
            async {
                let got = receive(&*subscription, 1).await;
                settle_done(&*subscription, &got).await;
                Instant::now()
            },
            send_all(&a, &topic, numbered(None, n..n + 1))
        );
        best = best.min(since.elapsed());
    }
    assert!(best < Duration::from_millis(200), "{best:?}");
}
