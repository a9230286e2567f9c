//! Which dead letters: the flags that list, groups, reprocess and discard share.

use trunkline::dead_letter::DeadFilter;
use trunkline::message::Millis;
use trunkline::{Error, Event, MessageId, Result};

use crate::values;

/// Which dead letters; all of the env's if nothing is given.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Which dead letters")]
pub struct Filter {
    /// Of this event: brokerTag:topicTag
    #[arg(long, conflicts_with_all = ["broker", "topic"])]
    event: Option<Event>,
    /// Of this broker
    #[arg(long, value_name = "TAG")]
    broker: Option<String>,
    /// Of this topic, by its short tag
    #[arg(long, value_name = "TAG")]
    topic: Option<String>,
    /// That died at this consumer group
    #[arg(long)]
    group: Option<String>,
    /// With exactly this error (its first line) or reason, as `dead groups` shows it
    #[arg(long, value_name = "TEXT")]
    error: Option<String>,
    /// These messages; may be given more than once
    #[arg(long = "id", value_name = "ID")]
    ids: Vec<MessageId>,
    /// Died at or after: RFC 3339, or how long ago (10m)
    #[arg(long, value_name = "TIME", value_parser = values::past)]
    from: Option<Millis>,
    /// Died before: RFC 3339, or how long ago (10m)
    #[arg(long, value_name = "TIME", value_parser = values::past)]
    to: Option<Millis>,
}

impl Filter {
    /// As the library takes it.
    ///
    /// # Errors
    /// `INPUT_INVALID` if `from` does not lie before `to`.
    pub fn build(self) -> Result<DeadFilter> {
        let Filter { event, broker, topic, group, error, ids, from, to } = self;
        if let (Some(from), Some(to)) = (from, to)
            && from >= to
        {
            return Err(Error::input("from", "`--from` must lie before `--to`"));
        }
        let (broker, topic) = match &event {
            Some(event) => (Some(event.broker().to_owned()), Some(event.topic().to_owned())),
            None => (broker, topic),
        };
        Ok(DeadFilter { broker, topic, group, error, ids, from, to })
    }

    /// Whether it says anything.
    pub fn is_empty(&self) -> bool {
        let Filter { event, broker, topic, group, error, ids, from, to } = self;
        event.is_none()
            && [broker, topic, group, error].iter().all(|text| text.is_none())
            && ids.is_empty()
            && from.is_none()
            && to.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_broker_and_topic() {
        let filter = Filter { event: "a:b".parse().ok(), ..Filter::default() };
        assert!(!filter.is_empty() && Filter::default().is_empty());
        let built = filter.build().expect("built");
        assert_eq!((built.broker.as_deref(), built.topic.as_deref()), (Some("a"), Some("b")));
    }

    #[test]
    fn times_have_an_order() {
        let error = Filter { from: Some(2), to: Some(1), ..Filter::default() }.build().expect_err("backwards");
        assert_eq!(error.detail_str("field"), Some("from"));
    }
}
