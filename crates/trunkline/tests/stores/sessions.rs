//! Sessions: keys, subjects, refresh tokens, and what is taken back.

use super::*;

const HOUR: u64 = 3_600_000;

fn key(id: &str, purpose: SessionKeyUse, created_at: Millis) -> SessionKey {
    SessionKey { id: id.to_owned(), purpose, sealed: format!("sealed {id}"), created_at, verify_until: None }
}

fn subject(id: &str, who: u8) -> Subject {
    Subject {
        id: id.to_owned(),
        product: "shop".to_owned(),
        tag: "web".to_owned(),
        digest: vec![who; 32],
        identifier: format!("sealed {who}"),
        key: "sealed key".to_owned(),
        created_at: START + u64::from(who),
    }
}

/// Session `n` of a subject; its token is good for a minute, and it can be refreshed for an hour.
fn session(n: u64, subject: &str) -> SessionRow {
    SessionRow {
        id: format!("session-{n}"),
        product: "shop".to_owned(),
        tag: "web".to_owned(),
        subject: subject.to_owned(),
        env: (n % 2 == 0).then(|| "dev".to_owned()),
        data: vec![0, 1, 2],
        started_at: START,
        refreshed_at: START,
        expires_at: START + 60_000,
        refresh_until: START + HOUR,
    }
}

/// The hash of the refresh token that is made as number `round` of session `n`.
fn hash(n: u64, round: u8) -> [u8; 32] {
    let mut hash = [round; 32];
    hash[..8].copy_from_slice(&n.to_be_bytes());
    hash
}

fn renewal(n: u64, round: u8, at: Millis) -> SessionRenewal {
    SessionRenewal { hash: hash(n, round), at, expires_at: at + 60_000, refresh_until: at + HOUR }
}

/// Two subjects, the first with sessions 1 and 2, the second with session 3.
async fn filled(bed: &dyn Bed) -> Arc<dyn Store> {
    let store = bed.open().await;
    for who in 1..=2 {
        store.subject_of(&subject(&format!("subject-{who}"), who)).await.unwrap();
    }
    for (n, of) in [(1, "subject-1"), (2, "subject-1"), (3, "subject-2")] {
        assert!(store.session_start(&session(n, of), &hash(n, 0)).await.unwrap());
    }
    store
}

async fn active(store: &dyn Store) -> Vec<String> {
    store.session_list("shop", "web", None, 10, 0).await.unwrap().0.into_iter().map(|session| session.id).collect()
}

pub async fn of_racing_keys_one_is_kept_and_a_retired_one_verifies_for_its_time(bed: &dyn Bed) {
    use SessionKeyUse::{Digest, Sign};
    let (a, b) = (bed.open().await, bed.open().await);
    let (of_a, of_b) = (key("a", Sign, START), key("b", Sign, START));
    let (first, second) = tokio::join!(a.session_key_add(&of_a, None), b.session_key_add(&of_b, None));
    first.unwrap();
    second.unwrap();
    let kept = a.session_keys().await.unwrap();
    assert!(kept == [of_a] || kept == [of_b], "{kept:?}");
    let digest = key("d", Digest, START - 1);
    b.session_key_add(&digest, None).await.unwrap();
    assert_eq!(a.session_keys().await.unwrap(), [kept[0].clone(), digest.clone()]);

    let next = key("c", Sign, START + 5);
    a.session_key_add(&next, Some(START + 1_000)).await.unwrap();
    let retired = SessionKey { verify_until: Some(START + 1_000), ..kept[0].clone() };
    assert_eq!(b.session_keys().await.unwrap(), [next.clone(), digest.clone(), retired]);
    bed.pass(1_000);
    assert_eq!(b.session_keys().await.unwrap(), [next, digest]);
    assert_eq!(b.sweep().await.unwrap(), 1);
}

