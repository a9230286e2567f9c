//! What every route promises, on NATS.

use trunkline_suite::promise::Site;

trunkline_suite::promise_tests!(Site::on("nats"));
