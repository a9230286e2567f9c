//! Schedules: messages that are produced at a time, every so often, or by a cron pattern, by whatever process is open then.
//!
//! - **Durable.** A schedule lies in the store when [`Produce::dispatch`] returns. Any open process fires it, one of them at a
//!   time; `trunkline run` does where none is always open.
//! - **Once for each due time**, over all processes of the store. The message's id is derived from the schedule and the due time:
//!   a process that dies between the send and the note of it makes the same message twice, with one id, which dedupe
//!   recognises.
//! - **Missed.** What came due while no process was open, or while a firing failed, is not caught up with: the latest due time
//!   is fired, those before it are counted as `missed`. One that fires once is never missed.
//! - **Failed.** A firing that fails is tried again, after 1 s and then ever longer up to a minute, until it goes or the next is
//!   due. Why it failed is shown.
//! - **Clocks.** A pattern is read by the clocks of `tz`. A time that they skip is fired right after the gap, several such once; a
//!   time that they show twice is fired the first time. A pattern for every hour (`*`, or `@hourly`) goes by real hours instead.
//! - A `limit` counts firings, missed ones not. Nothing fires at or after `endDate`.
//!
//! ```
//! # use std::time::Duration;
//! # use serde_json::json;
//! # use trunkline::Trunkline;
//! use trunkline::schedules::{ScheduleQuery, Timing};
//! # tokio::runtime::Runtime::new().unwrap().block_on(async {
//! # let dir = tempfile::tempdir().unwrap();
//! # let trunkline = Trunkline::open(&dir.path().join("data").display().to_string()).await?;
//! # trunkline.catalog().create_broker(Some("shop"), json!({
//! #     "name": "Reports", "tag": "reports", "envs": [{ "slug": "prd", "type": "EMBEDDED" }] })).await?;
//! # trunkline.catalog().create_topic(Some("shop"), json!({ "name": "Due", "tag": "reports:due" })).await?;
//! let shop = trunkline.env("shop", "prd");
//! let daily = Timing::cron("0 9 * * MON-FRI").tz("Europe/Berlin");
//! let dispatched = shop.produce("reports:due", &json!({ "kind": "daily" })).key("daily").dispatch(daily).await?;
//! let all = shop.schedules(&ScheduleQuery::default()).await?;
//! assert_eq!((all.total, all.schedules[0].next_at), (1, Some(dispatched.next_at)));
//! shop.cancel_schedule(&dispatched.schedule_id.to_string()).await?;
//! # trunkline.close(Duration::from_secs(5)).await;
//! # Ok::<_, trunkline::Error>(()) }).unwrap();
//! ```

pub(crate) mod fire;
mod timing;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Serialize;
use serde_json::Value;

use self::timing::Plan;
pub use self::timing::Timing;
use crate::access::Call;
use crate::cache::offset;
use crate::error::{Code, Error, Result};
use crate::event::Event;
use crate::message::{Headers, MessageId, Millis, now_ms};
use crate::produce::{ProduceOptions, admit, check_options};
use crate::schema::{Validate, refusal};
use crate::store::schedule::{ScheduleFilter, ScheduleMessage, ScheduleRecord, ScheduleState, unknown};
use crate::store::{Address, Scope};
use crate::trunkline::{Env, Produce};

/// What a dispatch came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Dispatched {
    /// The schedule.
    pub schedule_id: MessageId,
    /// When it is due first (ms since 1970).
    #[serde(rename = "nextAt")]
    pub next_at: Millis,
    /// From where it is fired: processes of this host, or of every host with the same store.
    pub scope: Scope,
}

