//! What every route promises, on RabbitMQ.

use trunkline_suite::promise::Site;

trunkline_suite::promise_tests!(Site::on("rabbitmq"));
