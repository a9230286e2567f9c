//! What a disk can do wrong.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize};

use super::super::disk::{Disk, File, How, Lock, Page};
use super::*;

/// The disk of this machine with faults on demand.
#[derive(Debug)]
pub(super) struct FaultyDisk {
    inner: RealDisk,
    faults: Arc<Faults>,
    boot: AtomicU64,
}

#[derive(Debug, Default)]
struct Faults {
    /// How many more syncs fail.
    syncs: AtomicUsize,
    /// How many more bytes fit.
    room: AtomicU64,
}

impl FaultyDisk {
    pub(super) fn new() -> Arc<Self> {
        let faults = Faults { syncs: AtomicUsize::new(0), room: AtomicU64::new(u64::MAX) };
        Arc::new(FaultyDisk { inner: RealDisk, faults: Arc::new(faults), boot: AtomicU64::new(0) })
    }

    /// Makes it seem that the machine was started anew.
    pub(super) fn boot(&self, id: u64) {
        self.boot.store(id, SeqCst);
    }

    fn fail_syncs(&self, n: usize) {
        self.faults.syncs.store(n, SeqCst);
    }

    fn leave_room(&self, bytes: u64) {
        self.faults.room.store(bytes, SeqCst);
    }
}

impl Disk for FaultyDisk {
    fn open(&self, path: &Path, how: How) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(FaultyFile { inner: self.inner.open(path, how)?, faults: Arc::clone(&self.faults) }))
    }
    fn page(&self, path: &Path, len: usize) -> io::Result<Arc<dyn Page>> {
        self.inner.page(path, len)
    }
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Lock>> {
        self.inner.lock(path)
    }
    fn make_dir(&self, path: &Path) -> io::Result<()> {
        self.inner.make_dir(path)
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.inner.sync_dir(path)
    }
    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        self.inner.list(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.inner.rename(from, to)
    }
    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.inner.remove_file(path)
    }
    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.inner.remove_dir(path)
    }
    fn volatile(&self) -> bool {
        false
    }
    fn boot_id(&self) -> u128 {
        match self.boot.load(SeqCst) {
            0 => self.inner.boot_id(),
            id => u128::from(id),
        }
    }
}

#[derive(Debug)]
struct FaultyFile {
    inner: Arc<dyn File>,
    faults: Arc<Faults>,
}

impl File for FaultyFile {
    fn size(&self) -> io::Result<u64> {
        self.inner.size()
    }
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        self.inner.read_at(buf, at)
    }
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let room = usize::try_from(self.faults.room.load(SeqCst)).unwrap_or(usize::MAX);
        if room < bytes.len() {
            self.inner.write_at(&bytes[..room], at)?;
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.inner.write_at(bytes, at)
    }
    fn append(&self, bytes: &[u8]) -> io::Result<()> {
        self.inner.append(bytes)
    }
    fn sync(&self) -> io::Result<()> {
        if self.faults.syncs.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1)).is_ok() {
            return Err(io::Error::other("the disk says no"));
        }
        self.inner.sync()
    }
    fn truncate(&self, len: u64) -> io::Result<()> {
        self.inner.truncate(len)
    }
}

#[tokio::test]
async fn a_full_disk_is_refused_and_the_tail_stays_whole() {
    let dir = tempfile::tempdir().expect("a directory");
    let disk = FaultyDisk::new();
    let broker = Embedded::with_disk(Arc::clone(&disk) as Arc<dyn Disk>, options(dir.path())).expect("opened");
    let topic = topic(1);
    broker.ensure(&topic, &[]).await.expect("ensured");
    send_all(&broker, &topic, numbered(None, 0..10)).await;
    for room in [0, 1, 50, 200] {
        disk.leave_room(room);
        let failed = broker.send(&topic, Arc::new(numbered(None, 10..20))).await.remove(0).expect_err("full");
        assert_eq!(failed.error.detail_str("reason"), Some("disk_full"));
        assert_eq!((failed.error.code(), failed.retryable, failed.ambiguous), (Code::PublishFailed, true, false));
    }
    disk.leave_room(u64::MAX);
    assert_eq!(send_all(&broker, &topic, numbered(None, 10..11)).await[0].offset, 10);
    assert_eq!(broker.read(&topic, ReadFrom::Position(Position::default()), 100).await.expect("read").len(), 11);
}

