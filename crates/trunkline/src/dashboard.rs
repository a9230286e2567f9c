//! The dashboard: all that a first screen needs, in one call.
//!
//! What happened comes from the roll-ups, what waits from brokers and lot, who lives from the registry. The list of what needs
//! attention is made of all three.

use std::time::Duration;

use serde::Serialize;

use crate::access::Call;
use crate::config::ProviderKind;
use crate::dead_letter::DeadFilter;
use crate::error::{Code, Error, Result};
use crate::groups::GroupStatus;
use crate::history::{Bucket, StatsQuery};
use crate::message::{Millis, millis, now_ms};
use crate::stats::{Figures, TopicFigures};
use crate::store::{DeadGroup, LotCounts, Member, MemberRole};
use crate::trunkline::Env;

/// Buckets of a series when no width is given: about so many, of at least a minute.
const BUCKETS: u64 = 60;
/// Deaths are growing if there was one within this.
const RECENT: Duration = Duration::from_secs(15 * 60);
/// What is due for longer than this has nobody who takes it.
const OVERDUE: Duration = Duration::from_secs(10);
/// A consumer with work before it that settled nothing for so long makes no progress.
const IDLE: Duration = Duration::from_secs(60);

/// What a dashboard is asked for.
#[derive(Debug, Clone, Default)]
pub struct DashboardQuery {
    /// The broker's tag.
    pub broker: Option<String>,
    /// The topic's short tag.
    pub topic: Option<String>,
    /// From, in ms since 1970. Default: 24 h before `to`.
    pub from: Option<Millis>,
    /// To. Default: now.
    pub to: Option<Millis>,
    /// The width of a bucket of the series, rounded up to whole minutes. Default: a sixtieth of the span.
    pub bucket: Option<Duration>,
}

/// All that a first screen needs.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Dashboard {
    /// Figures over the span; its topics stand in `topics`.
    pub stats: Figures,
    /// What happened over time, oldest first.
    pub series: Vec<Bucket>,
    /// Figures by topic.
    pub topics: Vec<TopicFigures>,
    /// The brokers of the env.
    pub brokers: Vec<BrokerHealth>,
    /// Live producers.
    pub producers: Vec<Member>,
    /// Live consumers.
    pub consumers: Vec<Member>,
    /// Dead letters of the span, grouped by error, most first.
    pub failures: Vec<DeadGroup>,
    /// What somebody should look at, the worst first.
    pub attention: Vec<Attention>,
}

/// A broker of an env.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BrokerHealth {
    /// Its tag.
    pub tag: String,
    /// Its display name.
    pub name: String,
    /// Its provider in this env.
    #[serde(rename = "type")]
    pub kind: ProviderKind,
    /// How many topics it has.
    pub topics: usize,
    /// Whether it answered for all of them.
    pub reachable: bool,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Messages are not handled, or cannot be seen.
    Error,
    /// It goes on, but not as it should.
    Warning,
}

/// What is the matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Matter {
    /// A broker does not answer.
    BrokerUnreachable,
    /// Messages are due, and no consumer of their group lives.
    WaitingOverdue,
    /// Messages lie before a group that has no live consumer.
    NoConsumer,
    /// A consumer lives and has work before it, but settles nothing.
    NoProgress,
    /// Messages died lately.
    DeadLettersGrowing,
    /// Delayed publishes fail, or were given up.
    PublishesFailing,
    /// A member says that something is the matter with it.
    MemberDegraded,
    /// Something is missing in the history.
    HistoryGap,
    /// The store cannot be written.
    StoreFailing,
}

/// Something that somebody should look at.
#[derive(Debug, Clone, Serialize)]
pub struct Attention {
    /// How bad it is.
    pub severity: Severity,
    /// What it is.
    pub matter: Matter,
    /// The topic.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event: Option<String>,
    /// The group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// One line.
    pub message: String,
    /// What to do.
    pub next: String,
}

impl Attention {
    fn new(severity: Severity, matter: Matter, message: String, next: impl Into<String>) -> Self {
        Attention { severity, matter, event: None, group: None, message, next: next.into() }
    }

