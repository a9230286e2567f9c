//! What the tests of NATS share: connections by config, and the brokers of the suite.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};
use trunkline::Result;
use trunkline::config::{NatsConfig, ProviderConfig, ProviderKind};
use trunkline::provider::Provider;
use trunkline::provider::nats::{Nats, Options};
use trunkline_suite::server::setting;
use trunkline_suite::{Broker, Pace};

/// Short, so that what waits for a lease to end is quick; long beside what a busy machine holds up.
pub(crate) const LEASE: Duration = Duration::from_millis(2500);

/// A config as a user writes it.
pub(crate) fn config(value: &Value) -> NatsConfig {
    match ProviderConfig::parse(ProviderKind::Nats, value) {
        Ok(ProviderConfig::Nats(config)) => config,
        other => panic!("{other:?}"),
    }
}

/// A connection with a short lease.
pub(crate) async fn open(value: &Value) -> Result<Arc<dyn Provider>> {
    Ok(Arc::new(Nats::open(&config(value), Options { lease: LEASE }).await?))
}

/// The plain server's config.
pub(crate) fn plain() -> Value {
    json!({ "servers": setting("NATS") })
}

#[derive(Debug)]
pub(crate) struct JetStream;

#[async_trait]
impl Broker for JetStream {
    fn name(&self) -> &str {
        "NATS JetStream"
    }

    fn pace(&self) -> Pace {
        Pace { patience: Duration::from_secs(60), quiet: Duration::from_millis(400) }
    }

    async fn open(&self) -> Result<Arc<dyn Provider>> {
        open(&plain()).await
    }

    async fn restart(&self) -> Result<bool> {
        Ok(false)
    }

    fn leaves_out(&self) -> &[(&'static str, &'static str)] {
        &[]
    }
}

#[derive(Debug)]
pub(crate) struct CoreNats;

#[async_trait]
impl Broker for CoreNats {
    fn name(&self) -> &str {
        "core NATS"
    }

    fn pace(&self) -> Pace {
        Pace { patience: Duration::from_secs(60), quiet: Duration::from_millis(400) }
    }

    async fn open(&self) -> Result<Arc<dyn Provider>> {
        open(&json!({ "servers": setting("NATS"), "mode": "core" })).await
    }

    async fn restart(&self) -> Result<bool> {
        Ok(false)
    }

    fn leaves_out(&self) -> &[(&'static str, &'static str)] {
        &[("send/to_a_missing_topic_is_not_confirmed", "a subject of core NATS needs no making: there is no topic that could be missing")]
    }
}
