//! The Rust in the README compiles, and does what the README says.

use serde_json::{Value, json};
use trunkline::history::Status;
use trunkline::{Context, Trunkline};

/// The lines between the markers are those of the README.
async fn as_in_the_readme() -> trunkline::Result<()> {
    // begin
    let trunkline = Trunkline::open(".trunkline").await?;
    let shop = trunkline.env("my-product", "prd");
    let consumer = shop
        .consume("order-events:order-created", |order: Value, context: Context| async move {
            println!("attempt {} of {}: {order}", context.attempt, context.process_id);
        })
        .group("billing")
        .await?;
    let receipt = shop.produce("order-events:order-created", &json!({ "orderId": "123" })).key("123").await?;
    println!("confirmed as {}", receipt.process_id);
    // end
    let mut settled = 0;
    while settled == 0 {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        settled = consumer.settled();
    }
    consumer.close(std::time::Duration::from_secs(5)).await;
    let record = shop.message(receipt.process_id).await?.expect("it is in the history");
    let group = record.groups.iter().find(|group| group.group == "billing").expect("its group is");
    assert_eq!(group.status, Status::Delivered);
    trunkline.close(std::time::Duration::from_secs(5)).await;
    Ok(())
}

/// What `trunkline init --example` makes.
async fn example() -> trunkline::Result<()> {
    let trunkline = Trunkline::open(".trunkline").await?;
    let broker = json!({ "name": "Order Events", "tag": "order-events", "envs": [{ "slug": "prd", "type": "EMBEDDED", "config": {} }] });
    trunkline.catalog().create_broker(Some("my-product"), broker).await?;
    let topic = json!({ "name": "Order Created", "tag": "order-events:order-created" });
    trunkline.catalog().create_topic(Some("my-product"), topic).await?;
    trunkline.close(std::time::Duration::from_secs(5)).await;
    Ok(())
}

/// The only test of its process: it changes the working directory.
#[tokio::test(flavor = "multi_thread")]
async fn the_rust_in_the_readme_runs() {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../README.md")).expect("the README");
    let fragment = readme.split_once("```rust\n").and_then(|(_, rest)| rest.split_once("```")).expect("a fragment").0;
    let here = include_str!("readme.rs");
    let lines = here.split_once("// begin\n").and_then(|(_, rest)| rest.split_once("    // end\n")).expect("the markers").0;
    let lines: String = lines.lines().map(|line| format!("{}\n", line.strip_prefix("    ").unwrap_or(line))).collect();
    assert_eq!(fragment, lines, "the README and this test differ");
    let dir = tempfile::tempdir().expect("a directory");
    std::env::set_current_dir(dir.path()).expect("to work there");
    let done = async {
        example().await?;
        as_in_the_readme().await
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), done).await.expect("in time").expect("no error");
}
