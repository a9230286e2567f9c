//! What every route promises, on SQS.

use trunkline_suite::promise::Site;

trunkline_suite::promise_tests!(Site::on("sqs"));
