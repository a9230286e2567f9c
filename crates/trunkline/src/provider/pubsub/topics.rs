//! Topics and subscriptions: made, looked at, removed.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::future::try_join_all;
use googleapis_tonic_google_pubsub_v1::google::pubsub::v1::{
    DeleteSubscriptionRequest, DeleteTopicRequest, ExpirationPolicy, GetSubscriptionRequest, GetTopicRequest,
    ListTopicSubscriptionsRequest, Subscription, Topic,
};

use super::error::{Failure, Kind};
use super::link::Link;
use super::names::{Names, tail};
use crate::error::{Code, Error, Result};
use crate::provider::{Ensured, GroupSpec, Remove, TopicSpec};

/// How many shards the topic has.
const LABEL_SHARDS: &str = "trunkline-shards";
/// The longest that Pub/Sub keeps a message: 31 days. Some emulators know the older limit of 7 days only.
const RETENTION: [Duration; 2] = [Duration::from_secs(31 * 86_400), Duration::from_secs(7 * 86_400)];
/// What Google calls the topic of a subscription whose topic was deleted.
const DELETED: &str = "_deleted-topic_";

/// See the module.
#[derive(Debug)]
pub(super) struct Topics {
    names: Names,
    create: bool,
}

impl Topics {
    pub(super) fn new(names: Names, create: bool) -> Self {
        Topics { names, create }
    }

    /// As [`crate::provider::Provider::ensure`].
    pub(super) async fn ensure(&self, link: &Link, topic: &TopicSpec, groups: &[GroupSpec]) -> Result<Ensured, Failure> {
        let mut ensured = Ensured::default();
        self.ensure_topic(link, topic, &mut ensured).await?;
        let mut paths: Vec<String> = groups.iter().map(|group| self.names.subscription(&topic.name, &group.name)).collect();
        if paths.is_empty() {
            match self.list(link, &topic.name).await {
                // What is published to a topic without a subscription is lost.
                Ok(none) if none.is_empty() => paths.push(self.names.kept(&topic.name)),
                Err(failed) if failed.kind != Kind::Denied || self.create => return Err(failed),
                _ => {}
            }
        }
        let made = try_join_all(paths.iter().map(|path| self.ensure_subscription(link, topic, path))).await?;
        for (created, mut drift) in made {
            ensured.created.extend(created);
            ensured.drift.append(&mut drift);
        }
        Ok(ensured)
    }

    async fn ensure_topic(&self, link: &Link, topic: &TopicSpec, ensured: &mut Ensured) -> Result<(), Failure> {
        let path = self.names.topic(&topic.name);
        let short = tail(&path);
        let found = match self.topic(link, &path).await {
            Err(failed) if failed.kind == Kind::Missing => None,
            // Who may publish need not be allowed to look.
            Err(failed) if failed.kind == Kind::Denied && !self.create => return Ok(()),
            other => Some(other?),
        };
        let found = match found {
            Some(found) => found,
            None if !self.create => {
                let next = format!("create the topic '{short}', or set `create: true`");
                let error = Error::new(Code::TopicNotFound, format!("topic '{short}' does not exist")).detail("topic", short);
                return Err(Failure::new(Kind::Missing, error.reason("no_topic").next(next)));
            }
            None => {
                let labels = HashMap::from([(LABEL_SHARDS.to_owned(), topic.shards.to_string())]);
                let wish = Topic { name: path.clone(), labels, ..Topic::default() };
                let about = format!("name={path}");
                let call = link.publisher("creating a topic", &about, wish, async |mut client, wish| client.create_topic(wish).await);
                match call.await {
                    Ok(_) => {
                        ensured.created.push(format!("topic {short}"));
                        return Ok(());
                    }
                    // Somebody else was faster.
                    Err(failed) if failed.kind == Kind::Exists => self.topic(link, &path).await?,
                    Err(failed) => return Err(failed),
                }
            }
        };
        let shards = found.labels.get(LABEL_SHARDS).and_then(|text| text.parse::<u32>().ok());
        if let Some(shards) = shards.filter(|shards| *shards != topic.shards) {
            ensured.drift.push(format!("topic {short} was made for {shards} shards, not for {}", topic.shards));
        }
        Ok(())
    }

    async fn topic(&self, link: &Link, path: &str) -> Result<Topic, Failure> {
        let request = GetTopicRequest { topic: path.to_owned() };
        let about = format!("topic={path}");
        link.publisher("looking at a topic", &about, request, async |mut client, request| client.get_topic(request).await).await
    }

