//! One record as the block writer takes it and the block reader gives it: everything borrowed.

use crate::delivery::Position;
use crate::message::{Headers, MessageId, Millis};
use crate::provider::Outgoing;

use super::wire::cut;
use super::{Attempt, Batch, Class, Content, Filed, Step};
use super::{Capture, Produced};
use crate::sessions::SubjectKey;
use crate::store::SessionRef;

/// The longest error text that is kept, in bytes.
pub(super) const TEXT_MAX: usize = 4_096;

/// What a record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Kind {
    Produced = 0,
    Failed = 1,
    Delivered = 2,
    Dropped = 3,
    Held = 4,
    Waiting = 5,
    Dead = 6,
    Reprocessed = 7,
    Replayed = 8,
}

impl Kind {
    pub(super) const ALL: [Kind; 9] = [
        Kind::Produced,
        Kind::Failed,
        Kind::Delivered,
        Kind::Dropped,
        Kind::Held,
        Kind::Waiting,
        Kind::Dead,
        Kind::Reprocessed,
        Kind::Replayed,
    ];

    /// Whether it is about the produce.
    pub(super) fn is_produce(self) -> bool {
        matches!(self, Kind::Produced | Kind::Failed)
    }

    /// Whether it is a step at a group.
    pub(super) fn is_step(self) -> bool {
        !self.is_produce() && self != Kind::Replayed
    }
}

impl From<Step> for Kind {
    fn from(step: Step) -> Kind {
        match step {
            Step::Delivered => Kind::Delivered,
            Step::Dropped => Kind::Dropped,
            Step::Held => Kind::Held,
            Step::Waiting => Kind::Waiting,
            Step::Dead => Kind::Dead,
            Step::Reprocessed => Kind::Reprocessed,
        }
    }
}

/// A topic in an env, with its provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place<'a> {
    pub(super) product: &'a str,
    pub(super) env: &'a str,
    pub(super) event: &'a str,
    pub(super) provider: &'a str,
    /// Where its [`Filed`] lies in memory, so that it is known again without comparing texts; 0 if it was read from a block.
    pub(super) filed: usize,
}

impl<'a> From<&'a Filed> for Place<'a> {
    fn from(filed: &'a Filed) -> Self {
        let address = &filed.address;
        Place {
            product: &address.product,
            env: &address.env,
            event: address.event.as_str(),
            provider: filed.provider,
            filed: std::ptr::from_ref(filed) as usize,
        }
    }
}

