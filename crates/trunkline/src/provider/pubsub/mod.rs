//! Google Pub/Sub: a topic for each topic, a subscription for each group. `docs.md` is for users.
//!
//! - `link` is the gRPC connection, `credentials` say who we are on it, `error` reads what it says.
//! - `names` names topics and subscriptions, `topics` makes them and looks at them, `message` says what lies where.
//! - `send` publishes.
//! - `subscription` is one member of a group: `stream` receives, `lease` renews, acks and gives back.
//! - `probe` is the connection test, `provider` the connection itself.
//!
//! The official client hides publish, ack and lease calls behind tasks of its own, whose acks nobody can wait for: so the
//! protocol is spoken here, with generated types.

pub mod config;

#[cfg(feature = "pubsub")]
mod credentials;
#[cfg(feature = "pubsub")]
mod error;
#[cfg(feature = "pubsub")]
mod lease;
#[cfg(feature = "pubsub")]
mod link;
#[cfg(feature = "pubsub")]
mod message;
#[cfg(feature = "pubsub")]
mod names;
#[cfg(feature = "pubsub")]
mod options;
#[cfg(feature = "pubsub")]
mod probe;
#[cfg(feature = "pubsub")]
mod provider;
#[cfg(feature = "pubsub")]
mod send;
#[cfg(feature = "pubsub")]
mod stream;
#[cfg(feature = "pubsub")]
mod subscription;
#[cfg(feature = "pubsub")]
mod topics;

#[cfg(feature = "pubsub")]
pub use options::Options;
#[cfg(feature = "pubsub")]
pub use provider::PubSub;
