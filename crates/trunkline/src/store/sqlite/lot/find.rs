//! Filters over the lot: lists, counts and groups of errors.
//!
//! A filter is a set of targets, a set of states and conditions on rows. SQLite would sort everything that matches to
//! give the first page of several targets; so each (target, state) is read in the order of `seq` by its index, and the
//! pages are merged here. Beyond [`FEW`] of them one walk in the order of `seq` is cheaper.

use std::collections::HashMap;

use rusqlite::types::Value;
use rusqlite::{params, params_from_iter};

use super::super::db::{Db, int, json_list, uint};
use super::{claim, load};
use crate::error::Result;
use crate::store::common::{DEAD, ERROR_GROUP_MAX, PUBLISH, WAITING, cut, is_word, number};
use crate::store::{Address, DeadGroup, LotCounts, LotEntry, LotFilter};

const FEW: usize = 64;

/// How `seq` is ordered.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    Oldest,
    Newest,
}

/// The conditions of a filter on rows, as SQL with its values.
struct Rows {
    sql: String,
    values: Vec<Value>,
}

impl Rows {
    fn of(filter: &LotFilter) -> Self {
        let mut rows = Rows { sql: String::new(), values: Vec::new() };
        if !filter.ids.is_empty() {
            let ids = filter.ids.iter().map(|id| format!("\"{}\"", id.0.simple()));
            rows.and(" AND id IN (SELECT unhex(value) FROM json_each(?))", Value::Text(json_list(ids)));
        }
        if let Some(error) = &filter.error {
            let error = cut(error, ERROR_GROUP_MAX).to_owned();
            if is_word(&error) {
                rows.and(" AND (error_group = ?", Value::Text(error.clone()));
                rows.and(" OR reason = ?)", Value::Text(error));
            } else {
                rows.and(" AND error_group = ?", Value::Text(error));
            }
        }
        if let Some(from) = filter.from {
            rows.and(" AND CASE state WHEN 2 THEN died_at ELSE due_at END >= ?", Value::Integer(int(from)));
        }
        if let Some(to) = filter.to {
            rows.and(" AND CASE state WHEN 2 THEN died_at ELSE due_at END < ?", Value::Integer(int(to)));
        }
        if let Some(after) = filter.after {
            rows.and(" AND seq > ?", Value::Integer(int(after)));
        }
        rows
    }

    fn and(&mut self, sql: &str, value: Value) {
        self.sql.push_str(sql);
        self.values.push(value);
    }

    /// The index that leads to the rows of one target and state.
    fn index(filter: &LotFilter, state: i64) -> &'static str {
        match &filter.error {
            _ if !filter.ids.is_empty() => "lot_once",
            Some(error) if state == DEAD && !is_word(error) => "lot_dead_error",
            _ => "lot_state",
        }
    }
}

/// The targets that match; all if nothing of a target is asked for.
fn targets(db: &Db, filter: &LotFilter) -> Result<Vec<i64>> {
    db.all(
        "look up groups",
        "SELECT id FROM target WHERE (?1 IS NULL OR product = ?1) AND (?2 IS NULL OR env = ?2) AND (?3 IS NULL OR broker = ?3)
             AND (?4 IS NULL OR topic = ?4) AND (?5 IS NULL OR grp = ?5) ORDER BY id",
        params![filter.product, filter.env, filter.broker, filter.topic, filter.group],
        |row| row.get(0),
    )
}

fn states(filter: &LotFilter) -> Vec<i64> {
    filter.state.map_or_else(|| vec![WAITING, PUBLISH, DEAD], |state| vec![number(state)])
}

/// The first `limit` seqs that match.
pub(super) fn seqs(db: &Db, filter: &LotFilter, order: Order, limit: usize) -> Result<Vec<i64>> {
    let doing = "list the lot";
    let (targets, states, rows) = (targets(db, filter)?, states(filter), Rows::of(filter));
    let direction = if order == Order::Newest { "DESC" } else { "ASC" };
    let end = Value::Integer(int(limit as u64));
    let run = |sql: &str, lead: Vec<Value>| {
        db.all(doing, sql, params_from_iter(lead.into_iter().chain(rows.values.iter().cloned()).chain([end.clone()])), |row| {
            row.get::<_, i64>(0)
        })
    };
    if targets.len() * states.len() > FEW {
        let (index, lead) = if filter.ids.is_empty() { ("NOT INDEXED", "+target") } else { ("INDEXED BY lot_once", "target") };
        let sql = format!(
            "SELECT seq FROM lot {index} WHERE {lead} IN (SELECT value FROM json_each(?)) AND +state IN (SELECT value FROM json_each(?)){}
             ORDER BY seq {direction} LIMIT ?",
            rows.sql
        );
        return run(&sql, vec![Value::Text(json_list(targets.iter())), Value::Text(json_list(states.iter()))]);
    }
    let mut found = Vec::new();
    for state in states {
        // The state stands in the text, so that partial indices can be used.
        let sql = format!(
            "SELECT seq FROM lot INDEXED BY {} WHERE target = ? AND state = {state}{} ORDER BY seq {direction} LIMIT ?",
            Rows::index(filter, state),
            rows.sql
        );
        for target in &targets {
            found.extend(run(&sql, vec![Value::Integer(*target)])?);
        }
    }
    found.sort_unstable();
    if order == Order::Newest {
        found.reverse();
    }
    found.truncate(limit);
    Ok(found)
}

