//! Groups the catalogue knows: declared ones, those a consume has named, and what was said about the default one.

use std::sync::Arc;

use super::Catalog;
use super::record::GroupDoc;
use super::snapshot::{Snapshot, group_path, missing, put};
use super::topic::{check_group, check_taken};
use crate::access::Call;
use crate::error::{Code, Error, Result};
use crate::event::{Event, check_tag};
use crate::names;
use crate::provider::Start;
use crate::store::{DocChange, DocKind};

impl Catalog {
    /// Declares a group of a topic, so that it is given every message from the next produce on.
    ///
    /// # Errors
    /// `INPUT_INVALID`, `PRODUCT_NOT_FOUND`, `BROKER_NOT_FOUND`, `TOPIC_NOT_FOUND`, `ALREADY_EXISTS`, `STORE_FAILED`.
    pub async fn create_group(&self, product: &str, event: &Event, name: &str, from: Option<Start>) -> Result<Arc<GroupDoc>> {
        self.edit_group(Some(Call::GroupCreate), product, event, name, |doc, is_new| {
            if doc.declared && !is_new {
                return Err(Error::new(Code::AlreadyExists, format!("group '{name}' of topic '{event}' exists already")).field("group"));
            }
            Ok(GroupDoc { declared: true, from: from.clone().or(doc.from), ..doc })
        })
        .await
    }

    /// Notes a group that a consume names; nothing is written if it is known. A deleted default group is there again.
    ///
    /// # Errors
    /// As [`Catalog::create_group`], but for `ALREADY_EXISTS`.
    pub async fn know_group(&self, product: &str, event: &Event, name: &str, from: Option<Start>) -> Result<Arc<GroupDoc>> {
        self.edit_group(None, product, event, name, |doc, _| Ok(GroupDoc { from: doc.from.or_else(|| from.clone()), ..doc })).await
    }

    /// Lets the consumers of a group stop receiving, or receive again.
    ///
    /// # Errors
    /// As [`Catalog::delete_group`].
    pub async fn pause_group(&self, product: &str, event: &Event, name: &str, paused: bool) -> Result<Arc<GroupDoc>> {
        self.edit_group(Some(Call::GroupPause), product, event, name, |doc, _| Ok(GroupDoc { paused, ..doc })).await
    }

    /// Removes a group from the catalogue; a default group stays deleted until a consume names it.
    ///
    /// # Errors
    /// `INPUT_INVALID`, `PRODUCT_NOT_FOUND`, `BROKER_NOT_FOUND`, `TOPIC_NOT_FOUND`, `GROUP_NOT_FOUND`, `STORE_FAILED`.
    pub async fn delete_group(&self, product: &str, event: &Event, name: &str) -> Result<()> {
        check_tag("product", product)?;
        check_group("group", name)?;
        let now = self.docs.now();
        self.change(Call::GroupDelete, &group_path(product, event, name), |snapshot| {
            let topic = snapshot.topic(product, event)?;
            let path = group_path(product, event, name);
            let known = topic.groups.get(name);
            if known.is_some_and(|doc| doc.deleted_default) {
                return Err(unknown(snapshot, product, event, name));
            }
            let change = if is_default(snapshot, product, event, name)? {
                let doc = known.map_or_else(|| fresh(product, event, name, now), |doc| GroupDoc::clone(doc));
                put(DocKind::Group, path, &GroupDoc { deleted_default: true, declared: false, paused: false, updated_at: now, ..doc })?
            } else if known.is_some() {
                DocChange::Remove(DocKind::Group, path)
            } else {
                return Err(unknown(snapshot, product, event, name));
            };
            Ok(((), vec![change]))
        })
        .await
    }

    /// What the catalogue says of each group of a topic, by name. A default group that nothing was said about has no record.
    ///
    /// # Errors
    /// `INPUT_INVALID`, `PRODUCT_NOT_FOUND`, `BROKER_NOT_FOUND`, `TOPIC_NOT_FOUND`.
    pub fn list_groups(&self, product: &str, event: &Event) -> Result<Vec<Arc<GroupDoc>>> {
        check_tag("product", product)?;
        Ok(self.snapshot().topic(product, event)?.groups.values().filter(|doc| !doc.deleted_default).cloned().collect())
    }

    /// Changes a group's record, made unless `call` only pauses; that of a default group in any case. Without a call it is
    /// noted on behalf of a consume.
    async fn edit_group(
        &self,
        call: Option<Call>,
        product: &str,
        event: &Event,
        name: &str,
        edit: impl Fn(GroupDoc, bool) -> Result<GroupDoc> + Send + Sync,
    ) -> Result<Arc<GroupDoc>> {
        check_tag("product", product)?;
        check_group("group", name)?;
        let now = self.docs.now();
        let make = call != Some(Call::GroupPause);
        let work = |snapshot: &Snapshot| {
            let topic = snapshot.topic(product, event)?;
            let known = topic.groups.get(name);
            let there = known.is_some_and(|doc| !doc.deleted_default);
            let untold = known.is_none() && is_default(snapshot, product, event, name)?;
            if !(there || make || untold) {
                return Err(unknown(snapshot, product, event, name));
            }
            let old = known.map_or_else(|| fresh(product, event, name, now), |doc| GroupDoc::clone(doc));
            let next = edit(GroupDoc { deleted_default: false, ..old.clone() }, !there)?;
            if let Some(known) = known.filter(|_| next == old) {
                return Ok((known.clone(), Vec::new()));
            }
            if !there {
                let broker = snapshot.broker(product, event.broker())?;
                for env in &broker.doc.envs {
                    check_taken(snapshot, &broker.doc, env, &topic.doc, &[name], std::slice::from_ref(&topic.doc))?;
                }
            }
            let next = Arc::new(GroupDoc { updated_at: now, ..next });
            let change = put(DocKind::Group, group_path(product, event, name), &next)?;
            Ok((next, vec![change]))
        };
        match call {
            Some(call) => self.change(call, &group_path(product, event, name), work).await,
            None => self.note(work).await,
        }
    }
}

/// Whether it is the default group of the topic in any env.
fn is_default(snapshot: &Snapshot, product: &str, event: &Event, name: &str) -> Result<bool> {
    let broker = snapshot.broker(product, event.broker())?;
    Ok(broker.doc.envs.iter().any(|env| names::default_group(env.kind, &env.config, product) == name))
}

fn unknown(snapshot: &Snapshot, product: &str, event: &Event, name: &str) -> Error {
    let groups = snapshot.topic(product, event).map(|topic| topic.groups.clone()).unwrap_or_default();
    let message = format!("group '{name}' of topic '{event}' does not exist");
    missing(Code::GroupNotFound, &message, name, groups.keys().map(AsRef::as_ref))
        .next(format!("declare it with `trunkline groups create {event} {name} --product {product}`"))
}

fn fresh(product: &str, event: &Event, name: &str, now: u64) -> GroupDoc {
    GroupDoc {
        name: name.to_owned(),
        event: event.clone(),
        product: product.to_owned(),
        from: None,
        declared: false,
        deleted_default: false,
        paused: false,
        created_at: now,
        updated_at: now,
    }
}
