//! Writing and reading.

use super::*;

#[tokio::test]
async fn what_is_confirmed_is_read_and_delivered_in_order() {
    let dir = tempfile::tempdir().expect("a directory");
    let broker = Embedded::open(options(dir.path())).expect("opened");
    let topic = topic(3);
    let ensured = broker.ensure(&topic, &[group("g")]).await.expect("ensured");
    assert_eq!(ensured.created.len(), 2);
    assert_eq!(broker.ensure(&topic, &[group("g")]).await.expect("ensured"), Ensured::default());
    let mut batch = numbered(Some(1), 0..100);
    batch[0].key = Some(Bytes::from_static(b"key"));
    batch[0].headers.push("name", &b"value"[..]);
    let id = batch[0].id;
    let sent = send_all(&broker, &topic, batch).await;
    assert_eq!(sent, (0..100).map(|offset| Position { shard: 1, offset }).collect::<Vec<_>>());
    let stored = broker.read(&topic, ReadFrom::Position(sent[0]), 1000).await.expect("read");
    assert_eq!(stored.len(), 100);
    assert_eq!((stored[0].id, stored[0].key.as_deref()), (Some(id), Some(&b"key"[..])));
    assert_eq!(stored[0].headers.get_str("name"), Some("value"));
    let subscription = join(&broker, &topic, "g").await;
    let all = receive(&*subscription, 100).await;
    assert_eq!(texts(&all), (0..100).map(|n| n.to_string()).collect::<Vec<_>>());
    assert_eq!(all[0].id, crate::delivery::EnvelopeId::Id(id));
    let depth = broker.depth(&topic, "g").await.expect("depth");
    assert_eq!((depth.ready, depth.in_flight, depth.exact), (0, 100, true));
    settle_done(&*subscription, &all[50..]).await;
    assert_eq!(broker.depth(&topic, "g").await.expect("depth").in_flight, 50);
    settle_done(&*subscription, &all[..50]).await;
    assert_eq!(broker.depth(&topic, "g").await.expect("depth"), Depth { exact: true, ..Depth::default() });
    assert_eq!(subscription.settle(&done(&all[..1])).await, [Settled::Stale]);
    broker.close(Instant::now() + SOON).await;
    assert!(broker.send(&topic, Arc::new(numbered(None, 0..1))).await[0].is_err());
}

#[tokio::test]
async fn everything_is_there_after_opening_again_and_opening_is_quick() {
    let dir = tempfile::tempdir().expect("a directory");
    let topic = topic(4);
    {
        let broker = Embedded::open(options(dir.path())).expect("opened");
        broker.ensure(&topic, &[group("g")]).await.expect("ensured");
        send_all(&broker, &topic, numbered(None, 0..5000)).await;
        let subscription = join(&broker, &topic, "g").await;
        let first = receive(&*subscription, 2000).await;
        settle_done(&*subscription, &first).await;
        subscription.close(Instant::now() + SOON).await;
    }
    let since = Instant::now();
    let broker = Embedded::open(options(dir.path())).expect("opened");
    send_all(&broker, &topic, numbered(None, 5000..5001)).await;
    assert!(since.elapsed() < Duration::from_millis(500), "{:?}", since.elapsed());
    assert_eq!(broker.depth(&topic, "g").await.expect("depth").ready, 3001);
    let subscription = join(&broker, &topic, "g").await;
    receive(&*subscription, 3001).await;
}

#[tokio::test]
async fn another_boot_builds_everything_from_the_files() {
    let dir = tempfile::tempdir().expect("a directory");
    let topic = topic(2);
    {
        let broker = Embedded::open(options(dir.path())).expect("opened");
        broker.ensure(&topic, &[group("g")]).await.expect("ensured");
        send_all(&broker, &topic, numbered(Some(0), 0..100)).await;
        let subscription = join(&broker, &topic, "g").await;
        let all = receive(&*subscription, 100).await;
        settle_done(&*subscription, &all[10..40]).await;
        kill(broker, subscription);
    }
    let disk = faults::FaultyDisk::new();
    disk.boot(7);
    let broker = Embedded::with_disk(disk, options(dir.path())).expect("opened");
    assert_eq!(broker.depth(&topic, "g").await.expect("depth").ready, 70);
    assert_eq!(send_all(&broker, &topic, numbered(Some(0), 100..101)).await[0].offset, 100);
    let subscription = join(&broker, &topic, "g").await;
    let rest = receive(&*subscription, 71).await;
    assert_eq!(texts(&rest)[..11], ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "40"]);
}

