//! Secrets and access keys: both under the catalogue's version.

use trunkline::store::keys::KeyRow;
use trunkline::store::secrets::{SecretChange, SecretRow};

use super::*;

fn secret(key: &str, sealed: &str) -> SecretRow {
    SecretRow {
        id: format!("shop/{key}"),
        product: Some("shop".to_owned()),
        key: key.to_owned(),
        envs: vec!["dev".to_owned(), "live".to_owned()],
        sealed: sealed.to_owned(),
        created_at: START,
        updated_at: START,
    }
}

fn key(id: &str, created_at: Millis) -> KeyRow {
    KeyRow {
        id: id.to_owned(),
        role: "admin".to_owned(),
        name: Some("of the build".to_owned()),
        hash: [7; 32],
        created_at,
        expires_at: Some(created_at + 1_000),
        revoked_at: None,
    }
}

fn doc(path: &str) -> Doc {
    Doc { kind: DocKind::Product, path: path.to_owned(), body: json!({ "n": 1 }) }
}

pub async fn secrets_and_documents_change_together_or_not_at_all(bed: &dyn Bed) {
    let (a, b) = (bed.open().await, bed.open().await);
    assert_eq!(a.secrets().await.unwrap(), (0, vec![]));
    let of_all = SecretRow { id: "all".to_owned(), product: None, envs: Vec::new(), ..secret("password", "one") };
    let puts = vec![SecretChange::Put(secret("user", "one")), SecretChange::Put(of_all.clone())];
    assert_eq!(a.secrets_write(0, puts, vec![DocChange::Put(doc("shop"))]).await.unwrap(), Some(1));
    assert_eq!(b.secrets().await.unwrap(), (1, vec![of_all.clone(), secret("user", "one")]));
    assert_eq!(b.catalog().await.unwrap(), (1, vec![doc("shop")]));

    let late = vec![SecretChange::Put(secret("late", "x"))];
    assert_eq!(b.secrets_write(0, late, vec![DocChange::Put(doc("other"))]).await.unwrap(), None);
    assert_eq!((b.secrets().await.unwrap().1.len(), b.catalog().await.unwrap().1.len()), (2, 1));

    // A rotation changes the text and its time, and nothing else; what is not there stays away.
    let rotated = SecretRow { created_at: 1, updated_at: START + 5, envs: Vec::new(), ..secret("user", "two") };
    let changes = vec![SecretChange::Put(rotated), SecretChange::Remove("all".to_owned()), SecretChange::Remove("none".to_owned())];
    assert_eq!(b.secrets_write(1, changes, vec![]).await.unwrap(), Some(2));
    assert_eq!(a.secrets().await.unwrap(), (2, vec![SecretRow { updated_at: START + 5, ..secret("user", "two") }]));
}

pub async fn a_key_is_written_once_and_then_only_revoked(bed: &dyn Bed) {
    let (a, b) = (bed.open().await, bed.open().await);
    assert_eq!(a.keys().await.unwrap(), (0, vec![]));
    assert_eq!(a.key_write(0, key("b", START + 1)).await.unwrap(), Some(1));
    assert_eq!(b.key_write(0, key("c", START)).await.unwrap(), None);
    let plain = KeyRow { name: None, expires_at: None, ..key("c", START) };
    assert_eq!(b.key_write(1, plain.clone()).await.unwrap(), Some(2));
    assert_eq!(a.keys().await.unwrap(), (2, vec![plain.clone(), key("b", START + 1)]), "oldest first");
    let revoked = KeyRow { revoked_at: Some(START + 9), role: "reader".to_owned(), hash: [8; 32], ..key("b", START) };
    assert_eq!(a.key_write(2, revoked).await.unwrap(), Some(3));
    assert_eq!(b.keys().await.unwrap(), (3, vec![plain, KeyRow { revoked_at: Some(START + 9), ..key("b", START + 1) }]));
}

pub async fn one_version_covers_documents_secrets_and_keys(bed: &dyn Bed) {
    let (a, b) = (bed.open().await, bed.open().await);
    let put = vec![SecretChange::Put(secret("user", "one"))];
    let (documents, secrets, keys) = tokio::join!(
        a.catalog_write(0, vec![DocChange::Put(doc("shop"))]),
        b.secrets_write(0, put, vec![]),
        b.key_write(0, key("a", START)),
    );
    let versions = [documents.unwrap(), secrets.unwrap(), keys.unwrap()];
    assert_eq!(versions.iter().flatten().collect::<Vec<_>>(), [&1], "one was first");
    assert_eq!(b.catalog_version().await.unwrap(), 1);
    let rows = a.catalog().await.unwrap().1.len() + a.secrets().await.unwrap().1.len() + a.keys().await.unwrap().1.len();
    assert_eq!(rows, 1);
}
