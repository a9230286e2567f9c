//! One messaging API over Kafka, RabbitMQ, Redis, AWS SQS, Google Pub/Sub, NATS and an embedded broker.

mod breaker;
pub mod capability;
pub mod consume;
pub mod delivery;
mod error;
mod event;
pub mod history;
pub mod lot;
pub mod message;
pub mod policy;
pub mod produce;
pub mod provider;
mod route;
pub mod secret;
pub mod store;

pub use error::{Code, Error, Result};
pub use event::Event;
pub use message::{Headers, MessageId};
