//! A process that does one thing with a whole instance, until it is killed or has done it.
//!
//! `suite-app WHAT DIR LEDGER ARGUMENT`:
//!
//! | what | does | argument |
//! |---|---|---|
//! | `produce` | one message after the other, numbered | pause between two, ms |
//! | `produce-some` | a thousand messages, and ends in good order | pause between two, ms |
//! | `consume` | handles; fails as often as [`failures`] says | how long each takes, ms |
//! | `crash` | handles, but dies with a message that says `poison` | how long each takes, ms |
//! | `claim` | produces with an idempotency key, and dies before the confirm is noted | `unsent`, or `sent` if the broker has it |
//! | `reprocess` | hands all dead letters over again | how many a second, and `group` or `topic` |

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};
use trunkline::dead_letter::{Reprocess, Target};
use trunkline::delivery::Position;
use trunkline::{ConsumeOptions, Context, Env, Schedule};
use trunkline_suite::app::{CONCURRENCY, IN_HAND, SOME, failures, follow_clock, open, schedule};
use trunkline_suite::faulty::Faults;
use trunkline_suite::ledger::{Entry, Ledger};
use trunkline_suite::promise::{EVENT, retries};

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    // Whatever becomes of the test, nothing of it stays behind.
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [what, dir, ledger, argument] = arguments.as_slice() else { panic!("suite-app WHAT DIR LEDGER ARGUMENT") };
    let (dir, ledger) = (PathBuf::from(dir), Arc::new(Mutex::new(Ledger::open(Path::new(ledger)).expect("a ledger"))));
    follow_clock(&dir);
    let millis = || Duration::from_millis(argument.parse().expect("milliseconds"));
    let faults = Arc::new(Faults::default());
    match (what.as_str(), argument.as_str()) {
        ("claim", "sent") => faults.fatal_late.store(1, Ordering::SeqCst),
        ("claim", _) => faults.fatal.store(1, Ordering::SeqCst),
        _ => {}
    }
    let trunkline = open(&dir, &faults).open().await.expect("an instance");
    let env = trunkline.env("shop", "prd");
    match what.as_str() {
        "produce" => produce(&env, &ledger, millis(), u64::MAX).await,
        "produce-some" => produce(&env, &ledger, millis(), SOME).await,
        "consume" => consume(&env, ledger, millis(), schedule()).await,
        "crash" => consume(&env, ledger, millis(), retries(&[])).await,
        "claim" => drop(env.produce(EVENT, &json!({ "n": 1 })).idempotency_key("key").timeout(Duration::from_secs(1)).await),
        "reprocess" => {
            let (rate, target) = argument.split_once(' ').expect("a rate and a target");
            let target = if target == "topic" { Target::Topic } else { Target::Group };
            drop(env.reprocess(Reprocess { rate: rate.parse().ok(), target, ..Reprocess::default() }).await);
            std::future::pending::<()>().await;
        }
        other => panic!("suite-app does not know how to {other}"),
    }
    trunkline.close(Duration::from_secs(10)).await;
}

async fn produce(env: &Env, ledger: &Mutex<Ledger>, pause: Duration, how_many: u64) {
    for n in 0..how_many {
        let key = format!("key-{}", n % 7);
        if let Ok(receipt) = env.produce(EVENT, &json!({ "n": n })).key(key).timeout(Duration::from_secs(2)).await {
            ledger.lock().write(&[Entry::Confirmed(receipt.process_id)]).expect("the ledger");
        }
        tokio::time::sleep(pause).await;
    }
}

async fn consume(env: &Env, ledger: Arc<Mutex<Ledger>>, takes: Duration, retry: Schedule) {
    let options = ConsumeOptions {
        concurrency: Some(CONCURRENCY),
        prefetch: Some(IN_HAND),
        retry: Some(retry),
        breaker: Some(false),
        ..ConsumeOptions::default()
    };
    let consumer = env
        .consume(EVENT, move |payload: Value, context: Context| {
            let ledger = ledger.clone();
            async move {
                if payload["poison"] == true {
                    std::process::abort();
                }
                tokio::time::sleep(takes).await;
                if context.attempt <= payload["n"].as_u64().map_or(0, failures) {
                    return Err("not yet");
                }
                let position = Position { shard: context.fence.shard, offset: context.fence.position };
                let handled = Entry::Handled { id: context.process_id, position, epoch: context.fence.epoch };
                ledger.lock().write(&[handled]).expect("the ledger");
                Ok(())
            }
        })
        .options(options)
        .await
        .expect("a consumer");
    std::future::pending::<()>().await;
    drop(consumer);
}
