//! One messaging API over Kafka, RabbitMQ, Redis, AWS SQS, Google Pub/Sub, NATS and an embedded broker.

pub mod capability;
pub mod catalog;
pub mod config;
pub mod delivery;
mod error;
mod event;
pub mod file;
pub mod history;
pub mod message;
pub mod names;
pub mod policy_config;
pub mod provider;
pub mod store;

pub use error::{Code, Error, Result};
pub use event::Event;
pub use message::{Headers, MessageId};
