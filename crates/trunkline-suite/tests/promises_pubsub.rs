//! What every route promises, on Pub/Sub.

use trunkline_suite::promise::Site;

trunkline_suite::promise_tests!(Site::on("pubsub"));
