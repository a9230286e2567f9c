//! Reads what the server sends to a member, and sees to what follows from it.

use std::sync::Arc;

use async_nats::{Message, Subscriber};
use futures_util::{FutureExt as _, StreamExt as _};
use tokio_util::sync::CancellationToken;

use super::error;
use super::feed::{Consequence, Phase};
use super::subscription::{Live, State};
use super::takeover;
use crate::error::Result;

/// Listens for a new round of a feed, before anything is asked for in it.
pub(super) async fn listen(live: &Arc<Live>, at: usize) -> Result<()> {
    let inbox = live.link.client.new_inbox();
    let subscribed = live.link.client.subscribe(format!("{inbox}.*")).await;
    let from = subscribed.map_err(|_| error::dead("the connection was lost"))?;
    let (round, end) = {
        let mut state = live.state.lock();
        let feed = &mut state.feeds[at];
        feed.inbox = inbox;
        feed.listening = CancellationToken::new();
        (feed.round, feed.listening.clone())
    };
    live.readers.spawn(read(live.clone(), at, round, end, from));
    Ok(())
}

/// Reads until the round or the subscription ends; says so when the connection is dead.
async fn read(live: Arc<Live>, at: usize, round: u64, over: CancellationToken, mut from: Subscriber) {
    loop {
        tokio::select! {
            message = from.next() => match message {
                Some(message) => take(&live, at, round, message, &mut from),
                None => return live.die(error::dead("the connection was lost")),
            },
            () = live.link.died() => return live.die(error::dead("the connection was lost")),
            () = over.cancelled() => return,
            () = live.hush.cancelled() => break,
            () = live.end.cancelled() => return,
        }
    }
    // What has come is taken, so that it can be given back.
    if from.unsubscribe().await.is_ok() {
        while let Some(message) = from.next().await {
            take(&live, at, round, message, &mut from);
        }
    }
}

/// Takes a message, and all that came with it.
fn take(live: &Arc<Live>, at: usize, round: u64, first: Message, from: &mut Subscriber) {
    let mut consequence = Consequence::None;
    {
        let mut state = live.state.lock();
        let State { feeds, held, dirty, .. } = &mut *state;
        let feed = &mut feeds[at];
        if feed.round != round {
            return;
        }
        let mut next = Some(first);
        while let Some(message) = next {
            consequence = feed.take(at, message, held, live.lease);
            if !matches!(consequence, Consequence::None) {
                break;
            }
            next = from.next().now_or_never().flatten();
        }
        dirty.push(at);
    }
    live.some.notify_waiters();
    live.room.notify_one();
    follow(live, at, consequence);
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
