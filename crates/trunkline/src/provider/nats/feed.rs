//! What is known of one durable consumer that is being pulled from. No I/O: it is told what came, and says what to do.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use async_nats::{Message, StatusCode, Subject};
use tokio_util::sync::CancellationToken;

use crate::delivery::Token;
use crate::error::{Code, Error};
use crate::message::Millis;
use crate::provider::net::slab::Slab;

/// How long the server keeps a request open.
pub(super) const EXPIRES: Duration = Duration::from_secs(30);
/// How often the server says that it still knows of a request.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(5);
/// How far an ordered shard may be ahead of its oldest unsettled message, in messages of the stream per shard.
const AHEAD: u64 = 10_000;
/// The pause after the server ended a request for a reason of its own.
const REST: Duration = Duration::from_millis(100);

/// Where a feed stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The shard is not ours.
    Idle,
    /// It is ours, or was made anew; what was handed out before is being collected.
    Syncing,
    /// Messages come.
    Live,
    /// To be given up until then: nothing more is handed out.
    Revoking(Instant),
}

/// A request that the server has not filled yet.
#[derive(Debug)]
struct Pull {
    number: u64,
    batch: usize,
    bytes: usize,
    /// Whether it had the whole room.
    full: bool,
}

/// A message that waits to be handed out.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) token: Token,
    pub(super) message: Message,
    pub(super) mark: Mark,
}

/// What the server says about a delivery, in the subject it is acked with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    /// How often it was handed out, this time included.
    pub(super) count: u32,
    pub(super) stream_seq: u64,
    pub(super) consumer_seq: u64,
    pub(super) stored_at: Millis,
}

/// A message in hand, here or with the core.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) feed: usize,
    pub(super) seq: u64,
    pub(super) ack: Subject,
    /// The lease's end.
    pub(super) until: Instant,
    /// Whether it was handed to the core.
    pub(super) out: bool,
}

/// What is to be collected before anything is handed out: messages up to a sequence that are handed out again.
#[derive(Debug)]
pub(super) struct Barrier {
    pub(super) upto: u64,
    pub(super) left: u64,
    pub(super) since: Instant,
}

/// A request to be sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Ask {
    pub(super) number: u64,
    pub(super) batch: usize,
    /// `None` for one message of any size.
    pub(super) bytes: Option<usize>,
    pub(super) pin: Option<String>,
}

/// What has to be done beyond taking the message.
#[derive(Debug)]
pub(super) enum Consequence {
    /// Nothing.
    None,
    /// The consumer was removed, perhaps to be made again elsewhere.
    Gone,
    /// Somebody else was given messages of this shard.
    Resync,
    /// The subscription cannot go on.
    Fatal(Error),
}

/// Why the last request ended without being filled.
#[derive(Debug, Clone, Copy)]
struct TooLarge {
    given: bool,
    full: bool,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Feed {
    pub(super) route: usize,
    pub(super) shard: u32,
    pub(super) stream: String,
    pub(super) consumer: String,
    /// Where more is asked for.
    pub(super) next: Subject,
    pub(super) ordered: bool,
    pub(super) shards: u32,
    pub(super) phase: Phase,
    /// The number of this ownership; of an unordered feed always 0.
    pub(super) epoch: u64,
    /// Which incarnation of the consumer this is.
    pub(super) created: String,
    pub(super) max_ack_pending: usize,
    pub(super) buffer: VecDeque<Ready>,
    pub(super) buffered_bytes: usize,
    /// What is in hand, by its place in the stream.
    pub(super) by_seq: BTreeMap<u64, Token>,
    /// When each delayed redelivery is due.
    pub(super) delayed: Vec<Instant>,
    /// The next place in the consumer's own sequence (ordered).
    pub(super) expect: u64,
    pub(super) barrier: Option<Barrier>,
    /// The last sign of life while a request was open.
    pub(super) heard: Instant,
    /// Raised whenever what was pulled before is void.
    pub(super) round: u64,
    /// Where the answers of this round come, and what ends listening there.
    pub(super) inbox: String,
    pub(super) listening: CancellationToken,
    pulls: Vec<Pull>,
    /// What is still to come of all requests together.
    asked: usize,
    asked_bytes: usize,
    pulled: u64,
    pin: Option<String>,
    rest_until: Option<Instant>,
    too_large: Option<TooLarge>,
    most_batch: usize,
}

impl Feed {
    pub(super) fn new(route: usize, shard: u32, stream: &str, consumer: String, ordered: bool, shards: u32) -> Feed {
        Feed {
            route,
            shard,
            stream: stream.to_owned(),
            next: format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}").into(),
            consumer,
            ordered,
            shards,
            phase: if ordered { Phase::Idle } else { Phase::Live },
            epoch: 0,
            created: String::new(),
            max_ack_pending: 0,
            buffer: VecDeque::new(),
            buffered_bytes: 0,
            by_seq: BTreeMap::new(),
            delayed: Vec::new(),
            expect: 0,
            barrier: None,
            heard: Instant::now(),
            round: 0,
            inbox: String::new(),
            listening: CancellationToken::new(),
            pulls: Vec::new(),
            asked: 0,
            asked_bytes: 0,
            pulled: 0,
            pin: None,
            rest_until: None,
            too_large: None,
            most_batch: usize::MAX,
        }
    }

