//! What happens to Kafka in production, done to a real one: the server that `scripts/brokers up kafka` started.

#![expect(clippy::unwrap_used, reason = "a test stops where it fails")]

mod access;
mod bed;
mod content;
mod crash;
mod foreign;
mod members;
mod network;
mod outage;
mod positions;
mod whole;