/// All of a directory as it is now, put somewhere.
fn copy(from: &Path, to: &Path, wanted: &dyn Fn(&str) -> bool) {
    std::fs::create_dir_all(to).expect("a directory");
    for entry in std::fs::read_dir(from).expect("listed") {
        let entry = entry.expect("an entry");
        let (name, to) = (entry.file_name().to_string_lossy().into_owned(), to.join(entry.file_name()));
        if entry.file_type().expect("a type").is_dir() {
            copy(&entry.path(), &to, wanted);
        } else if wanted(&name) {
            std::fs::copy(entry.path(), to).expect("copied");
        }
    }
}

/// A log with 100 messages of which a backup was taken, whose pages are of another moment than its segments.
async fn restored(pages_at: u64, log_at: u64, restore: impl FnOnce(&Path, &Path)) -> Embedded {
    let (dir, backup) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    let topic = topic(2);
    let broker = Embedded::open(options(dir.path())).expect("opened");
    broker.ensure(&topic, &[group("g")]).await.expect("ensured");
    let subscription = join(&broker, &topic, "g").await;
    let is_page = |name: &str| name == "control";
    for n in 0..100 {
        if n == pages_at {
            copy(dir.path(), backup.path(), &is_page);
        }
        if n == log_at {
            copy(dir.path(), backup.path(), &|name| !is_page(name));
        }
        send_all(&broker, &topic, numbered(Some(0), n..n + 1)).await;
        settle_done(&*subscription, &receive(&*subscription, 1).await).await;
    }
    subscription.close(Instant::now() + SOON).await;
    broker.close(Instant::now() + SOON).await;
    drop((subscription, broker));
    restore(backup.path(), dir.path());
    // Not dropped before the broker is: the directory goes with the test's process.
    Embedded::open(options(&dir.keep())).expect("opened")
}

/// The log goes on where it ends, and the group after what it had settled.
async fn goes_on_at(broker: &Embedded, end: u64) {
    let topic = topic(2);
    assert_eq!(send_all(broker, &topic, numbered(Some(0), 1_000..1_001)).await[0].offset, end);
    let stored = broker.read(&topic, ReadFrom::Position(Position { shard: 0, offset: 0 }), 1_000).await.expect("read");
    assert_eq!(stored.len() as u64, end + 1, "all that was in the log, and the new one");
    let subscription = join(broker, &topic, "g").await;
    assert_eq!(texts(&receive(&*subscription, 1).await), ["1000"]);
    let dir = broker.handle.host.options.dir.clone();
    let _ = std::fs::remove_dir_all(dir);
}

/// A control page that was put back within the same boot is not trusted, be it older or newer than the log beside it.
#[tokio::test]
async fn a_control_page_that_was_restored_is_built_again() {
    let anew = |from: &Path, to: &Path| {
        std::fs::remove_dir_all(to).expect("removed");
        copy(from, to, &|_| true);
    };
    goes_on_at(&restored(40, 60, anew).await, 60).await;
    goes_on_at(&restored(60, 40, anew).await, 40).await;
    // Written over in place, so that every file is the one it was.
    let in_place = |from: &Path, to: &Path| copy(from, to, &|_| true);
    goes_on_at(&restored(40, 60, in_place).await, 60).await;
}

#[tokio::test]
async fn small_segments_are_rolled_and_read_across() {
    let dir = tempfile::tempdir().expect("a directory");
    let broker = Embedded::open(Options { segment_bytes: 4096, ..options(dir.path()) }).expect("opened");
    let topic = topic(2);
    broker.ensure(&topic, &[group("g")]).await.expect("ensured");
    for n in 0..50 {
        send_all(&broker, &topic, numbered(Some(0), n * 10..n * 10 + 10)).await;
    }
    assert!(broker.handle.topic(&topic.name).expect("open").list_segments().expect("listed").len() > 3);
    let subscription = join(&broker, &topic, "g").await;
    let all = receive(&*subscription, 500).await;
    assert_eq!(texts(&all), (0..500).map(|n| n.to_string()).collect::<Vec<_>>());
    let from = broker.read(&topic, ReadFrom::Position(Position { shard: 0, offset: 333 }), 2).await.expect("read");
    assert_eq!(from.iter().map(|stored| stored.position.offset).collect::<Vec<_>>(), [333, 334]);
}