    /// Whether what is buffered may be handed out.
    pub(super) fn is_open(&self) -> bool {
        self.phase == Phase::Live && self.barrier.is_none()
    }

    pub(super) fn is_asking(&self) -> bool {
        !self.pulls.is_empty()
    }

    /// When a pause is over.
    pub(super) fn rests_until(&self) -> Option<Instant> {
        self.rest_until
    }

    /// What to ask for now, with room for `count` messages of `bytes`.
    pub(super) fn ask(&mut self, now: Instant, count: usize, bytes: usize) -> Option<Ask> {
        if self.phase != Phase::Live || self.rest_until.is_some_and(|until| until > now) || self.is_far_ahead() {
            return None;
        }
        self.rest_until = None;
        // Before one is pinned, a second request would only wait for the first.
        let most_pulls = if self.ordered && self.pin.is_none() { 1 } else { 2 };
        if self.pulls.len() >= most_pulls {
            return None;
        }
        // What comes again is collected whatever the room: it is no more than the one before had in hand.
        if let Some(barrier) = &self.barrier {
            let again = usize::try_from(barrier.left).unwrap_or(usize::MAX).saturating_sub(self.asked);
            return (again > 0).then(|| self.pull(again, None, true));
        }
        let room = count.saturating_sub(self.asked + self.buffer.len());
        let room_bytes = bytes.saturating_sub(self.asked_bytes + self.buffered_bytes);
        let empty = self.pulls.is_empty() && self.buffer.is_empty();
        // Two requests of half the room each: while one is filled, the other waits at the server.
        let (half, half_bytes) = (count.div_ceil(2), bytes.div_ceil(2));
        let fits = room >= half && room_bytes >= half_bytes;
        match self.too_large {
            None => fits.then(|| self.pull(half, Some(half_bytes), false)),
            Some(TooLarge { given: true, .. }) => (fits && self.pulls.is_empty()).then(|| self.pull(half, Some(half_bytes), false)),
            Some(TooLarge { given: false, full }) if empty => {
                Some(if full { self.pull(1, None, true) } else { self.pull(count, Some(bytes), true) })
            }
            Some(_) => None,
        }
    }

    fn pull(&mut self, batch: usize, bytes: Option<usize>, full: bool) -> Ask {
        self.pulled += 1;
        let batch = batch.min(self.most_batch);
        if self.pulls.is_empty() {
            self.heard = Instant::now();
        }
        self.too_large = None;
        self.asked += batch;
        self.asked_bytes += bytes.unwrap_or(0);
        self.pulls.push(Pull { number: self.pulled, batch, bytes: bytes.unwrap_or(0), full });
        Ask { number: self.pulled, batch, bytes, pin: self.pin.clone() }
    }

    fn is_far_ahead(&self) -> bool {
        let span = match (self.by_seq.first_key_value(), self.by_seq.last_key_value()) {
            (Some((first, _)), Some((last, _))) => last - first,
            _ => 0,
        };
        self.ordered && span > AHEAD * u64::from(self.shards)
    }

