//! A disk without room: refused with a word for it, nothing confirmed is lost, and it goes on when there is room again.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use tempfile::TempDir;
use trunkline::delivery::Position;
use trunkline::provider::embedded::{Embedded, Options};
use trunkline::provider::{Outgoing, Provider, ReadFrom, SendError, TopicSpec};
use trunkline::{Code, Headers, MessageId};
use trunkline_suite::recording_disk::{Faults, RecordingDisk};

fn topic() -> TopicSpec {
    TopicSpec { name: "full".into(), shards: 1, ordered: true }
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

struct Mount(TempDir);

impl Mount {
    /// A file system of its own; where mounting is not allowed the test fails and says so.
    fn new(size: &str) -> Self {
        let dir = TempDir::new().expect("a directory");
        let options = format!("size={size}");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "trunkline-suite"]).arg(dir.path()).output();
        assert!(mounted.is_ok_and(|output| output.status.success()), "a tmpfs cannot be mounted here: run the tests as root");
        Mount(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

#[tokio::test]
async fn a_file_system_that_is_full_refuses_and_goes_on() {
    let mount = Mount::new("3m");
    let ballast = mount.path().join("ballast");
    std::fs::write(&ballast, vec![0; 1 << 20]).expect("ballast");
    let open = || Embedded::open(Options::new(mount.path().join("log"))).expect("a broker");
    let provider = open();
    fill_and_go_on(&provider, open, || std::fs::remove_file(&ballast).expect("room")).await;
}
