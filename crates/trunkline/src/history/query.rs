//! What can be asked of the history, and what comes back.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::error::{Error, Result};
use crate::message::Millis;

use super::index::Gap;
use super::record::{Category, Record, Status};
use super::row::{Kind, Row};
use super::terms::{self, Term};

/// The most messages of a page.
pub const LIMIT_MAX: usize = 1_000;

/// A filter over messages. Empty fields match all.
#[derive(Debug, Clone, Default, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Query {
    /// The product's tag.
    pub product: Option<String>,
    /// The env's slug.
    pub env: Option<String>,
    /// The broker's tag.
    pub broker: Option<String>,
    /// The topic's short tag.
    pub topic: Option<String>,
    /// Where it stands: at `group` if one is given, else at the worst of its groups.
    pub status: Option<Status>,
    /// What happened last.
    pub category: Option<Category>,
    /// A group that worked on it.
    pub group: Option<String>,
    /// Its key.
    pub key: Option<String>,
    /// The id of its session.
    pub session: Option<String>,
    /// The session's identifier.
    pub identifier: Option<String>,
    /// The subjects that the identifier stands for: in records that are encrypted their ids are in its place.
    #[doc(hidden)]
    #[serde(skip)]
    pub subjects: Vec<String>,
    /// The producer's id.
    pub producer: Option<String>,
    /// A header, as `name=value`.
    pub header: Option<String>,
    /// Stands somewhere in the payload, the key or a header's value.
    pub text: Option<String>,
    /// Produced at or after, in ms.
    pub from: Option<Millis>,
    /// Produced before, in ms.
    pub to: Option<Millis>,
    /// The page, from 1. Ignored if there is a cursor.
    pub page: Option<u64>,
    /// Messages on a page, 1 to 1,000. Default 20.
    pub limit: Option<usize>,
    /// Where the last page ended.
    pub cursor: Option<String>,
    /// Oldest first. Default newest first.
    pub ascending: bool,
    /// How long to look for one page. Default 150 ms with `text`, else 2 s; then the page ends with a cursor to go on from.
    pub budget: Option<Duration>,
}

/// A page of messages.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Page {
    /// The messages.
    pub messages: Vec<Record>,
    /// How many match; at least so many if `total_is_exact` is false.
    pub total: u64,
    /// Whether `total` is all of them.
    pub total_is_exact: bool,
    /// The page.
    pub page: u64,
    /// Whether there may be more.
    pub has_more: bool,
    /// Where to go on.
    pub cursor: Option<String>,
    /// Messages looked at since the first page.
    pub scanned: u64,
    /// Messages there are in these topics and times; those of topics with `capture: off` are not, nor are they in `total`.
    pub of: u64,
    /// Times of which something is missing.
    pub gaps: Vec<Gap>,
}

/// Where a page ended. Ids are compared as keys: descending order takes them as they are, ascending their complement, so that
/// the next one is always the largest key below the bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cursor {
    pub(super) bound: u128,
    pub(super) scanned: u64,
    pub(super) page: u64,
}

impl Query {
    /// Messages on a page.
    pub(super) fn limit(&self) -> usize {
        self.limit.unwrap_or(20)
    }

    /// # Errors
    /// `INPUT_INVALID`.
    pub(super) fn check(&self) -> Result<()> {
        if !(1..=LIMIT_MAX).contains(&self.limit()) {
            return Err(Error::input("limit", format!("`limit` must be 1 to {LIMIT_MAX}")));
        }
        if self.page == Some(0) {
            return Err(Error::input("page", "`page` counts from 1"));
        }
        if self.header.as_ref().is_some_and(|header| !header.contains('=')) {
            return Err(Error::input("header", "`header` must be `name=value`"));
        }
        if self.text.as_ref().is_some_and(String::is_empty) {
            return Err(Error::input("text", "`text` must not be empty"));
        }
        Ok(())
    }

    /// What distinguishes it from another query: a cursor fits only its own.
    fn hash(&self) -> u64 {
        let own = Query { cursor: None, page: None, limit: None, budget: None, ..self.clone() };
        xxh3_64(&serde_json::to_vec(&own).unwrap_or_default())
    }

