//! The audit: one chain, whoever appends.

use trunkline::audit::{AuditEntry, AuditFilter, AuditRow};

use super::*;

fn entry(actor: &str, call: &str, target: &str, outcome: &str) -> AuditEntry {
    AuditEntry { actor: actor.to_owned(), call: call.to_owned(), target: target.to_owned(), outcome: outcome.to_owned() }
}

fn seqs(rows: &[AuditRow]) -> Vec<u64> {
    rows.iter().map(|row| row.seq).collect()
}

pub async fn rows_of_racing_stores_make_one_chain(bed: &dyn Bed) {
    let (a, b) = (bed.open().await, bed.open().await);
    assert_eq!(a.audit_head().await.unwrap(), (0, [0; 32]));
    a.audit_append(Vec::new()).await.unwrap();
    let append = |store: Arc<dyn Store>, actor: &'static str| {
        tokio::spawn(async move {
            for n in 0..20 {
                let two = vec![entry(actor, "first", &n.to_string(), "ok"), entry(actor, "second", "odd\0text", "ok")];
                store.audit_append(two).await.unwrap();
            }
        })
    };
    let (of_a, of_b) = tokio::join!(append(a.clone(), "a"), append(b, "b"));
    of_a.unwrap();
    of_b.unwrap();
    let rows = a.audit_rows(&AuditFilter::default(), 1_000, false).await.unwrap();
    assert_eq!(seqs(&rows), (1..=80).collect::<Vec<_>>());
    let mut end = (0, [0; 32]);
    for row in &rows {
        assert_eq!(*row, AuditRow::after(end.0, end.1, START, row.entry.clone()));
        end = (row.seq, row.hash);
    }
    assert_eq!(a.audit_head().await.unwrap(), end);
    for pair in rows.chunks(2) {
        assert_eq!((&*pair[0].entry.call, &*pair[1].entry.call), ("first", "second"), "what is given together stays together");
        assert_eq!(pair[0].entry.actor, pair[1].entry.actor);
    }
}

pub async fn rows_are_found_by_what_they_say(bed: &dyn Bed) {
    let store = bed.open().await;
    store.audit_append(vec![entry("key:1", "brokers.create", "shop/orders", "ok")]).await.unwrap();
    bed.pass(1_000);
    store.audit_append(vec![entry("key:2", "brokers.create", "shop/bills", "FORBIDDEN")]).await.unwrap();
    bed.pass(1_000);
    store.audit_append(vec![entry("key:1", "topics.create", "shop/orders:paid", "ok")]).await.unwrap();
    let some = |text: &str| Some(text.to_owned());
    let none = AuditFilter::default;
    for (filter, found) in [
        (none(), &[1_u64, 2, 3][..]),
        (AuditFilter { actor: some("key:1"), ..none() }, &[1, 3]),
        (AuditFilter { call: some("brokers.create"), ..none() }, &[1, 2]),
        (AuditFilter { target: some("orders"), ..none() }, &[1, 3]),
        (AuditFilter { target: some("%"), ..none() }, &[]),
        (AuditFilter { target: some("a\0b"), ..none() }, &[]),
        (AuditFilter { outcome: some("FORBIDDEN"), ..none() }, &[2]),
        (AuditFilter { from: Some(START + 1_000), ..none() }, &[2, 3]),
        (AuditFilter { to: Some(START + 1_000), ..none() }, &[1]),
        (AuditFilter { after: Some(1), before: Some(3), ..none() }, &[2]),
        (AuditFilter { actor: some("key:1"), outcome: some("FORBIDDEN"), ..none() }, &[]),
    ] {
        assert_eq!(seqs(&store.audit_rows(&filter, 10, false).await.unwrap()), found, "{filter:?}");
    }
    assert_eq!(seqs(&store.audit_rows(&none(), 2, true).await.unwrap()), [3, 2]);
    assert_eq!(seqs(&store.audit_rows(&none(), 2, false).await.unwrap()), [1, 2]);
}