#[tokio::test]
async fn a_failed_fsync_is_never_tried_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let disk = FaultyDisk::new();
    let broker = Embedded::with_disk(Arc::clone(&disk) as Arc<dyn Disk>, options(dir.path())).expect("opened");
    let topic = topic(2);
    broker.ensure(&topic, &[group("g")]).await.expect("ensured");
    send_all(&broker, &topic, numbered(Some(0), 0..10)).await;
    disk.fail_syncs(1);
    let failed = broker.send(&topic, Arc::new(numbered(Some(0), 10..20))).await.remove(0).expect_err("not synced");
    assert_eq!(failed.error.detail_str("reason"), Some("fsync_failed"));
    assert_eq!((failed.error.code(), failed.retryable, failed.ambiguous), (Code::PublishFailed, true, true));
    assert_eq!(send_all(&broker, &topic, numbered(Some(0), 20..30)).await[0].offset, 10);
    assert_eq!(broker.handle.topic(&topic.name).expect("open").list_segments().expect("listed").len(), 2);
    let subscription = join(&broker, &topic, "g").await;
    let all = receive(&*subscription, 20).await;
    assert_eq!(texts(&all)[8..12], ["8", "9", "20", "21"]);
    // The same from the files alone.
    drop(subscription);
    drop(broker);
    disk.boot(3);
    let broker = Embedded::with_disk(disk, options(dir.path())).expect("opened");
    let stored = broker.read(&topic, ReadFrom::Position(Position::default()), 100).await.expect("read");
    assert_eq!(stored.iter().map(|s| s.position.offset).collect::<Vec<_>>(), (0..20).collect::<Vec<_>>());
}

fn segment(broker: &Embedded, topic: &TopicSpec) -> PathBuf {
    broker.handle.host.topic_dir(&topic.name).join("00000000000000000000.log")
}

#[tokio::test]
async fn a_torn_tail_is_cut_wherever_it_is_torn() {
    let dir = tempfile::tempdir().expect("a directory");
    let topic = topic(2);
    let (file, whole, before) = {
        let broker = Embedded::open(options(dir.path())).expect("opened");
        broker.ensure(&topic, &[]).await.expect("ensured");
        send_all(&broker, &topic, numbered(None, 0..4)).await;
        let file = segment(&broker, &topic);
        let before = std::fs::metadata(&file).expect("there").len();
        send_all(&broker, &topic, numbered(None, 4..6)).await;
        let whole = std::fs::read(&file).expect("read");
        (file, whole, usize::try_from(before).expect("small"))
    };
    let control = file.with_file_name("control");
    for cut in before..whole.len() {
        for zeros in [false, true] {
            let mut torn = whole[..cut].to_vec();
            if zeros {
                torn.resize(whole.len(), 0);
            }
            if torn == whole {
                continue;
            }
            std::fs::write(&file, &torn).expect("written");
            std::fs::remove_file(&control).expect("removed");
            let opened = Embedded::open(options(dir.path())).expect("opened");
            let topic = opened.handle.topic(&topic.name).expect("recovered");
            assert_eq!(topic.page.ends().iter().sum::<u64>(), 4, "cut at {cut}");
            assert_eq!(std::fs::metadata(&file).expect("there").len(), before as u64);
        }
    }
}

#[tokio::test]
async fn who_comes_after_a_dead_writer_puts_the_log_in_order() {
    let dir = tempfile::tempdir().expect("a directory");
    let topic = topic(1);
    let a = Embedded::open(options(dir.path())).expect("opened");
    let b = Embedded::open(options(dir.path())).expect("opened");
    a.ensure(&topic, &[]).await.expect("ensured");
    send_all(&a, &topic, numbered(None, 0..5)).await;
    // As one leaves it that is killed in the middle of a write.
    let open = b.handle.topic(&topic.name).expect("open");
    let mut bytes = std::fs::read(segment(&a, &topic)).expect("read");
    bytes.extend_from_slice(&[7; 33]);
    std::fs::write(segment(&a, &topic), &bytes).expect("written");
    open.page.dirty().store(1, SeqCst);
    open.page.end(0).store(99, SeqCst);
    assert_eq!(send_all(&b, &topic, numbered(None, 5..6)).await[0].offset, 5);
    assert_eq!(send_all(&a, &topic, numbered(None, 6..7)).await[0].offset, 6);
    assert_eq!(a.read(&topic, ReadFrom::Position(Position::default()), 100).await.expect("read").len(), 7);
}

