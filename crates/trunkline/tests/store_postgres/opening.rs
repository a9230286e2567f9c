//! Opening: what is refused, by many at once, and who may read.

use trunkline::Code;
use trunkline::secret::MasterKey;
use trunkline::store::audit::AuditStore;
use trunkline::store::postgres::{Options, PostgresStore};
use trunkline::store::schedule::ScheduleStore;
use trunkline::store::secrets::SecretStore;
use trunkline::store::{LotFilter, Store};

use crate::bed::{Schema, psql, server};

async fn refused(url: &str) -> String {
    let error = PostgresStore::open(url, Options::default()).await.unwrap_err();
    assert_eq!(error.code(), Code::StoreFailed);
    assert!(error.detail_str("next").is_some() && error.detail_str("store").is_some(), "{error:?}");
    assert!(!format!("{error:?}").contains("hunter2"));
    error.detail_str("reason").unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_may_open_a_new_schema_at_once() {
    let bed = Schema::new().await;
    let options = || Options { connections: 2, ..bed.options() };
    let opened = futures_util::future::join_all((0..8).map(|_| bed.store(options()))).await;
    for store in &opened {
        assert_eq!(store.lot_count(&LotFilter::default()).await.unwrap(), 0);
        assert!(store.location().contains(&bed.name));
    }
    for store in &opened {
        store.close().await;
    }
    bed.end().await;
}

#[tokio::test]
async fn an_older_schema_is_brought_up_to_date_and_keeps_what_it_holds() {
    const FIRST: &str = include_str!("../../src/store/postgres/schema/v1.sql");
    let bed = Schema::new().await;
    psql().await.batch_execute(&format!("CREATE SCHEMA {}", bed.name)).await.unwrap();
    bed.sql(FIRST).await;
    bed.sql("UPDATE meta SET value = 1 WHERE name = 'version'; UPDATE meta SET value = 7 WHERE name = 'catalog_version'").await;
    let store = bed.store(bed.options()).await;
    assert_eq!(store.catalog_version().await.unwrap(), 7);
    assert_eq!(store.secrets().await.unwrap(), (7, vec![]));
    assert_eq!(store.audit_head().await.unwrap(), (0, [0; 32]));
    assert_eq!(store.schedule_next().await.unwrap(), None);
    bed.end().await;
}

#[tokio::test]
async fn a_newer_schema_and_one_of_others_are_left_alone() {
    let bed = Schema::new().await;
    bed.store(bed.options()).await.close().await;
    bed.sql("UPDATE meta SET value = value + 1 WHERE name = 'version'").await;
    assert_eq!(refused(&bed.url()).await, "newer");
    bed.sql("UPDATE meta SET value = value - 1 WHERE name = 'version'").await;
    bed.store(bed.options()).await.close().await;
    bed.sql("ALTER TABLE meta RENAME TO mine").await;
    assert_eq!(refused(&bed.url()).await, "damaged");
    bed.end().await;
}

#[tokio::test]
async fn a_server_that_is_not_there_and_a_database_that_is_not() {
    let wrong = format!("{}/none", server().rsplit_once('/').unwrap().0);
    assert_eq!(refused(&wrong).await, "missing");
    assert_eq!(refused("postgres://me:hunter2@127.0.0.1:1/db").await, "unreachable");
    let error = PostgresStore::open("postgres://me:hunter2@127.0.0.1:1/db", Options::default()).await.unwrap_err();
    assert!(error.retryable());
}

#[tokio::test]
async fn tls_is_used_as_the_url_asks() {
    let bed = Schema::new().await;
    let ca = std::env::var("TRUNKLINE_TEST_TLS_CA").unwrap();
    let other = std::env::var("TRUNKLINE_TEST_TLS_OTHER_CA").unwrap();
    for mode in ["require".to_owned(), "disable".to_owned(), format!("verify-full&sslrootcert={ca}")] {
        let store = PostgresStore::open(&format!("{}&sslmode={mode}", bed.url()), bed.options()).await.unwrap();
        store.probe().await.unwrap();
        store.close().await;
    }
    assert_eq!(refused(&format!("{}&sslmode=verify-full&sslrootcert={other}", bed.url())).await, "unreachable");
    bed.end().await;
}

#[tokio::test]
async fn every_host_brings_the_same_master_key() {
    let bed = Schema::new().await;
    let (a, b) = (bed.store(bed.options()).await, bed.store(bed.options()).await);
    let (key, other) = (MasterKey::random().unwrap(), MasterKey::random().unwrap());
    assert!(!a.has_key().await.unwrap());
    a.check_key(&key).await.unwrap();
    b.check_key(&key).await.unwrap();
    assert!(b.has_key().await.unwrap());
    let error = b.check_key(&other).await.unwrap_err();
    assert_eq!((error.code(), error.detail_str("reason")), (Code::StoreFailed, Some("master_key")));
    assert!(error.detail_str("next").unwrap().contains("TRUNKLINE_MASTER_KEY"));
    bed.end().await;
}
