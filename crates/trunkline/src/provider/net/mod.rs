//! What providers of network brokers share: names for deliveries, certificates, and the first stages of a connection test.

pub(crate) mod pem;
pub(crate) mod reach;
pub(crate) mod slab;
#[cfg(any(feature = "nats", feature = "pubsub", feature = "redis", feature = "sqs"))]
pub(crate) mod tls;
