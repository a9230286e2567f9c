//! AWS SQS under every scenario, on ElasticMQ: a server that speaks its protocol, and not all of its behaviour.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use trunkline::Result;
use trunkline::config::{ProviderConfig, ProviderKind, SqsConfig};
use trunkline::provider::Provider;
use trunkline::provider::sqs::{Options, Sqs};
use trunkline_suite::server::setting;
use trunkline_suite::{Broker, Pace};

/// Short, with room for a busy machine.
const LEASE: Duration = Duration::from_secs(4);

/// ElasticMQ checks no credentials.
fn config() -> SqsConfig {
    let config = serde_json::json!({
        "region": setting("SQS_REGION"),
        "endpoint": setting("SQS"),
        "accessKeyId": "x",
        "secretAccessKey": "x",
    });
    match ProviderConfig::parse(ProviderKind::AwsSqs, &config) {
        Ok(ProviderConfig::AwsSqs(config)) => config,
        other => panic!("not a config: {other:?}"),
    }
}

#[derive(Debug)]
struct ElasticMq;

#[async_trait]
impl Broker for ElasticMq {
    fn name(&self) -> &str {
        "SQS (ElasticMQ)"
    }

    fn pace(&self) -> Pace {
        Pace::NETWORK
    }

    async fn open(&self) -> Result<Arc<dyn Provider>> {
        let options = Options { lease: LEASE, wait: Duration::from_secs(2), ..Options::default() };
        Ok(Arc::new(Sqs::open(&config(), options).await?))
    }

    fn topic_name(&self, name: String, ordered: bool) -> String {
        if ordered { format!("{name}.fifo") } else { name }
    }

    async fn restart(&self) -> Result<bool> {
        Ok(false)
    }

    fn leaves_out(&self) -> &[(&'static str, &'static str)] {
        LEFT_OUT
    }
}

const LEFT_OUT: &[(&str, &str)] =
    &[("order/a_message_lies_in_its_shard", "ElasticMQ answers a batch without the sequence numbers of which SQS makes positions")];

async fn elasticmq() -> Arc<dyn Broker> {
    Arc::new(ElasticMq)
}

trunkline_suite::conformance_tests!(crate::elasticmq);
