//! The audit's rows stay as they were written.

use trunkline::audit::{AuditEntry, AuditFilter};
use trunkline::store::audit::AuditStore;

use crate::bed::{Schema, psql};

#[tokio::test]
async fn rows_refuse_to_be_changed_and_removed() {
    let bed = Schema::new().await;
    let store = bed.store(bed.options()).await;
    let [actor, call, target, outcome] = ["key:1", "secrets.rotate", "shop/password", "ok"].map(str::to_owned);
    store.audit_append(vec![AuditEntry { actor, call, target, outcome }]).await.unwrap();
    let before = store.audit_rows(&AuditFilter::default(), 10, false).await.unwrap();
    let server = psql().await;
    for sql in ["UPDATE audit SET actor = 'nobody'", "DELETE FROM audit", "TRUNCATE audit"] {
        let error = server.batch_execute(&format!("SET search_path TO {}; {sql}", bed.name)).await.unwrap_err();
        assert_eq!(error.as_db_error().unwrap().message(), "the audit is only added to", "{sql}");
    }
    assert_eq!(store.audit_rows(&AuditFilter::default(), 10, false).await.unwrap(), before);
    bed.end().await;
}
