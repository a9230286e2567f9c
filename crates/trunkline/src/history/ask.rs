//! The questions a history answers.

use crate::error::Result;
use crate::message::{MessageId, Millis};

use super::index::{Gap, failed};
use super::open::History;
use super::query::{Cursor, Page, Query};
use super::reader::Reader;
use super::record::Record;
use super::scan::{self, Scan};
use super::stats::{self, Bucket, Stats, StatsQuery};

impl History {
    /// A message with its whole life, or `None` if nothing is known of it.
    ///
    /// # Errors
    /// `STORE_FAILED` if a block that covers its id cannot be read.
    pub async fn get(&self, id: MessageId) -> Result<Option<Record>> {
        self.inner.readers.run(move |reader| scan::life(reader, id)).await
    }

    /// A page of messages.
    ///
    /// # Errors
    /// `INPUT_INVALID` for a limit, page, header, text or cursor that is none; `STORE_FAILED` if the index cannot be read.
    /// Blocks that cannot be read are shown as gaps.
    pub async fn query(&self, query: &Query) -> Result<Page> {
        query.check()?;
        let cursor = query.parse_cursor()?;
        let (query, unsaved, now) = (query.clone(), self.unsaved_gaps(), self.inner.options.clock.now());
        self.inner.readers.run(move |reader| page(reader, &query, cursor, unsaved, now)).await
    }

    /// Statistics of a span.
    ///
    /// # Errors
    /// `INPUT_INVALID` if the span ends before it begins; `STORE_FAILED`.
    pub async fn stats(&self, query: &StatsQuery) -> Result<Stats> {
        let (query, unsaved, now) = (query.clone(), self.unsaved_gaps(), self.inner.options.clock.now());
        let mut stats = self.inner.readers.run(move |reader| stats::stats(reader, &query, now)).await?;
        stats.gaps.extend(unsaved);
        Ok(stats)
    }

    /// The same over time, in buckets of `bucket_ms`, rounded up to whole minutes; the one that is not over is marked.
    ///
    /// # Errors
    /// As [`History::stats`]; `INPUT_INVALID` if there were more than 10,000 buckets.
    pub async fn series(&self, query: &StatsQuery, bucket_ms: Millis) -> Result<Vec<Bucket>> {
        let (query, now) = (query.clone(), self.inner.options.clock.now());
        self.inner.readers.run(move |reader| stats::series(reader, &query, bucket_ms, now)).await
    }

    /// Times between `from` and `to` (ms) of which records are missing.
    ///
    /// # Errors
    /// `STORE_FAILED`.
    pub async fn gaps(&self, from: Millis, to: Millis) -> Result<Vec<Gap>> {
        let mut gaps = self.inner.readers.run(move |reader| reader.index.gaps(from, to).map_err(failed("reading the gaps"))).await?;
        gaps.extend(self.unsaved_gaps().into_iter().filter(|gap| gap.to >= from && gap.from <= to));
        Ok(gaps)
    }
}

fn page(reader: &Reader, query: &Query, cursor: Option<Cursor>, unsaved: Vec<Gap>, now: Millis) -> Result<Page> {
    let start = cursor.unwrap_or(Cursor { bound: u128::MAX, scanned: 0, page: query.page.unwrap_or(1) });
    let skip = if cursor.is_some() { 0 } else { (start.page - 1) * query.limit() as u64 };
    let scanned = Scan::new(reader, query, cursor).run(skip, start)?;
    let dimensions = StatsQuery {
        product: query.product.clone(),
        env: query.env.clone(),
        broker: query.broker.clone(),
        topic: query.topic.clone(),
        group: None,
        from: query.from,
        to: query.to,
    };
    let of = stats::messages(reader, &dimensions, now)?;
    let has_more = scanned.cursor.is_some();
    let mut gaps = reader.index.gaps(query.from.unwrap_or(0), query.to.unwrap_or(Millis::MAX)).map_err(failed("reading the gaps"))?;
    gaps.extend(unsaved);
    gaps.extend(scanned.damaged);
    // The roll-ups count whole minutes, remember what retention dropped, and know nothing of what others produced.
    let dropped_to = reader.index.dropped_to().map_err(failed("reading the history"))?;
    let is_all = dropped_to == 0 || query.from.is_some_and(|from| from > dropped_to);
    let is_whole = |at: Option<Millis>| at.is_none_or(|at| at.is_multiple_of(60_000));
    let (total, total_is_exact) = if !has_more && cursor.is_none() {
        (scanned.matched, gaps.is_empty())
    } else if query.is_plain() && is_whole(query.from) && is_whole(query.to) {
        (of.max(scanned.matched), gaps.is_empty() && is_all && of >= scanned.matched)
    } else {
        (scanned.matched, false)
    };
    Ok(Page {
        messages: scanned.messages,
        total,
        total_is_exact,
        page: start.page,
        has_more,
        cursor: scanned.cursor.map(|cursor| query.cursor_text(cursor)),
        scanned: scanned.scanned,
        of,
        gaps,
    })
}