    fn at(self, event: &str, group: Option<&str>) -> Self {
        Attention { event: Some(event.to_owned()), group: group.map(str::to_owned), ..self }
    }
}

impl Env {
    /// All that a first screen needs of this env, or of the broker and topic that `query` names.
    ///
    /// ```
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let trunkline = trunkline::Trunkline::open(&dir.path().join("data").display().to_string()).await?;
    /// # let broker = serde_json::json!({ "name": "B", "tag": "b", "envs": [{ "slug": "prd", "type": "EMBEDDED" }] });
    /// # trunkline.catalog().create_broker(Some("shop"), broker).await?;
    /// let board = trunkline.env("shop", "prd").dashboard(Default::default()).await?;
    /// assert!(board.attention.is_empty() && board.brokers[0].reachable);
    /// # Ok::<_, trunkline::Error>(()) }).unwrap();
    /// ```
    ///
    /// # Errors
    /// `INPUT_INVALID` for a span that ends before it starts, or of more than 10,000 buckets; `PRODUCT_NOT_FOUND`,
    /// `ACCESS_DENIED`, `STORE_FAILED`. A broker that does not answer is no error.
    pub async fn dashboard(&self, query: DashboardQuery) -> Result<Dashboard> {
        let inner = self.inner();
        inner.access.allow(Call::StatsRead)?;
        let DashboardQuery { broker, topic, from, to, bucket } = query;
        let (product, env) = (Some(self.product_tag().to_owned()), Some(self.slug().to_owned()));
        let asked = StatsQuery { product, env, broker, topic, group: None, from, to };
        let looked = self.look(&asked).await?;
        let mut stats = self.figures(&asked, &looked).await?;
        let span = stats.to.0.saturating_sub(stats.from.0);
        let width = bucket.map_or(span / BUCKETS, millis);
        let series = inner.tracker.flushed().await?.series(&asked, width).await?;
        let topics = std::mem::take(&mut stats.topics);
        let (broker, topic) = (asked.broker.as_deref(), asked.topic.as_deref());
        let producers = self.members_of(MemberRole::Producer, broker, topic).await?;
        let consumers = self.members_of(MemberRole::Consumer, broker, topic).await?;
        let filter = DeadFilter { broker: asked.broker.clone(), topic: asked.topic.clone(), ..DeadFilter::default() };
        let failures = inner.store.lot_groups(&self.lot_filter(&DeadFilter { from, to, ..filter })).await?;
        let mut attention = self.recent_deaths(&asked).await?;
        attention.extend(looked.iter().flat_map(Looked::attention));
        attention.extend(degraded(&producers));
        attention.extend(degraded(&consumers));
        attention.extend(missing(&stats));
        attention.extend(self.store_health().await);
        attention.sort_by_key(|one| one.severity);
        let brokers = self.brokers(&asked, &stats.unreachable)?;
        Ok(Dashboard { stats, series, topics, brokers, producers, consumers, failures, attention })
    }

    fn brokers(&self, asked: &StatsQuery, unreachable: &[String]) -> Result<Vec<BrokerHealth>> {
        let mut found = Vec::new();
        for broker in self.inner().catalog.list_brokers(self.product_tag())? {
            let Some(env) = broker.envs.iter().find(|env| env.slug == self.slug()) else { continue };
            if asked.broker.as_ref().is_none_or(|tag| *tag == broker.tag) {
                let reachable = !broker.topics.iter().any(|topic| unreachable.iter().any(|event| *event == topic.tag.as_str()));
                let (tag, name) = (broker.tag.clone(), broker.name.clone());
                found.push(BrokerHealth { tag, name, kind: env.kind, topics: broker.topics.len(), reachable });
            }
        }
        Ok(found)
    }

