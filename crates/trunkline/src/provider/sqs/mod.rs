#![cfg_attr(feature = "sqs", doc = include_str!("docs.md"))]

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