#[tokio::test]
async fn a_damaged_confirmed_batch_is_not_cut_off() {
    let dir = tempfile::tempdir().expect("a directory");
    let topic = topic(1);
    let broker = Embedded::open(options(dir.path())).expect("opened");
    broker.ensure(&topic, &[group("g")]).await.expect("ensured");
    send_all(&broker, &topic, numbered(None, 0..5)).await;
    send_all(&broker, &topic, numbered(None, 5..9)).await;
    let mut bytes = std::fs::read(segment(&broker, &topic)).expect("read");
    bytes[200] ^= 1;
    std::fs::write(segment(&broker, &topic), &bytes).expect("written");
    let other = Embedded::open(options(dir.path())).expect("opened");
    let refused = other.read(&topic, ReadFrom::Position(Position::default()), 100).await.expect_err("damaged");
    assert_eq!((refused.code(), refused.detail_str("reason")), (Code::StoreFailed, Some("damaged")));
    broker.handle.topic(&topic.name).expect("open").page.dirty().store(1, SeqCst);
    assert!(other.send(&topic, Arc::new(numbered(None, 9..10))).await[0].is_err());
    assert_eq!(std::fs::read(segment(&broker, &topic)).expect("read").len(), bytes.len());
}

#[tokio::test]
async fn what_a_killed_writer_left_unsynced_appears_after_a_while() {
    let dir = tempfile::tempdir().expect("a directory");
    let topic = topic(1);
    let a = Embedded::open(options(dir.path())).expect("opened");
    let b = Embedded::open(options(dir.path())).expect("opened");
    a.ensure(&topic, &[group("g")]).await.expect("ensured");
    let open = a.handle.topic(&topic.name).expect("open");
    let mut encoder = encode::Encoder::new(1);
    encoder.encode(numbered(None, 0..3).iter(), |_| true);
    // Killed before `commit`.
    open.append(&mut encoder).expect("written");
    assert!(a.read(&topic, ReadFrom::Position(Position::default()), 10).await.expect("read").is_empty());
    let subscription = join(&b, &topic, "g").await;
    assert_eq!(receive(&*subscription, 3).await.len(), 3);
}

#[tokio::test]
async fn an_interval_confirms_before_it_syncs() {
    let dir = tempfile::tempdir().expect("a directory");
    let disk = FaultyDisk::new();
    let fsync = Fsync::Interval(Duration::from_millis(10));
    let broker = Embedded::with_disk(Arc::clone(&disk) as Arc<dyn Disk>, Options { fsync, ..options(dir.path()) }).expect("opened");
    let topic = topic(1);
    broker.ensure(&topic, &[]).await.expect("ensured");
    assert_eq!(broker.capabilities(&topic).durability, Durability::Written);
    disk.fail_syncs(1);
    send_all(&broker, &topic, numbered(None, 0..3)).await;
    let end = Instant::now() + SOON;
    while disk.faults.syncs.load(SeqCst) > 0 {
        assert!(Instant::now() < end, "nobody synced");
        broker.handle.tidy();
        tokio::task::yield_now().await;
    }
    // What was confirmed stays readable; what comes next goes to another segment.
    let end = Instant::now() + SOON;
    let mut n = 3;
    while broker.handle.topic(&topic.name).expect("open").list_segments().expect("listed").len() < 2 {
        assert!(Instant::now() < end);
        n += broker.send(&topic, Arc::new(numbered(None, 3..4))).await.iter().filter(|sent| sent.is_ok()).count();
    }
    let stored = broker.read(&topic, ReadFrom::Position(Position::default()), 100_000).await.expect("read");
    assert!(stored.len() >= n, "{} of {n}", stored.len());
}

#[tokio::test]
async fn a_group_never_stands_beyond_a_log_that_lost_its_end() {
    let dir = tempfile::tempdir().expect("a directory");
    let topic = topic(1);
    let (file, kept) = {
        let broker = Embedded::open(options(dir.path())).expect("opened");
        broker.ensure(&topic, &[group("g")]).await.expect("ensured");
        send_all(&broker, &topic, numbered(None, 0..5)).await;
        let file = segment(&broker, &topic);
        let kept = std::fs::metadata(&file).expect("there").len();
        send_all(&broker, &topic, numbered(None, 5..9)).await;
        let subscription = join(&broker, &topic, "g").await;
        let all = receive(&*subscription, 9).await;
        settle_done(&*subscription, &all).await;
        subscription.close(Instant::now() + SOON).await;
        (file, kept)
    };
    // The machine lost its power before an interval's fsync, and with it the page.
    std::fs::File::options().write(true).open(&file).expect("open").set_len(kept).expect("cut");
    std::fs::remove_file(file.with_file_name("control")).expect("removed");
    let disk = FaultyDisk::new();
    disk.boot(9);
    let broker = Embedded::with_disk(disk, options(dir.path())).expect("opened");
    assert_eq!(send_all(&broker, &topic, numbered(None, 100..103)).await[0].offset, 5);
    let subscription = join(&broker, &topic, "g").await;
    assert_eq!(texts(&receive(&*subscription, 3).await), ["100", "101", "102"]);
}
