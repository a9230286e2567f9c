//! Events: messages as `BrokersService` names them, with the fewer filters that it has.

use serde::Serialize;

use crate::error::Result;
use crate::history::{Category, Gap, Query, Record, StatsQuery, Status};
use crate::message::{MessageId, Millis};
use crate::stats::Figures;
use crate::trunkline::Env;

/// Which events. Empty fields match all.
#[derive(Debug, Clone, Default)]
pub struct EventsQuery {
    /// The broker's tag.
    pub broker: Option<String>,
    /// The topic's short tag.
    pub topic: Option<String>,
    /// Where it stands: the worst of its groups.
    pub status: Option<Status>,
    /// What happened last.
    pub category: Option<Category>,
    /// Produced at or after, in ms since 1970.
    pub from: Option<Millis>,
    /// Produced before.
    pub to: Option<Millis>,
    /// The page, from 1 (the default). Ignored if there is a cursor.
    pub page: Option<u64>,
    /// Events on a page, 1 to 1,000. Default 20.
    pub limit: Option<usize>,
    /// Where the last page ended.
    pub cursor: Option<String>,
}

/// A page of events, newest first.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Events {
    /// The events.
    pub events: Vec<Record>,
    /// How many match; at least so many if `total_is_exact` is false.
    pub total: u64,
    /// Whether `total` is all of them.
    pub total_is_exact: bool,
    /// The page.
    pub page: u64,
    /// Whether there may be more.
    pub has_more: bool,
    /// Where to go on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// Times of which something is missing.
    pub gaps: Vec<Gap>,
}

impl Env {
    /// A page of events.
    ///
    /// ```
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let trunkline = trunkline::Trunkline::open(&dir.path().join("data").display().to_string()).await?;
    /// use trunkline::{events::EventsQuery, history::Status};
    /// let dead = EventsQuery { status: Some(Status::Dead), ..EventsQuery::default() };
    /// let page = trunkline.env("my-product", "prd").events(dead).await?;
    /// assert_eq!((page.total, page.has_more), (0, false));
    /// # Ok::<_, trunkline::Error>(()) }).unwrap();
    /// ```
    ///
    /// # Errors
    /// As [`Env::messages`].
    pub async fn events(&self, query: EventsQuery) -> Result<Events> {
        let EventsQuery { broker, topic, status, category, from, to, page, limit, cursor } = query;
        let page = self.messages(Query { broker, topic, status, category, from, to, page, limit, cursor, ..Query::default() }).await?;
        Ok(Events {
            events: page.messages,
            total: page.total,
            total_is_exact: page.total_is_exact,
            page: page.page,
            has_more: page.has_more,
            cursor: page.cursor,
            gaps: page.gaps,
        })
    }

    /// An event with its whole life, or `None`: the same as [`Env::message`].
    ///
    /// # Errors
    /// As there.
    pub async fn event(&self, id: MessageId) -> Result<Option<Record>> {
        self.message(id).await
    }

    /// Figures: the same as [`Env::stats`].
    ///
    /// # Errors
    /// As there.
    pub async fn event_stats(&self, query: StatsQuery) -> Result<Figures> {
        self.stats(query).await
    }
}