pub async fn of_racing_subjects_one_is_kept(bed: &dyn Bed) {
    let (a, b) = (bed.open().await, bed.open().await);
    for who in 0..20 {
        let (of_a, of_b) = (subject(&format!("a{who}"), who), subject(&format!("b{who}"), who));
        let (first, second) = tokio::join!(a.subject_of(&of_a), b.subject_of(&of_b));
        let kept = first.unwrap();
        assert_eq!(kept, second.unwrap());
        assert!(kept == of_a || kept == of_b);
        assert_eq!(b.subject(&kept.id).await.unwrap(), Some(kept));
    }
    let other = Subject { tag: "app".to_owned(), ..subject("a-other", 1) };
    assert_eq!(a.subject_of(&other).await.unwrap(), other, "another tag is another subject");
    let found = a.subjects_with("shop", &other.digest).await.unwrap();
    assert_eq!((found.len(), &*found[0]), (2, "a-other"));
    assert!(a.subjects_with("other", &other.digest).await.unwrap().is_empty());
    assert_eq!(a.subject("nobody").await.unwrap(), None);
}

pub async fn a_refresh_token_is_good_once_whoever_comes_first(bed: &dyn Bed) {
    let a = filled(bed).await;
    let b = bed.open().await;
    bed.pass(1_000);
    let at = START + 1_000;
    let refreshed = a.session_refresh("shop", "web", &hash(1, 0), renewal(1, 1, at)).await.unwrap();
    let renewed = SessionRow { refreshed_at: at, expires_at: at + 60_000, refresh_until: at + HOUR, ..session(1, "subject-1") };
    assert_eq!(refreshed, SessionRefreshed::Renewed(Box::new(renewed)));
    for (product, tag, token) in [("other", "web", hash(1, 1)), ("shop", "app", hash(1, 1)), ("shop", "web", hash(1, 9))] {
        let unknown = b.session_refresh(product, tag, &token, renewal(1, 2, at)).await.unwrap();
        assert_eq!(unknown, SessionRefreshed::Unknown);
    }
    // Of two that come with the same token one is a thief: neither goes on.
    let used = hash(1, 1);
    let (first, second) = tokio::join!(
        a.session_refresh("shop", "web", &used, renewal(1, 2, at)),
        b.session_refresh("shop", "web", &used, renewal(1, 3, at)),
    );
    let came = [first.unwrap(), second.unwrap()];
    assert_eq!(came.iter().filter(|came| matches!(came, SessionRefreshed::Renewed(_))).count(), 1, "{came:?}");
    assert!(came.contains(&SessionRefreshed::Reused), "{came:?}");
    for round in 0..4 {
        let gone = b.session_refresh("shop", "web", &hash(1, round), renewal(1, 9, at)).await.unwrap();
        assert_eq!(gone, SessionRefreshed::Unknown, "the session is taken back with all that came of it");
    }
    assert_eq!(active(&*b).await, ["session-3", "session-2"]);
    let told = b.session_revocations(0).await.unwrap();
    assert_eq!((told.len(), told[0].session.as_deref(), told[0].at), (1, Some("session-1"), at));
    bed.pass(HOUR);
    let over = b.session_refresh("shop", "web", &hash(2, 0), renewal(2, 1, at + HOUR)).await.unwrap();
    assert_eq!(over, SessionRefreshed::Unknown, "its time is over");
}

pub async fn sessions_are_ended_by_one_by_subject_and_all_together(bed: &dyn Bed) {
    let store = filled(bed).await;
    store.session_start(&SessionRow { tag: "app".to_owned(), ..session(4, "subject-2") }, &hash(4, 0)).await.unwrap();
    let end = async |which: SessionsOf| store.session_revoke("shop", "web", which).await.unwrap();
    for unknown in ["session-4", "none", "a\0b"] {
        assert_eq!(end(SessionsOf::Session(unknown.to_owned())).await, 0);
    }
    assert_eq!(end(SessionsOf::Subject(vec![9; 32])).await, 0);
    assert!(store.session_revocations(0).await.unwrap().is_empty());
    assert_eq!(end(SessionsOf::Session("session-1".to_owned())).await, 1);
    bed.pass(60_000);
    assert_eq!(end(SessionsOf::Subject(vec![1; 32])).await, 0, "its token is no longer good");
    store.session_refresh("shop", "web", &hash(3, 0), renewal(3, 1, START + 60_000)).await.unwrap();
    assert_eq!(end(SessionsOf::All).await, 1);
    assert_eq!(end(SessionsOf::All).await, 0);
    let other = store.session_refresh("shop", "app", &hash(4, 0), renewal(4, 1, START + 60_000)).await.unwrap();
    assert!(matches!(other, SessionRefreshed::Renewed(_)), "that of another tag goes on: {other:?}");
    let told = store.session_revocations(0).await.unwrap();
    assert!(told.is_sorted_by(|a, b| a.seq < b.seq));
    let sessions: Vec<_> = told.iter().map(|told| (told.session.as_deref(), told.at - START)).collect();
    assert_eq!(sessions, [(Some("session-1"), 0), (Some("session-2"), 60_000), (None, 60_000), (None, 60_000)]);
    assert!(told.iter().all(|told| told.until == told.at + 24 * HOUR && told.product == "shop" && told.tag == "web"));
    assert_eq!(store.session_revocations(told[1].seq).await.unwrap(), told[2..]);
}

