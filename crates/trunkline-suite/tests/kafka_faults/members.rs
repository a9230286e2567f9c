//! Members of one group in processes of their own, that come and are killed: nothing is lost, and keys keep their order.

use std::collections::{HashMap, HashSet};

use serde_json::json;
use tempfile::TempDir;
use trunkline_suite::app::{Apps, IN_HAND};
use trunkline_suite::ledger::Entry;
use trunkline_suite::promise::Site;
use trunkline_suite::server::setting;

use crate::bed::{SHORT, name};
use crate::foreign::kcat;

const PROGRAM: &str = env!("CARGO_BIN_EXE_suite-app");
const MEMBERS: usize = 3;
const DEATHS: usize = 4;

/// Where each message lies and its key, as another client sees it.
fn keys(topic: &str) -> HashMap<(u32, u64), String> {
    let all = kcat(&["-C", "-q", "-t", topic, "-o", "beginning", "-e", "-f", "%p %o %k\n"], "");
    all.lines()
        .map(|line| {
            let [shard, offset, key] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("kcat said {line:?}") };
            ((shard.parse().unwrap(), offset.parse().unwrap()), key.to_owned())
        })
        .collect()
}

/// For each key the offsets that were handled, in order: of each ownership as its process wrote them down, and ownerships
/// by their number.
fn by_key(entries: &[Vec<Entry>], keys: &HashMap<(u32, u64), String>) -> HashMap<String, Vec<u64>> {
    let mut all: Vec<(u64, String, u64)> = entries
        .iter()
        .flatten()
        .filter_map(|entry| match entry {
            Entry::Handled { position, epoch, .. } => Some((*epoch, keys[&(position.shard, position.offset)].clone(), position.offset)),
            _ => None,
        })
        .collect();
    all.sort_by_key(|(epoch, ..)| *epoch);
    let mut by_key: HashMap<String, Vec<u64>> = HashMap::new();
    for (_, key, offset) in all {
        by_key.entry(key).or_default().push(offset);
    }
    by_key
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_keep_their_order_while_members_fail_come_and_are_killed() {
    let (dir, prefix) = (TempDir::new().unwrap(), name());
    let config = json!({ "brokers": [setting("KAFKA")], "prefix": prefix, "groupId": prefix, "options": { SHORT.0: SHORT.1 } });
    let site = Site { kind: "KAFKA", config, server: Some("kafka") };
    let mut apps = Apps::on_server(PROGRAM, dir.path(), &site, json!({ "ordering": "key", "shards": 6 })).await;
    for _ in 0..MEMBERS {
        apps.start("consume", "5");
    }
    let producer = apps.start("produce", "10");
    let count = |entries: &[Vec<Entry>]| entries.iter().flatten().filter(|entry| matches!(entry, Entry::Handled { .. })).count();
    for death in 0..DEATHS {
        let so_far = count(&apps.entries());
        apps.wait("the group goes on", |entries| count(entries) >= so_far + 100).await;
        let victim = if death == 0 { 0 } else { MEMBERS + death };
        apps.workers[victim].kill();
        apps.start("consume", "5");
    }
    let so_far = count(&apps.entries());
    apps.wait("the group goes on", |entries| count(entries) >= so_far + 100).await;
    apps.workers[producer].kill();
    apps.wait_for_all().await;
    let account = apps.account();
    println!("{} confirmed, {} repeated by {DEATHS} deaths", account.confirmed(), account.duplicates());
    assert!(account.duplicates() <= DEATHS * IN_HAND, "{} repeated", account.duplicates());
    let by_key = by_key(&apps.entries(), &keys(&format!("{prefix}.orders.created")));
    assert_eq!(by_key.len(), 7, "{:?}", by_key.keys());
    for (key, offsets) in by_key {
        // What was in hand of a dead member comes again; what comes for the first time comes in order.
        let mut seen = HashSet::new();
        let first: Vec<u64> = offsets.into_iter().filter(|offset| seen.insert(*offset)).collect();
        assert!(first.is_sorted(), "key {key} was handled as {first:?}");
    }
    apps.close().await;
}