/// Headers, as they came or as they are stored.
#[derive(Debug, Clone, Copy)]
pub(super) enum HeadersOf<'a> {
    Live(&'a Headers),
    Stored(&'a [u8]),
}

/// The key that headers and payload are encrypted with.
#[derive(Debug, Clone, Copy)]
pub(super) enum KeyOf<'a> {
    /// None.
    Plain,
    /// This one: they are to be encrypted.
    Live(&'a SubjectKey),
    /// That of this subject: they are encrypted.
    Stored(&'a str),
}

/// One record.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row<'a> {
    pub(super) id: MessageId,
    pub(super) kind: Kind,
    pub(super) place: Place<'a>,
    /// The producer or the consumer.
    pub(super) who: &'a str,
    pub(super) group: &'a str,
    pub(super) key: Option<&'a [u8]>,
    pub(super) headers: HeadersOf<'a>,
    /// `None` where it was not kept.
    pub(super) payload: Option<&'a [u8]>,
    /// Of the payload, kept or not.
    pub(super) size: u64,
    /// Produced, or replayed, at.
    pub(super) at: Millis,
    pub(super) started_at: Millis,
    /// Until the confirm, or the wait.
    pub(super) first_us: u64,
    pub(super) run_us: u64,
    pub(super) attempts: u32,
    pub(super) position: Option<Position>,
    /// Tag, id, identifier; of a message that is encrypted the subject's id in its place. Of a step: its consumer's.
    pub(super) session: Option<[&'a str; 3]>,
    pub(super) key_of: KeyOf<'a>,
    pub(super) idempotency_key: Option<&'a str>,
    /// The message it replays, or is replayed by.
    pub(super) other: Option<MessageId>,
    /// The code of a failure.
    pub(super) code: &'a str,
    pub(super) text: Option<&'a str>,
}

impl<'a> Row<'a> {
    #[inline]
    fn bare(id: MessageId, kind: Kind, place: Place<'a>, at: Millis) -> Self {
        Row {
            id,
            kind,
            place,
            who: "",
            group: "",
            key: None,
            headers: HeadersOf::Stored(&[]),
            payload: None,
            size: 0,
            at,
            started_at: 0,
            first_us: 0,
            run_us: 0,
            attempts: 0,
            position: None,
            session: None,
            key_of: KeyOf::Plain,
            idempotency_key: None,
            other: None,
            code: "",
            text: None,
        }
    }

    /// What the roll-ups count of it.
    pub(super) fn tally(&self) -> Tally {
        Tally {
            kind: self.kind,
            at: if self.kind.is_step() { self.started_at } else { self.at },
            first_us: self.first_us,
            run_us: self.run_us,
            attempts: self.attempts,
            size: self.size,
            failed: self.text.is_some(),
        }
    }

    /// When it was over, in microseconds since 1970.
    pub(super) fn ended_us(&self) -> u64 {
        self.tally().ended_us()
    }

    /// Whether its wait is counted: it is the first attempt.
    pub(super) fn is_first(&self) -> bool {
        self.tally().is_first()
    }
}

/// What the roll-ups count of a record.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tally {
    pub(super) kind: Kind,
    /// Produced, replayed, or started at.
    pub(super) at: Millis,
    /// Until the confirm, or the wait.
    pub(super) first_us: u64,
    pub(super) run_us: u64,
    pub(super) attempts: u32,
    pub(super) size: u64,
    /// It left an error: a handler that asks to be called again later has none.
    pub(super) failed: bool,
}

impl Tally {
    /// When it was over, in microseconds since 1970.
    pub(super) fn ended_us(&self) -> u64 {
        let took = match self.kind {
            Kind::Replayed => 0,
            kind if kind.is_produce() => self.first_us,
            _ => self.run_us,
        };
        self.at.saturating_mul(1_000).saturating_add(took)
    }

    /// Whether its wait is counted: it is the first attempt.
    pub(super) fn is_first(&self) -> bool {
        match self.kind {
            Kind::Delivered | Kind::Dropped => self.attempts == 0,
            Kind::Held | Kind::Waiting | Kind::Dead => self.attempts == 1,
            _ => false,
        }
    }
}

/// A batch on its way, with the sizes of payloads that had to be let go of.
#[derive(Debug)]
pub(super) struct Queued {
    pub(super) batch: Batch,
    pub(super) sizes: Option<Box<[u32]>>,
}

impl Queued {
    pub(super) fn filed(&self) -> &std::sync::Arc<Filed> {
        match &self.batch {
            Batch::Produced { filed, .. } | Batch::Attempts { filed, .. } | Batch::Replayed { filed, .. } => filed,
        }
    }

    pub(super) fn class(&self) -> Class {
        self.filed().class
    }

    pub(super) fn len(&self) -> usize {
        len(&self.batch)
    }

    /// The id of one of its records.
    #[inline]
    pub(super) fn id(&self, item: usize) -> MessageId {
        match &self.batch {
            Batch::Produced { messages, .. } => messages[item].id,
            Batch::Attempts { items, .. } => items[item].id,
            Batch::Replayed { id, .. } => *id,
        }
    }

    /// What the roll-ups count of one of its records; the whole record would take longer to make than to count.
    #[inline]
    pub(super) fn tally(&self, at: usize) -> Tally {
        match &self.batch {
            Batch::Produced { messages, items, .. } => {
                let item = &items[at];
                let size = self.sizes.as_ref().map_or(messages[at].payload.len() as u64, |sizes| u64::from(sizes[at]));
                let (kind, first_us) = (kind_of(item), u64::from(item.confirm_us));
                Tally { kind, at: item.produced_at, first_us, run_us: 0, attempts: 0, size, failed: item.failure.is_some() }
            }
            Batch::Attempts { items, .. } => {
                let Attempt { started_at, wait_us, run_us, attempts, step, ref error, .. } = items[at];
                Tally { kind: step.into(), at: started_at, first_us: wait_us, run_us, attempts, size: 0, failed: error.is_some() }
            }
            Batch::Replayed { at, .. } => {
                Tally { kind: Kind::Replayed, at: *at, first_us: 0, run_us: 0, attempts: 0, size: 0, failed: false }
            }
        }
    }

    /// One of its records.
    #[inline]
    pub(super) fn row(&self, item: usize) -> Row<'_> {
        match &self.batch {
            Batch::Produced { filed, producer, messages, items } => {
                produced(filed, producer, &messages[item], &items[item], self.sizes.as_ref().map(|sizes| sizes[item]))
            }
            Batch::Attempts { filed, group, consumer, session, items } => {
                Row { session: session.as_deref().map(step_session), ..attempt(filed, group, consumer, &items[item]) }
            }
            Batch::Replayed { filed, id, by, at } => Row { other: Some(*by), ..Row::bare(*id, Kind::Replayed, Place::from(&**filed), *at) },
        }
    }
}