    /// Groups at which messages died lately.
    async fn recent_deaths(&self, asked: &StatsQuery) -> Result<Vec<Attention>> {
        let from = Some(now_ms().saturating_sub(millis(RECENT)));
        let recent = self.inner().tracker.flushed().await?.stats(&StatsQuery { from, to: None, ..asked.clone() }).await?;
        let mut found = Vec::new();
        for topic in &recent.topics {
            for group in topic.groups.iter().filter(|group| group.counters.dead > 0) {
                let message = format!("{} of group {} died lately", messages(group.counters.dead), group.group);
                let next = format!("trunkline dead groups --event {} --group {}", topic.event, group.group);
                let one = Attention::new(Severity::Warning, Matter::DeadLettersGrowing, message, next);
                found.push(one.at(&topic.event, Some(&group.group)));
            }
        }
        Ok(found)
    }

    async fn store_health(&self) -> Option<Attention> {
        let error = self.inner().store.probe().await.err()?;
        let next = error.detail_str("next").unwrap_or("trunkline doctor").to_owned();
        Some(Attention::new(Severity::Error, Matter::StoreFailing, error.message().to_owned(), next))
    }
}

/// A topic as it stands now.
#[derive(Debug)]
pub(crate) struct Looked {
    pub(crate) event: String,
    pub(crate) groups: Result<Vec<GroupStatus>>,
    delayed: LotCounts,
}

impl Env {
    /// Asks brokers and lot about the topics that the query is about.
    pub(crate) async fn look(&self, query: &StatsQuery) -> Result<Vec<Looked>> {
        let mut looked = Vec::new();
        for event in self.events_of(query)? {
            let groups = self.group_statuses(&event).await;
            let delayed = match self.delayed_counts(&event).await {
                Err(error) if error.code() == Code::StoreFailed => return Err(error),
                counts => counts.unwrap_or_default(),
            };
            if let Err(error) = &groups {
                tracing::debug!(%error, %event, "no depth");
            }
            looked.push(Looked { event, groups, delayed });
        }
        Ok(looked)
    }
}

impl Looked {
    fn attention(&self) -> Vec<Attention> {
        let event = &self.event;
        let groups = match &self.groups {
            Ok(groups) => groups,
            Err(error) => return vec![unreachable(event, error)],
        };
        let mut found: Vec<Attention> = groups.iter().filter_map(|group| unhandled(event, group)).collect();
        found.extend(groups.iter().flat_map(|group| idle(event, group)));
        let LotCounts { failing, dead, .. } = self.delayed;
        if failing + dead > 0 {
            let message = format!("delayed publishes: {failing} failed and tried again, {dead} given up");
            let next = format!("trunkline dead list --event {event} --error publish_failed");
            found.push(Attention::new(Severity::Warning, Matter::PublishesFailing, message, next).at(event, None));
        }
        found
    }
}

fn unreachable(event: &str, error: &Error) -> Attention {
    let message = format!("what waits there is not known: {}", error.message());
    let next = format!("trunkline doctor {}", event.split(':').next().unwrap_or_default());
    Attention::new(Severity::Error, Matter::BrokerUnreachable, message, next).at(event, None)
}

/// A group with messages before it that nobody takes.
fn unhandled(event: &str, group: &GroupStatus) -> Option<Attention> {
    if !group.members.is_empty() || group.paused {
        return None;
    }
    let overdue = group.next_due.is_some_and(|due| due + millis(OVERDUE) < now_ms());
    let next = format!("trunkline consume {event} --group {}", group.name);
    let one = if group.waiting > 0 && overdue {
        let message = format!("no consumer of group {} lives, with {} overdue", group.name, messages(group.waiting));
        Attention::new(Severity::Error, Matter::WaitingOverdue, message, next)
    } else if group.ready > 0 {
        let message = format!("no consumer of group {} lives, with {} before it", group.name, messages(group.ready));
        Attention::new(Severity::Warning, Matter::NoConsumer, message, next)
    } else {
        return None;
    };
    Some(one.at(event, Some(&group.name)))
}

