//! Filters over the lot: lists, counts and groups of errors.

use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::super::link::{Db, Param};
use super::load;
use crate::error::Result;
use crate::event::Event;
use crate::store::common::{DEAD, ERROR_GROUP_MAX, PUBLISH, WAITING, cut, int, is_word, number, uint};
use crate::store::{Address, DeadGroup, LotCounts, LotEntry, LotFilter};

/// Beyond so many targets one walk in the order of `seq` is cheaper than one for each.
const FEW: usize = 64;

/// How `seq` is ordered.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    Oldest,
    Newest,
}

/// A filter as SQL with its values: the targets are $1, the states $2.
struct Rows {
    targets: Vec<i64>,
    states: Vec<i64>,
    sql: String,
    values: Vec<Box<dyn ToSql + Sync + Send>>,
}

impl Rows {
    async fn of(db: &Db, filter: &LotFilter) -> Result<Self> {
        let states = filter.state.map_or_else(|| vec![WAITING, PUBLISH, DEAD], |state| vec![number(state)]);
        let mut rows = Rows { targets: targets(db, filter).await?, states, sql: String::new(), values: Vec::new() };
        if !filter.ids.is_empty() {
            let ids: Vec<Uuid> = filter.ids.iter().map(|id| id.0).collect();
            rows.and("AND id = ANY($)", ids);
        }
        if let Some(error) = &filter.error {
            let error = super::clean(cut(error, ERROR_GROUP_MAX));
            let sql = if is_word(&error) { "AND (error_group = $ OR reason = $)" } else { "AND error_group = $" };
            rows.and(sql, error);
        }
        if let Some(from) = filter.from {
            rows.and("AND CASE state WHEN 2 THEN died_at ELSE due_at END >= $", int(from));
        }
        if let Some(to) = filter.to {
            rows.and("AND CASE state WHEN 2 THEN died_at ELSE due_at END < $", int(to));
        }
        if let Some(after) = filter.after {
            rows.and("AND seq > $", int(after));
        }
        Ok(rows)
    }

    /// One more condition; `$` stands for its value.
    fn and(&mut self, sql: &str, value: impl ToSql + Sync + Send + 'static) {
        self.values.push(Box::new(value));
        self.sql.push(' ');
        self.sql.push_str(&sql.replace('$', &format!("${}", self.values.len() + 2)));
    }

