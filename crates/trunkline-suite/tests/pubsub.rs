//! Google Pub/Sub under every scenario, on the test server of its own client that `scripts/brokers up pubsub` started.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use trunkline::Result;
use trunkline::config::{ProviderConfig, ProviderKind};
use trunkline::provider::Provider;
use trunkline::provider::pubsub::{Options, PubSub};
use trunkline_suite::server::setting;
use trunkline_suite::{Broker, Pace};

#[derive(Debug)]
struct TestServer;

#[async_trait]
impl Broker for TestServer {
    fn name(&self) -> &str {
        "Pub/Sub (pstest)"
    }

    fn pace(&self) -> Pace {
        Pace { patience: Duration::from_secs(40), ..Pace::LOCAL }
    }

    async fn open(&self) -> Result<Arc<dyn Provider>> {
        let config = serde_json::json!({ "projectId": "suite", "endpoint": format!("http://{}", setting("PUBSUB")) });
        let ProviderConfig::GooglePubSub(config) = ProviderConfig::parse(ProviderKind::GooglePubSub, &config)? else {
            panic!("another provider's config");
        };
        // Short, so that what waits for a lease to end is quick; the service takes ten seconds at the least.
        let options = Options { lease: Duration::from_secs(3), ..Options::default() };
        Ok(Arc::new(PubSub::open(&config, options).await?))
    }

    async fn restart(&self) -> Result<bool> {
        Ok(false)
    }

    fn leaves_out(&self) -> &[(&'static str, &'static str)] {
        const WHY: &str = "Pub/Sub's API counts nothing, and a depth is refused";
        &[
            ("depth/depth_counts", WHY),
            ("depth/depth_is_of_its_group", WHY),
            ("depth/depth_knows_the_oldest", WHY),
            ("depth/depth_survives_a_new_connection", WHY),
            // `pubsub_faults::network::a_slow_member_leaves_the_rest_to_others` sees it from another member.
            ("flow/prefetch_is_bounded_by_count", WHY),
            ("flow/prefetch_is_bounded_by_bytes", WHY),
        ]
    }
}

async fn pstest() -> Arc<dyn Broker> {
    Arc::new(TestServer)
}

trunkline_suite::conformance_tests!(crate::pstest);
