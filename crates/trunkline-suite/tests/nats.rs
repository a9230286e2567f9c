//! NATS under every scenario: JetStream, core NATS, and what is particular to it. The servers are those of
//! `scripts/brokers`; nothing here hurts them.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "nats/access.rs"]
mod access;
#[path = "nats/bed.rs"]
mod bed;
#[path = "nats/foreign.rs"]
mod foreign;
#[path = "nats/library.rs"]
mod library;
#[path = "nats/streams.rs"]
mod streams;

use std::sync::Arc;

use trunkline_suite::Broker;

use bed::{CoreNats, JetStream};

async fn jetstream() -> Arc<dyn Broker> {
    Arc::new(JetStream)
}

async fn core_nats() -> Arc<dyn Broker> {
    Arc::new(CoreNats)
}

mod stream {
    trunkline_suite::conformance_tests!(crate::jetstream);
}

mod lossy {
    trunkline_suite::conformance_tests!(crate::core_nats);
}
