//! Backups: what comes back, and what is refused.

use trunkline::audit::{AuditEntry, AuditFilter};
use trunkline::store::cache::{CacheClaim, CacheClaimed, CacheKey};
use trunkline::store::keys::KeyRow;
use trunkline::store::schedule::{ScheduleMessage, ScheduleRecord, ScheduleState};
use trunkline::store::secrets::{SecretChange, SecretRow};
use trunkline::store::transfer::{Counts, Record, backup, restore};

use super::*;

/// A bit of everything, with an entry in hand and a chain.
async fn fill(store: &dyn Store) {
    let doc = Doc { kind: DocKind::Product, path: "shop".to_owned(), body: json!({ "n": 1 }) };
    store.catalog_write(0, vec![DocChange::Put(doc)]).await.unwrap();
    let mut put: Vec<LotEntry> = (0..700).map(|n| entry(LotState::Dead, n)).collect();
    put.push(entry(LotState::Publish, 1_000));
    put.push(entry(LotState::Waiting, 1_001));
    put.extend((0..3).map(|n| LotEntry { chain: Some(7), ..entry(LotState::Waiting, 2_000 + n) }));
    store.lot_put(put).await.unwrap();
    store.lot_discard(&[1, 2, 3]).await.unwrap();
    let claim = IdempotencyClaim {
        key: "k".to_owned(),
        hash: [7; 32],
        id: MessageId::now(),
        owner: "a".to_owned(),
        lease: LEASE,
        window: LEASE * 10,
    };
    store.idempotency_claim(vec![claim.clone()]).await.unwrap();
    store.idempotency_sent(&[("k".to_owned(), claim.id)]).await.unwrap();
    store.dedupe_done("scope", &[claim.id], LEASE * 10).await.unwrap();
    store.job_put(&Job { cursor: 5, ..job("j") }).await.unwrap();
    assert_eq!(store.lease_take("work", "a", LEASE).await.unwrap(), Some(1));
}

async fn claimed(store: &dyn Store, shards: Option<&[u32]>) -> Vec<LotEntry> {
    let address = address("created");
    store.lot_claim(LotClaim { address: &address, group: "billing", shards, limit: 10, owner: "b", lease: LEASE }).await.unwrap()
}

pub async fn a_backup_brings_everything_back(bed: &dyn Bed) {
    let store = bed.open().await;
    fill(&*store).await;
    let before = store.lot_list(&LotFilter::default(), 10_000, 0, false).await.unwrap();
    assert_eq!(claimed(&*store, None).await.len(), 1, "this one is in hand at the time of the backup");
    let key = store.idempotency_get("k").await.unwrap();
    let file = tempfile::tempdir().unwrap();
    let path = file.path().join("backup");
    let counts = backup(&*store, "id", &path).await.unwrap();
    assert_eq!(counts, Counts { docs: 1, entries: 702, keys: 1, handled: 1, jobs: 1, ..Counts::default() });
    assert!(backup(&*store, "id", &path).await.is_err(), "a backup is never overwritten");

    store.clear().await.unwrap();
    assert_eq!(store.counts().await.unwrap(), Counts::default());
    assert_eq!(restore(&*store, "id", &path, false, &|_| {}).await.unwrap(), counts);
    let after = store.lot_list(&LotFilter::default(), 10_000, 0, false).await.unwrap();
    let same = |entry: &LotEntry| LotEntry { deliveries: 0, ..entry.clone() };
    assert_eq!(after.iter().map(same).collect::<Vec<_>>(), before);
    assert_eq!(store.catalog().await.unwrap().1.len(), 1);
    assert_eq!(store.idempotency_get("k").await.unwrap(), key);
    assert_eq!(store.dedupe_seen("scope", &[key.unwrap().id]).await.unwrap(), [true]);
    assert_eq!(store.job_get("j").await.unwrap().unwrap().cursor, 5);
    // What was in hand is handed out again, and counts as handed over; of the chain only the head.
    assert_eq!(claimed(&*store, None).await.iter().map(|entry| entry.deliveries).collect::<Vec<_>>(), [2]);
    let heads = claimed(&*store, Some(&[0])).await;
    assert_eq!(heads.iter().map(|entry| entry.seq).collect::<Vec<_>>(), [703]);
    // New entries come after all that were restored.
    store.lot_put(vec![entry(LotState::Dead, 9_000)]).await.unwrap();
    let newest = store.lot_list(&LotFilter::default(), 1, 0, true).await.unwrap();
    assert_eq!(newest[0].message.id, entry(LotState::Dead, 9_000).message.id);
}

