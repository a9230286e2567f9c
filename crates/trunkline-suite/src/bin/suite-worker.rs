//! A process that produces to the embedded broker, or consumes from it, until it is killed.
//!
//! `suite-worker produce|consume DIR LEDGER HOLD_MS`; the kill tests start it, stop it and read what it wrote down.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use trunkline::delivery::{Settle, Settled};
use trunkline::provider::{Outgoing, Provider, Signal, Subscription};
use trunkline::{Headers, MessageId, Result};
use trunkline_suite::kill::{AT_ONCE, ids, join, open, topic};
use trunkline_suite::ledger::{Entry, Ledger, now};

#[tokio::main(flavor = "current_thread")]
async fn main() {
    // Whatever becomes of the test, nothing of it stays behind.
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [what, dir, ledger, hold] = arguments.as_slice() else { panic!("suite-worker produce|consume DIR LEDGER HOLD_MS") };
    let hold = Duration::from_millis(hold.parse().expect("milliseconds"));
    let (dir, ledger) = (PathBuf::from(dir), Ledger::open(Path::new(ledger)).expect("a ledger"));
    let provider = open(&dir).expect("the broker");
    match what.as_str() {
        "produce" => produce(&*provider, ledger).await,
        _ => consume(&*provider, ledger, hold).await,
    }
}

async fn produce(provider: &dyn Provider, mut ledger: Ledger) {
    let topic = topic();
    for round in 0_u32.. {
        let batch: Vec<_> = (0..=round % 12)
            .map(|n| {
                let shard = (round + n) % topic.shards;
                let payload = vec![b'x'; (n as usize * 97) % 1500].into();
                Outgoing { id: MessageId::now(), shard: Some(shard), key: None, headers: Headers::new(), payload }
            })
            .collect();
        let ids: Vec<_> = batch.iter().map(|message| message.id).collect();
        let results = provider.send(&topic, Arc::new(batch)).await;
        let confirmed: Vec<_> =
            ids.iter().zip(&results).filter(|(_, result)| result.is_ok()).map(|(id, _)| Entry::Confirmed(*id)).collect();
        ledger.write(&confirmed).expect("the ledger");
        // A pace that one consumer can hold.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn consume(provider: &dyn Provider, mut ledger: Ledger, hold: Duration) {
    loop {
        let member = join(provider).await.expect("a member");
        // An error ends the subscription: what the core does then is to open another.
        let _ = listen(&*member, &mut ledger, hold).await;
    }
}

async fn listen(member: &dyn Subscription, ledger: &mut Ledger, hold: Duration) -> Result<()> {
    loop {
        let mut yields = Vec::new();
        for signal in member.next(AT_ONCE, 1 << 20, Duration::from_millis(500)).await? {
            match signal {
                Signal::Assigned { shard, epoch, .. } => {
                    ledger.write(&[Entry::Assigned { at: now(), shard, epoch }]).expect("the ledger");
                }
                Signal::Deliveries { shard, epoch, items, .. } => {
                    let items: Vec<_> = ids(items);
                    let handled: Vec<_> =
                        items.iter().map(|(id, item)| Entry::Handled { id: *id, position: item.position, epoch }).collect();
                    ledger.write(&handled).expect("the ledger");
                    tokio::time::sleep(hold).await;
                    let begun = now();
                    let settles: Vec<_> = items.iter().map(|(_, item)| (item.token, Settle::Done)).collect();
                    let answers = member.settle(&settles).await;
                    let settled: Vec<_> = items
                        .iter()
                        .zip(answers)
                        .filter_map(|((id, _), answer)| match answer {
                            Settled::Settled => Some(Entry::Settled { begun, id: *id, shard, epoch }),
                            Settled::Stale => Some(Entry::Stale(*id)),
                            Settled::Unknown => None,
                        })
                        .collect();
                    ledger.write(&settled).expect("the ledger");
                }
                Signal::Revoking { route, shard, .. } => yields.push((route, shard)),
                Signal::Lost { .. } | Signal::State(_) => {}
            }
        }
        for (route, shard) in yields {
            member.yield_shard(route, shard).await;
        }
    }
}
