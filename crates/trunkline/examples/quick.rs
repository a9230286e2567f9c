//! Produces one message and consumes it. Needs a data directory: `trunkline init --example` makes it.
//!
//! `cargo run --example quick`

use std::time::Duration;

use serde_json::{Value, json};
use trunkline::{Context, Result, Trunkline};

const EVENT: &str = "order-events:order-created";

#[tokio::main]
async fn main() -> Result<()> {
    let trunkline = Trunkline::builder().open().await?;
    let shop = trunkline.env("my-product", "prd");
    let receipt = shop.produce(EVENT, &json!({ "orderId": "123", "amount": 99.99 })).key("123").await?;
    println!("confirmed: {}", receipt.process_id);

    let (done, mut handled) = tokio::sync::mpsc::channel(1);
    let consumer = shop
        .consume(EVENT, move |order: Value, context: Context| {
            println!("received: {order} (attempt {})", context.attempt);
            let done = done.clone();
            // An error here would be retried, then dead-lettered.
            async move { done.send(()).await }
        })
        .await?;
    handled.recv().await;
    consumer.close(Duration::from_secs(30)).await;
    trunkline.close(Duration::from_secs(30)).await;
    Ok(())
}