pub async fn half_a_backup_and_a_full_store_are_refused(bed: &dyn Bed) {
    let store = bed.open().await;
    fill(&*store).await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("backup");
    let counts = backup(&*store, "id", &path).await.unwrap();
    let refused = async |key: &str, path: &std::path::Path, force| {
        let error = restore(&*store, key, path, force, &|_| {}).await.unwrap_err();
        assert_eq!(store.counts().await.unwrap(), counts, "nothing was changed");
        error.detail_str("reason").unwrap().to_owned()
    };
    assert_eq!(refused("id", &path, false).await, "not_empty");
    assert_eq!(refused("other", &path, true).await, "master_key");
    let whole = std::fs::read_to_string(&path).unwrap();
    let half = dir.path().join("half");
    for cut in [whole.len() / 2, whole.len() - 2, 10, 0] {
        std::fs::write(&half, &whole[..whole.floor_char_boundary(cut)]).unwrap();
        assert_eq!(refused("id", &half, true).await, "damaged", "{cut}");
    }
    let lines: Vec<&str> = whole.lines().collect();
    std::fs::write(&half, [&lines[..5], &lines[6..]].concat().join("\n")).unwrap();
    assert_eq!(refused("id", &half, true).await, "damaged", "a line is missing");
    assert_eq!(restore(&*store, "id", &path, true, &|_| {}).await.unwrap(), counts);
}

/// Everything that a copy of the store would hold.
async fn records(store: &dyn Store) -> Vec<Record> {
    let (sender, mut batches) = tokio::sync::mpsc::channel(4);
    let all = async {
        let mut all = Vec::new();
        while let Some(batch) = batches.recv().await {
            all.extend(batch);
        }
        all
    };
    let (exported, all) = tokio::join!(store.export(sender), all);
    exported.unwrap();
    all
}

fn audited(target: &str) -> Vec<AuditEntry> {
    vec![AuditEntry { actor: "key:a".into(), call: "secrets.create".into(), target: target.into(), outcome: "ok".into() }]
}

async fn fill_access(store: &dyn Store) {
    let secret = SecretRow {
        id: "shop/PW".to_owned(),
        product: Some("shop".to_owned()),
        key: "PW".to_owned(),
        envs: vec!["dev".to_owned(), "live".to_owned()],
        sealed: "sealed".to_owned(),
        created_at: START,
        updated_at: START + 1,
    };
    assert_eq!(store.secrets_write(0, vec![SecretChange::Put(secret)], Vec::new()).await.unwrap(), Some(1));
    for (version, id, revoked_at) in [(1, "good", None), (2, "revoked", Some(START + 2))] {
        let (role, expires_at) = ("admin".to_owned(), Some(START + 1_000));
        let key = KeyRow { id: id.to_owned(), role, name: None, hash: [7; 32], created_at: START, expires_at, revoked_at };
        assert_eq!(store.key_write(version, key).await.unwrap(), Some(version + 1));
    }
    for target in ["one", "two", "three"] {
        store.audit_append(audited(target)).await.unwrap();
    }
}

fn session(id: &str, subject: &str) -> SessionRow {
    SessionRow {
        id: id.to_owned(),
        product: "shop".to_owned(),
        tag: "web".to_owned(),
        subject: subject.to_owned(),
        env: Some("dev".to_owned()),
        data: vec![0, 1, 255],
        started_at: START,
        refreshed_at: START,
        expires_at: START + 60_000,
        refresh_until: START + 3_600_000,
    }
}