    pub(super) fn cursor_text(&self, cursor: Cursor) -> String {
        let mut bytes = vec![1];
        bytes.extend_from_slice(&self.hash().to_le_bytes()[..4]);
        bytes.extend_from_slice(&cursor.bound.to_be_bytes());
        bytes.extend_from_slice(&cursor.scanned.to_le_bytes());
        bytes.extend_from_slice(&cursor.page.to_le_bytes());
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// # Errors
    /// `INPUT_INVALID` if it is not one of this query's.
    pub(super) fn parse_cursor(&self) -> Result<Option<Cursor>> {
        let Some(text) = &self.cursor else { return Ok(None) };
        let parse = || {
            let bytes: [u8; 37] = URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()?;
            let word = |at: usize| bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
            let bound = u128::from_be_bytes(bytes.get(5..21)?.try_into().ok()?);
            (bytes[0] == 1 && bytes[1..5] == self.hash().to_le_bytes()[..4]).then_some(Cursor {
                bound,
                scanned: word(21)?,
                page: word(29)?,
            })
        };
        parse().map(Some).ok_or_else(|| Error::input("cursor", "the cursor is not one of this query").next("ask for the first page again"))
    }

    /// Whether roll-ups alone know how many match.
    pub(super) fn is_plain(&self) -> bool {
        let fields = [&self.group, &self.key, &self.session, &self.identifier, &self.producer, &self.header, &self.text];
        self.status.is_none() && self.category.is_none() && fields.iter().all(|field| field.is_none())
    }

    /// Whether only the record of the produce can tell.
    fn is_about_produce(&self) -> bool {
        [&self.session, &self.identifier, &self.producer, &self.header, &self.text].iter().any(|field| field.is_some())
    }

    /// The kinds of records that lead to the messages asked for: each such message has one of them.
    pub(super) fn kinds(&self) -> &'static [Kind] {
        const PRODUCE: &[Kind] = &[Kind::Produced, Kind::Failed];
        const STEPS: &[Kind] = &[Kind::Delivered, Kind::Dropped, Kind::Held, Kind::Waiting, Kind::Dead, Kind::Reprocessed];
        match (self.status, self.category) {
            _ if self.is_about_produce() && self.status == Some(Status::Failed) => &[Kind::Failed],
            _ if self.is_about_produce() => PRODUCE,
            (_, Some(Category::DeadLetter)) | (Some(Status::Dead), _) => &[Kind::Dead],
            (Some(Status::Failed), _) => &[Kind::Failed],
            (Some(Status::Delivered), _) => &[Kind::Delivered, Kind::Dropped],
            (Some(Status::Retrying), _) => &[Kind::Held, Kind::Waiting],
            _ if self.group.is_some() => STEPS,
            (_, Some(Category::Replay)) => &[Kind::Replayed],
            (_, Some(Category::Consume)) => STEPS,
            (_, Some(Category::Produce)) => PRODUCE,
            _ => &Kind::ALL,
        }
    }

    /// What a block must hold, all of it, to be opened.
    pub(super) fn terms(&self) -> Vec<u64> {
        let mut all = Vec::new();
        if let (Some(product), Some(env), Some(broker)) = (&self.product, &self.env, &self.broker) {
            all.push(match &self.topic {
                Some(topic) => terms::event_term(product, env, &format!("{broker}:{topic}")),
                None => terms::broker_term(product, env, broker),
            });
        }
        let mut put = |kind, value: &Option<String>| all.extend(value.as_ref().map(|value| terms::term(kind, value.as_bytes())));
        if self.keyed() {
            put(Term::Key, &self.key);
        }
        put(Term::Session, &self.session);
        // One term that a block must hold; of several it would have to hold any.
        match &*self.subjects {
            [] => put(Term::Identifier, &self.identifier),
            [one] => put(Term::Identifier, &Some(one.clone())),
            _ => {}
        }
        put(Term::Producer, &self.producer);
        put(Term::Header, &self.header);
        if self.kinds().iter().all(|kind| kind.is_step()) {
            put(Term::Group, &self.group);
        }
        all
    }

    /// Whether the leading records carry the key.
    pub(super) fn keyed(&self) -> bool {
        self.key.is_some() && !self.kinds().contains(&Kind::Replayed) || self.key.is_some() && self.kinds().len() == Kind::ALL.len()
    }

    /// Whether this record leads to a message that may match. `varied`: whether the row has its key and headers.
    pub(super) fn leads(&self, row: &Row<'_>) -> bool {
        let is = |want: &Option<String>, have: &str| want.as_ref().is_none_or(|want| want == have);
        let (broker, topic) = row.place.event.split_once(':').unwrap_or_default();
        let place =
            is(&self.product, row.place.product) && is(&self.env, row.place.env) && is(&self.broker, broker) && is(&self.topic, topic);
        if !place || !self.kinds().contains(&row.kind) || (row.kind.is_step() && !is(&self.group, row.group)) {
            return false;
        }
        if !self.is_about_produce() {
            return true;
        }
        is(&self.producer, row.who)
            && self.session.as_ref().is_none_or(|want| row.session.is_some_and(|session| session[1] == want))
            && (self.identifier.is_none() || row.session.is_some_and(|session| self.is_of(session[2])))
    }

    /// Whether a record with this identifier, or subject, is of the one asked for.
    fn is_of(&self, identifier: &str) -> bool {
        if self.subjects.is_empty() {
            self.identifier.as_deref() == Some(identifier)
        } else {
            self.subjects.iter().any(|id| id == identifier)
        }
    }

    /// Whether the message is one that was asked for.
    pub(super) fn matches(&self, record: &Record) -> bool {
        let is = |want: &Option<String>, have: &str| want.as_ref().is_none_or(|want| want == have);
        let group = self.group.as_ref().map(|name| record.groups.iter().find(|group| group.group == *name));
        let status = match group {
            Some(None) => return false,
            Some(Some(group)) => group.status,
            None => record.status,
        };
        let session = record.session.as_ref();
        is(&self.product, &record.product)
            && is(&self.env, &record.env)
            && is(&self.broker, &record.broker_tag)
            && is(&self.topic, &record.topic_tag)
            && self.status.is_none_or(|want| want == status)
            && self.category.is_none_or(|want| want == record.category)
            && self.key.as_ref().is_none_or(|want| record.key.as_ref().is_some_and(|key| *key.0 == *want.as_bytes()))
            && self.session.as_ref().is_none_or(|want| session.is_some_and(|session| session.id == *want))
            && (self.identifier.is_none() || session.is_some_and(|session| self.is_of(&session.identifier)))
            && self.producer.as_ref().is_none_or(|want| record.producer.as_ref() == Some(want))
            && self
                .header
                .as_ref()
                .and_then(|header| header.split_once('='))
                .is_none_or(|(name, value)| record.headers.iter().any(|(n, v)| n == name && **v == *value.as_bytes()))
    }
}
