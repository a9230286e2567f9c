//! What providers of network brokers share: names for deliveries, certificates, and the first stages of a connection test.

#![cfg_attr(
    not(all(feature = "kafka", feature = "nats", feature = "pubsub", feature = "rabbitmq", feature = "redis", feature = "sqs")),
    allow(dead_code, reason = "no provider needs all of it")
)]

pub(crate) mod pem;
pub(crate) mod reach;
pub(crate) mod slab;
#[cfg(any(feature = "nats", feature = "postgres", feature = "pubsub", feature = "rabbitmq", feature = "redis", feature = "sqs"))]
pub(crate) mod tls;