/// A subject that stays, whose session was refreshed, and one that was erased; a key that was rotated.
async fn fill_sessions(store: &dyn Store) {
    for (id, purpose, retire) in
        [("a", SessionKeyUse::Sign, None), ("d", SessionKeyUse::Digest, None), ("b", SessionKeyUse::Sign, Some(START + 500))]
    {
        let key = SessionKey { id: id.to_owned(), purpose, sealed: format!("sealed {id}"), created_at: START, verify_until: None };
        store.session_key_add(&key, retire).await.unwrap();
    }
    for who in 1..=2u8 {
        let id = format!("subject-{who}");
        let (product, tag, identifier, key) = ("shop".to_owned(), "web".to_owned(), "sealed".to_owned(), "sealed key".to_owned());
        store
            .subject_of(&Subject { id: id.clone(), product, tag, digest: vec![who; 32], identifier, key, created_at: START })
            .await
            .unwrap();
        assert!(store.session_start(&session(&format!("session-{who}"), &id), &[who; 32]).await.unwrap());
    }
    let next = SessionRenewal { hash: [11; 32], at: START, expires_at: START + 60_000, refresh_until: START + 3_600_000 };
    assert!(matches!(store.session_refresh("shop", "web", &[1; 32], next).await.unwrap(), SessionRefreshed::Renewed(_)));
    assert!(store.session_erase("shop", "web", &[2; 32]).await.unwrap().is_some());
}

fn cache_claim(n: u8) -> CacheClaim {
    CacheClaim {
        key: CacheKey { scope: "shop/recent@1".into(), hash: [n; 32] },
        env: "dev".into(),
        event: "quotes:asked".parse().unwrap(),
        id: MessageId::derived(START, &[&[n]]),
        owner: "a".into(),
        lease: LEASE,
        expiry: LEASE * 10,
    }
}

fn schedule(n: u64) -> ScheduleRecord {
    ScheduleRecord {
        id: MessageId::derived(START + n, &[b"schedule"]),
        address: address("created"),
        state: ScheduleState::Active,
        timing: json!({ "every": "1m" }),
        message: ScheduleMessage {
            key: Some(Bytes::from_static(b"k")),
            headers: Headers::from_iter([("tenant", Bytes::from_static(b"a"))]),
            payload: Bytes::from_static(b"{}"),
            cache: Some("recent".to_owned()),
        },
        next_at: Some(START + n),
        retry_at: None,
        firing_at: None,
        fired: 0,
        missed: 0,
        failures: 0,
        error: None,
        last_at: None,
        last_id: None,
        created_at: START,
        updated_at: START,
    }
}

/// A result of a cache and a claim under way; a schedule that is being fired and one that is due in a minute.
async fn fill_caches_and_schedules(store: &dyn Store) {
    for n in [1, 2] {
        assert!(matches!(store.cache_claim(cache_claim(n)).await.unwrap(), CacheClaimed::Ours(_)));
    }
    let sent = cache_claim(1);
    store.cache_sent(&sent.key, sent.id, "a").await.unwrap();
    store.schedule_add(&schedule(0)).await.unwrap();
    assert_eq!(store.schedule_claim(10, "a", LEASE).await.unwrap().len(), 1);
    store.schedule_add(&schedule(60_000)).await.unwrap();
}

pub async fn what_is_sealed_signed_and_due_comes_back_as_it_was(bed: &dyn Bed) {
    let store = bed.open().await;
    fill_access(&*store).await;
    fill_sessions(&*store).await;
    fill_caches_and_schedules(&*store).await;
    let before = records(&*store).await;
    let (secrets, keys, head) = (store.secrets().await.unwrap().1, store.keys().await.unwrap().1, store.audit_head().await.unwrap());
    let rows = store.audit_rows(&AuditFilter::default(), 10, false).await.unwrap();
    let (session_keys, revocations) = (store.session_keys().await.unwrap(), store.session_revocations(0).await.unwrap());
    let dir = tempfile::tempdir().unwrap();
    let counts = backup(&*store, "id", &dir.path().join("backup")).await.unwrap();
    let some = Counts { secrets: 1, access_keys: 2, audit: 3, session_keys: 3, subjects: 2, sessions: 1, ..Counts::default() };
    assert_eq!(counts, Counts { refreshes: 2, revocations: 1, cache_values: 2, schedules: 2, ..some });

    store.audit_append(audited("after the backup")).await.unwrap();
    let refused = restore(&*store, "id", &dir.path().join("backup"), false, &|_| {}).await.unwrap_err();
    assert_eq!(refused.detail_str("reason"), Some("not_empty"));
    assert_eq!(restore(&*store, "id", &dir.path().join("backup"), true, &|_| {}).await.unwrap(), counts);
    assert_eq!(records(&*store).await, before, "every row, in its order");

    assert_eq!((store.secrets().await.unwrap().1, store.keys().await.unwrap().1), (secrets, keys));
    assert_eq!(store.audit_head().await.unwrap(), head);
    store.audit_append(audited("after the restore")).await.unwrap();
    let chain = store.audit_rows(&AuditFilter::default(), 10, false).await.unwrap();
    assert_eq!((&chain[..3], chain[3].seq, chain[3].previous), (&rows[..], 4, head.1), "the chain goes on where it ended");
    assert_eq!((store.session_keys().await.unwrap(), store.session_revocations(0).await.unwrap()), (session_keys, revocations.clone()));
    sessions_go_on(&*store, revocations[0].seq).await;
    assert_eq!(store.cache_claim(cache_claim(1)).await.unwrap(), CacheClaimed::Hit { id: cache_claim(1).id });
    let unsure = CacheClaim { id: MessageId::now(), ..cache_claim(2) };
    assert_eq!(store.cache_claim(unsure).await.unwrap(), CacheClaimed::Ours(cache_claim(2).id), "its owner may have sent it");
    // What was being fired is fired again as the same due time, the other one when it is due.
    let fired = store.schedule_claim(10, "b", LEASE).await.unwrap();
    assert_eq!(fired.iter().map(|(of, again)| (of.id, of.firing_at, *again)).collect::<Vec<_>>(), [(schedule(0).id, Some(START), true)]);
    assert_eq!(fired[0].0.message, schedule(0).message);
    assert_eq!(store.schedule_next().await.unwrap(), Some(START + 60_000));
}