#[tokio::test]
async fn retention_removes_what_is_settled_and_nothing_else() {
    let dir = tempfile::tempdir().expect("a directory");
    let retention = Retention { age: None, bytes: Some(16 * 1024) };
    let broker = Embedded::open(Options { retention, ..options(dir.path()) }).expect("opened");
    let topic = topic(1);
    broker.ensure(&topic, &[group("g")]).await.expect("ensured");
    let mut n = 0;
    let full = loop {
        match broker.send(&topic, Arc::new(vec![message(None, vec![b'x'; 1000])])).await.remove(0) {
            Ok(_) => n += 1,
            Err(failed) => break failed,
        }
        assert!(n < 100);
    };
    assert!(n >= 12, "{n}");
    assert_eq!((full.error.detail_str("reason"), full.retryable, full.ambiguous), (Some("log_full"), true, false));
    let subscription = join(&broker, &topic, "g").await;
    let all = receive(&*subscription, n).await;
    settle_done(&*subscription, &all).await;
    for _ in 0..50 {
        send_all(&broker, &topic, vec![message(None, vec![b'y'; 1000])]).await;
        let one = receive(&*subscription, 1).await;
        settle_done(&*subscription, &one).await;
    }
    let first = broker.handle.topic(&topic.name).expect("open").first_ordinals().expect("read")[0];
    assert!(first > 30, "{first}");
    let kept = broker.read(&topic, ReadFrom::Position(Position { shard: 0, offset: 0 }), 100).await.expect("read");
    assert_eq!(kept[0].position.offset, first);
}

#[tokio::test]
async fn old_messages_go_when_they_are_settled() {
    let retention = Retention { age: Some(Duration::from_millis(20)), bytes: None };
    let broker = Embedded::memory(Options { retention, ..options(Path::new("/memory")) }).expect("opened");
    let topic = topic(1);
    broker.ensure(&topic, &[group("g")]).await.expect("ensured");
    send_all(&broker, &topic, numbered(None, 0..10)).await;
    let open = broker.handle.topic(&topic.name).expect("open");
    let oldest = open.time_of(0, 0).expect("read").expect("there");
    assert_eq!(broker.depth(&topic, "g").await.expect("depth").oldest, Some(oldest));
    while crate::message::now_ms() < oldest + 50 {
        open.retain().expect("retained");
        tokio::task::yield_now().await;
    }
    assert_eq!(open.first_ordinals().expect("read"), [0], "nobody settled them");
    let subscription = join(&broker, &topic, "g").await;
    let all = receive(&*subscription, 10).await;
    settle_done(&*subscription, &all).await;
    let end = Instant::now() + SOON;
    while open.first_ordinals().expect("read") == [0] {
        assert!(Instant::now() < end);
        open.retain().expect("retained");
        tokio::task::yield_now().await;
    }
    assert!(broker.read(&topic, ReadFrom::Position(Position::default()), 100).await.expect("read").is_empty());
    assert_eq!(send_all(&broker, &topic, numbered(None, 10..11)).await[0].offset, 10);
}

#[tokio::test]
async fn what_does_not_fit_is_refused_alone() {
    let broker = Embedded::memory(Options { max_payload: 100, ..options(Path::new("/memory")) }).expect("opened");
    let topic = topic(2);
    broker.ensure(&topic, &[]).await.expect("ensured");
    let batch = vec![message(Some(0), "a"), message(Some(0), vec![0; 101]), message(Some(2), "b"), message(Some(0), "c")];
    let sent = broker.send(&topic, Arc::new(batch)).await;
    assert_eq!(sent[0].as_ref().map(|p| p.offset).ok(), Some(0));
    assert_eq!(sent[1].as_ref().map_err(|e| (e.error.code(), e.retryable)).err(), Some((Code::PayloadTooLarge, false)));
    assert_eq!(sent[2].as_ref().map_err(|e| e.error.code()).err(), Some(Code::InputInvalid));
    assert_eq!(sent[3].as_ref().map(|p| p.offset).ok(), Some(1));
    assert_eq!(broker.capabilities(&topic).durability, Durability::Memory);
    let nowhere = TopicSpec { name: "nowhere".into(), ..topic };
    assert_eq!(
        broker.send(&nowhere, Arc::new(numbered(None, 0..1))).await[0].as_ref().map_err(|e| e.error.code()).err(),
        Some(Code::TopicNotFound)
    );
}

#[tokio::test]
async fn two_handles_write_one_log() {
    let dir = tempfile::tempdir().expect("a directory");
    let topic = topic(1);
    let brokers = [Embedded::open(options(dir.path())).expect("opened"), Embedded::open(options(dir.path())).expect("opened")];
    let ensured = futures_util::future::join_all(brokers.iter().map(|b| b.ensure(&topic, &[]))).await;
    assert_eq!(ensured.iter().map(|e| e.as_ref().expect("ensured").created.len()).sum::<usize>(), 1);
    let (a, b) = tokio::join!(
        async {
            let mut all = Vec::new();
            for n in 0..50 {
                all.extend(send_all(&brokers[0], &topic, numbered(None, n..n + 1)).await);
            }
            all
        },
        async {
            let mut all = Vec::new();
            for n in 0..50 {
                all.extend(send_all(&brokers[1], &topic, numbered(None, n..n + 1)).await);
            }
            all
        }
    );
    let mut offsets: Vec<u64> = a.iter().chain(&b).map(|position| position.offset).collect();
    offsets.sort_unstable();
    assert_eq!(offsets, (0..100).collect::<Vec<_>>());
    assert_eq!(brokers[0].read(&topic, ReadFrom::Position(Position::default()), 1000).await.expect("read").len(), 100);
}

