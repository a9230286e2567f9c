//! The consume path: receive → lanes → handler → decide → settle → record.
//!
//! Read it in this order: [`engine`] is what a consumer is made of, [`receive`] takes messages in, [`shards`] come and go,
//! [`due`] brings back what waited, [`lanes`] bounds what is in hand and keeps the
//! order of keys, [`worker`] runs the handler and decides, [`settle`] writes first and acks then;
//! [`shared`] is what the consumers of a process have in common.

mod due;
pub(crate) mod engine;
pub(crate) mod follow;
pub mod handler;
pub(crate) mod lanes;
mod receive;
pub(crate) mod settle;
mod shards;
pub(crate) mod shared;
pub mod state;
mod worker;

#[cfg(test)]
mod tests;
