//! A database that is down for a minute: the handler fails for everything, the group breaker holds, nothing is buried, and
//! when the database is back everything is handled.
//!
//! `cargo run --release --example breaker [SECONDS] [MESSAGES_PER_SECOND]` uses a directory of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use trunkline::dead_letter::DeadFilter;
use trunkline::{Context, Result, Trunkline};

const EVENT: &str = "orders:created";

#[tokio::main]
async fn main() -> Result<()> {
    let number = |at: usize, default: u64| std::env::args().nth(at).and_then(|text| text.parse().ok()).unwrap_or(default);
    let (seconds, rate) = (number(1, 60), number(2, 1_000));
    let directory = std::env::temp_dir().join(format!("trunkline-breaker-{}", std::process::id()));
    let trunkline = Trunkline::open(&directory.to_string_lossy()).await?;
    let broker = json!({ "name": "Orders", "tag": "orders", "envs": [{ "slug": "prd", "type": "EMBEDDED", "config": {} }] });
    trunkline.catalog().create_broker(Some("shop"), broker).await?;
    trunkline.catalog().create_topic(Some("shop"), json!({ "name": "Created", "tag": EVENT })).await?;
    let shop = trunkline.env("shop", "prd");

    let (down, handled, failed) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (d, h, f) = (down.clone(), handled.clone(), failed.clone());
    let consumer = shop
        .consume(EVENT, move |_: Value, _: Context| {
            let ok = !d.load(Ordering::SeqCst);
            if ok { &h } else { &f }.fetch_add(1, Ordering::SeqCst);
            async move { if ok { Ok(()) } else { Err("the database is down") } }
        })
        .await?;

    let start = Instant::now();
    let mut tick = tokio::time::interval(Duration::from_secs_f64(1.0 / rate as f64));
    let mut produced = 0;
    while start.elapsed() < Duration::from_secs(seconds) {
        tick.tick().await;
        let shop = shop.clone();
        tokio::spawn(async move { shop.produce(EVENT, &json!({ "n": produced })).await });
        produced += 1;
    }
    println!(
        "down for {seconds} s: {produced} produced, {} runs failed, consumer {}",
        failed.load(Ordering::SeqCst),
        consumer.state().text()
    );
    down.store(false, Ordering::SeqCst);
    let back = Instant::now();
    while handled.load(Ordering::SeqCst) < produced && back.elapsed() < Duration::from_secs(60) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let buried = shop.dead_letters(&DeadFilter::default(), 1, 1).await?.1;
    println!("back for {:.1} s: {} handled, {buried} buried", back.elapsed().as_secs_f64(), handled.load(Ordering::SeqCst));
    consumer.close(Duration::from_secs(10)).await;
    trunkline.close(Duration::from_secs(10)).await;
    drop(std::fs::remove_dir_all(directory));
    Ok(())
}
