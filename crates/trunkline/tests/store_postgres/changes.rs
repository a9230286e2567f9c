//! Changes of the catalogue are told.

use std::time::Duration;

use serde_json::json;
use trunkline::store::keys::{KeyRow, KeyStore};
use trunkline::store::secrets::{SecretChange, SecretStore};
use trunkline::store::{Doc, DocChange, DocKind, Store};

use crate::bed::Schema;

fn put(n: u64) -> Vec<DocChange> {
    vec![DocChange::Put(Doc { kind: DocKind::Product, path: "shop".to_owned(), body: json!({ "n": n }) })]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_wakes_whoever_waits_for_it_also_after_the_connection_was_cut() {
    let bed = Schema::new().await;
    let (a, b) = (bed.store(bed.options()).await, bed.store(bed.options()).await);
    // The first word says that it listens.
    tokio::time::timeout(Duration::from_secs(5), b.catalog_changed()).await.unwrap();
    for n in 0..3 {
        a.catalog_write(n, put(n)).await.unwrap().unwrap();
        tokio::time::timeout(Duration::from_secs(1), b.catalog_changed()).await.unwrap();
        assert_eq!(b.catalog_version().await.unwrap(), n + 1);
    }
    assert_eq!(bed.cut("LISTEN%").await, 2);
    a.catalog_write(3, put(3)).await.unwrap().unwrap();
    // Told when it listens again, since it may have missed some.
    tokio::time::timeout(Duration::from_secs(5), b.catalog_changed()).await.unwrap();
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotated_secret_and_a_revoked_key_wake_whoever_waits() {
    let bed = Schema::new().await;
    let (a, b) = (bed.store(bed.options()).await, bed.store(bed.options()).await);
    tokio::time::timeout(Duration::from_secs(5), b.catalog_changed()).await.unwrap();
    a.secrets_write(0, vec![SecretChange::Remove("none".to_owned())], vec![]).await.unwrap().unwrap();
    tokio::time::timeout(Duration::from_secs(1), b.catalog_changed()).await.unwrap();
    let key = KeyRow {
        id: "k".to_owned(),
        role: "admin".to_owned(),
        name: None,
        hash: [1; 32],
        created_at: 1,
        expires_at: None,
        revoked_at: Some(2),
    };
    a.key_write(1, key).await.unwrap().unwrap();
    tokio::time::timeout(Duration::from_secs(1), b.catalog_changed()).await.unwrap();
    assert_eq!(b.catalog_version().await.unwrap(), 2);
    bed.end().await;
}