/// The erased subject stays erased; a refresh token that was exchanged before the backup is known as used.
async fn sessions_go_on(store: &dyn Store, last: u64) {
    assert!(store.subject("subject-2").await.unwrap().unwrap().is_erased());
    assert!(!store.session_start(&session("late", "subject-2"), &[3; 32]).await.unwrap());
    assert!(!store.subject("subject-1").await.unwrap().unwrap().is_erased());
    let next = SessionRenewal { hash: [12; 32], at: START, expires_at: START + 60_000, refresh_until: START + 3_600_000 };
    assert!(matches!(store.session_refresh("shop", "web", &[11; 32], next).await.unwrap(), SessionRefreshed::Renewed(_)));
    let again = SessionRenewal { hash: [13; 32], ..next };
    assert_eq!(store.session_refresh("shop", "web", &[1; 32], again).await.unwrap(), SessionRefreshed::Reused);
    let told = store.session_revocations(last).await.unwrap();
    assert!(told.len() == 1 && told[0].seq > last, "{told:?}");
}

pub async fn a_file_of_the_version_before_restores_and_one_of_the_next_does_not(bed: &dyn Bed) {
    let store = bed.open().await;
    fill(&*store).await;
    let dir = tempfile::tempdir().unwrap();
    let counts = backup(&*store, "id", &dir.path().join("backup")).await.unwrap();
    let text = std::fs::read_to_string(dir.path().join("backup")).unwrap();
    let head = "\"trunklineBackup\":2";
    assert!(text.contains(head), "{text:.200}");
    let newer = dir.path().join("newer");
    std::fs::write(&newer, text.replacen(head, "\"trunklineBackup\":3", 1)).unwrap();
    let refused = restore(&*store, "id", &newer, true, &|_| {}).await.unwrap_err();
    assert_eq!((refused.detail_str("reason"), store.counts().await.unwrap()), (Some("newer"), counts), "nothing was changed");

    // Version 1 knew neither the new records nor their counts.
    let of_one = text.replacen(head, "\"trunklineBackup\":1", 1);
    let mut lines: Vec<String> = of_one.lines().filter(|line| !line.contains("auditHead")).map(str::to_owned).collect();
    let Counts { docs, entries, keys, handled, jobs, .. } = counts;
    let end = json!({ "end": { "docs": docs, "entries": entries, "keys": keys, "handled": handled, "jobs": jobs } });
    *lines.last_mut().unwrap() = end.to_string();
    let older = dir.path().join("older");
    std::fs::write(&older, lines.join("\n") + "\n").unwrap();
    store.audit_append(audited("of this store")).await.unwrap();
    assert_eq!(restore(&*store, "id", &older, true, &|_| {}).await.unwrap(), counts);
    assert_eq!(store.audit_head().await.unwrap(), (0, [0; 32]), "a replaced store begins a new chain");
}
