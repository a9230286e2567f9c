//! A disk without room: refused with a word for it, nothing confirmed is lost, and it goes on when there is room again.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use trunkline::delivery::Position;
use trunkline::history::Query;
use trunkline::provider::embedded::{Embedded, Options};
use trunkline::provider::{Outgoing, Provider, ReadFrom, SendError, TopicSpec};
use trunkline::{Code, Headers, MessageId};
use trunkline_suite::mount::Mount;
use trunkline_suite::promise::{Bed, Lot, until};
use trunkline_suite::recording_disk::{Faults, RecordingDisk};

fn topic() -> TopicSpec {
    TopicSpec::new("full", 1, true)
}

async fn send(provider: &dyn Provider, len: usize) -> Result<(MessageId, Position), SendError> {
    let id = MessageId::now();
    let message = Outgoing { id, shard: Some(0), key: None, headers: Headers::new(), payload: vec![b'x'; len].into() };
    let result = provider.send(&topic(), Arc::new(vec![message])).await.pop().expect("an answer");
    result.map(|position| (id, position))
}

/// Fills the disk, looks at the refusal, makes room with `free`, and looks whether everything is there.
async fn fill_and_go_on(provider: &dyn Provider, reopen: impl FnOnce() -> Embedded, free: impl FnOnce()) {
    provider.ensure(&topic(), &[]).await.expect("a topic");
    let mut confirmed = Vec::new();
    let refused = loop {
        match send(provider, 1000 + confirmed.len() % 700).await {
            Ok(sent) => confirmed.push(sent),
            Err(error) => break error,
        }
        assert!(confirmed.len() < 100_000, "the disk is never full");
    };
    for error in [refused, send(provider, 1500).await.expect_err("still full")] {
        assert_eq!(error.error.code(), Code::PublishFailed, "{:?}", error.error);
        assert_eq!(error.error.detail_str("reason"), Some("disk_full"), "{:?}", error.error);
        assert!(error.error.detail_str("next").is_some(), "nothing to do about it: {:?}", error.error);
        assert!(error.retryable && !error.ambiguous, "{error:?}");
    }
    assert!(!confirmed.is_empty());
    free();
    for _ in 0..5 {
        confirmed.push(send(provider, 500).await.expect("room again"));
    }
    for provider in [provider, &reopen()] {
        let from = ReadFrom::Position(Position { shard: 0, offset: 0 });
        let stored = provider.read(&topic(), from, usize::MAX).await.expect("the messages");
        let stored: Vec<_> = stored.into_iter().map(|stored| (stored.id.expect("an id"), stored.position)).collect();
        assert!(stored == confirmed, "{} confirmed, {} there", confirmed.len(), stored.len());
    }
}

#[tokio::test]
async fn a_disk_that_is_full_refuses_and_goes_on() {
    // At every byte around which a write may end.
    for room in (0..4000).step_by(37) {
        let disk = RecordingDisk::plain(1);
        let open =
            || Embedded::with_disk(Arc::new(disk.clone()), Options { segment_bytes: 4 << 10, ..Options::new("/log") }).expect("a broker");
        let provider = open();
        disk.set_faults(Faults { room: Some(8000 + room), ..Faults::default() });
        fill_and_go_on(&provider, open, || disk.set_faults(Faults::default())).await;
    }
}

#[tokio::test]
async fn a_file_system_that_is_full_refuses_and_goes_on() {
    let mount = Mount::tmpfs("3m");
    let ballast = mount.path().join("ballast");
    std::fs::write(&ballast, vec![0; 1 << 20]).expect("ballast");
    let open = || Embedded::open(Options::new(mount.path().join("log"))).expect("a broker");
    let provider = open();
    fill_and_go_on(&provider, open, || std::fs::remove_file(&ballast).expect("room")).await;
}

/// Takes all the room there is, also what becomes free, until it is dropped.
struct Ballast {
    path: PathBuf,
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Ballast {
    fn in_(dir: &Path) -> Self {
        let (path, end, (full, is_full)) = (dir.join("ballast"), Arc::new(AtomicBool::new(false)), std::sync::mpsc::channel());
        let (mut file, stop) = (File::create(&path).expect("ballast"), Arc::clone(&end));
        let thread = std::thread::spawn(move || {
            while !stop.load(Ordering::SeqCst) {
                if file.write_all(&[0; 4096]).is_err() {
                    let _ = full.send(());
                    std::thread::sleep(Duration::from_micros(200));
                }
            }
        });
        is_full.recv().expect("it fills up");
        Ballast { path, end, thread: Some(thread) }
    }
}

impl Drop for Ballast {
    fn drop(&mut self) {
        self.end.store(true, Ordering::SeqCst);
        let _ = self.thread.take().map(JoinHandle::join);
        std::fs::remove_file(&self.path).expect("room");
    }
}

/// The history has a disk of its own here, and that one is full: producing and handling do not feel it.
#[tokio::test(flavor = "multi_thread")]
async fn a_history_without_room_shows_a_gap_and_holds_nobody_up() {
    let mount = Mount::tmpfs("2m");
    let history = mount.path().to_owned();
    let link = move |data: &Path| std::os::unix::fs::symlink(history, data.join("history")).expect("a link");
    let bed = Bed::with_data(Lot::Store, link).await;
    let early = bed.produce(0).await;
    bed.trunkline.flush().await.expect("there is room");
    let all = || Query { limit: Some(1_000), ..Query::default() };
    let lost = async || {
        let page = bed.env.messages(all()).await.expect("what is there can be read");
        page.gaps.iter().filter(|gap| gap.reason == "spill_full").map(|gap| gap.count).sum::<u64>()
    };
    let ballast = Ballast::in_(mount.path());
    let (consumer, seen) = bed.watch(|_, c| c.process_id).await;
    until("what could not be kept is shown", || async {
        for n in 0..20 {
            bed.produce(n).await;
        }
        lost().await > 0
    })
    .await;
    assert!(bed.trunkline.flush().await.is_err_and(|error| error.detail_str("reason") == Some("disk_full")));
    assert!(bed.env.message(early).await.expect("readable").is_some(), "what was recorded before can be read");
    drop(ballast);
    // Room again: what comes now is kept, and the gap stays for all to see.
    let recorded = async || {
        let id = bed.produce(1).await;
        bed.env.message(id).await.is_ok_and(|record| record.is_some())
    };
    until("it records again", recorded).await;
    let page = bed.env.messages(all()).await.expect("readable");
    assert!(!page.total_is_exact && lost().await > 0, "{:?}", page.gaps);
    assert!(page.gaps.iter().all(|gap| gap.reason == "spill_full"), "what waited in the spill is there now: {:?}", page.gaps);
    until("all are handled", || async { consumer.in_flight() == 0 && consumer.settled() as usize == seen.all().len() }).await;
    bed.close().await;
}