/// A schedule as it is shown.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ScheduleView {
    /// Its id.
    #[serde(rename = "schedule_id")]
    pub schedule_id: MessageId,
    /// Its env.
    pub env: String,
    /// Where it produces to.
    pub event: Event,
    /// Whether it fires.
    pub state: ScheduleState,
    /// When it fires, as `{ start_at?, cron?, every?, limit?, endDate?, tz? }`.
    pub schedule: Value,
    /// The key of its messages; bytes that are not UTF-8 as `base64:…`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The headers of its messages.
    #[serde(skip_serializing_if = "Headers::is_empty")]
    pub headers: Headers,
    /// The payload of its messages, where one schedule is fetched; what is no JSON as text, or as `base64:…`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<Value>,
    /// The cache its messages are produced under.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<String>,
    /// When it is due next (ms since 1970), if it is active and not over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_at: Option<Millis>,
    /// When a firing that failed is tried again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_at: Option<Millis>,
    /// How many due times were fired.
    pub fired: u64,
    /// How many were not, because a later one was due before they could be.
    pub missed: u64,
    /// How often the due time at hand failed so far.
    pub failures: u32,
    /// Why it failed last, until one goes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The due time that was fired last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_at: Option<Millis>,
    /// The message of it.
    #[serde(rename = "last_process_id", skip_serializing_if = "Option::is_none")]
    pub last_process_id: Option<MessageId>,
    /// When it was made.
    pub created_at: Millis,
    /// When it last changed.
    pub updated_at: Millis,
}

/// Which schedules of an env.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScheduleQuery {
    /// Of this event only.
    pub event: Option<String>,
    /// Also those that are done or cancelled; they are kept for 30 days.
    pub all: bool,
    /// Only those whose last try failed.
    pub failing: bool,
    /// Which page, from 1.
    pub page: usize,
    /// How many a page has, 1 to 1,000; 20 by default.
    pub limit: usize,
}

impl Default for ScheduleQuery {
    fn default() -> Self {
        ScheduleQuery { event: None, all: false, failing: false, page: 1, limit: 20 }
    }
}

/// A page of schedules.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Schedules {
    /// Newest first, without their payloads.
    pub schedules: Vec<ScheduleView>,
    /// How many there are on all pages.
    pub total: u64,
    /// Which page this is, from 1.
    pub page: usize,
    /// How many a page has.
    pub limit: usize,
    /// Whether there are more pages.
    pub has_more: bool,
    /// From where they are fired.
    pub scope: Scope,
}

impl Produce<'_> {
    /// Produces the message when the timing says, instead of now: payload, key, headers and cache are those of each firing.
    ///
    /// # Errors
    /// Those of a produce that are known before it is sent (no topic, a payload that does not fit, an unknown cache); and
    /// `INPUT_INVALID` for a timing that cannot be meant, and for options that make no sense in a message that is sent again and
    /// again: `idempotencyKey`, `window`, `delay`, `deliverAt`, `expiresAt`, `timeout`. `STORE_FAILED`.
    pub async fn dispatch(self, timing: Timing) -> Result<Dispatched> {
        let (env, event, payload, options) = self.into_parts();
        let inner = env.inner();
        inner.check_open()?;
        inner.access.allow(Call::ScheduleCreate)?;
        let event: Event = event.parse().map_err(|error| inner.catalog.list_brokers(env.product_tag()).err().unwrap_or(error))?;
        let entry = inner.catalog.route(env.product_tag(), env.slug(), &event)?;
        let payload = payload?;
        check_sendable(env, &event, &payload, &options).await?;
        if let Some(tag) = &options.cache {
            inner.catalog.cache(env.product_tag(), tag)?;
        }
        let now = now_ms();
        let (plan, timing) = Plan::of(timing, now)?;
        let next_at = plan.first(now);
        let record = ScheduleRecord {
            id: MessageId::now(),
            address: entry.address.clone(),
            state: ScheduleState::Active,
            timing: timing.to_value(),
            message: ScheduleMessage { key: options.key, headers: options.headers, payload, cache: options.cache },
            next_at,
            retry_at: None,
            firing_at: None,
            fired: 0,
            missed: 0,
            failures: 0,
            error: None,
            last_at: None,
            last_id: None,
            created_at: now,
            updated_at: now,
        };
        inner.store.schedule_add(&record).await?;
        inner.scheduled.notify_one();
        Ok(Dispatched { schedule_id: record.id, next_at: next_at.unwrap_or(now), scope: inner.store.scope() })
    }
}

