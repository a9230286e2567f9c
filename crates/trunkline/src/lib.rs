//! One messaging API over Kafka, RabbitMQ, Redis, AWS SQS, Google Pub/Sub, NATS and an embedded broker.
//!
//! A product has brokers; a broker has one provider and one config per env, and topics. The event `brokerTag:topicTag` is
//! all a program names: which broker carries it is configuration. Every message can be found again, and every failure is
//! retried, dead-lettered, inspected and replayed the same way on every provider.
//!
//! ```
//! use std::time::Duration;
//! use serde_json::{Value, json};
//! use trunkline::{Context, Trunkline};
//!
//! # tokio::runtime::Runtime::new().unwrap().block_on(async {
//! # let dir = tempfile::tempdir().unwrap();
//! # let path = dir.path().join("data").display().to_string();
//! let trunkline = Trunkline::open(&path).await?;
//! trunkline.catalog().create_broker(Some("my-product"), json!({
//!     "name": "Order Events", "tag": "order-events", "envs": [{ "slug": "prd", "type": "EMBEDDED", "config": {} }]
//! })).await?;
//! trunkline.catalog().create_topic(Some("my-product"), json!({ "name": "Order Created", "tag": "order-events:order-created" })).await?;
//!
//! let shop = trunkline.env("my-product", "prd");
//! let receipt = shop.produce("order-events:order-created", &json!({ "orderId": "123", "amount": 99.99 })).await?;
//!
//! let (handled, mut first) = tokio::sync::mpsc::channel(1);
//! let consumer = shop
//!     .consume("order-events:order-created", move |order: Value, context: Context| {
//!         let handled = handled.clone();
//!         async move { handled.send((context.process_id, order["orderId"].clone())).await }
//!     })
//!     .await?;
//! assert_eq!(first.recv().await, Some((receipt.process_id, json!("123"))));
//! consumer.close(Duration::from_secs(5)).await;
//! trunkline.close(Duration::from_secs(5)).await;
//! # Ok::<_, trunkline::Error>(()) }).unwrap();
//! ```
//!
//! - Produce: [`Env::produce`], [`Env::produce_batch`]; what it promises and how it fails: [`produce`].
//! - Produce later, or again and again: [`Produce::dispatch`], [`schedules`].
//! - Consume: [`Env::consume`], [`Env::consume_batch`], [`Env::stream`]; verdicts: [`Verdict`]; options: [`ConsumeOptions`].
//! - What became of messages: [`Env::message`], [`Env::messages`], [`events`], [`stats`], [`dashboard`]; dead letters: [`dead_letter`]; replay: [`replay`].
//! - Products, brokers, topics, groups: [`Catalog`], [`groups`]; caches: [`cache`]; what payloads look like: [`schema`].
//! - Who messages are produced for: [`sessions`].
//! - Who may do what: [`access`], [`keys`], [`audit`]; credentials: [`secret`].
//! - To add a provider: [`provider`].

#[cfg(not(feature = "sqlite"))]
compile_error!("trunkline needs a store: enable the feature `sqlite`");

pub mod access;
pub mod audit;
mod background;
mod breaker;
pub mod cache;
pub mod capability;
pub mod catalog;
#[doc(hidden)]
pub mod clock;
pub mod config;
pub mod connection;
pub mod consume;
mod consumer;
pub mod dashboard;
pub mod dead_letter;
pub mod delivery;
mod error;
mod event;
pub mod events;
pub mod file;
pub mod groups;
pub mod history;
mod inner;
mod jobs;
pub mod keys;
pub mod lot;
mod members;
pub mod message;
mod messages;
mod moves;
pub mod names;
pub mod payloads;
pub mod policy;
pub mod policy_config;
pub mod produce;
pub mod provider;
pub mod removal;
pub mod replay;
mod route;
pub mod schedules;
pub mod schema;
pub mod secret;
pub mod sessions;
pub mod stats;
pub mod store;
mod tracker;
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
pub use sessions::{Session, Sessions};
pub use trunkline::{Builder, Env, Produce, Trunkline};
