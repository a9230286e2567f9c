//! The demo on Redis.

mod common;

use serde_json::json;

#[test]
fn the_demo_is_green_and_what_it_made_can_be_removed() {
    common::demo_on("REDIS", &json!({ "url": common::setting("REDIS") }));
}
