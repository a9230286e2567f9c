//! The embedded broker under every scenario: in a directory, and in memory.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tempfile::TempDir;
use trunkline::Result;
use trunkline::provider::Provider;
use trunkline::provider::embedded::{Embedded, MemoryDisk, Options};
use trunkline_suite::{Broker, Pace};

/// Short, so that what waits for a lease to end is quick; long beside what a busy machine holds up.
const LEASE: Duration = Duration::from_millis(1500);

#[derive(Debug)]
struct OnDisk(TempDir);

#[async_trait]
impl Broker for OnDisk {
    fn name(&self) -> &str {
        "embedded, in a directory"
    }

    fn pace(&self) -> Pace {
        Pace::LOCAL
    }

    async fn open(&self) -> Result<Arc<dyn Provider>> {
        Ok(Arc::new(Embedded::open(Options { lease: LEASE, ..Options::new(self.0.path()) })?))
    }

    async fn restart(&self) -> Result<bool> {
        Ok(false)
    }

    fn leaves_out(&self) -> &[(&'static str, &'static str)] {
        LEFT_OUT
    }
}

#[derive(Debug)]
struct InMemory(MemoryDisk);

#[async_trait]
impl Broker for InMemory {
    fn name(&self) -> &str {
        "embedded, in memory"
    }

    fn pace(&self) -> Pace {
        Pace::LOCAL
    }

    async fn open(&self) -> Result<Arc<dyn Provider>> {
        let options = Options { lease: LEASE, ..Options::new("/log") };
        Ok(Arc::new(Embedded::with_disk(Arc::new(self.0.clone()), options)?))
    }

    async fn restart(&self) -> Result<bool> {
        Ok(false)
    }

    fn leaves_out(&self) -> &[(&'static str, &'static str)] {
        LEFT_OUT
    }
}

/// In one process nobody dies: a member that is dropped gives back what it holds, uncounted.
const LEFT_OUT: &[(&str, &str)] = &[("settle/the_count_rises", "tests/kill.rs kills real members and looks at the counts")];

async fn on_disk() -> Arc<dyn Broker> {
    Arc::new(OnDisk(TempDir::new().expect("a directory")))
}

async fn in_memory() -> Arc<dyn Broker> {
    Arc::new(InMemory(MemoryDisk::new()))
}

mod disk {
    trunkline_suite::conformance_tests!(crate::on_disk);
}

mod memory {
    trunkline_suite::conformance_tests!(crate::in_memory);
}
