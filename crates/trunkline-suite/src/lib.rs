//! What a provider must do, as programs that find out whether it does.
//!
//! - [`conformance`] holds the scenarios: one file per subject, one list of all of them. A provider is plugged in with
//!   a [`Broker`] of a few lines; each scenario is picked by what the provider declares, and what is not declared must
//!   be refused.
//! - [`model`] is the shortest provider that keeps the contract, in memory. It shows that the scenarios ask for nothing
//!   an honest provider cannot do.
//! - [`liar`] wraps an honest provider and breaks one duty at a time. It shows that the scenarios can fail.
//! - [`recording_disk`] records what the embedded broker asks of its disk and replays every crash.
//! - [`server`] knows the real servers that `scripts/brokers` started, and stops, kills and restarts them.
//! - [`proxy`] stands between a client and a server, and cuts, delays, throttles or swallows what passes.
//! - [`promise`] holds what the tests of the promises share, which look at `Trunkline` from outside.
//! - [`promises`] holds the promises themselves, as programs for any server.
//! - [`faulty`] stands between the core and a provider and fails as often as it is told, [`faulty_store`] between the core and
//!   the store.
//! - [`mount`] makes small file systems of one's own, which fill up or turn read-only.
//! - [`kill`] starts real processes on one broker to kill and stop, [`app`] whole programs on one data directory, and
//!   [`ledger`] holds them to what they confirmed and handled.

#![expect(clippy::unwrap_used, reason = "a poisoned suite should stop at once")]

#[macro_use]
mod verdict;
pub mod app;
mod bed;
mod broker;
pub mod conformance;
pub mod elasticmq;
pub mod faulty;
pub mod faulty_store;
pub mod kill;
pub mod ledger;
pub mod liar;
mod member;
pub mod model;
pub mod mount;
pub mod promise;
pub mod promises;
pub mod proxy;
pub mod recording_disk;
pub mod server;

pub use bed::{Bed, Sent};
pub use broker::{Broker, Pace};
pub use member::{Change, Got, Member};
pub use verdict::{Failure, Verdict};