/// Refuses now what every firing would be refused for.
async fn check_sendable(env: &Env, event: &Event, payload: &Bytes, options: &ProduceOptions) -> Result<()> {
    for (field, given) in [
        ("idempotencyKey", options.idempotency_key.is_some()),
        ("window", options.window.is_some()),
        ("delay", options.delay.is_some()),
        ("deliverAt", options.deliver_at.is_some()),
        ("expiresAt", options.expires_at.is_some()),
        ("timeout", options.timeout.is_some()),
    ] {
        if given {
            return Err(Error::input(field, format!("`{field}` is of one produce; a schedule has its own times and ids"))
                .next("leave it out; `start_at` and `endDate` say when a schedule begins and ends"));
        }
    }
    match env.route(event.as_str()).await {
        Ok(route) => admit(&route, payload, options, now_ms()),
        // The broker is away: it need not be there before the first firing. What it takes at most is not known then.
        Err(error) if error.retryable() => {
            check_options(options, now_ms())?;
            let validation = env.validate(event.as_str(), payload)?;
            if validation.valid || validation.validate != Validate::Reject { Ok(()) } else { Err(refusal(event, &validation.problems)) }
        }
        Err(error) => Err(error),
    }
}

impl Env {
    /// The schedules of this env.
    ///
    /// # Errors
    /// `INPUT_INVALID`, `PRODUCT_NOT_FOUND`, `STORE_FAILED`.
    pub async fn schedules(&self, query: &ScheduleQuery) -> Result<Schedules> {
        let from = offset(query.page, query.limit)?;
        self.inner().access.allow(Call::ScheduleRead)?;
        self.inner().catalog.list_brokers(self.product_tag())?;
        let states = if query.all { Vec::new() } else { vec![ScheduleState::Active, ScheduleState::Paused] };
        let filter = ScheduleFilter {
            product: Some(self.product_tag().to_owned()),
            env: Some(self.slug().to_owned()),
            event: query.event.clone(),
            states,
            failing: query.failing,
        };
        let store = &self.inner().store;
        let (records, total) = store.schedules(&filter, query.limit, from).await?;
        let has_more = ((from + records.len()) as u64) < total;
        let schedules = records.into_iter().map(|record| view(record, false)).collect();
        Ok(Schedules { schedules, total, page: query.page, limit: query.limit, has_more, scope: store.scope() })
    }

    /// One schedule, or `None`; with its payload for who may read payloads.
    ///
    /// # Errors
    /// `PRODUCT_NOT_FOUND`, `STORE_FAILED`.
    pub async fn schedule(&self, id: &str) -> Result<Option<ScheduleView>> {
        let access = &self.inner().access;
        access.allow(Call::ScheduleRead)?;
        self.inner().catalog.list_brokers(self.product_tag())?;
        let Some(record) = self.schedule_record(id).await? else { return Ok(None) };
        let payload = access.may(Call::PayloadRead);
        if payload {
            access.note(Call::PayloadRead, &format!("schedule {}", record.id), None).await?;
        }
        Ok(Some(view(record, payload)))
    }

    /// The same for who has just changed it.
    async fn changed_schedule(&self, id: &str) -> Result<ScheduleView> {
        Ok(view(self.schedule_record(id).await?.ok_or_else(|| unknown(id))?, false))
    }

    async fn schedule_record(&self, id: &str) -> Result<Option<ScheduleRecord>> {
        let Ok(id) = id.parse::<MessageId>() else { return Ok(None) };
        let of_this_env = |address: &Address| *address.product == *self.product_tag() && *address.env == *self.slug();
        Ok(self.inner().store.schedule_get(id).await?.filter(|record| of_this_env(&record.address)))
    }

