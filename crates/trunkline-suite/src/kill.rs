//! Real processes on one embedded broker, killed and stopped at will: `suite-worker` and the tests share this.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal as Kill, kill_process};
use trunkline::delivery::{Delivery, EnvelopeId};
use trunkline::provider::embedded::{Embedded, Options};
use trunkline::provider::{GroupSpec, Prefetch, Provider, Start, SubscribeOptions, Subscription, TopicSpec};
use trunkline::{MessageId, Result};

/// Short, so that a run with many deaths is.
pub const LEASE: Duration = Duration::from_millis(600);
/// The most a consumer holds.
pub const AT_ONCE: usize = 32;

/// Opens the broker as each process does.
pub fn open(dir: &Path) -> Result<Arc<dyn Provider>> {
    Ok(Arc::new(Embedded::open(Options { lease: LEASE, segment_bytes: 256 << 10, ..Options::new(dir) })?))
}

/// The topic all work on.
#[must_use]
pub fn topic() -> TopicSpec {
    TopicSpec::new("kill", 4, true)
}

/// The group of the consumers.
#[must_use]
pub fn group() -> GroupSpec {
    GroupSpec { name: "group".into(), start: Start::Earliest }
}

/// Joins the group.
pub async fn join(provider: &dyn Provider) -> Result<Arc<dyn Subscription>> {
    let member = format!("process-{}", std::process::id()).into();
    let options = SubscribeOptions { member, prefetch: Prefetch { count: AT_ONCE, bytes: 1 << 20 } };
    provider.subscribe(&[topic()], &group(), options).await
}

/// Deliveries with their ids; the workers send none without.
#[must_use]
pub fn ids(items: Vec<Delivery>) -> Vec<(MessageId, Delivery)> {
    let with_id = |item: Delivery| match item.id {
        EnvelopeId::Id(id) => Some((id, item)),
        EnvelopeId::Foreign | EnvelopeId::Broken => None,
    };
    items.into_iter().filter_map(with_id).collect()
}

/// A process of its own, killed when this is dropped.
#[derive(Debug)]
pub struct Worker {
    child: Child,
    /// What it writes down.
    pub ledger: PathBuf,
}

impl Worker {
    /// Starts `program` as a producer or a consumer that holds each message so long.
    ///
    /// # Panics
    /// If the process cannot be started.
    #[must_use]
    pub fn start(program: &str, what: &str, dir: &Path, ledger: PathBuf, hold: Duration) -> Self {
        let mut command = Command::new(program);
        command.arg(what).arg(dir).arg(&ledger).arg(hold.as_millis().to_string()).stdin(Stdio::null());
        Worker::run(command, ledger)
    }

    /// Starts this command, which writes that ledger.
    ///
    /// # Panics
    /// If the process cannot be started.
    #[must_use]
    pub fn run(mut command: Command, ledger: PathBuf) -> Self {
        Worker { child: command.spawn().unwrap(), ledger }
    }

    /// How much it wrote down so far, in bytes.
    #[must_use]
    pub fn progress(&self) -> u64 {
        std::fs::metadata(&self.ledger).map_or(0, |file| file.len())
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Kill) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, signal);
        }
    }

    /// Kills it and waits until it is gone.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Whether it ended by itself.
    pub fn ended(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|status| status.is_some())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.kill();
    }
}
