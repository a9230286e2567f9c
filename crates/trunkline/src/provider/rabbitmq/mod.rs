//! RabbitMQ: quorum queues bound to topic exchanges. See `docs.md` beside this file.
//!
//! The config is always compiled, so that every build validates alike.

pub mod config;

#[cfg(feature = "rabbitmq")]
mod admin;
#[cfg(feature = "rabbitmq")]
mod connection;
#[cfg(feature = "rabbitmq")]
mod envelope;
#[cfg(feature = "rabbitmq")]
mod error;
#[cfg(feature = "rabbitmq")]
mod feed;
#[cfg(feature = "rabbitmq")]
mod hello;
#[cfg(feature = "rabbitmq")]
mod inbox;
#[cfg(feature = "rabbitmq")]
mod layout;
#[cfg(feature = "rabbitmq")]
mod links;
#[cfg(feature = "rabbitmq")]
mod options;
#[cfg(feature = "rabbitmq")]
mod probe;
#[cfg(feature = "rabbitmq")]
mod rabbit;
#[cfg(feature = "rabbitmq")]
mod send;
#[cfg(feature = "rabbitmq")]
mod settle;
#[cfg(feature = "rabbitmq")]
mod shards;
#[cfg(feature = "rabbitmq")]
mod subscribe;
#[cfg(feature = "rabbitmq")]
mod target;

#[cfg(feature = "rabbitmq")]
pub use options::Options;
#[cfg(feature = "rabbitmq")]
pub use probe::probe;
#[cfg(feature = "rabbitmq")]
pub use rabbit::RabbitMq;
