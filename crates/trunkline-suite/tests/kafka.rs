//! Kafka under every scenario, on the server that `scripts/brokers up kafka` started.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::json;
use trunkline::Result;
use trunkline::config::{ProviderConfig, ProviderKind};
use trunkline::provider::Provider;
use trunkline_suite::server::setting;
use trunkline_suite::{Broker, Pace};

#[derive(Debug)]
struct Kafka;

#[async_trait]
impl Broker for Kafka {
    fn name(&self) -> &str {
        "Kafka"
    }

    fn pace(&self) -> Pace {
        Pace::NETWORK
    }

    async fn open(&self) -> Result<Arc<dyn Provider>> {
        // The shortest session the broker allows: what waits for a death is quick.
        let config = json!({ "brokers": [setting("KAFKA")], "options": { "session.timeout.ms": 6000 } });
        let config = ProviderConfig::parse(ProviderKind::Kafka, &config)?;
        trunkline::provider::open(&config, std::path::Path::new("unused")).await
    }

    async fn restart(&self) -> Result<bool> {
        // Others use it at the same time: `kafka_faults` restarts a server of its own.
        Ok(false)
    }

    fn leaves_out(&self) -> &[(&'static str, &'static str)] {
        LEFT_OUT
    }
}

/// A member that is dropped leaves the group in peace, so that nothing of it is suspect.
const LEFT_OUT: &[(&str, &str)] =
    &[("settle/the_count_rises", "in one process nobody dies; kafka_faults kills processes and looks at the counts")];

async fn broker() -> Arc<dyn Broker> {
    Arc::new(Kafka)
}

trunkline_suite::conformance_tests!(crate::broker);