pub async fn pages_show_what_is_good_now(bed: &dyn Bed) {
    let store = filled(bed).await;
    let (page, total) = store.session_list("shop", "web", None, 2, 1).await.unwrap();
    assert_eq!((page, total), (vec![session(2, "subject-1"), session(1, "subject-1")], 3));
    let (page, total) = store.session_list("shop", "web", Some(&[2; 32]), 10, 0).await.unwrap();
    assert_eq!((page, total), (vec![session(3, "subject-2")], 1));
    assert_eq!(store.session_list("other", "web", None, 10, 0).await.unwrap(), (vec![], 0));
    let (users, total) = store.session_users("shop", "web", 10, 0).await.unwrap();
    let user = |id: &str, who, active| SessionUser { subject: subject(id, who), active, last_at: Some(START) };
    assert_eq!((users, total), (vec![user("subject-2", 2, 1), user("subject-1", 1, 2)], 2), "newest first");
    bed.pass(60_000);
    assert!(active(&*store).await.is_empty());
    let (users, total) = store.session_users("shop", "web", 1, 1).await.unwrap();
    assert_eq!((users, total), (vec![user("subject-1", 1, 0)], 2));
}

pub async fn an_erased_subject_is_gone_and_starts_no_session(bed: &dyn Bed) {
    let a = filled(bed).await;
    let b = bed.open().await;
    assert_eq!(a.session_erase("shop", "web", &[9; 32]).await.unwrap(), None);
    // Sessions that begin at the same moment are ended with the others, or do not begin.
    let starts = async {
        let mut kept = 0;
        for n in 10..30 {
            kept += u64::from(b.session_start(&session(n, "subject-1"), &hash(n, 0)).await.unwrap());
        }
        kept
    };
    let (erased, kept) = tokio::join!(a.session_erase("shop", "web", &[1; 32]), starts);
    assert_eq!(erased.unwrap(), Some(("subject-1".to_owned(), 2 + kept)));
    assert_eq!(active(&*a).await, ["session-3"]);
    assert!(!b.session_start(&session(40, "subject-1"), &hash(40, 0)).await.unwrap());
    assert!(!b.session_start(&session(41, "nobody"), &hash(41, 0)).await.unwrap());
    let gone = b.subject("subject-1").await.unwrap().unwrap();
    assert!(gone.is_erased() && gone.digest.is_empty() && gone.identifier.is_empty());
    assert!(b.subjects_with("shop", &[1; 32]).await.unwrap().is_empty());
    assert_eq!(b.session_users("shop", "web", 10, 0).await.unwrap().1, 1);
    let told = b.session_revocations(0).await.unwrap();
    assert_eq!((told.len(), told[0].subject.as_deref(), told[0].session.as_deref()), (1, Some("subject-1"), None));
    assert_eq!(a.session_erase("shop", "web", &[1; 32]).await.unwrap(), None, "nobody is there any more");
    let anew = subject("subject-9", 1);
    assert_eq!(a.subject_of(&anew).await.unwrap(), anew, "who comes again is somebody new");
}

pub async fn what_is_over_is_swept(bed: &dyn Bed) {
    let store = filled(bed).await;
    assert_eq!(store.session_revoke("shop", "web", SessionsOf::Session("session-1".to_owned())).await.unwrap(), 1);
    bed.pass(HOUR - 1);
    assert_eq!(store.sweep().await.unwrap(), 0);
    bed.pass(1);
    assert_eq!(store.sweep().await.unwrap(), 2, "they cannot be refreshed any more");
    bed.pass(23 * HOUR);
    assert_eq!(store.sweep().await.unwrap(), 1, "every process heard of it");
    assert!(store.session_revocations(0).await.unwrap().is_empty());
    assert!(store.subject("subject-1").await.unwrap().is_some(), "subjects stay");
}
