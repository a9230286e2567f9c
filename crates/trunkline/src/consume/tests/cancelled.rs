//! A handler that is told to stop, and one that only says so.

use super::*;
use crate::dead_letter::DeadFilter;

/// What a close cuts short and the handler has no verdict of is given back: the next member gets it as it was.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_cut_short_is_given_back_uncounted() {
    let bed = Bed::new(|builder| builder).await;
    bed.produce(1, 10).await;
    let running = watch::Sender::new(false);
    let r = running.clone();
    let handler = move |_: Raw, context: Context| {
        r.send_replace(true);
        async move {
            context.signal.cancelled().await;
            Verdict::Cancelled
        }
    };
    // One failure would be the end of it.
    let first = bed.env.consume(EVENT, handler).retry(Schedule::never()).await.expect("it starts");
    until("it runs", || *running.borrow()).await;
    first.close(Duration::from_millis(50)).await;
    let attempts = watch::Sender::new(0);
    let a = attempts.clone();
    let handler = move |_: Raw, context: Context| {
        a.send_replace(context.attempt);
        async {}
    };
    let second = bed.env.consume(EVENT, handler).await.expect("it starts");
    until("it comes again", || second.settled() == 1).await;
    assert_eq!(*attempts.borrow(), 1);
    bed.trunkline.close(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timeout_and_a_word_without_a_signal_are_failures() {
    let bed = Bed::new(|builder| builder).await;
    bed.produce(2, 10).await;
    let first = watch::Sender::new(true);
    let handler = move |_: Raw, context: Context| {
        let waits = first.send_replace(false);
        async move {
            if waits {
                context.signal.cancelled().await;
            }
            Verdict::Cancelled
        }
    };
    let timeout = Duration::from_millis(50);
    let consumer = bed.env.consume(EVENT, handler).concurrency(1).timeout(timeout).retry(Schedule::never()).await.expect("it starts");
    until("both are settled", || consumer.settled() == 2).await;
    let (dead, _) = bed.env.dead_letters(&DeadFilter::default(), 1, 10).await.expect("a list");
    let mut errors: Vec<_> = dead.into_iter().filter_map(|entry| entry.error).map(|error| error[..9].to_owned()).collect();
    errors.sort_unstable();
    assert_eq!(errors, ["cancelled", "timeout: "]);
    bed.trunkline.close(Duration::from_secs(5)).await;
}
