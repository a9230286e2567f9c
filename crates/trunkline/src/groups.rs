//! Consumer groups of a topic: how far behind they are, who works in them, and what can be done to them.

use serde::Serialize;

use crate::access::Call;
use crate::error::{Code, Error, Result};
use crate::members::SILENT;
use crate::message::{Millis, now_ms};
use crate::provider::{GroupSpec, Remove, Start};
use crate::store::{LotCounts, Member, MemberRole};
use crate::trunkline::Env;

/// One group as it stands.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GroupStatus {
    /// Its name.
    pub name: String,
    /// Whether it is the one a consume without a group uses.
    pub default: bool,
    /// Whether it is paused for every member.
    pub paused: bool,
    /// Whether the broker counts what is ready and in flight; if not, both are 0, and `oldest` is not known.
    pub counted: bool,
    /// Not yet handed out.
    pub ready: u64,
    /// Handed out, not yet settled.
    pub in_flight: u64,
    /// Waiting for a retry.
    pub waiting: u64,
    /// Dead letters.
    pub dead: u64,
    /// When the oldest message not yet settled was stored (ms since 1970).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oldest: Option<Millis>,
    /// When the next waiting message is due.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_due: Option<Millis>,
    /// Live members of all processes.
    pub members: Vec<Member>,
}

/// A time of the store's clock as the wall clock shows it.
fn by_the_wall(at: Millis, now: Millis) -> Millis {
    if at >= now { now_ms() + (at - now) } else { now_ms().saturating_sub(now - at) }
}

impl Env {
    /// The groups of a topic.
    ///
    /// # Errors
    /// `TOPIC_NOT_FOUND` and the others of a route; `STORE_FAILED`.
    pub async fn groups(&self, event: &str) -> Result<Vec<GroupStatus>> {
        self.inner().access.allow(Call::GroupRead)?;
        self.group_statuses(event).await
    }

    pub(crate) async fn group_statuses(&self, event: &str) -> Result<Vec<GroupStatus>> {
        let route = self.route(event).await?;
        let inner = self.inner();
        let entry = inner.catalog.route(self.product_tag(), self.slug(), &route.filed.address.event)?;
        let members = inner.store.members(Some(&route.filed.address), SILENT).await?;
        let mut groups = Vec::with_capacity(entry.groups.len());
        for group in &entry.groups {
            let depth = match route.provider.depth(&route.topic, &group.physical).await {
                Err(error) if error.code() == Code::CapabilityUnsupported => None,
                other => Some(other?),
            };
            let counted = depth.is_some();
            let depth = depth.unwrap_or_default();
            let counts = inner.store.lot_counts(&route.filed.address, Some(&group.name)).await?;
            let works_here = |member: &&Member| member.role == MemberRole::Consumer && member.group.as_deref() == Some(&*group.name);
            groups.push(GroupStatus {
                name: group.name.to_string(),
                default: group.is_default,
                paused: group.paused,
                counted,
                ready: depth.ready,
                in_flight: depth.in_flight,
                waiting: counts.waiting,
                dead: counts.dead,
                oldest: depth.oldest,
                next_due: counts.next_due.map(|at| by_the_wall(at, inner.store.now())),
                members: members.iter().filter(works_here).cloned().collect(),
            });
        }
        Ok(groups)
    }

    /// What waits to be published on a topic, as far as this store knows it: `publish` waits, `failing` of it failed and is
    /// tried again, `dead` was given up and is published by a reprocess.
    ///
    /// # Errors
    /// `TOPIC_NOT_FOUND` and the others of a route; `STORE_FAILED`.
    pub async fn delayed_publishes(&self, event: &str) -> Result<LotCounts> {
        self.inner().access.allow(Call::GroupRead)?;
        self.delayed_counts(event).await
    }

    pub(crate) async fn delayed_counts(&self, event: &str) -> Result<LotCounts> {
        let route = self.route(event).await?;
        self.inner().store.lot_counts(&route.filed.address, Some("")).await
    }

