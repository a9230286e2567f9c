//! Which messages: the flags that query and tail share.

use clap::ValueEnum;
use trunkline::Event;
use trunkline::history::{Category, Query, Status};

use crate::values;

/// Which messages; all of the env's if nothing is given.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Which messages")]
pub struct Filter {
    /// Of this event: brokerTag:topicTag
    #[arg(long, conflicts_with_all = ["broker", "topic"])]
    event: Option<Event>,
    /// Of this broker
    #[arg(long, value_name = "TAG")]
    broker: Option<String>,
    /// Of this topic, by its short tag
    #[arg(long, value_name = "TAG", requires = "broker")]
    topic: Option<String>,
    /// Where they stand: at `--group` if one is given, else at the worst of their groups
    #[arg(long, value_enum)]
    status: Option<StatusWord>,
    /// What happened to them last
    #[arg(long, value_enum)]
    category: Option<CategoryWord>,
    /// That this consumer group worked on
    #[arg(long)]
    group: Option<String>,
    /// With this key
    #[arg(long)]
    key: Option<String>,
    /// Produced with the session of this id
    #[arg(long, value_name = "ID")]
    session: Option<String>,
    /// Produced with a session of this identifier
    #[arg(long, value_name = "VALUE")]
    identifier: Option<String>,
    /// Of this producer
    #[arg(long, value_name = "ID")]
    producer: Option<String>,
    /// With this header
    #[arg(long, value_name = "NAME=VALUE", value_parser = header)]
    header: Option<String>,
    /// With this text somewhere in payload, key or a header's value
    #[arg(long)]
    text: Option<String>,
}

fn header(text: &str) -> Result<String, String> {
    values::header(text).map(|(name, value)| format!("{name}={value}"))
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum StatusWord {
    Pending,
    Delivered,
    Retrying,
    Dead,
    Failed,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
#[value(rename_all = "snake_case")]
enum CategoryWord {
    Produce,
    Consume,
    DeadLetter,
    Replay,
}

impl Filter {
    /// The query for an env, without times and pages.
    pub fn query(self, product: &str, env: &str) -> Query {
        let (broker, topic) = match &self.event {
            Some(event) => (Some(event.broker().to_owned()), Some(event.topic().to_owned())),
            None => (self.broker, self.topic),
        };
        let status = self.status.map(|status| match status {
            StatusWord::Pending => Status::Pending,
            StatusWord::Delivered => Status::Delivered,
            StatusWord::Retrying => Status::Retrying,
            StatusWord::Dead => Status::Dead,
            StatusWord::Failed => Status::Failed,
        });
        let category = self.category.map(|category| match category {
            CategoryWord::Produce => Category::Produce,
            CategoryWord::Consume => Category::Consume,
            CategoryWord::DeadLetter => Category::DeadLetter,
            CategoryWord::Replay => Category::Replay,
        });
        Query {
            product: Some(product.to_owned()),
            env: Some(env.to_owned()),
            broker,
            topic,
            status,
            category,
            group: self.group,
            key: self.key,
            session: self.session,
            identifier: self.identifier,
            producer: self.producer,
            header: self.header,
            text: self.text,
            ..Query::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_broker_and_topic() {
        let filter = Filter { event: "a:b".parse().ok(), status: Some(StatusWord::Dead), ..Filter::default() };
        let query = filter.query("p", "e");
        assert_eq!((query.broker.as_deref(), query.topic.as_deref(), query.status), (Some("a"), Some("b"), Some(Status::Dead)));
    }
}