#[tokio::test]
async fn large_and_many_messages_come_through() {
    let dir = tempfile::tempdir().expect("a directory");
    let broker = Embedded::open(options(dir.path())).expect("opened");
    let topic = topic(2);
    broker.ensure(&topic, &[group("g")]).await.expect("ensured");
    let sizes = [1 << 20, 10, 700_000, 0, 300_000, 1 << 20];
    send_all(&broker, &topic, sizes.iter().map(|n| message(Some(1), vec![b'z'; *n])).collect()).await;
    send_all(&broker, &topic, numbered(None, 0..20_000)).await;
    let subscription = join(&broker, &topic, "g").await;
    let all = receive(&*subscription, 20_006).await;
    let large: Vec<usize> =
        all.iter().filter(|d| d.position.shard == 1).take(6).map(|d| d.payload.as_ref().map_or(0, Bytes::len)).collect();
    assert_eq!(large, sizes);
    settle_done(&*subscription, &all).await;
    assert_eq!(broker.depth(&topic, "g").await.expect("depth").ready, 0);
}

#[tokio::test]
async fn damaged_and_newer_files_are_refused_and_left() {
    for (file, offset, bytes, reason) in [
        ("meta", 8, &2_u32.to_le_bytes()[..], "newer_version"),
        ("meta", 0, b"random bytes", "damaged"),
        ("00000000000000000000.log", 8, &2_u32.to_le_bytes()[..], "newer_version"),
        ("00000000000000000000.log", 0, b"random bytes", "damaged"),
        ("control", 64, &2_u32.to_le_bytes()[..], "newer_version"),
        ("control", 64, b"random bytes", "damaged"),
    ] {
        let dir = tempfile::tempdir().expect("a directory");
        let topic = topic(1);
        let path = {
            let broker = Embedded::open(options(dir.path())).expect("opened");
            broker.ensure(&topic, &[]).await.expect("ensured");
            send_all(&broker, &topic, numbered(None, 0..10)).await;
            broker.handle.host.topic_dir(&topic.name)
        };
        use std::os::unix::fs::FileExt as _;
        std::fs::File::options().write(true).open(path.join(file)).expect("open").write_all_at(bytes, offset).expect("written");
        if file.ends_with(".log") {
            std::fs::remove_file(path.join("control")).expect("removed");
        }
        let before = std::fs::read(path.join(file)).expect("read");
        let broker = Embedded::open(options(dir.path())).expect("opened");
        let refused = broker.ensure(&topic, &[]).await.expect_err("refused");
        assert_eq!((refused.code(), refused.detail_str("reason")), (Code::StoreFailed, Some(reason)), "{file}: {refused:?}");
        assert!(broker.send(&topic, Arc::new(numbered(None, 0..1))).await[0].is_err());
        assert_eq!(std::fs::read(path.join(file)).expect("read"), before);
    }
}

#[tokio::test]
async fn a_removed_topic_is_gone_for_every_handle_and_can_come_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let topic = topic(1);
    let a = Embedded::open(options(dir.path())).expect("opened");
    let b = Embedded::open(options(dir.path())).expect("opened");
    a.ensure(&topic, &[group("g")]).await.expect("ensured");
    send_all(&b, &topic, numbered(None, 0..3)).await;
    let subscription = join(&b, &topic, "g").await;
    a.remove(Remove::Topic(&topic)).await.expect("removed");
    a.remove(Remove::Topic(&topic)).await.expect("removed again");
    let end = Instant::now() + SOON;
    while subscription.next(10, 1000, Duration::from_millis(50)).await.is_ok() {
        assert!(Instant::now() < end);
    }
    assert!(b.send(&topic, Arc::new(numbered(None, 0..1))).await[0].is_err());
    b.ensure(&topic, &[]).await.expect("ensured");
    assert_eq!(send_all(&b, &topic, numbered(None, 0..1)).await[0].offset, 0);
}

#[tokio::test]
async fn a_probe_passes_and_leaves_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let broker = Embedded::open(options(dir.path())).expect("opened");
    let stages = broker.probe(Instant::now() + SOON).await;
    assert!(stages.iter().all(|stage| stage.ok), "{stages:?}");
    assert_eq!(std::fs::read_dir(dir.path().join("topics")).expect("listed").count(), 0);
}
