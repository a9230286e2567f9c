//! AWS SQS on ElasticMQ, which speaks its protocol and has not all of its behaviour: every scenario, and what is SQS's own.
//! What ElasticMQ cannot do (credentials, throttling, limits) is shown on answers as SQS gives them: `replies.rs`.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod interop;
mod program;
mod queues;
mod replies;
mod tls;

use std::sync::Arc;

use trunkline_suite::Broker;
use trunkline_suite::elasticmq::ElasticMq;

async fn elasticmq() -> Arc<dyn Broker> {
    Arc::new(ElasticMq)
}

trunkline_suite::conformance_tests!(crate::elasticmq);
