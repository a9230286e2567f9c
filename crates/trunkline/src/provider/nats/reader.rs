//! Reads what the server sends to a member, and sees to what follows from it.

use std::sync::Arc;

use async_nats::{Message, Subscriber};
use futures_util::{FutureExt as _, StreamExt as _};

use super::error;
use super::feed::{Consequence, Phase};
use super::subscription::Live;
use super::takeover;

/// Reads until the subscription ends; says so when the connection is dead.
pub(super) async fn read(live: Arc<Live>, mut from: Subscriber) {
    loop {
        tokio::select! {
            message = from.next() => match message {
                Some(message) => take(&live, message, &mut from),
                None => break live.die(error::dead("the connection was lost")),
            },
            () = live.link.died() => break live.die(error::dead("the connection was lost")),
            () = live.hush.cancelled() => break hush(&live, &mut from).await,
            () = live.end.cancelled() => break,
        }
    }
    live.hushed.cancel();
}

/// Takes what has come, so that it can be given back.
async fn hush(live: &Arc<Live>, from: &mut Subscriber) {
    if from.unsubscribe().await.is_ok() {
        while let Some(message) = from.next().await {
            take(live, message, from);
        }
    }
}

/// Takes a message, and all that came with it.
fn take(live: &Arc<Live>, first: Message, from: &mut Subscriber) {
    let mut consequences = Vec::new();
    {
        let mut state = live.state.lock();
        let state = &mut *state;
        let mut next = Some(first);
        while let Some(message) = next {
            let place = message.subject.get(live.inbox.len() + 1..).and_then(|rest| rest.split_once('.'));
            let place = place.and_then(|(feed, number)| Some((feed.parse::<usize>().ok()?, number.parse::<u64>().ok()?)));
            if let Some((at, number)) = place
                && let Some(feed) = state.feeds.get_mut(at)
            {
                let consequence = feed.take(at, number, message, &mut state.held, live.lease);
                // Many in a row are of one feed.
                if state.dirty.last() != Some(&at) {
                    state.dirty.push(at);
                }
                if !matches!(consequence, Consequence::None) {
                    consequences.push((at, consequence));
                }
            }
            next = from.next().now_or_never().flatten();
        }
    }
    live.some.notify_waiters();
    live.room.notify_one();
    for (at, consequence) in consequences {
        follow(live, at, consequence);
    }
}

/// Does what follows from a message.
pub(super) fn follow(live: &Arc<Live>, at: usize, consequence: Consequence) {
    match consequence {
        Consequence::None => {}
        Consequence::Fatal(error) => live.die(error),
        Consequence::Gone => {
            {
                let mut state = live.state.lock();
                let state = &mut *state;
                let feed = &mut state.feeds[at];
                if !matches!(feed.phase, Phase::Live | Phase::Syncing) {
                    return;
                }
                // What was handed out by the consumer that was removed is settled with nobody.
                feed.forget_pulls();
                feed.lose_pin();
                feed.drop_held(&mut state.held, true);
                feed.phase = Phase::Syncing;
            }
            live.spawn(takeover::again(live.clone(), at));
        }
        Consequence::Resync => {
            {
                let mut state = live.state.lock();
                let state = &mut *state;
                let feed = &mut state.feeds[at];
                if feed.phase != Phase::Live {
                    return;
                }
                feed.forget_pulls();
                feed.lose_pin();
                feed.drop_held(&mut state.held, false);
                feed.phase = Phase::Syncing;
            }
            live.spawn(takeover::again(live.clone(), at));
        }
    }
}
