//! How the suite gets at a provider.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use trunkline::Result;
use trunkline::provider::Provider;

/// How long the suite waits on this broker.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// For something that must happen. Long: it only costs time when the provider fails.
    pub patience: Duration,
    /// To see that something does not happen. It is spent each time: as short as the broker's round trip allows.
    pub quiet: Duration,
}

impl Pace {
    /// For a broker in this process or on this host.
    pub const LOCAL: Pace = Pace { patience: Duration::from_secs(20), quiet: Duration::from_millis(150) };
    /// For a broker behind a network.
    pub const NETWORK: Pace = Pace { patience: Duration::from_secs(60), quiet: Duration::from_millis(1000) };
}

/// One broker under test. Scenarios share it, run at the same time, and use names of their own.
#[async_trait]
pub trait Broker: Send + Sync + Debug {
    /// For the report.
    fn name(&self) -> &str;

    /// How patient the scenarios are.
    fn pace(&self) -> Pace;

    /// A new connection, as a process of its own would open it. Shares nothing with the others but the broker.
    async fn open(&self) -> Result<Arc<dyn Provider>>;

    /// What a topic of this name and kind must be called, where the broker asks for more than a name nobody else uses.
    fn topic_name(&self, name: String, ordered: bool) -> String {
        let _ = ordered;
        name
    }

    /// Stops the broker without a word and starts it again; `false` where that cannot be done from here.
    async fn restart(&self) -> Result<bool>;

    /// Scenarios this broker cannot be put through, by name, each with the reason a reader is shown.
    fn leaves_out(&self) -> &[(&'static str, &'static str)];
}
