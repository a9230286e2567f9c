//! Figures of an env: what happened over a time, from the history, and what waits now, from brokers and lot.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::access::Call;
use crate::dashboard::Looked;
use crate::error::Result;
use crate::groups::GroupStatus;
use crate::history::{Counters, Gap, GroupStats, Percentiles, Rates, StatsQuery, Time, TopicStats};
use crate::message::now_ms;
use crate::trunkline::Env;

/// What waits now. A topic whose broker cannot be reached counts as nothing, and is named in [`Figures::unreachable`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Now {
    /// Deliveries that wait for a retry.
    pub waiting: u64,
    /// Deliveries handed out and not yet settled.
    pub in_flight: u64,
    /// Deliveries not yet handed out.
    pub depth: u64,
    /// How long the oldest message that is not settled has lain, in ms.
    pub oldest_age_ms: Option<u64>,
}

impl Now {
    fn of(group: &GroupStatus) -> Self {
        let oldest_age_ms = group.oldest.map(|at| now_ms().saturating_sub(at));
        Now { waiting: group.waiting, in_flight: group.in_flight, depth: group.ready, oldest_age_ms }
    }

    fn add(&mut self, other: Now) {
        self.waiting += other.waiting;
        self.in_flight += other.in_flight;
        self.depth += other.depth;
        self.oldest_age_ms = self.oldest_age_ms.max(other.oldest_age_ms);
    }
}

/// One group of a topic.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GroupFigures {
    /// The group.
    pub group: String,
    /// What happened.
    #[serde(flatten)]
    pub counters: Counters,
    /// What waits now.
    #[serde(flatten)]
    pub now: Now,
    /// From the confirm to the first handler start, in ms.
    pub wait_ms: Percentiles,
    /// From the handler's start to its end, in ms.
    pub run_ms: Percentiles,
}

/// One topic.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TopicFigures {
    /// `brokerTag:topicTag`.
    pub event: String,
    /// What happened, over all groups.
    #[serde(flatten)]
    pub counters: Counters,
    /// What waits now, over all groups.
    #[serde(flatten)]
    pub now: Now,
    /// From the confirm to the first handler start, in ms.
    pub wait_ms: Percentiles,
    /// From the handler's start to its end, in ms.
    pub run_ms: Percentiles,
    /// Its groups.
    pub groups: Vec<GroupFigures>,
}

/// Figures of an env.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Figures {
    /// What happened over the span.
    #[serde(flatten)]
    pub counters: Counters,
    /// What waits now.
    #[serde(flatten)]
    pub now: Now,
    /// Per second, over the span.
    pub rates: Rates,
    /// From the confirm to the first handler start, in ms.
    pub wait_ms: Percentiles,
    /// From the handler's start to its end, in ms.
    pub run_ms: Percentiles,
    /// By topic: all the catalogue has, and those that only the history knows.
    pub topics: Vec<TopicFigures>,
    /// Topics whose broker did not answer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unreachable: Vec<String>,
    /// The span's start.
    pub from: Time,
    /// Its end.
    pub to: Time,
    /// Times of which something is missing.
    pub gaps: Vec<Gap>,
}

impl Env {
    /// Figures of this env, or of the broker and topic that `query` names. Its product, env and group are not looked at.
    ///
    /// # Errors
    /// `INPUT_INVALID` for a span that ends before it starts; `ACCESS_DENIED`, `STORE_FAILED`. A broker that does not answer
    /// is no error.
    pub async fn stats(&self, query: StatsQuery) -> Result<Figures> {
        self.inner().access.allow(Call::StatsRead)?;
        let (product, env) = (Some(self.product_tag().to_owned()), Some(self.slug().to_owned()));
        let query = StatsQuery { product, env, group: None, ..query };
        self.figures(&query, &self.look(&query).await?).await
    }

    /// What happened, from the history, beside what waits now.
    pub(crate) async fn figures(&self, query: &StatsQuery, looked: &[Looked]) -> Result<Figures> {
        let inner = self.inner();
        // What this process did a moment ago is counted too.
        let past = inner.tracker.flushed().await?.stats(query).await?;
        let mut topics: BTreeMap<String, TopicFigures> =
            past.topics.into_iter().map(|topic| (topic.event.clone(), figures(topic))).collect();
        let mut unreachable = Vec::new();
        for Looked { event, groups, .. } in looked {
            let topic = topics.entry(event.clone()).or_insert_with(|| TopicFigures::new(event));
            match groups {
                Ok(groups) => groups.iter().for_each(|group| topic.meet(group)),
                Err(_) => unreachable.push(event.clone()),
            }
        }
        let topics: Vec<TopicFigures> = topics.into_values().collect();
        let mut now = Now::default();
        topics.iter().for_each(|topic| now.add(topic.now));
        Ok(Figures {
            counters: past.counters,
            now,
            rates: past.rates,
            wait_ms: past.wait_ms,
            run_ms: past.run_ms,
            topics,
            unreachable,
            from: past.from,
            to: past.to,
            gaps: past.gaps,
        })
    }

    /// The events of the catalogue in this env that the query is about.
    pub(crate) fn events_of(&self, query: &StatsQuery) -> Result<Vec<String>> {
        let is = |want: &Option<String>, have: &str| want.as_ref().is_none_or(|want| want == have);
        let brokers = self.inner().catalog.list_brokers(self.product_tag())?;
        let here =
            brokers.into_iter().filter(|broker| is(&query.broker, &broker.tag) && broker.envs.iter().any(|env| env.slug == self.slug()));
        let topics = here.flat_map(|broker| broker.topics).filter(|topic| is(&query.topic, &topic.topic_tag));
        Ok(topics.map(|topic| topic.tag.to_string()).collect())
    }
}

impl TopicFigures {
    fn new(event: &str) -> Self {
        let (counters, now) = (Counters::default(), Now::default());
        let (wait_ms, run_ms) = (Percentiles::default(), Percentiles::default());
        TopicFigures { event: event.to_owned(), counters, now, wait_ms, run_ms, groups: Vec::new() }
    }

    /// Adds what waits for a group.
    fn meet(&mut self, status: &GroupStatus) {
        let now = Now::of(status);
        self.now.add(now);
        if let Some(group) = self.groups.iter_mut().find(|group| group.group == status.name) {
            group.now = now;
            return;
        }
        let (wait_ms, run_ms) = (Percentiles::default(), Percentiles::default());
        self.groups.push(GroupFigures { group: status.name.clone(), counters: Counters::default(), now, wait_ms, run_ms });
    }
}

fn figures(topic: TopicStats) -> TopicFigures {
    let TopicStats { event, counters, wait_ms, run_ms, groups, .. } = topic;
    let groups = groups.into_iter().map(|GroupStats { group, counters, wait_ms, run_ms }| GroupFigures {
        group,
        counters,
        now: Now::default(),
        wait_ms,
        run_ms,
    });
    TopicFigures { event, counters, now: Now::default(), wait_ms, run_ms, groups: groups.collect() }
}
