//! The server dies or freezes: nothing that was confirmed is lost, and all goes on by itself.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use trunkline::{Context, Env, MessageId, Raw, State};
use trunkline_suite::promise::{EVENT, Seen};

use crate::bed::{Own, SHORT};
use crate::whole::instance;

/// Produces from so many callers until told to stop; what was confirmed, and how much was not.
async fn produce_on(env: Env, stop: Arc<AtomicBool>, pause: u64) -> (HashSet<MessageId>, usize) {
    let mut tasks = tokio::task::JoinSet::new();
    for caller in 0..CALLERS {
        let (env, stop) = (env.clone(), Arc::clone(&stop));
        tasks.spawn(async move {
            let (mut confirmed, mut failed) = (HashSet::new(), 0);
            let mut n = 0;
            while !stop.load(Ordering::Relaxed) {
                n += 1;
                match env.produce(EVENT, &json!({ "caller": caller, "n": n })).timeout(Duration::from_secs(60)).await {
                    Ok(produced) => drop(confirmed.insert(produced.process_id)),
                    Err(_) => failed += 1,
                }
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
            (confirmed, failed)
        });
    }
    let mut all = (HashSet::new(), 0);
    for (confirmed, failed) in tasks.join_all().await {
        all.0.extend(confirmed);
        all.1 += failed;
    }
    all
}

/// Callers that produce at the same time.
const CALLERS: u64 = 8;
/// The pause of each caller between two messages, in ms.
pub(crate) const PAUSE: u64 = 5;

/// Produces and consumes while `hurt` runs; everything confirmed must be handled.
pub(crate) async fn through<F: Future<Output = ()>>(server: &str, options: Value, pause: u64, hurt: impl FnOnce(Seen<MessageId>) -> F) {
    let (trunkline, env, _, _dir) = instance(true, server, options, json!({})).await;
    let seen: Seen<MessageId> = Seen::new();
    let s = seen.clone();
    let consumer = env
        .consume(EVENT, move |_: Raw, context: Context| {
            s.push(context.process_id);
            async {}
        })
        .await
        .unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let producing = tokio::spawn(produce_on(env.clone(), Arc::clone(&stop), pause));
    progress(&seen, 50).await;
    hurt(seen.clone()).await;
    progress(&seen, 100).await;
    stop.store(true, Ordering::Relaxed);
    let (confirmed, failed) = producing.await.unwrap();
    let end = tokio::time::Instant::now() + Duration::from_secs(60);
    let missing = loop {
        let handled: HashSet<_> = seen.all().into_iter().collect();
        let missing = confirmed.difference(&handled).count();
        if missing == 0 || tokio::time::Instant::now() > end {
            break missing;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let all = seen.all();
    let twice = all.len() - all.iter().collect::<HashSet<_>>().len();
    println!("{} confirmed, {failed} not, {} handled, {twice} twice", confirmed.len(), all.len());
    assert_eq!(missing, 0, "of {} confirmed messages", confirmed.len());
    let mut states = consumer.states();
    // What is found must not be kept: it locks the state, and the consumer could never close.
    let live = tokio::time::timeout(Duration::from_secs(30), states.wait_for(|state| *state == State::Live)).await.is_ok();
    assert!(live, "the consumer is {:?}", consumer.state());
    consumer.close(Duration::from_secs(10)).await;
    trunkline.close(Duration::from_secs(20)).await;
}

/// Waits until so many more were handled.
pub(crate) async fn progress(seen: &Seen<MessageId>, more: usize) {
    until(seen, seen.count() + more).await;
}

/// Waits until so many were handled.
async fn until(seen: &Seen<MessageId>, target: usize) {
    let end = tokio::time::Instant::now() + Duration::from_secs(90);
    while seen.count() < target {
        assert!(tokio::time::Instant::now() < end, "{} of {target} were handled", seen.count());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// As many messages as a group would have to handle while its server is killed again and again.
#[tokio::test(flavor = "multi_thread")]
async fn fifty_thousand_messages_through_ten_deaths_of_the_server_are_all_handled() {
    let server = &Own::start().await;
    // Longer than the server is away: the group knows its member still when it is back, and goes on at once.
    through(&server.address, json!({ SHORT.0: 40_000 }), 0, |seen| async move {
        for restart in 1..=10 {
            let killed = Instant::now();
            server.act(&["restart", "kafka"]).await;
            let (away, back) = (killed.elapsed(), Instant::now());
            progress(&seen, 1).await;
            println!("away for {away:?}, handled again {:?} after that", back.elapsed());
            until(&seen, restart * 5_000).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_freezes_loses_nothing() {
    let server = Own::start().await;
    through(&server.address, json!({ SHORT.0: SHORT.1 }), PAUSE, |_| async {
        server.act(&["stop", "kafka"]).await;
        // The freeze itself: longer than a session.
        tokio::time::sleep(Duration::from_secs(20)).await;
        server.act(&["cont", "kafka"]).await;
    })
    .await;
}
