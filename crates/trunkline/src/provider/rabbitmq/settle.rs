//! Settling: many at once, and answered only when the server has read them.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::future::join_all;
use futures_util::poll;
use lapin::options::{BasicAckOptions, BasicNackOptions, BasicRejectOptions};

use super::connection::ANSWER;
use super::feed::Feed;
use super::subscribe::Member;
use crate::delivery::{Settle, Settled, Token};

/// What is to be written to one channel.
#[derive(Debug, Default)]
struct Writes {
    acks: Vec<u64>,
    /// Failures: every version counts a reject, while RabbitMQ 4.3 no longer counts a nack.
    rejects: Vec<u64>,
    nacks: Vec<u64>,
    /// Of an ordered feed: given back by closing its channel, since single ones would leave the order.
    back: usize,
    /// Which answers depend on it.
    items: Vec<usize>,
}

impl Member {
    pub(super) async fn settle_all(&self, items: &[(Token, Settle)]) -> Vec<Settled> {
        let mut answers = vec![Settled::Stale; items.len()];
        // There is no native delay: such a retry is refused, and stays held.
        let refused = |how: &Settle| matches!(how, Settle::Retry { after, .. } if !after.is_zero());
        let found = self.inbox.take(items.iter().map(|(token, how)| (*token, refused(how))));
        let mut by_feed: HashMap<u64, (Arc<Feed>, Writes)> = HashMap::new();
        for (at, (found, (_, how))) in found.into_iter().zip(items).enumerate() {
            let Some(found) = found else { continue };
            if refused(how) {
                answers[at] = Settled::Unknown;
                continue;
            }
            let number = found.feed.number;
            let (feed, writes) = by_feed.entry(number).or_insert_with(|| (found.feed, Writes::default()));
            writes.items.push(at);
            match how {
                Settle::Done => writes.acks.push(found.tag),
                _ if feed.ordered => writes.back += 1,
                Settle::Retry { .. } => writes.rejects.push(found.tag),
                Settle::Release => writes.nacks.push(found.tag),
            }
        }
        let written = join_all(by_feed.into_values().map(|(feed, writes)| async move {
            if writes.back > 0 {
                feed.return_all();
                self.inbox.take_back(&feed);
            }
            let answer = write(&feed, &writes).await;
            feed.gone(writes.items.len());
            if feed.is_returning() && feed.held() == 0 {
                self.reopen(&feed);
            }
            (writes, answer)
        }));
        for (writes, answer) in written.await {
            for at in writes.items {
                answers[at] = answer;
            }
        }
        answers
    }
}

type Write<'a> = Pin<Box<dyn Future<Output = lapin::Result<()>> + Send + 'a>>;

/// Writes settles to a channel in one go, and waits until the server has read them.
async fn write(feed: &Feed, writes: &Writes) -> Settled {
    let channel = &feed.channel;
    if writes.acks.is_empty() && writes.rejects.is_empty() && writes.nacks.is_empty() {
        return Settled::Settled;
    }
    let _turn = feed.turn.lock().await;
    let done = {
        let mut window = feed.window.lock();
        writes.acks.iter().chain(&writes.rejects).chain(&writes.nacks).for_each(|tag| window.settle(*tag));
        window.settled_up_to()
    };
    let mut pending: Vec<Write<'_>> = Vec::new();
    for tag in &writes.rejects {
        pending.push(Box::pin(channel.basic_reject(*tag, BasicRejectOptions { requeue: true })));
    }
    for tag in &writes.nacks {
        pending.push(Box::pin(channel.basic_nack(*tag, BasicNackOptions { multiple: false, requeue: true })));
    }
    if let Some(last) = writes.acks.iter().filter(|tag| **tag <= done).max() {
        pending.push(Box::pin(channel.basic_ack(*last, BasicAckOptions { multiple: true })));
    }
    for tag in writes.acks.iter().filter(|tag| **tag > done) {
        pending.push(Box::pin(channel.basic_ack(*tag, BasicAckOptions { multiple: false })));
    }
    let mut left: Vec<Write<'_>> = Vec::with_capacity(pending.len());
    for mut write in pending {
        // The first poll hands it to the connection, in this order.
        match poll!(&mut write) {
            std::task::Poll::Pending => left.push(write),
            std::task::Poll::Ready(Ok(())) => {}
            std::task::Poll::Ready(Err(_)) => return Settled::Unknown,
        }
    }
    // The server answers settles with nothing; a commit it answers when it has handed them to the queue, all in one. One by
    // one it hands over 32 and keeps the others until the queue has written those: who ends then takes them along.
    let all = async {
        let (written, committed) = futures_util::join!(join_all(left), channel.tx_commit());
        written.into_iter().all(|write| write.is_ok()) && committed.is_ok()
    };
    match tokio::time::timeout(ANSWER, all).await {
        Ok(true) => Settled::Settled,
        _ => Settled::Unknown,
    }
}

/// Gives back everything that a channel holds, uncounted where the server can.
pub(super) async fn release_all(feed: &Feed) {
    let _turn = feed.turn.lock().await;
    let channel = &feed.channel;
    let all = async {
        // The tag 0 means all.
        channel.basic_nack(0, BasicNackOptions { multiple: true, requeue: true }).await?;
        channel.tx_commit().await
    };
    let _ = tokio::time::timeout(ANSWER, all).await;
}

/// Gives back single deliveries of a feed without order.
pub(super) async fn release(feed: &Feed, tags: Vec<u64>) {
    write(feed, &Writes { nacks: tags, ..Writes::default() }).await;
}