    /// Stops a schedule until it is resumed. What comes due meanwhile is neither fired nor counted as missed.
    ///
    /// # Errors
    /// `SCHEDULE_NOT_FOUND`; `INPUT_INVALID` if it is done or cancelled; `STORE_FAILED`.
    pub async fn pause_schedule(&self, id: &str) -> Result<ScheduleView> {
        self.turn(id, ScheduleState::Active, ScheduleState::Paused, |_| Ok(None)).await
    }

    /// Lets a paused schedule fire again, from its next due time on; one that fires once and whose time has passed fires now.
    ///
    /// # Errors
    /// `SCHEDULE_NOT_FOUND`; `INPUT_INVALID` if it is done or cancelled, or has ended meanwhile; `STORE_FAILED`.
    pub async fn resume_schedule(&self, id: &str) -> Result<ScheduleView> {
        let view = self
            .turn(id, ScheduleState::Paused, ScheduleState::Active, |record| {
                let now = now_ms();
                match Plan::stored(&record.timing, now)?.first(now) {
                    Some(next) => Ok(Some(next)),
                    None => Err(ended(record.id, "has ended")),
                }
            })
            .await?;
        self.inner().scheduled.notify_one();
        Ok(view)
    }

    /// Ends a schedule. A firing that is under way may still go.
    ///
    /// # Errors
    /// `SCHEDULE_NOT_FOUND`, `STORE_FAILED`.
    pub async fn cancel_schedule(&self, id: &str) -> Result<ScheduleView> {
        use ScheduleState::{Active, Cancelled, Paused};
        let cancelled = async {
            let record = self.schedule_record(id).await?.ok_or_else(|| unknown(id))?;
            self.inner().store.schedule_turn(record.id, &[Active, Paused], Cancelled, None).await?;
            self.changed_schedule(id).await
        };
        self.inner().access.audited(Call::ScheduleChange, id, cancelled).await
    }

    async fn turn(
        &self,
        id: &str,
        from: ScheduleState,
        to: ScheduleState,
        next: impl Fn(&ScheduleRecord) -> Result<Option<Millis>> + Send,
    ) -> Result<ScheduleView> {
        let turned = async {
            let record = self.schedule_record(id).await?.ok_or_else(|| unknown(id))?;
            if record.state == from {
                self.inner().store.schedule_turn(record.id, &[from], to, next(&record)?).await?;
            }
            let now = self.changed_schedule(id).await?;
            if now.state == to { Ok(now) } else { Err(ended(now.schedule_id, &format!("is {}", now.state.as_str()))) }
        };
        self.inner().access.audited(Call::ScheduleChange, id, turned).await
    }
}

fn ended(id: MessageId, how: &str) -> Error {
    Error::new(Code::InputInvalid, format!("schedule '{id}' {how}")).field("schedule_id").next("dispatch another one")
}

/// Bytes as JSON shows them.
fn text(bytes: &[u8]) -> String {
    std::str::from_utf8(bytes).map_or_else(|_| format!("base64:{}", STANDARD.encode(bytes)), str::to_owned)
}

fn view(record: ScheduleRecord, with_payload: bool) -> ScheduleView {
    let ScheduleMessage { key, headers, payload, cache } = record.message;
    let message = with_payload.then(|| serde_json::from_slice(&payload).unwrap_or_else(|_| text(&payload).into()));
    ScheduleView {
        schedule_id: record.id,
        env: record.address.env.to_string(),
        event: record.address.event,
        state: record.state,
        schedule: record.timing,
        key: key.as_deref().map(text),
        headers,
        message,
        cache,
        next_at: record.next_at,
        retry_at: record.retry_at,
        fired: record.fired,
        missed: record.missed,
        failures: record.failures,
        error: record.error,
        last_at: record.last_at,
        last_process_id: record.last_id,
        created_at: record.created_at,
        updated_at: record.updated_at,
    }
}

#[cfg(test)]
mod tests;
