//! What every route promises, on Kafka.

use trunkline_suite::promise::Site;

trunkline_suite::promise_tests!(Site::on("kafka"));
