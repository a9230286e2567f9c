//! A handler that fails: retries, a dead letter, its repair, and the second chance.
//!
//! Needs a data directory: `trunkline init --example` makes it. `cargo run --example failures`

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;
use trunkline::dead_letter::{DeadFilter, Reprocess};
use trunkline::{Context, Result, Schedule, Trunkline};

const EVENT: &str = "order-events:order-created";

#[derive(Serialize, Deserialize)]
struct Order {
    amount: f64,
}

#[tokio::main]
async fn main() -> Result<()> {
    let trunkline = Trunkline::builder().open().await?;
    let shop = trunkline.env("my-product", "prd");
    let (told, mut outcome) = tokio::sync::mpsc::unbounded_channel();
    let consumer = shop
        .consume(EVENT, move |order: Order, context: Context| {
            let result = if order.amount < 0.0 { Err("an order must cost something") } else { Ok(()) };
            let _ = told.send((context.attempt, result.is_ok()));
            async move { result }
        })
        .group("billing")
        .retry(Schedule { delays: vec![Duration::from_millis(100), Duration::from_millis(200)], jitter: 0.2 })
        .await?;

    let id = shop.produce(EVENT, &Order { amount: -1.0 }).await?.process_id;
    while let Some((attempt, ok)) = outcome.recv().await {
        println!("attempt {attempt}: {}", if ok { "handled" } else { "failed" });
        if attempt == 3 {
            break;
        }
    }
    // It lies among the dead once the third failure is written.
    let only = DeadFilter { ids: vec![id], ..DeadFilter::default() };
    while shop.dead_letters(&only, 1, 1).await?.1 == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    shop.edit_dead_letter(id, Some("billing"), Some(json!({ "amount": 1.0 }).to_string().into()), None).await?;
    let report = shop.reprocess(Reprocess { filter: only, ..Reprocess::default() }).await?;
    println!("repaired and handed over again: {}", report.reprocessed);
    outcome.recv().await;
    println!("handled at last");
    consumer.close(Duration::from_secs(30)).await;
    trunkline.close(Duration::from_secs(30)).await;
    Ok(())
}