    /// Forgets what was asked for: answers to it are void.
    pub(super) fn forget_pulls(&mut self) {
        self.none_open();
        self.rest_until = None;
        self.round += 1;
        self.listening.cancel();
    }

    /// Drops what is buffered, for others (or for a later round) to get; what the core has stays, unless `all`.
    pub(super) fn drop_held(&mut self, slab: &mut Slab<Held>, all: bool) {
        self.buffer.clear();
        self.buffered_bytes = 0;
        self.barrier = None;
        self.by_seq.retain(|_, token| {
            let keep = !all && slab.get(*token).is_some_and(|held| held.out);
            if !keep {
                slab.remove(*token);
            }
            keep
        });
    }

    /// The pin is gone: a request without it may win a new one.
    pub(super) fn lose_pin(&mut self) {
        self.pin = None;
    }

    /// Takes what came. The server fills the requests that are open by turns, and a message does not say which one it is
    /// of; what it says about a request comes to that request's own address.
    pub(super) fn take(&mut self, index: usize, mut message: Message, slab: &mut Slab<Held>, lease: Duration) -> Consequence {
        self.heard = Instant::now();
        if message.status.is_some() {
            let number = message.subject.rsplit_once('.').and_then(|(_, number)| number.parse().ok());
            let at = self.pulls.iter().position(|pull| Some(pull.number) == number);
            return at.map_or(Consequence::None, |at| self.status(at, &message));
        }
        let Some(mark) = message.reply.as_deref().and_then(mark) else { return Consequence::None };
        self.count(message.length);
        if self.phase != Phase::Live {
            return Consequence::None;
        }
        if self.ordered {
            if let Some(pin) = message.headers.as_ref().and_then(|headers| headers.get(super::envelope::PIN_ID))
                && self.pin.as_deref() != Some(pin.as_str())
            {
                self.pin = Some(pin.as_str().to_owned());
            }
            match mark.consumer_seq.cmp(&self.expect) {
                std::cmp::Ordering::Equal => self.expect += 1,
                // Handed out before the sync, which has called it back.
                std::cmp::Ordering::Less => return Consequence::None,
                // What lies between was handed to somebody else.
                std::cmp::Ordering::Greater => return Consequence::Resync,
            }
        }
        let until = Instant::now() + lease;
        let Some(ack) = message.reply.take() else { return Consequence::None };
        // The server took it back while we hold it, and gave it to us again: it is the same hand-over.
        if let Some(held) = self.by_seq.get(&mark.stream_seq).and_then(|token| slab.get_mut(*token)) {
            (held.ack, held.until) = (ack, until);
            return Consequence::None;
        }
        let token = slab.insert(Held { feed: index, seq: mark.stream_seq, ack, until, out: false });
        self.by_seq.insert(mark.stream_seq, token);
        self.buffered_bytes += message.length;
        self.buffer.push_back(Ready { token, message, mark });
        if let Some(barrier) = &mut self.barrier
            && mark.stream_seq <= barrier.upto
        {
            barrier.left = barrier.left.saturating_sub(1);
            if barrier.left == 0 {
                self.lift_barrier();
            }
        }
        Consequence::None
    }

    /// Everything that was to come again is here: in order from now on.
    pub(super) fn lift_barrier(&mut self) {
        self.barrier = None;
        self.buffer.make_contiguous().sort_by_key(|ready| ready.mark.stream_seq);
    }

    /// Takes a message out of the buffer.
    pub(super) fn pop(&mut self) -> Option<Ready> {
        let ready = self.buffer.pop_front()?;
        self.buffered_bytes = self.buffered_bytes.saturating_sub(ready.message.length);
        Some(ready)
    }

    fn none_open(&mut self) {
        self.pulls.clear();
        (self.asked, self.asked_bytes) = (0, 0);
    }

    fn count(&mut self, bytes: usize) {
        self.asked = self.asked.saturating_sub(1);
        self.asked_bytes = self.asked_bytes.saturating_sub(bytes);
        if self.asked == 0 {
            self.none_open();
        }
    }

