//! The consume path: receive → lanes → handler → decide → settle → record.
//!
//! Read it in this order: [`engine`] receives and keeps the shards, [`lanes`] bounds what is in hand and keeps the
//! order of keys, [`worker`] runs the handler and decides, [`settle`] writes first and acks then.

pub(crate) mod engine;
pub mod handler;
pub(crate) mod lanes;
pub(crate) mod settle;
pub mod state;
mod worker;
