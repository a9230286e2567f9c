//! RabbitMQ under every scenario: the real server that `scripts/brokers` started.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::json;
use trunkline::Result;
use trunkline::config::{ProviderConfig, ProviderKind};
use trunkline::provider::Provider;
use trunkline::provider::rabbitmq::{Options, RabbitMq};
use trunkline_suite::server::setting;
use trunkline_suite::{Broker, Pace};

/// Shorter than in use: a scenario waits until it has passed.
const OPTIONS: Options = Options { revoke: Duration::from_secs(3), beat: Duration::from_millis(500) };

#[derive(Debug)]
struct Rabbit(String);

#[async_trait]
impl Broker for Rabbit {
    fn name(&self) -> &str {
        "RabbitMQ"
    }

    fn pace(&self) -> Pace {
        Pace { quiet: Duration::from_millis(300), ..Pace::NETWORK }
    }

    async fn open(&self) -> Result<Arc<dyn Provider>> {
        let config = ProviderConfig::parse(ProviderKind::RabbitMq, &json!({"url": self.0}))?;
        let ProviderConfig::RabbitMq(config) = config else { unreachable!("it was parsed as RabbitMQ's") };
        Ok(Arc::new(RabbitMq::with_options(config, OPTIONS).await?))
    }

    async fn restart(&self) -> Result<bool> {
        Ok(false)
    }

    fn leaves_out(&self) -> &[(&'static str, &'static str)] {
        &[]
    }
}

async fn rabbit() -> Arc<dyn Broker> {
    Arc::new(Rabbit(setting("RABBITMQ")))
}

trunkline_suite::conformance_tests!(crate::rabbit);