/// A page of entries that match.
pub(in super::super) fn list(db: &Db, filter: &LotFilter, limit: usize, offset: usize, newest_first: bool) -> Result<Vec<LotEntry>> {
    let order = if newest_first { Order::Newest } else { Order::Oldest };
    let seqs = seqs(db, filter, order, limit.saturating_add(offset))?;
    load(db, seqs.get(offset..).unwrap_or(&[]))
}

/// How many match.
pub(in super::super) fn count(db: &Db, filter: &LotFilter) -> Result<u64> {
    let (states, rows) = (states(filter), Rows::of(filter));
    let mut sum = 0;
    for target in targets(db, filter)? {
        for state in &states {
            let sql = format!(
                "SELECT count(*) FROM lot INDEXED BY {} WHERE target = ? AND state = {state}{}",
                Rows::index(filter, *state),
                rows.sql
            );
            let values = [Value::Integer(target)].into_iter().chain(rows.values.iter().cloned());
            sum += db.first("count the lot", &sql, params_from_iter(values), |row| row.get(0))?.map_or(0, uint);
        }
    }
    Ok(sum)
}

/// Dead letters that match, grouped by error, most first.
pub(in super::super) fn groups(db: &Db, filter: &LotFilter) -> Result<Vec<DeadGroup>> {
    if states(filter) != [DEAD] && filter.state.is_some() {
        return Ok(Vec::new());
    }
    let rows = Rows::of(filter);
    let index = if filter.ids.is_empty() { "lot_dead_error" } else { "lot_once" };
    let sql = format!(
        "SELECT error_group, reason, count(*), min(died_at), max(died_at) FROM lot INDEXED BY {index} WHERE target = ? AND state = 2{}
         GROUP BY error_group, reason",
        rows.sql
    );
    // Targets of several envs and products that share topic and group are one line.
    let mut lines: HashMap<_, DeadGroup> = HashMap::new();
    for target in targets(db, filter)? {
        let values = [Value::Integer(target)].into_iter().chain(rows.values.iter().cloned());
        let found = db.all("group dead letters", &sql, params_from_iter(values), |row| {
            let text = |at| row.get::<_, Option<String>>(at).map(Option::unwrap_or_default);
            Ok((text(0)?, text(1)?, uint(row.get(2)?), uint(row.get(3)?), uint(row.get(4)?)))
        })?;
        for (error, reason, count, first_at, last_at) in found {
            let (address, group) = db.target_name(target)?;
            let line = DeadGroup { error, reason, group: group.to_string(), event: address.event, count, first_at, last_at };
            lines
                .entry((line.event.clone(), line.group.clone(), line.error.clone(), line.reason.clone()))
                .and_modify(|known| {
                    known.count += count;
                    known.first_at = known.first_at.min(first_at);
                    known.last_at = known.last_at.max(last_at);
                })
                .or_insert(line);
        }
    }
    let mut lines: Vec<_> = lines.into_values().collect();
    lines.sort_by(|a, b| {
        b.count.cmp(&a.count).then_with(|| (&a.event, &a.group, &a.error, &a.reason).cmp(&(&b.event, &b.group, &b.error, &b.reason)))
    });
    Ok(lines)
}

/// Counts for one group, or all of the address.
pub(in super::super) fn counts(db: &Db, address: &Address, group: Option<&str>) -> Result<LotCounts> {
    let filter = LotFilter {
        product: Some(address.product.to_string()),
        env: Some(address.env.to_string()),
        broker: Some(address.event.broker().to_owned()),
        topic: Some(address.event.topic().to_owned()),
        group: group.map(str::to_owned),
        ..LotFilter::default()
    };
    let mut out = LotCounts::default();
    for target in targets(db, &filter)? {
        let found = db.all(
            "count the lot",
            "SELECT state, count(*) FROM lot INDEXED BY lot_state WHERE target = ?1 GROUP BY state",
            [target],
            |row| Ok((row.get::<_, i64>(0)?, uint(row.get(1)?))),
        )?;
        for (state, count) in found {
            match state {
                WAITING => out.waiting += count,
                PUBLISH => out.publish += count,
                _ => out.dead += count,
            }
        }
        out.failing += db
            .first(
                "count the lot",
                "SELECT count(*) FROM lot INDEXED BY lot_state WHERE target = ?1 AND state = 1 AND attempts > 0",
                [target],
                |row| Ok(uint(row.get(0)?)),
            )?
            .unwrap_or(0);
        let due = [claim::target_due(db, target)?, claim::target_publish_due(db, target)?];
        out.next_due = due.into_iter().chain([out.next_due]).flatten().min();
    }
    Ok(out)
}
