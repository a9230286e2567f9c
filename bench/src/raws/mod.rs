//! The clients alone, as one who knows them writes them: everything in flight at once, a settle for each message, in batches
//! where the protocol has them.

#[cfg(feature = "kafka")]
mod kafka;
#[cfg(feature = "nats")]
mod nats;
#[cfg(feature = "pubsub")]
mod pubsub;
#[cfg(feature = "rabbitmq")]
mod rabbitmq;
#[cfg(feature = "redis")]
mod redis;
#[cfg(feature = "sqs")]
mod sqs;

use crate::embedded::Error;
use crate::network::Target;

/// What `scripts/brokers up` printed for a server.
fn setting(name: &str) -> Result<String, Error> {
    let variable = format!("TRUNKLINE_TEST_{name}");
    std::env::var(&variable).map_err(|_| format!("{variable} is not set: start the server with `eval \"$(scripts/brokers up …)\"`").into())
}

/// The target of this name.
pub(crate) fn target(broker: &str) -> Result<Target, Error> {
    match broker {
        #[cfg(feature = "kafka")]
        "kafka" => kafka::target(),
        #[cfg(feature = "rabbitmq")]
        "rabbitmq" => rabbitmq::target(),
        #[cfg(feature = "redis")]
        "redis" => redis::target(),
        #[cfg(feature = "nats")]
        "nats" => nats::target(),
        #[cfg(feature = "pubsub")]
        "pubsub" => pubsub::target(),
        #[cfg(feature = "sqs")]
        "sqs" => sqs::target(),
        other => Err(format!("no raw client for '{other}' is compiled in: `--features` of trunkline-bench names them").into()),
    }
}
