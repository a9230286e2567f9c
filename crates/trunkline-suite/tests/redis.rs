//! Redis under every scenario: streams and Pub/Sub, on the server that `scripts/brokers up redis` started.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use trunkline::Result;
use trunkline::config::{ProviderConfig, ProviderKind, RedisConfig};
use trunkline::provider::Provider;
use trunkline::provider::redis::{Options, Redis};
use trunkline_suite::server::setting;
use trunkline_suite::{Broker, Pace};

/// Short, so that what waits for a lease to end is quick; long beside what a busy machine holds up.
const OPTIONS: Options = Options {
    lease: Duration::from_secs(2),
    revoke: Duration::from_millis(1500),
    trim: Duration::from_secs(30),
    keep_age: Duration::from_secs(3600),
    keep_count: 100_000,
    keep_bytes: 256 << 20,
};

fn config(value: &serde_json::Value) -> RedisConfig {
    match ProviderConfig::parse(ProviderKind::Redis, value).expect("a config") {
        ProviderConfig::Redis(config) => config,
        other => panic!("{other:?}"),
    }
}

#[derive(Debug)]
struct Real {
    name: &'static str,
    mode: &'static str,
    leaves_out: &'static [(&'static str, &'static str)],
}

#[async_trait]
impl Broker for Real {
    fn name(&self) -> &str {
        self.name
    }

    fn pace(&self) -> Pace {
        Pace::LOCAL
    }

    async fn open(&self) -> Result<Arc<dyn Provider>> {
        let config = config(&serde_json::json!({ "url": setting("REDIS"), "mode": self.mode }));
        Ok(Arc::new(Redis::with_options(&config, OPTIONS).await?))
    }

    async fn restart(&self) -> Result<bool> {
        Ok(false)
    }

    fn leaves_out(&self) -> &[(&'static str, &'static str)] {
        self.leaves_out
    }
}

async fn streams() -> Arc<dyn Broker> {
    Arc::new(Real { name: "Redis streams", mode: "stream", leaves_out: &[] })
}

async fn channels() -> Arc<dyn Broker> {
    let leaves_out = &[("send/to_a_missing_topic_is_not_confirmed", "a channel is there as soon as somebody names it")];
    Arc::new(Real { name: "Redis Pub/Sub", mode: "pubsub", leaves_out })
}

mod stream {
    trunkline_suite::conformance_tests!(crate::streams);
}

mod pubsub {
    trunkline_suite::conformance_tests!(crate::channels);
}
