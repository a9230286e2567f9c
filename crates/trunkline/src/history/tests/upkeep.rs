use super::*;

async fn maintain(history: &History) -> u32 {
    let mut steps = 0;
    while history.maintain().await.expect("maintained") {
        steps += 1;
        assert!(steps < 1_000, "it comes to an end");
    }
    steps
}

fn blocks(bed: &Bed) -> i64 {
    bed.index().sql.query_row("SELECT count(*) FROM block", [], |row| row.get(0)).expect("counted")
}

/// Many small blocks of several processes, one outcome in four late by up to an hour.
async fn scattered(bed: &Bed) -> (Vec<History>, Vec<MessageId>) {
    let filed = filed("created");
    let (mut histories, mut all, mut late) = (Vec::new(), Vec::new(), Vec::new());
    for process in 0..2u64 {
        let (history, recorder) = bed.open();
        for round in 0..40u64 {
            let ids: Vec<_> = (0..5).map(|n| id(T0 + round * 5_000 + n * 100, process * 10_000 + round * 10 + n)).collect();
            recorder.record(produces(&filed, ids.iter().map(|id| produced(*id, "{\"a\":1}")).collect()));
            let (soon, wait): (Vec<_>, Vec<_>) = ids.iter().partition(|id| id.as_bytes()[15] % 4 > 0);
            recorder.record(attempts(&filed, "g", soon.iter().map(|id| attempt(*id, Step::Delivered, 20, 0)).collect()));
            late.extend(wait);
            if round % 4 == 3 {
                recorder.record(attempts(&filed, "g", late.drain(..).map(|id| attempt(id, Step::Dead, 3_600_000, 1)).collect()));
            }
            recorder.flush().await.expect("written");
            all.extend(ids);
        }
        histories.push(history);
    }
    (histories, all)
}

async fn check(history: &History, all: &[MessageId]) {
    for id in all {
        let record = history.get(*id).await.expect("readable").expect("known");
        assert_eq!(record.groups.len(), 1);
        assert_eq!(record.status, if id.as_bytes()[15] % 4 > 0 { Status::Delivered } else { Status::Dead });
    }
    let page = history.query(&Query { limit: Some(1_000), ..Query::default() }).await.expect("answered");
    assert_eq!((page.total, page.total_is_exact), (all.len() as u64, true));
}

#[tokio::test]
async fn merging_keeps_everything_and_a_recount_agrees() {
    let bed = Bed::new();
    let (histories, all) = scattered(&bed).await;
    check(&histories[0], &all).await;
    let (before, counted) = (blocks(&bed), recount(bed.dir.path()));
    assert_eq!(counted, rolled(bed.dir.path(), 60_000));
    assert!(maintain(&histories[1]).await > 0);
    assert!(blocks(&bed) * 4 < before, "{before} -> {}", blocks(&bed));
    check(&histories[0], &all).await;
    assert_eq!(recount(bed.dir.path()), counted);
    let mut days: Counts = Counts::default();
    rolled(bed.dir.path(), 86_400_000).values().for_each(|counts| days.merge(counts));
    let mut minutes = Counts::default();
    counted.values().for_each(|counts| minutes.merge(counts));
    assert_eq!(days, minutes);
    // Replaced bytes are given back a minute later, and nothing is lost by it.
    bed.set(T0 + 120_000);
    maintain(&histories[0]).await;
    let freed: i64 = bed.index().sql.query_row("SELECT count(*) FROM freed", [], |row| row.get(0)).expect("counted");
    assert_eq!(freed, 0);
    check(&histories[1], &all).await;
}

#[tokio::test]
async fn one_process_at_a_time_maintains() {
    let bed = Bed::new();
    let (histories, _) = scattered(&bed).await;
    let lock = std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(bed.root().join("maintain.lock")).expect("opened");
    lock.lock().expect("taken");
    assert_eq!(maintain(&histories[0]).await, 0);
    drop(lock);
    assert!(maintain(&histories[0]).await > 0);
}

