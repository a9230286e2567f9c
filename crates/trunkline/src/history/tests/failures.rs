use super::*;
use crate::Code;

fn reason(error: &crate::Error) -> (Code, &str) {
    (error.code(), error.detail_str("reason").unwrap_or_default())
}

#[tokio::test]
async fn what_cannot_be_indexed_is_spilled_and_replayed_once() {
    let bed = Bed::new();
    let (history, recorder) = bed.open();
    let filed = filed("created");
    let other = bed.index();
    other.sql.execute_batch("BEGIN IMMEDIATE").expect("locked");
    recorder.record(produces(&filed, vec![produced(id(T0, 1), "1")]));
    assert_eq!(reason(&recorder.flush().await.expect_err("locked")), (Code::StoreFailed, "busy"));
    assert_eq!(history.get(id(T0, 1)).await.expect("readable"), None);
    let spilled: Vec<_> = std::fs::read_dir(bed.root().join("spill")).expect("spilled").flatten().collect();
    assert_eq!(spilled.len(), 1);
    let (path, bytes) = (spilled[0].path(), std::fs::read(spilled[0].path()).expect("readable"));
    other.sql.execute_batch("ROLLBACK").expect("unlocked");
    recorder.flush().await.expect("replayed");
    assert!(history.get(id(T0, 1)).await.expect("readable").is_some() && !path.exists());
    assert!(history.gaps(0, Millis::MAX / 4).await.expect("readable").is_empty());
    // A crash between the commit and the removal: the file is there again.
    std::fs::write(&path, bytes).expect("written");
    while history.maintain().await.expect("maintained") {}
    assert!(!path.exists());
    assert_eq!(history.stats(&StatsQuery::default()).await.expect("answered").counters.produced, 1);
}

#[tokio::test]
async fn what_does_not_fit_is_a_gap() {
    let mut bed = Bed::new();
    bed.options.max_spill_bytes = 0;
    let (history, recorder) = bed.open();
    let filed = filed("created");
    let other = bed.index();
    other.sql.execute_batch("BEGIN IMMEDIATE").expect("locked");
    recorder.record(produces(&filed, vec![produced(id(T0, 1), "1"), produced(id(T0, 2), "1")]));
    recorder.flush().await.expect_err("locked");
    let want = [Gap { from: T0, to: T0, count: 2, reason: "spill_full".into() }];
    assert_eq!(history.gaps(T0, T0).await.expect("readable"), want);
    other.sql.execute_batch("ROLLBACK").expect("unlocked");
    recorder.flush().await.expect("written");
    assert_eq!(history.gaps(T0, T0).await.expect("readable"), want);
    assert_eq!(history.stats(&StatsQuery::default()).await.expect("answered").gaps, want);
    let page = history.query(&Query::default()).await.expect("answered");
    assert!(page.gaps == want && !page.total_is_exact);
    assert!(history.gaps(T0 + 1, T0 + 2).await.expect("readable").is_empty());
}

#[tokio::test]
async fn a_full_queue_never_makes_anyone_wait() {
    let bed = Bed::new();
    let (history, recorder) = bed.open();
    let filed = filed("created");
    let items: Vec<_> = (0..17_000).map(|n| produced(id(T0, n), "1")).collect();
    recorder.record(produces(&filed, items));
    recorder.record(produces(&filed, vec![produced(id(T0, 99_999), "1")]));
    recorder.flush().await.expect("written");
    let gaps = history.gaps(0, Millis::MAX / 4).await.expect("readable");
    assert_eq!(gaps, [Gap { from: T0, to: T0, count: 17_000, reason: "overflow".into() }]);
    assert!(history.get(id(T0, 99_999)).await.expect("readable").is_some());
}

#[tokio::test]
async fn payloads_that_do_not_fit_are_let_go_of_before_the_rest() {
    let mut bed = Bed::new();
    bed.options.queue_bytes = 3;
    let (history, recorder) = bed.open();
    recorder.record(produces(&filed("created"), vec![produced(id(T0, 1), "12345")]));
    recorder.flush().await.expect("written");
    let record = history.get(id(T0, 1)).await.expect("readable").expect("known");
    assert_eq!((record.payload, record.size), (None, 5));
}

#[tokio::test]
async fn a_closed_recorder_says_so() {
    let bed = Bed::new();
    let (history, recorder) = bed.open();
    recorder.record(produces(&filed("created"), vec![produced(id(T0, 1), "1")]));
    history.close().await.expect("closed");
    history.close().await.expect("closed again");
    assert!(history.get(id(T0, 1)).await.expect("readable").is_some());
    assert_eq!(recorder.flush().await.expect_err("closed").code(), Code::Closed);
    recorder.record(produces(&filed("created"), vec![produced(id(T0, 2), "1")]));
    assert_eq!(history.gaps(0, Millis::MAX / 4).await.expect("readable").len(), 1);
}

#[tokio::test]
async fn a_newer_or_damaged_index_is_left_alone() {
    let bed = Bed::new();
    let (history, recorder) = bed.open();
    recorder.flush().await.expect("nothing to write");
    history.close().await.expect("closed");
    drop((history, recorder));
    bed.index().sql.pragma_update(None, "user_version", 2).expect("set");
    let path = bed.root().join("index.db");
    let before = std::fs::read(&path).expect("readable");
    let error = History::open(bed.dir.path(), bed.options.clone()).expect_err("newer");
    assert_eq!(reason(&error), (Code::StoreFailed, "newer"));
    assert_eq!(std::fs::read(&path).expect("readable"), before);
    std::fs::write(&path, b"this is no database, it is a text that someone put here").expect("written");
    let error = History::open(bed.dir.path(), bed.options.clone()).expect_err("damaged");
    assert_eq!(reason(&error), (Code::StoreFailed, "damaged"));
}

#[tokio::test]
async fn a_damaged_block_hides_nothing_but_itself() {
    let bed = Bed::new();
    let (history, recorder) = bed.open();
    let filed = filed("created");
    for n in 0..3 {
        recorder.record(produces(&filed, vec![produced(id(T0 + n * 10_000, n), "1")]));
        recorder.flush().await.expect("written");
    }
    let (name, offset): (String, i64) = bed
        .index()
        .sql
        .query_row("SELECT name, offset FROM block JOIN file ON file.id = file ORDER BY id_from LIMIT 1 OFFSET 1", [], |r| {
            Ok((r.get(0)?, r.get(1)?))
        })
        .expect("there");
    let path = bed.root().join(name);
    let mut bytes = std::fs::read(&path).expect("readable");
    bytes[offset as usize + 30] ^= 1;
    std::fs::write(&path, &bytes).expect("written");
    let error = history.get(id(T0 + 10_000, 1)).await.expect_err("damaged");
    assert_eq!(reason(&error), (Code::StoreFailed, "damaged"));
    assert!(
        history.get(id(T0, 0)).await.expect("readable").is_some() && history.get(id(T0 + 20_000, 2)).await.expect("readable").is_some()
    );
    let page = history.query(&Query::default()).await.expect("answered");
    assert_eq!((page.messages.len(), page.total_is_exact), (2, false));
    assert_eq!(page.gaps, [Gap { from: T0 + 10_000, to: T0 + 10_000, count: 1, reason: "damaged".into() }]);
}
