//! The demo on Kafka.

mod common;

use common::setting;
use serde_json::json;

#[test]
fn the_demo_is_green_and_what_it_made_can_be_removed() {
    common::demo_on("KAFKA", &json!({ "brokers": [setting("KAFKA")] }));
}