#[tokio::test]
async fn days_that_are_over_go_whole() {
    let bed = Bed::new();
    let (history, recorder) = bed.open();
    let day = 86_400_000;
    let week = filed_as("week", Class { age_ms: 7 * day, ..Class::default() });
    let ever = filed_as("ever", Class::default());
    for n in 0..9 {
        bed.set(T0 + n * day);
        for filed in [&week, &ever] {
            let own = MessageId::derived(T0 + n * day, &[filed.address.event.topic().as_bytes()]);
            recorder.record(produces(filed, vec![produced(own, "1")]));
        }
        recorder.flush().await.expect("written");
    }
    assert!(maintain(&history).await > 0);
    let count =
        async |topic: &str| history.query(&Query { topic: Some(topic.into()), ..Query::default() }).await.expect("answered").messages.len();
    assert_eq!((count("week").await, count("ever").await), (8, 9));
    let folder = bed.root().join("full-604800000-0");
    assert_eq!(std::fs::read_dir(&folder).expect("there").count(), 8);
    // What was counted stays.
    assert_eq!(history.stats(&StatsQuery { from: Some(T0), ..StatsQuery::default() }).await.expect("answered").counters.produced, 18);
    bed.set(T0 + 30 * day);
    recorder.record(produces(&ever, vec![produced(id(T0 + 30 * day, 1), "1")]));
    recorder.flush().await.expect("written");
    maintain(&history).await;
    assert!(!folder.exists());
}

#[tokio::test]
async fn the_oldest_bytes_make_room() {
    let mut bed = Bed::new();
    bed.options.max_bytes = 150_000;
    let (history, recorder) = bed.open();
    let filed = filed("created");
    for n in 0..40u64 {
        // Bytes that do not compress, so that the bound is met.
        let noise: String = (0..600u64).map(|i| format!("{:016x}", xxhash_rust::xxh3::xxh3_64(&(n * 1_000 + i).to_le_bytes()))).collect();
        recorder.record(produces(&filed, vec![produced(id(T0 + n * 1_000, n), &noise)]));
        recorder.flush().await.expect("written");
        maintain(&history).await;
    }
    let live: i64 = bed.index().sql.query_row("SELECT sum(live) FROM file", [], |row| row.get(0)).expect("counted");
    assert!((60_000..=150_000).contains(&live), "{live}");
    let page = history.query(&Query { limit: Some(100), ..Query::default() }).await.expect("answered");
    assert!(page.messages.len() < 40 && page.messages[0].process_id == id(T0 + 39_000, 39));
}

#[tokio::test]
async fn bundles_skip_blocks_and_miss_nothing() {
    let bed = Bed::new();
    let (history, recorder) = bed.open();
    let filed = filed("created");
    for block in 0..40u64 {
        let keyed =
            |n: u64| Made { key: Some(Bytes::from(format!("k{}", block * 700 + n))), ..produced(id(T0 + block * 1_000 + n, n), "1") };
        recorder.record(produces(&filed, (0..700).map(keyed).collect()));
        recorder.flush().await.expect("written");
    }
    let found = async |key: u64| {
        let page = history.query(&Query { key: Some(format!("k{key}")), ..Query::default() }).await.expect("answered");
        page.messages.iter().map(|record| record.produced_at.0 - T0).collect::<Vec<_>>()
    };
    let keys = [0, 7_000, 7_699, 21_001, 27_999, 28_000];
    let mut before = Vec::new();
    for key in keys {
        before.push(found(key).await);
    }
    assert_eq!(before, [vec![0], vec![10_000], vec![10_699], vec![30_001], vec![39_699], vec![]]);
    maintain(&history).await;
    let bundled: i64 = bed.index().sql.query_row("SELECT count(*) FROM block WHERE bundle > 0", [], |row| row.get(0)).expect("counted");
    assert_eq!(bundled, 32);
    for (key, before) in keys.into_iter().zip(before) {
        assert_eq!(found(key).await, before);
    }
}
