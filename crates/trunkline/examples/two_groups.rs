//! One program for every broker: two groups, and each gets every order. Which broker carries them is the configuration of
//! the env, nothing here.
//!
//! Needs a data directory: `trunkline init --example` makes it. `cargo run --example two_groups [ENV]`; for another broker
//! give the env another provider in `trunkline.yaml`, `trunkline apply`, and build with its feature: `--features redis`.

use std::collections::HashSet;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::mpsc;
use trunkline::{Consumer, Context, Env, Error, Result, Trunkline};

const EVENT: &str = "order-events:order-created";
const ORDERS: usize = 100;

/// A member of the group, and the numbers of the orders it was handed.
async fn member(shop: &Env, group: &str) -> Result<(Consumer, mpsc::Receiver<u64>)> {
    let (tell, numbers) = mpsc::channel(ORDERS);
    let consumer = shop
        .consume(EVENT, move |order: Value, _: Context| {
            let tell = tell.clone();
            async move { tell.send(order["number"].as_u64().unwrap_or(0)).await }
        })
        .group(group)
        .await?;
    Ok((consumer, numbers))
}

/// Produces the orders and waits until both groups have handled all of them.
pub(crate) async fn run(trunkline: &Trunkline, product: &str, env: &str) -> Result<()> {
    let shop = trunkline.env(product, env);
    let mut groups = Vec::new();
    for group in ["billing", "shipping"] {
        let (consumer, numbers) = member(&shop, group).await?;
        groups.push((group, consumer, numbers));
    }
    for number in 0..ORDERS {
        shop.produce(EVENT, &json!({ "number": number })).await?;
    }
    for (group, consumer, mut numbers) in groups {
        // At least once: a number may come again.
        let mut seen = HashSet::new();
        let all = async {
            while seen.len() < ORDERS {
                seen.extend(numbers.recv().await);
            }
        };
        let in_time = tokio::time::timeout(Duration::from_secs(60), all).await.is_ok();
        consumer.close(Duration::from_secs(10)).await;
        println!("{group}: {} of {ORDERS} orders handled", seen.len());
        if !in_time {
            return Err(Error::new(trunkline::Code::Timeout, format!("{group} did not get every order within a minute")));
        }
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<()> {
    let env = std::env::args().nth(1).unwrap_or_else(|| "prd".to_owned());
    let trunkline = Trunkline::builder().open().await?;
    run(&trunkline, "my-product", &env).await?;
    trunkline.close(Duration::from_secs(30)).await;
    Ok(())
}
