//! Owning the loop: messages as a stream, each settled by hand.
//!
//! Needs a data directory: `trunkline init --example` makes it. `cargo run --example stream`

use std::time::Duration;

use serde_json::{Value, json};
use trunkline::{ConsumeOptions, Result, Trunkline, Verdict};

const EVENT: &str = "order-events:order-created";

#[tokio::main]
async fn main() -> Result<()> {
    let trunkline = Trunkline::builder().open().await?;
    let shop = trunkline.env("my-product", "prd");
    for n in 0..3 {
        shop.produce(EVENT, &json!({ "n": n })).await?;
    }
    let mut orders = shop.stream::<Value>(EVENT, ConsumeOptions { group: Some("loop".into()), ..ConsumeOptions::default() }).await?;
    for _ in 0..3 {
        let Some(order) = orders.next().await else { break };
        println!("{} {}", order.context.process_id, order.payload);
        if order.payload["n"] == 1 { order.settle(Verdict::Drop) } else { order.ack() }
    }
    orders.close(Duration::from_secs(30)).await;
    trunkline.close(Duration::from_secs(30)).await;
    Ok(())
}