    /// The values, and one more.
    fn params<'a>(&'a self, last: Option<Param<'a>>) -> Vec<Param<'a>> {
        let lead: [Param<'a>; 2] = [&self.targets, &self.states];
        lead.into_iter().chain(self.values.iter().map(|value| &**value as Param<'a>)).chain(last).collect()
    }
}

/// The targets that match; all if nothing of a target is asked for.
async fn targets(db: &Db, filter: &LotFilter) -> Result<Vec<i64>> {
    let sql = "SELECT id FROM target WHERE ($1::text IS NULL OR product = $1) AND ($2::text IS NULL OR env = $2)
        AND ($3::text IS NULL OR broker = $3) AND ($4::text IS NULL OR topic = $4) AND ($5::text IS NULL OR grp = $5) ORDER BY id";
    let rows = db.all("look up groups", sql, &[&filter.product, &filter.env, &filter.broker, &filter.topic, &filter.group]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// The first `limit` seqs that match.
pub(super) async fn seqs(db: &Db, filter: &LotFilter, order: Order, limit: usize) -> Result<Vec<i64>> {
    let rows = Rows::of(db, filter).await?;
    let (direction, end) = (if order == Order::Newest { "DESC" } else { "ASC" }, rows.values.len() + 3);
    let conditions = &rows.sql;
    let sql = if rows.targets.len() * rows.states.len() <= FEW && filter.ids.is_empty() {
        // Each target and state is read in the order of seq by its index, and no further than the page.
        format!(
            "SELECT f.seq FROM unnest($1::bigint[]) AS t (id) CROSS JOIN unnest($2::bigint[]) AS s (number), LATERAL (
                SELECT seq FROM lot WHERE target = t.id AND state = s.number{conditions} ORDER BY seq {direction} LIMIT ${end}
             ) f ORDER BY f.seq {direction} LIMIT ${end}"
        )
    } else {
        format!("SELECT seq FROM lot WHERE target = ANY($1) AND state = ANY($2){conditions} ORDER BY seq {direction} LIMIT ${end}")
    };
    let limit = int(limit as u64);
    let found = db.all("list the lot", &sql, &rows.params(Some(&limit))).await?;
    Ok(found.iter().map(|row| row.get(0)).collect())
}

/// A page of entries that match.
pub(in super::super) async fn list(db: &Db, filter: &LotFilter, limit: usize, offset: usize, newest_first: bool) -> Result<Vec<LotEntry>> {
    let order = if newest_first { Order::Newest } else { Order::Oldest };
    let seqs = seqs(db, filter, order, limit.saturating_add(offset)).await?;
    load(db, seqs.get(offset..).unwrap_or(&[])).await
}

/// How many match.
pub(in super::super) async fn count(db: &Db, filter: &LotFilter) -> Result<u64> {
    let rows = Rows::of(db, filter).await?;
    let sql = format!("SELECT count(*) FROM lot WHERE target = ANY($1) AND state = ANY($2){}", rows.sql);
    Ok(db.first("count the lot", &sql, &rows.params(None)).await?.map_or(0, |row| uint(row.get(0))))
}

/// Dead letters that match, grouped by error, most first.
pub(in super::super) async fn groups(db: &Db, filter: &LotFilter) -> Result<Vec<DeadGroup>> {
    let mut rows = Rows::of(db, filter).await?;
    rows.states.retain(|state| *state == DEAD);
    // Targets of several envs and products that share topic and group are one line.
    let sql = format!(
        "SELECT coalesce(error_group, ''), coalesce(reason, ''), t.grp, t.broker, t.topic, count(*), min(died_at), max(died_at)
         FROM lot JOIN target t ON t.id = lot.target WHERE target = ANY($1) AND state = ANY($2){} GROUP BY 1, 2, 3, 4, 5",
        // Both tables have a column of that name.
        rows.sql.replace(" id =", " lot.id =")
    );
    let mut lines = Vec::new();
    for row in db.all("group dead letters", &sql, &rows.params(None)).await? {
        let event = Event::new(row.get(3), row.get(4)).map_err(|_| super::super::errors::damaged("a topic of the lot has no valid tag"))?;
        let time = |at| row.get::<_, Option<i64>>(at).map_or(0, uint);
        let (error, reason, group, count) = (row.get(0), row.get(1), row.get(2), uint(row.get(5)));
        lines.push(DeadGroup { error, reason, group, event, count, first_at: time(6), last_at: time(7) });
    }
    lines.sort_by(|a, b| {
        b.count.cmp(&a.count).then_with(|| (&a.event, &a.group, &a.error, &a.reason).cmp(&(&b.event, &b.group, &b.error, &b.reason)))
    });
    Ok(lines)
}

/// Counts for one group, or all of the address.
pub(in super::super) async fn counts(db: &Db, address: &Address, group: Option<&str>) -> Result<LotCounts> {
    let filter = LotFilter {
        product: Some(address.product.to_string()),
        env: Some(address.env.to_string()),
        broker: Some(address.event.broker().to_owned()),
        topic: Some(address.event.topic().to_owned()),
        group: group.map(str::to_owned),
        ..LotFilter::default()
    };
    let targets = targets(db, &filter).await?;
    let sql = "SELECT count(*) FILTER (WHERE state = 0), count(*) FILTER (WHERE state = 2), count(*) FILTER (WHERE state = 1),
            count(*) FILTER (WHERE state = 1 AND attempts > 0),
            (SELECT min(ready_at) FROM lot WHERE target = ANY($1) AND state < 2 AND ready_at IS NOT NULL)
        FROM lot WHERE target = ANY($1)";
    let Some(row) = db.first("count the lot", sql, &[&targets]).await? else { return Ok(LotCounts::default()) };
    let count = |at| uint(row.get(at));
    let next_due = row.get::<_, Option<i64>>(4).map(uint);
    Ok(LotCounts { waiting: count(0), dead: count(1), publish: count(2), failing: count(3), next_due })
}
