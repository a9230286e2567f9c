//! RabbitMQ hurt: killed, stopped, cut off, out of memory, with wrong users and foreign clients. One at a time, since all
//! use the one server that `scripts/brokers` started.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod access;
mod bed;
mod faults;
mod interop;
mod library;
mod order;