    /// Makes sure of one subscription: what was created, and where it differs.
    async fn ensure_subscription(&self, link: &Link, topic: &TopicSpec, path: &str) -> Result<(Option<String>, Vec<String>), Failure> {
        let short = tail(path);
        let found = match look(link, path).await {
            Err(failed) if failed.kind == Kind::Missing => None,
            Err(failed) if failed.kind == Kind::Denied && !self.create => return Ok((None, Vec::new())),
            other => Some(other?),
        };
        let found = match found {
            Some(found) => found,
            None if !self.create => {
                let next = format!("create the subscription '{short}' of the topic, or set `create: true`");
                let error = Error::new(Code::TopicNotFound, format!("subscription '{short}' does not exist")).detail("subscription", short);
                return Err(Failure::new(Kind::Missing, error.reason("no_subscription").next(next)));
            }
            None => match self.create_subscription(link, topic, path).await {
                Ok(()) => return Ok((Some(format!("subscription {short}")), Vec::new())),
                Err(failed) if failed.kind == Kind::Exists => look(link, path).await?,
                Err(failed) => return Err(failed),
            },
        };
        self.usable(topic, &found)?;
        Ok((None, drift(topic, short, &found)))
    }

    async fn create_subscription(&self, link: &Link, topic: &TopicSpec, path: &str) -> Result<(), Failure> {
        let mut last = None;
        for retention in RETENTION {
            let wish = Subscription {
                name: path.to_owned(),
                topic: self.names.topic(&topic.name),
                ack_deadline_seconds: i32::try_from(link.options().lease.as_secs()).unwrap_or(600).max(10),
                message_retention_duration: Some(prost_types::Duration { seconds: retention.as_secs() as i64, nanos: 0 }),
                enable_message_ordering: topic.ordered,
                // Never, also where nobody consumes for a month.
                expiration_policy: Some(ExpirationPolicy { ttl: None }),
                labels: HashMap::from([(LABEL_SHARDS.to_owned(), topic.shards.to_string())]),
                ..Subscription::default()
            };
            let about = format!("name={path}");
            let call =
                link.subscribe("creating a subscription", &about, wish, async |mut client, wish| client.create_subscription(wish).await);
            match call.await {
                Ok(_) => return Ok(()),
                Err(failed) if failed.error.message().contains("retention") => last = Some(failed),
                Err(failed) => return Err(failed),
            }
        }
        last.map_or(Ok(()), Err)
    }

    /// Refuses a subscription that this topic's messages cannot be received from, or not in order.
    ///
    /// # Errors
    /// `IN_USE`, `CAPABILITY_UNSUPPORTED`.
    pub(super) fn usable(&self, topic: &TopicSpec, found: &Subscription) -> Result<(), Failure> {
        let short = tail(&found.name);
        let refuse = |code, what: String, reason: &str, next: &str| {
            let error = Error::new(code, format!("subscription '{short}' {what}")).detail("subscription", short);
            Err(Failure::new(Kind::Other, error.reason(reason).next(next)))
        };
        let anew = "delete the subscription, so that it is made anew, or give the group another name";
        if found.topic == DELETED || found.detached {
            return refuse(Code::InUse, "is of a topic that was deleted, or was detached from it".into(), "topic_deleted", anew);
        }
        if found.topic != self.names.topic(&topic.name) {
            return refuse(Code::InUse, format!("is of another topic, {}", found.topic), "other_topic", anew);
        }
        if topic.ordered && !found.enable_message_ordering {
            let next = "delete it, so that it is made anew with order (what waits in it is lost), or set `ordering: none`";
            return refuse(Code::CapabilityUnsupported, "was made without message ordering".into(), "unordered_subscription", next);
        }
        Ok(())
    }

    /// The paths of all subscriptions of a topic.
    async fn list(&self, link: &Link, topic: &str) -> Result<Vec<String>, Failure> {
        let path = self.names.topic(topic);
        let (mut all, mut page_token) = (Vec::new(), String::new());
        loop {
            let request = ListTopicSubscriptionsRequest { topic: path.clone(), page_size: 1000, page_token };
            let about = format!("topic={path}");
            let call = link.publisher("listing subscriptions", &about, request, async |mut client, request| {
                client.list_topic_subscriptions(request).await
            });
            let page = call.await?;
            all.extend(page.subscriptions);
            if page.next_page_token.is_empty() {
                return Ok(all);
            }
            page_token = page.next_page_token;
        }
    }

    /// As [`crate::provider::Provider::remove`]. Subscriptions of others are left alone: they can still be read.
    pub(super) async fn remove(&self, link: &Link, what: Remove<'_>) -> Result<(), Failure> {
        let missing = |result: Result<(), Failure>| match result {
            Err(failed) if failed.kind == Kind::Missing => Ok(()),
            other => other,
        };
        match what {
            Remove::Topic(topic) => {
                let subscriptions = match self.list(link, &topic.name).await {
                    Err(failed) if failed.kind == Kind::Missing => return Ok(()),
                    other => other?,
                };
                let ours = subscriptions.iter().filter(|path| self.names.is_of(&topic.name, tail(path)));
                try_join_all(ours.map(async |path| missing(self.delete(link, path).await))).await?;
                let path = self.names.topic(&topic.name);
                let request = DeleteTopicRequest { topic: path.clone() };
                let about = format!("topic={path}");
                let call =
                    link.publisher("deleting a topic", &about, request, async |mut client, request| client.delete_topic(request).await);
                missing(call.await)
            }
            Remove::Group(topic, group) => missing(self.delete(link, &self.names.subscription(&topic.name, group)).await),
        }
    }