/// How many records a batch holds.
pub(super) fn len(batch: &Batch) -> usize {
    match batch {
        Batch::Produced { items, .. } => items.len(),
        Batch::Attempts { items, .. } => items.len(),
        Batch::Replayed { .. } => 1,
    }
}

fn kind_of(item: &Produced) -> Kind {
    if item.failure.is_some() { Kind::Failed } else { Kind::Produced }
}

#[inline]
fn produced<'a>(filed: &'a Filed, producer: &'a str, message: &'a Outgoing, item: &'a Produced, let_go: Option<u32>) -> Row<'a> {
    let mark = item.mark.as_deref();
    let content = mark.map_or(&Content::Plain, |mark| &mark.content);
    let is_kept = !matches!(content, Content::Withheld);
    Row {
        who: producer,
        key: message.key.as_deref(),
        headers: if is_kept { HeadersOf::Live(&message.headers) } else { HeadersOf::Stored(&[]) },
        payload: (is_kept && filed.class.capture == Capture::Full && let_go.is_none()).then_some(&*message.payload),
        key_of: if let Content::Sealed(key) = content { KeyOf::Live(key) } else { KeyOf::Plain },
        size: let_go.map_or(message.payload.len() as u64, u64::from),
        first_us: u64::from(item.confirm_us),
        position: item.position,
        session: mark.and_then(|mark| mark.session.as_deref()).map(|mark| [&*mark.tag, &*mark.id, &*mark.identifier]),
        idempotency_key: mark.and_then(|mark| mark.idempotency_key.as_deref()),
        other: mark.and_then(|mark| mark.replay_of),
        code: item.failure.as_ref().map_or("", |failure| failure.code),
        text: item.failure.as_ref().map(|failure| cut(&failure.message, TEXT_MAX)),
        ..Row::bare(message.id, kind_of(item), Place::from(filed), item.produced_at)
    }
}

/// The session of a consumer: it is named, and nobody with it.
fn step_session(session: &SessionRef) -> [&str; 3] {
    [&session.tag, &session.id, ""]
}

#[inline]
fn attempt<'a>(filed: &'a Filed, group: &'a str, consumer: &'a str, item: &'a Attempt) -> Row<'a> {
    Row {
        who: consumer,
        group,
        key: item.key.as_deref(),
        started_at: item.started_at,
        first_us: item.wait_us,
        run_us: item.run_us,
        attempts: item.attempts,
        position: Some(item.position),
        text: item.error.as_deref().map(|text| cut(text, TEXT_MAX)),
        ..Row::bare(item.id, item.step.into(), Place::from(filed), item.produced_at)
    }
}