    /// One group.
    ///
    /// # Errors
    /// `GROUP_NOT_FOUND`.
    pub async fn group(&self, event: &str, group: &str) -> Result<GroupStatus> {
        self.groups(event).await?.into_iter().find(|status| status.name == group).ok_or_else(|| {
            Error::new(Code::GroupNotFound, format!("no group '{group}' on {event}")).field("group").next(format!(
                "list them with `trunkline groups list {event}`, or create it with `trunkline groups create {event} {group}`"
            ))
        })
    }

    /// Declares a group, so that what is produced from now on (or from `start` on) waits for it.
    ///
    /// # Errors
    /// `ALREADY_EXISTS`; `CAPABILITY_UNSUPPORTED` for a start the provider cannot keep.
    pub async fn create_group(&self, event: &str, group: &str, start: Start) -> Result<()> {
        self.inner().access.allow(Call::GroupCreate)?;
        let route = self.route(event).await?;
        let inner = self.inner();
        crate::event::check_tag("group", group)?;
        let entry = inner.catalog.route(self.product_tag(), self.slug(), &route.filed.address.event)?;
        if entry.groups.iter().any(|known| &*known.name == group && !known.is_default) {
            return Err(Error::new(Code::AlreadyExists, format!("group '{group}' is there already")).field("group"));
        }
        let name = entry.group_name(group).into();
        route.provider.ensure(&route.topic, &[GroupSpec { name, start: start.clone() }]).await?;
        inner.catalog.create_group(self.product_tag(), &route.filed.address.event, group, Some(start)).await.map(drop)
    }

    /// Removes a group with what waits for it on the broker.
    ///
    /// # Errors
    /// `GROUP_NOT_FOUND`; `IN_USE` while it has live members, unless `force`.
    pub async fn delete_group(&self, event: &str, group: &str, force: bool) -> Result<()> {
        self.inner().access.allow(Call::GroupDelete)?;
        let status = self.group(event, group).await?;
        if !force && !status.members.is_empty() {
            return Err(Error::new(Code::InUse, format!("group '{group}' has {} live members", status.members.len()))
                .field("group")
                .next("stop its consumers first, or pass `force`"));
        }
        let route = self.route(event).await?;
        let inner = self.inner();
        let entry = inner.catalog.route(self.product_tag(), self.slug(), &route.filed.address.event)?;
        route.provider.remove(Remove::Group(&route.topic, &entry.group_name(group))).await?;
        inner.catalog.delete_group(self.product_tag(), &route.filed.address.event, group).await
    }

    /// Pauses or resumes a group for every member of every process, within a second.
    ///
    /// # Errors
    /// `GROUP_NOT_FOUND`.
    pub async fn pause_group(&self, event: &str, group: &str, paused: bool) -> Result<()> {
        self.inner().access.allow(Call::GroupPause)?;
        self.group(event, group).await?;
        let inner = self.inner();
        inner.catalog.pause_group(self.product_tag(), &event.parse()?, group, paused).await?;
        inner.apply_pauses();
        Ok(())
    }

    /// Sets a group to start elsewhere.
    ///
    /// # Errors
    /// `GROUP_NOT_FOUND`; `CAPABILITY_UNSUPPORTED` where the provider keeps no messages.
    pub async fn seek_group(&self, event: &str, group: &str, to: &Start) -> Result<()> {
        let inner = self.inner();
        let sought = async {
            self.group(event, group).await?;
            let route = self.route(event).await?;
            let entry = inner.catalog.route(self.product_tag(), self.slug(), &route.filed.address.event)?;
            route.provider.seek(&route.topic, &entry.group_name(group), to).await
        };
        let target = format!("{}/{}/{event}/{group}", self.product_tag(), self.slug());
        inner.access.audited(Call::GroupSeek, &target, sought).await
    }
}