/// Consumers of a group with work before it that settle nothing.
fn idle(event: &str, group: &GroupStatus) -> Vec<Attention> {
    let has_work = group.ready + group.in_flight > 0 && !group.paused;
    let is_old = |at: Millis| at + millis(IDLE) < now_ms();
    let oldest = group.oldest.is_none_or(is_old);
    let stuck = |member: &&Member| member.state == "live" && member.last_progress_at.map_or(oldest, is_old);
    let found = group.members.iter().filter(|member| has_work && stuck(member)).map(|member| {
        let message = format!("consumer {} on {} has work before it and settles nothing", member.id, member.host);
        let next = format!("look where its handler waits (process {} on {})", member.pid, member.host);
        Attention::new(Severity::Error, Matter::NoProgress, message, next).at(event, Some(&group.name))
    });
    found.collect()
}

fn degraded(members: &[Member]) -> impl Iterator<Item = Attention> {
    members.iter().filter(|member| member.state.starts_with("degraded")).map(|member| {
        let message = format!("{} {} on {} is {}", word(member.role), member.id, member.host, member.state);
        let next = "docs/operations.md says what each reason means".to_owned();
        let one = Attention::new(Severity::Warning, Matter::MemberDegraded, message, next);
        one.at(member.address.event.as_str(), member.group.as_deref())
    })
}

/// `1 message`, `2 messages`.
fn messages(n: u64) -> String {
    if n == 1 { "1 message".to_owned() } else { format!("{n} messages") }
}

fn word(role: MemberRole) -> &'static str {
    match role {
        MemberRole::Producer => "producer",
        MemberRole::Consumer => "consumer",
    }
}

fn missing(stats: &Figures) -> impl Iterator<Item = Attention> {
    stats.gaps.iter().map(|gap| {
        let message = format!("records missing in the history: {} ({})", gap.count, gap.reason);
        Attention::new(Severity::Warning, Matter::HistoryGap, message, "look at the space and the health of the history's disk")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group() -> GroupStatus {
        GroupStatus {
            name: "billing".into(),
            default: false,
            paused: false,
            counted: true,
            ready: 0,
            in_flight: 0,
            waiting: 0,
            dead: 0,
            oldest: None,
            next_due: None,
            members: Vec::new(),
        }
    }

    fn member(last_progress_at: Option<Millis>) -> Member {
        Member {
            id: "m".into(),
            role: MemberRole::Consumer,
            address: crate::store::Address { product: "p".into(), env: "e".into(), event: "b:t".parse().expect("an event") },
            group: Some("billing".into()),
            session: None,
            host: "h".into(),
            pid: 1,
            sdk: "rust".into(),
            version: "0".into(),
            state: "live".into(),
            rate: 0.0,
            in_flight: 0,
            route_epoch: 0,
            last_progress_at,
            last_seen_at: 0,
        }
    }

    #[test]
    fn a_group_without_anybody_is_pointed_at() {
        let due = Some(now_ms() - 60_000);
        let matter = |group: &GroupStatus| unhandled("b:t", group).map(|one| one.matter);
        assert_eq!(matter(&group()), None);
        assert_eq!(matter(&GroupStatus { waiting: 1, next_due: due, ..group() }), Some(Matter::WaitingOverdue));
        assert_eq!(matter(&GroupStatus { waiting: 1, next_due: Some(now_ms() + 60_000), ..group() }), None);
        assert_eq!(matter(&GroupStatus { ready: 1, ..group() }), Some(Matter::NoConsumer));
        assert_eq!(matter(&GroupStatus { ready: 1, paused: true, ..group() }), None);
        assert_eq!(matter(&GroupStatus { ready: 1, members: vec![member(None)], ..group() }), None);
    }

    #[test]
    fn a_consumer_is_judged_by_its_progress() {
        let (now, long_ago) = (now_ms(), now_ms() - 120_000);
        let stuck = |ready, oldest, progress| {
            let members = vec![member(progress)];
            idle("b:t", &GroupStatus { ready, oldest, members, ..group() }).len()
        };
        assert_eq!(stuck(1, Some(long_ago), Some(long_ago)), 1);
        assert_eq!(stuck(1, Some(long_ago), None), 1, "connected, and never did anything");
        assert_eq!(stuck(1, Some(now), None), 0, "it has only just come");
        assert_eq!(stuck(1, Some(long_ago), Some(now)), 0);
        assert_eq!(stuck(0, None, Some(long_ago)), 0, "there is nothing to do");
    }
}
