//! The payloads of a topic, checked against its schema: at the produce and at the consume. The schema is compiled when the
//! topic changes; where nothing is checked, a message costs one look.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use serde::Serialize;

use crate::catalog::TopicDoc;
use crate::error::Result;
use crate::event::Event;
use crate::schema::{Problem, Schema, Validate, refusal};
use crate::trunkline::Env;

/// What does not fit is logged this often at most.
const TELL: Duration = Duration::from_secs(60);

/// A topic's schema, and what is done about what does not fit.
#[derive(Debug)]
struct Check {
    schema: Schema,
    reject: bool,
}

/// See the module. One for each open route.
#[derive(Debug)]
pub(crate) struct Payloads {
    event: Event,
    check: ArcSwapOption<Check>,
    made_of: Mutex<Arc<TopicDoc>>,
    /// Payloads that did not fit, so far.
    invalid: AtomicU64,
    /// When that was logged last, and how many there were then.
    told: Mutex<Option<(Instant, u64)>>,
}

impl Payloads {
    pub(crate) fn of(topic: &Arc<TopicDoc>) -> Self {
        Payloads {
            event: topic.tag.clone(),
            check: ArcSwapOption::from(made(topic)),
            made_of: Mutex::new(topic.clone()),
            invalid: AtomicU64::new(0),
            told: Mutex::new(None),
        }
    }

    /// Follows the topic: compiles its schema anew if that, or what is done about it, is another one now.
    pub(crate) fn follow(&self, topic: &Arc<TopicDoc>) {
        let mut made_of = self.made_of.lock();
        let like = |old: &TopicDoc| old.validate == topic.validate && old.payload_schema() == topic.payload_schema();
        if !Arc::ptr_eq(&made_of, topic) && !like(&made_of) {
            self.check.store(made(topic));
        }
        *made_of = topic.clone();
    }

    /// Refuses a payload that does not fit and must.
    pub(crate) fn admit(&self, payload: &[u8]) -> Result<()> {
        match &*self.check.load() {
            None => Ok(()),
            Some(check) => self.look(check, payload).map_or(Ok(()), |problems| Err(refusal(&self.event, &problems))),
        }
    }

    /// Why a message that came may not be handled.
    pub(crate) fn unfit(&self, payload: &[u8]) -> Option<String> {
        let check = self.check.load();
        let problems = self.look(check.as_ref()?, payload)?;
        let first = problems.first()?;
        Some(format!("payload_invalid: at '{}': {}", first.pointer, first.message))
    }

    /// What is wrong with a payload, if that is a reason to reject it.
    fn look(&self, check: &Check, payload: &[u8]) -> Option<Vec<Problem>> {
        let problems = check.schema.problems(payload);
        let first = problems.first()?;
        let invalid = self.invalid.fetch_add(1, Ordering::Relaxed) + 1;
        if check.reject {
            return Some(problems);
        }
        self.tell(invalid, first);
        None
    }

    fn tell(&self, invalid: u64, first: &Problem) {
        let mut told = self.told.lock();
        let now = Instant::now();
        if told.is_none_or(|(at, _)| now.duration_since(at) >= TELL) {
            let new = invalid - told.map_or(0, |(_, before)| before);
            *told = Some((now, invalid));
            tracing::warn!(event = %self.event, payloads = new, at = first.pointer, problem = first.message, "payloads do not fit the topic's schema");
        }
    }

    pub(crate) fn invalid(&self) -> u64 {
        self.invalid.load(Ordering::Relaxed)
    }
}

fn made(topic: &TopicDoc) -> Option<Arc<Check>> {
    if topic.validate == Validate::Off {
        return None;
    }
    let schema = topic.payload_schema()?;
    // What takes everything needs no look.
    if *schema == serde_json::json!({}) || *schema == serde_json::json!(true) {
        return None;
    }
    let schema = Schema::of(&topic.tag, &schema)?;
    Some(Arc::new(Check { schema, reject: topic.validate == Validate::Reject }))
}

/// Whether a payload fits.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Validation {
    /// Broker and topic.
    pub event: Event,
    /// Whether it fits; true where the topic has neither schema nor sample.
    pub valid: bool,
    /// What the topic does about what does not fit.
    pub validate: Validate,
    /// Where it does not fit; at most ten places.
    pub problems: Vec<Problem>,
}

impl Env {
    /// Checks a payload against the topic's schema, also where its `validate` is `off`; nothing is sent, and no broker is asked.
    ///
    /// # Errors
    /// Those of a route: `PRODUCT_NOT_FOUND`, `EVENT_INVALID`, `BROKER_NOT_FOUND`, `BROKER_ENV_NOT_FOUND`, `TOPIC_NOT_FOUND`. A
    /// payload that does not fit is a result, not an error.
    pub fn validate(&self, event: &str, payload: &[u8]) -> Result<Validation> {
        let catalog = &self.inner().catalog;
        let event: Event = event.parse().map_err(|error| catalog.list_brokers(self.product_tag()).err().unwrap_or(error))?;
        let topic = catalog.route(self.product_tag(), self.slug(), &event)?.topic.clone();
        let schema = topic.payload_schema().and_then(|schema| Schema::of(&event, &schema));
        let problems = schema.map(|schema| schema.problems(payload)).unwrap_or_default();
        Ok(Validation { event, valid: problems.is_empty(), validate: topic.validate, problems })
    }

    /// How many payloads of an event did not fit its schema, at produces and consumes of this instance since it first used the
    /// event.
    ///
    /// # Errors
    /// Those of a route.
    pub async fn invalid_payloads(&self, event: &str) -> Result<u64> {
        Ok(self.route(event).await?.payloads.invalid())
    }
}

#[cfg(test)]
mod tests;
