//! The scenarios ask for nothing an honest provider cannot do: the model passes all of them, with every capability.

use std::sync::Arc;

use trunkline_suite::Broker;
use trunkline_suite::model::{Model, Traits};

async fn log() -> Arc<dyn Broker> {
    Arc::new(Model::new(Traits::LOG))
}

trunkline_suite::conformance_tests!(crate::log);

/// The same with none: what is not declared must be refused.
mod queue {
    use super::*;

    async fn queue() -> Arc<dyn Broker> {
        Arc::new(Model::new(Traits::QUEUE))
    }

    trunkline_suite::conformance_tests!(crate::queue::queue);
}