    async fn delete(&self, link: &Link, path: &str) -> Result<(), Failure> {
        let request = DeleteSubscriptionRequest { subscription: path.to_owned() };
        let about = format!("subscription={path}");
        link.subscribe("deleting a subscription", &about, request, async |mut client, request| client.delete_subscription(request).await)
            .await
    }
}

/// Looks at a subscription.
pub(super) async fn look(link: &Link, path: &str) -> Result<Subscription, Failure> {
    let request = GetSubscriptionRequest { subscription: path.to_owned() };
    let about = format!("subscription={path}");
    link.subscribe("looking at a subscription", &about, request, async |mut client, request| client.get_subscription(request).await).await
}

/// Where a subscription differs from what would have been made.
fn drift(topic: &TopicSpec, short: &str, found: &Subscription) -> Vec<String> {
    let mut drift = Vec::new();
    let mut differs = |what: String| drift.push(format!("subscription {short} {what}"));
    let seconds = |duration: &Option<prost_types::Duration>| duration.as_ref().map(|duration| duration.seconds);
    if found.enable_message_ordering && !topic.ordered {
        differs("keeps messages with an ordering key in order, which the topic does not ask for".into());
    }
    if found.push_config.as_ref().is_some_and(|push| !push.push_endpoint.is_empty()) {
        differs("pushes its messages to an endpoint: none are received".into());
    }
    if found.bigquery_config.is_some() || found.cloud_storage_config.is_some() || found.bigtable_config.is_some() {
        differs("exports its messages: none are received".into());
    }
    if !found.filter.is_empty() {
        differs("has a filter: what does not pass it is lost to the group".into());
    }
    if let Some(policy) = &found.dead_letter_policy {
        differs(format!("moves a message away after {} deliveries, which a retry schedule may need", policy.max_delivery_attempts));
    }
    if let Some(kept) = seconds(&found.message_retention_duration).filter(|kept| *kept < RETENTION[1].as_secs() as i64) {
        differs(format!("keeps messages for {} s only", kept));
    }
    // One without a policy ends after 31 days.
    let ends = found.expiration_policy.as_ref().map_or(Some(RETENTION[0].as_secs() as i64), |policy| seconds(&policy.ttl));
    if let Some(ends) = ends.filter(|ends| *ends > 0) {
        differs(format!("is deleted with its messages when nobody consumes for {} days", ends / 86_400));
    }
    if let Some(least) = found.retry_policy.as_ref().and_then(|policy| seconds(&policy.minimum_backoff)).filter(|least| *least > 10) {
        differs(format!("holds back what is given back for {least} s at least"));
    }
    drift
}

#[cfg(test)]
mod tests {
    use googleapis_tonic_google_pubsub_v1::google::pubsub::v1::{DeadLetterPolicy, PushConfig};

    use super::*;

    /// What cannot be seen on an emulator, which keeps no such settings.
    #[test]
    fn drift_is_seen() {
        let topic = TopicSpec::new("t", 1, false);
        let never = Some(ExpirationPolicy { ttl: None });
        let good = Subscription { expiration_policy: never, ..Subscription::default() };
        assert!(drift(&topic, "s", &good).is_empty());
        for (found, word) in [
            (Subscription { expiration_policy: None, ..good.clone() }, "31 days"),
            (Subscription { filter: "x".into(), ..good.clone() }, "filter"),
            (Subscription { enable_message_ordering: true, ..good.clone() }, "in order"),
            (
                Subscription {
                    push_config: Some(PushConfig { push_endpoint: "https://x".into(), ..PushConfig::default() }),
                    ..good.clone()
                },
                "pushes",
            ),
            (
                Subscription {
                    dead_letter_policy: Some(DeadLetterPolicy { max_delivery_attempts: 5, ..DeadLetterPolicy::default() }),
                    ..good.clone()
                },
                "5 deliveries",
            ),
            (Subscription { message_retention_duration: Some(prost_types::Duration { seconds: 600, nanos: 0 }), ..good.clone() }, "600 s"),
        ] {
            let seen = drift(&topic, "s", &found);
            assert!(seen.len() == 1 && seen[0].contains(word), "{word}: {seen:?}");
        }
        // The default of pull subscriptions.
        assert!(drift(&topic, "s", &Subscription { push_config: Some(PushConfig::default()), ..good }).is_empty());
    }
}
