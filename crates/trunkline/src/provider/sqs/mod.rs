//! AWS SQS: a queue for each group of a topic. `docs.md` is for users.
//!
//! - `http` is the HTTP client under the AWS client, `client` prepares that, `error` reads what it says.
//! - `queue` names queues, `topics` knows which there are, `message` what of a message lies where.
//! - `send` produces to all queues of a topic.
//! - `subscription` is one member of a group: `receive` fetches, `lease` renews, deletes and gives back.
//! - `probe` is the connection test, `provider` the connection itself.

pub mod config;

#[cfg(feature = "sqs")]
mod client;
#[cfg(feature = "sqs")]
mod error;
#[cfg(feature = "sqs")]
mod http;
#[cfg(feature = "sqs")]
mod lease;
#[cfg(feature = "sqs")]
mod message;
#[cfg(feature = "sqs")]
mod options;
#[cfg(feature = "sqs")]
mod probe;
#[cfg(feature = "sqs")]
mod provider;
#[cfg(feature = "sqs")]
mod queue;
#[cfg(feature = "sqs")]
mod receive;
#[cfg(feature = "sqs")]
mod send;
#[cfg(feature = "sqs")]
mod subscription;
#[cfg(feature = "sqs")]
mod topics;

#[cfg(feature = "sqs")]
pub use options::Options;
#[cfg(feature = "sqs")]
pub use provider::Sqs;
