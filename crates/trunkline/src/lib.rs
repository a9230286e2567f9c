//! One messaging API over Kafka, RabbitMQ, Redis, AWS SQS, Google Pub/Sub, NATS and an embedded broker.

#[cfg(not(feature = "sqlite"))]
compile_error!("trunkline needs a store: enable the feature `sqlite`");

mod background;
mod breaker;
pub mod capability;
pub mod catalog;
pub mod config;
pub mod connection;
pub mod consume;
mod consumer;
pub mod dead_letter;
pub mod delivery;
mod error;
mod event;
pub mod file;
pub mod groups;
pub mod history;
mod inner;
pub mod lot;
pub mod message;
mod messages;
pub mod names;
pub mod policy;
pub mod policy_config;
pub mod produce;
pub mod provider;
pub mod replay;
mod route;
pub mod secret;
pub mod stats;
pub mod store;
mod trunkline;

pub use catalog::Catalog;
pub use consume::handler::{Context, Raw, Verdict};
pub use consume::state::State;
pub use consumer::{Consume, ConsumeOptions, Consumer, Delivery, Stream};
pub use error::{Code, Error, Result};
pub use event::Event;
pub use message::{Headers, MessageId};
pub use policy::Schedule;
pub use produce::{ProduceOptions, Receipt};
pub use provider::Start;
pub use trunkline::{Builder, Env, Produce, Trunkline};
