//! Asks the server for more, where there is room.

use std::sync::Arc;
use std::time::Instant;

use async_nats::Subject;
use serde_json::json;

use super::error;
use super::feed::{Ask, EXPIRES, HEARTBEAT};
use super::place::PIN_GROUP;
use super::subscription::Live;

/// Runs until the subscription ends.
pub(super) async fn pull(live: Arc<Live>) {
    loop {
        let (asks, again) = plan(&live);
        for (subject, reply, body) in asks {
            if live.link.client.publish_with_reply(subject, reply, body.into()).await.is_err() {
                return live.die(error::dead("the connection was lost"));
            }
        }
        tokio::select! {
            () = live.room.notified() => {}
            () = async {
                match again {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            } => {}
        }
    }
}

type Request = (Subject, Subject, String);

/// What to ask for now, and when to look again without being told.
fn plan(live: &Live) -> (Vec<Request>, Option<Instant>) {
    let mut state = live.state.lock();
    if state.paused || state.dead.is_some() {
        return (Vec::new(), None);
    }
    let now = Instant::now();
    let (count, bytes) = live.share(&state);
    let mut dirty = std::mem::take(&mut state.dirty);
    dirty.sort_unstable();
    dirty.dedup();
    let mut requests = Vec::new();
    let mut again: Option<Instant> = None;
    for at in dirty {
        let feed = &mut state.feeds[at];
        while let Some(ask) = feed.ask(now, count, bytes) {
            let reply = format!("{}.{}", feed.inbox, ask.number);
            requests.push((feed.next.clone(), reply.into(), body(&ask, feed.ordered)));
        }
        if let Some(until) = feed.rests_until() {
            again = again.into_iter().chain([until]).min();
            state.dirty.push(at);
        }
    }
    (requests, again)
}

fn body(ask: &Ask, ordered: bool) -> String {
    let mut body = json!({
        "batch": ask.batch,
        "expires": EXPIRES.as_nanos() as u64,
        "idle_heartbeat": HEARTBEAT.as_nanos() as u64,
    });
    if let Some(bytes) = ask.bytes {
        body["max_bytes"] = bytes.min(i32::MAX as usize).into();
    }
    if ordered {
        body["group"] = PIN_GROUP.into();
        if let Some(pin) = &ask.pin {
            body["id"] = pin.as_str().into();
        }
    }
    body.to_string()
}
