//! What every route promises, on Redis.

use trunkline_suite::promise::Site;

trunkline_suite::promise_tests!(Site::on("redis"));
