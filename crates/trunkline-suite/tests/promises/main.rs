//! What every route promises, seen from outside: through `Trunkline`, on the embedded broker, with both forms of the lot.

mod bed;
mod delivery;
mod faults;
mod idempotency;
mod order;
mod produce;
mod recovery;
mod retry;
