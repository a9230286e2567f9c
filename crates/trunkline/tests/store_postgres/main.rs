//! The list of tests that every store passes, on PostgreSQL, and what PostgreSQL alone has to show. It needs a server:
//! `eval "$(scripts/brokers up postgres)"`.

#![expect(clippy::unwrap_used, unreachable_pub, reason = "a test may panic, and has no outside")]

mod bed;
mod changes;
mod clock;
mod opening;
mod restart;
mod triggers;
#[path = "../stores/mod.rs"]
mod stores;

stores::store_tests!(crate::bed::Schema::new());