    /// A request is over, and what it has open does not come.
    fn over(&mut self, at: usize, message: &Message) -> TooLarge {
        let open = |name: &str| message.headers.as_ref()?.get(name)?.as_str().parse::<usize>().ok();
        let pull = self.pulls.remove(at);
        let left = open("Nats-Pending-Messages").unwrap_or(pull.batch).min(pull.batch);
        self.asked = self.asked.saturating_sub(left);
        self.asked_bytes = self.asked_bytes.saturating_sub(open("Nats-Pending-Bytes").unwrap_or(pull.bytes).min(pull.bytes));
        if self.asked == 0 || self.pulls.is_empty() {
            self.none_open();
        }
        TooLarge { given: left < pull.batch, full: pull.full }
    }

    /// The server says something about request `at`, in most cases that it is over.
    fn status(&mut self, at: usize, message: &Message) -> Consequence {
        let said = message.description.as_deref().unwrap_or_default();
        let lower = said.to_lowercase();
        match message.status {
            Some(StatusCode::IDLE_HEARTBEAT) => return Consequence::None,
            Some(StatusCode::PIN_ID_MISMATCH) => self.pin = None,
            // Nobody answers for this consumer.
            Some(StatusCode::NO_RESPONDERS) => return Consequence::Gone,
            Some(StatusCode::REQUEST_TERMINATED) => {
                if lower.contains("deleted") {
                    return Consequence::Gone;
                }
                if lower.contains("maxbytes") && !lower.contains("exceeded") {
                    self.too_large = Some(self.over(at, message));
                    return Consequence::None;
                }
                if lower.contains("push based") {
                    return Consequence::Fatal(Error::new(
                        Code::SubscribeFailed,
                        format!("consumer '{}' pushes, a group needs one that is pulled from", self.consumer),
                    ));
                } else if let Some(most) = lower.split("maxrequestbatch of ").nth(1).and_then(|rest| rest.trim().parse().ok()) {
                    self.most_batch = most;
                } else if !lower.contains("batch completed") {
                    self.rest_until = Some(Instant::now() + REST);
                }
            }
            Some(StatusCode::NOT_FOUND | StatusCode::TIMEOUT) => {}
            status => {
                let code = status.map_or(0, |status| status.as_u16());
                return Consequence::Fatal(Error::new(Code::SubscribeFailed, format!("the server answered {code} {said}")));
            }
        }
        self.over(at, message);
        Consequence::None
    }
}

