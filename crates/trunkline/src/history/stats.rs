//! Statistics, from the roll-ups alone.

use std::collections::BTreeMap;

use rusqlite::params_from_iter;
use rusqlite::types::Value;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::message::Millis;

use super::histogram::Histogram;
use super::index::{Gap, failed};
use super::reader::Reader;
use super::record::Time;
use super::retention::KEEP;
use super::rollup::{Counters, Counts, WIDTHS};

/// What statistics are asked for. Times are rounded outwards to whole minutes.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StatsQuery {
    /// The product's tag.
    pub product: Option<String>,
    /// The env's slug.
    pub env: Option<String>,
    /// The broker's tag.
    pub broker: Option<String>,
    /// The topic's short tag.
    pub topic: Option<String>,
    /// The group: then only what it did is counted.
    pub group: Option<String>,
    /// From, in ms. Default: 24 h before `to`.
    pub from: Option<Millis>,
    /// To, in ms. Default: now.
    pub to: Option<Millis>,
}

/// Percentiles in ms; `None` where nothing was measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Percentiles {
    /// Half are below.
    pub p50: Option<f64>,
    /// 95 of 100 are below.
    pub p95: Option<f64>,
    /// 99 of 100 are below.
    pub p99: Option<f64>,
}

impl From<&Histogram> for Percentiles {
    fn from(h: &Histogram) -> Self {
        Percentiles { p50: h.percentile(0.5), p95: h.percentile(0.95), p99: h.percentile(0.99) }
    }
}

/// Per second, over the span.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Rates {
    /// Confirmed produces.
    pub produced: f64,
    /// Handled deliveries.
    pub delivered: f64,
    /// Failed attempts.
    pub failed: f64,
}

/// One topic, or one group of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TopicStats {
    /// `brokerTag:topicTag`.
    pub event: String,
    /// The env.
    pub env: String,
    /// What was counted.
    #[serde(flatten)]
    pub counters: Counters,
    /// From the confirm to the first handler start.
    pub wait_ms: Percentiles,
    /// From the handler's start to its end.
    pub run_ms: Percentiles,
    /// By group, with their own latencies.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<GroupStats>,
}

/// One group of a topic.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GroupStats {
    /// The group.
    pub group: String,
    /// What was counted.
    #[serde(flatten)]
    pub counters: Counters,
    /// From the confirm to the first handler start.
    pub wait_ms: Percentiles,
    /// From the handler's start to its end.
    pub run_ms: Percentiles,
}

/// Statistics over a span.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Stats {
    /// What was counted.
    #[serde(flatten)]
    pub counters: Counters,
    /// Per second.
    pub rates: Rates,
    /// From the confirm to the first handler start.
    pub wait_ms: Percentiles,
    /// From the handler's start to its end.
    pub run_ms: Percentiles,
    /// By topic.
    pub topics: Vec<TopicStats>,
    /// The span's start.
    pub from: Time,
    /// Its end.
    pub to: Time,
    /// Times of which something is missing.
    pub gaps: Vec<Gap>,
}

/// One bucket of a series.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Bucket {
    /// Its start.
    pub at: Time,
    /// What was counted.
    #[serde(flatten)]
    pub counters: Counters,
    /// From the confirm to the first handler start.
    pub wait_ms: Percentiles,
    /// From the handler's start to its end.
    pub run_ms: Percentiles,
    /// It is not over yet.
    pub filling: bool,
}

/// Whose counts a row of the roll-ups is.
struct Whose {
    env: String,
    event: String,
    group: String,
}

impl StatsQuery {
    /// The span in whole minutes, and hours or days where only those are kept.
    fn span(&self, now: Millis) -> Result<(Millis, Millis)> {
        // This very moment belongs to it.
        let to = self.to.unwrap_or(now + 1);
        let from = self.from.unwrap_or_else(|| to.saturating_sub(WIDTHS[2]));
        if from > to {
            return Err(Error::input("from", "`from` is after `to`"));
        }
        let to = to.min(1 << 47);
        let width = |at: Millis| match now.saturating_sub(at) {
            // An hour of leeway: what is about to be dropped may be gone at the next look.
            age if age + WIDTHS[1] < KEEP[0] => WIDTHS[0],
            age if age + WIDTHS[1] < KEEP[1] => WIDTHS[1],
            _ => WIDTHS[2],
        };
        Ok((from - from % width(from), to.next_multiple_of(width(to))))
    }
}

/// Goes through the roll-ups of a span, each moment of it once, in the widest buckets that fit.
fn walk(
    reader: &Reader,
    query: &StatsQuery,
    from: Millis,
    to: Millis,
    widest: Millis,
    mut each: impl FnMut(Whose, Millis, Counts),
) -> Result<()> {
    let mut spans = Vec::new();
    cover(from, to, WIDTHS.iter().position(|width| *width == widest).unwrap_or(0), &mut spans);
    let mut wheres = String::new();
    let mut fixed: Vec<Value> = Vec::new();
    for (column, want) in
        [("product", &query.product), ("env", &query.env), ("broker", &query.broker), ("topic", &query.topic), ("grp", &query.group)]
    {
        if let Some(want) = want {
            fixed.push(want.clone().into());
            wheres.push_str(&format!(" AND {column} = ?{}", fixed.len() + 3));
        }
    }
    let sql = format!(
        "SELECT env, broker || ':' || topic, grp, start, counts FROM series JOIN rollup ON rollup.series = series.id
         WHERE width = ?1 AND start >= ?2 AND start < ?3{wheres}"
    );
    let read = || -> rusqlite::Result<bool> {
        let mut statement = reader.index.sql.prepare_cached(&sql)?;
        for (width, from, to) in spans {
            let mut values: Vec<Value> = vec![(width as i64).into(), (from as i64).into(), (to as i64).into()];
            values.extend(fixed.iter().cloned());
            let mut rows = statement.query(params_from_iter(values))?;
            while let Some(row) = rows.next()? {
                let mut counts = Counts::default();
                if counts.merge_encoded(row.get_ref(4)?.as_blob()?).is_none() {
                    return Ok(false);
                }
                each(Whose { env: row.get(0)?, event: row.get(1)?, group: row.get(2)? }, row.get::<_, i64>(3)? as u64, counts);
            }
        }
        Ok(true)
    };
    if read().map_err(failed("reading the roll-ups"))? {
        return Ok(());
    }
    Err(Error::store("a roll-up of the history is damaged").reason("damaged"))
}

