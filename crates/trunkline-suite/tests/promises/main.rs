//! What every route promises, seen from outside: through `Trunkline`, on the embedded broker, with both forms of the lot.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod delivery;
mod durability;
mod faults;
mod idempotency;
mod limits;
mod moves;
mod order;
mod produce;
mod recovery;
mod retry;
mod store_down;