/// Reads `$JS.ACK.<stream>.<consumer>.<count>.<stream seq>.<consumer seq>.<nanoseconds>.<pending>`, or the longer form that
/// has domain and account before the stream.
pub(super) fn mark(reply: &str) -> Option<Mark> {
    let rest = reply.strip_prefix("$JS.ACK.")?;
    let tokens = rest.split('.').count();
    let skip = if tokens == 7 {
        2
    } else if tokens >= 9 {
        4
    } else {
        return None;
    };
    let mut numbers = rest.split('.').skip(skip).map(|text| text.parse::<u64>().ok());
    let mut next = || numbers.next().flatten();
    let (count, stream_seq, consumer_seq, nanos) = (next()?, next()?, next()?, next()?);
    Some(Mark { count: u32::try_from(count).unwrap_or(u32::MAX), stream_seq, consumer_seq, stored_at: nanos / 1_000_000 })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(30);

    fn message(seq: u64, consumer_seq: u64, length: usize) -> Message {
        Message {
            subject: "_INBOX.x".into(),
            reply: Some(format!("$JS.ACK.s.c.1.{seq}.{consumer_seq}.1700000000123000000.0").into()),
            payload: vec![b'x'; length].into(),
            headers: None,
            status: None,
            description: None,
            length,
        }
    }

    /// With so many messages of the request still open.
    fn over(number: u64, code: StatusCode, said: &str, left: i64) -> Message {
        let headers = async_nats::HeaderMap::from_iter([("Nats-Pending-Messages".parse().expect("a name"), left.into())]);
        Message { headers: Some(headers), ..status(number, code, said) }
    }

    fn status(number: u64, code: StatusCode, said: &str) -> Message {
        Message {
            subject: format!("_INBOX.x.{number}").into(),
            status: Some(code),
            description: Some(said.into()),
            reply: None,
            ..message(0, 0, 0)
        }
    }

    fn plain() -> (Feed, Slab<Held>) {
        (Feed::new(0, 0, "s", "c".into(), false, 1), Slab::default())
    }

    #[test]
    fn marks_of_both_forms() {
        let expected = Mark { count: 2, stream_seq: 30, consumer_seq: 4, stored_at: 1_700_000_000_123 };
        assert_eq!(mark("$JS.ACK.s.c.2.30.4.1700000000123456789.7"), Some(expected));
        assert_eq!(mark("$JS.ACK.hub.AccountHash.s.c.2.30.4.1700000000123456789.7.random"), Some(expected));
        assert_eq!(mark("$JS.ACK.s.c.2.30.4"), None);
        assert_eq!(mark("_INBOX.s.c.2.30.4.5.6.7"), None);
    }

    fn ask(number: u64, batch: usize, bytes: Option<usize>) -> Option<Ask> {
        Some(Ask { number, batch, bytes, pin: None })
    }

    #[test]
    fn it_asks_for_what_there_is_room_for() {
        let (mut feed, mut slab) = plain();
        let now = Instant::now();
        assert_eq!(feed.ask(now, 10, 1000), ask(1, 5, Some(500)));
        assert_eq!(feed.ask(now, 10, 1000), ask(2, 5, Some(500)));
        assert_eq!(feed.ask(now, 10, 1000), None, "all the room was asked for");
        for seq in 1..=5 {
            feed.take(0, message(seq, seq, 20), &mut slab, LEASE);
        }
        assert_eq!(feed.ask(now, 10, 1000), None, "what came takes the room that was asked for");
        for _ in 0..5 {
            feed.pop();
        }
        assert_eq!(feed.ask(now, 10, 1000), None, "the bytes of a request are its own until it is over");
        feed.take(0, over(1, StatusCode::REQUEST_TERMINATED, "Batch Completed", 0), &mut slab, LEASE);
        assert_eq!(feed.ask(now, 10, 1000), ask(3, 5, Some(500)), "half is free again");
        feed.take(0, over(2, StatusCode::TIMEOUT, "Request Timeout", 5), &mut slab, LEASE);
        assert_eq!(feed.ask(now, 10, 1000), ask(4, 5, Some(500)));
        feed.take(0, status(99, StatusCode::TIMEOUT, "Request Timeout"), &mut slab, LEASE);
        assert_eq!(slab.len(), 5, "an answer to nothing is nothing");
        let (mut one, _) = plain();
        assert_eq!((one.ask(now, 1, 10), one.ask(now, 1, 10)), (ask(1, 1, Some(5)), None));
    }

    #[test]
    fn a_message_larger_than_the_room_comes_alone() {
        let (mut feed, mut slab) = plain();
        let now = Instant::now();
        let too_large = |number, left| over(number, StatusCode::REQUEST_TERMINATED, "Message Size Exceeds MaxBytes", left);
        let both = |feed: &mut Feed| (feed.ask(now, 10, 1000), feed.ask(now, 10, 1000));
        both(&mut feed);
        feed.take(0, message(1, 1, 400), &mut slab, LEASE);
        feed.take(0, too_large(1, 4), &mut slab, LEASE);
        feed.take(0, too_large(2, 5), &mut slab, LEASE);
        assert_eq!(feed.ask(now, 10, 1000), None, "it does not fit beside what is buffered");
        feed.pop();
        assert_eq!(feed.ask(now, 10, 1000), ask(3, 10, Some(1000)), "alone in the whole room");
        feed.take(0, too_large(3, 10), &mut slab, LEASE);
        assert_eq!(feed.ask(now, 10, 1000), ask(4, 1, None), "alone, whatever its size");
        feed.take(0, message(2, 2, 5000), &mut slab, LEASE);
        assert_eq!(feed.ask(now, 10, 1000), None, "passed by one message, and no more");
        feed.pop();
        assert_eq!(both(&mut feed), (ask(5, 5, Some(500)), ask(6, 5, Some(500))));
    }

    #[test]
    fn what_ends_a_request_is_told_apart() {
        let now = Instant::now();
        for (code, said, fatal, gone, asks) in [
            (StatusCode::REQUEST_TERMINATED, "Consumer Deleted", false, true, false),
            (StatusCode::NO_RESPONDERS, "", false, true, false),
            (StatusCode::REQUEST_TERMINATED, "Consumer is push based", true, false, false),
            (StatusCode::REQUEST_TERMINATED, "Batch Completed", false, false, true),
            (StatusCode::REQUEST_TERMINATED, "Server Shutdown", false, false, false),
            (StatusCode::REQUEST_TERMINATED, "Exceeded MaxRequestBatch of 3", false, false, true),
            (StatusCode::PIN_ID_MISMATCH, "Nats-Wrong-Pin-Id", false, false, true),
            (StatusCode::IDLE_HEARTBEAT, "Idle Heartbeat", false, false, false),
        ] {
            let (mut feed, mut slab) = plain();
            feed.ask(now, 1, 1000);
            let consequence = feed.take(0, status(1, code, said), &mut slab, LEASE);
            assert_eq!(matches!(consequence, Consequence::Fatal(_)), fatal, "{said}");
            assert_eq!(matches!(consequence, Consequence::Gone), gone, "{said}");
            assert_eq!(feed.ask(Instant::now(), 1, 1000).is_some(), asks, "{said}");
            if said.contains("of 3") {
                feed.forget_pulls();
                assert_eq!(feed.ask(now, 100, 1000).map(|ask| ask.batch), Some(3));
            }
        }
    }

    #[test]
    fn an_ordered_feed_notices_what_went_elsewhere_and_sorts_what_comes_again() {
        let mut feed = Feed::new(0, 0, "s", "c=0".into(), true, 1);
        let mut slab = Slab::default();
        let now = Instant::now();
        assert_eq!(feed.ask(now, 10, 1000), None, "it is not ours");
        feed.phase = Phase::Live;
        feed.expect = 7;
        feed.barrier = Some(Barrier { upto: 3, left: 3, since: now });
        feed.ask(now, 10, 1000);
        for (seq, consumer_seq) in [(2, 7), (3, 8), (1, 9), (4, 10)] {
            assert!(matches!(feed.take(0, message(seq, consumer_seq, 10), &mut slab, LEASE), Consequence::None));
            assert_eq!(feed.is_open(), seq == 1 || seq == 4);
        }
        assert_eq!(feed.buffer.iter().map(|ready| ready.mark.stream_seq).collect::<Vec<_>>(), [1, 2, 3, 4]);
        assert!(matches!(feed.take(0, message(6, 12, 10), &mut slab, LEASE), Consequence::Resync), "11 went to somebody else");
    }

    #[test]
    fn two_requests_are_filled_by_turns() {
        let (mut feed, mut slab) = plain();
        let now = Instant::now();
        assert_eq!((feed.ask(now, 20, 1000), feed.ask(now, 20, 1000)), (ask(1, 10, Some(500)), ask(2, 10, Some(500))));
        // Seven come to the first and seven to the second, and nobody can tell which.
        for seq in 1..=14 {
            feed.take(0, message(seq, seq, 1), &mut slab, LEASE);
            feed.pop();
        }
        assert_eq!((feed.asked, feed.ask(now, 20, 1000)), (6, None));
        feed.take(0, over(2, StatusCode::TIMEOUT, "Request Timeout", 3), &mut slab, LEASE);
        assert_eq!(feed.asked, 3, "those of the first");
        assert_eq!(feed.ask(now, 20, 1000), ask(3, 10, Some(500)));
        feed.take(0, over(1, StatusCode::REQUEST_TERMINATED, "Batch Completed", 0), &mut slab, LEASE);
        for seq in 15..=27 {
            feed.take(0, message(seq, seq, 1), &mut slab, LEASE);
        }
        assert!(!feed.is_asking(), "all has come");
    }

    #[test]
    fn what_is_held_and_comes_again_is_the_same() {
        let (mut feed, mut slab) = plain();
        feed.ask(Instant::now(), 10, 1000);
        feed.take(0, message(1, 1, 10), &mut slab, LEASE);
        feed.take(0, message(1, 2, 10), &mut slab, LEASE);
        assert_eq!((slab.len(), feed.buffer.len()), (1, 1));
        assert!(slab.iter().all(|(_, held)| held.ack.contains(".1.2.")), "it is acked as it was handed out last");
    }
}