/// Covers a span with buckets, wide ones inside and narrow ones at its ends.
fn cover(from: Millis, to: Millis, level: usize, out: &mut Vec<(Millis, Millis, Millis)>) {
    if from >= to {
        return;
    }
    let width = WIDTHS[level];
    let (inner_from, inner_to) = (from.next_multiple_of(width), to - to % width);
    if level == 0 || inner_from >= inner_to {
        if level == 0 {
            out.push((width, from, to))
        } else {
            cover(from, to, level - 1, out)
        }
        return;
    }
    cover(from, inner_from, level - 1, out);
    out.push((width, inner_from, inner_to));
    cover(inner_to, to, level - 1, out);
}

/// Statistics over the span.
pub(super) fn stats(reader: &Reader, query: &StatsQuery, now: Millis) -> Result<Stats> {
    let (from, to) = query.span(now)?;
    let mut topics: BTreeMap<(String, String), BTreeMap<String, Counts>> = BTreeMap::new();
    let mut sum = Counts::default();
    walk(reader, query, from, to, WIDTHS[2], |whose, _, counts| {
        sum.merge(&counts);
        topics.entry((whose.event, whose.env)).or_default().entry(whose.group).or_default().merge(&counts);
    })?;
    let seconds = (to.min(now).max(from + 1) - from) as f64 / 1_000.0;
    let rate = |count: u64| count as f64 / seconds;
    Ok(Stats {
        rates: Rates {
            produced: rate(sum.counters.produced),
            delivered: rate(sum.counters.delivered),
            failed: rate(sum.counters.failed_attempts),
        },
        wait_ms: (&sum.wait).into(),
        run_ms: (&sum.run).into(),
        counters: sum.counters,
        topics: topics.into_iter().map(|((event, env), groups)| topic(event, env, groups)).collect(),
        from: Time(from),
        to: Time(to),
        gaps: reader.index.gaps(from, to).map_err(failed("reading the gaps"))?,
    })
}

fn topic(event: String, env: String, groups: BTreeMap<String, Counts>) -> TopicStats {
    let mut sum = Counts::default();
    groups.values().for_each(|counts| sum.merge(counts));
    let groups = groups.into_iter().filter(|(name, _)| !name.is_empty());
    TopicStats {
        event,
        env,
        counters: sum.counters,
        wait_ms: (&sum.wait).into(),
        run_ms: (&sum.run).into(),
        groups: groups
            .map(|(group, counts)| GroupStats {
                group,
                counters: counts.counters,
                wait_ms: (&counts.wait).into(),
                run_ms: (&counts.run).into(),
            })
            .collect(),
    }
}

/// The span in buckets of `width` ms, rounded up to whole minutes; empty ones stand too.
pub(super) fn series(reader: &Reader, query: &StatsQuery, width: Millis, now: Millis) -> Result<Vec<Bucket>> {
    let width = width.max(1).next_multiple_of(WIDTHS[0]);
    let (from, to) = query.span(now)?;
    let from = from - from % width;
    if (to - from) / width > 10_000 {
        return Err(Error::input("bucket", "that would be more than 10,000 buckets").next("ask for wider buckets or a shorter time"));
    }
    let mut buckets: BTreeMap<Millis, Counts> = (from..to).step_by(width as usize).map(|at| (at, Counts::default())).collect();
    let widest = WIDTHS.iter().rev().find(|kept| width.is_multiple_of(**kept)).copied().unwrap_or(WIDTHS[0]);
    walk(reader, query, from, to, widest, |_, start, counts| buckets.entry(start - start % width).or_default().merge(&counts))?;
    Ok(buckets
        .into_iter()
        .map(|(at, counts)| Bucket {
            at: Time(at),
            counters: counts.counters,
            wait_ms: (&counts.wait).into(),
            run_ms: (&counts.run).into(),
            filling: at <= now && now < at + width,
        })
        .collect())
}

/// Messages produced, or tried to, in these topics and times, but for those that nothing was kept of. Minutes that are cut by the ends count whole.
pub(super) fn messages(reader: &Reader, query: &StatsQuery, now: Millis) -> Result<u64> {
    let mut sum = 0;
    // What a group did is no message: only the rows of the topic itself.
    let (from, to) = (Some(query.from.unwrap_or(0)), Some(query.to.unwrap_or(1 << 47)));
    let query = StatsQuery { group: Some(String::new()), from, to, ..query.clone() };
    if from > to {
        return Ok(0);
    }
    let (from, to) = query.span(now)?;
    walk(reader, &query, from, to, WIDTHS[2], |_, _, counts| {
        let Counters { produced, publish_failed, uncaptured, .. } = counts.counters;
        sum += (produced + publish_failed).saturating_sub(uncaptured);
    })?;
    Ok(sum)
}
