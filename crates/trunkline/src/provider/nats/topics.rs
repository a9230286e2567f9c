//! The topics of a stream that several of them share (`stream` in the config).
//!
//! A stream's config is written as a whole, and the server takes every write: of two processes that add a topic at the
//! same moment, the slower one would take the other's away without a word. So the topics also stand in a list, which is
//! only written by who has seen the last one. Whoever writes the config reads the list and the config again, and writes
//! until they agree: the last one to write has then seen every topic that was listed before. A topic that is removed is
//! marked, taken out of the config, and only then off the list, so that nobody brings it back.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::api::{self, StreamInfo};
use super::error;
use super::link::Link;
use super::place::{OWNERS, Place, shards_key};
use crate::error::{Code, Error, Result};

/// How long others may be in the way.
const WITHIN: Duration = Duration::from_secs(20);

/// See the module. By topic.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct List {
    #[serde(default)]
    topics: BTreeMap<String, Entry>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    /// 0 if it is not ordered.
    shards: u32,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    removed: bool,
}

impl Entry {
    fn of(place: &Place) -> Entry {
        Entry { shards: if place.ordered { place.shards } else { 0 }, removed: false }
    }

    fn pattern(self, topic: &str) -> String {
        Place { topic: topic.into(), stream: String::new(), shared: true, ordered: self.shards > 0, shards: self.shards }.pattern()
    }
}

/// Puts a topic into its stream, which is made if there is none (`fresh` is its config then): `true`.
pub(super) async fn add(link: &Link, place: &Place, fresh: &Value) -> Result<(StreamInfo, bool)> {
    let doing = format!("adding '{}' to stream '{}'", place.pattern(), place.stream);
    let until = Instant::now() + WITHIN;
    change(link, place, until, |topics| {
        topics.insert(place.topic.to_string(), Entry::of(place));
    })
    .await?;
    let (mut state, mut made) = (Agreement::default(), false);
    while Instant::now() < until {
        // The list first: what is listed later is seen by who listed it.
        let (list, _) = read(link, place).await?.unwrap_or_default();
        let info = api::stream_info(link, &place.stream).await.map_err(|e| e.into_error(&doing))?;
        let wanted = state.next(&list, info.as_ref().map_or(fresh.as_object(), |info| Some(&info.config)), place);
        let written = match (info, wanted) {
            (Some(info), None) => return Ok((info, made)),
            (Some(_), Some(config)) => api::stream_update(link, &place.stream, &config).await,
            (None, config) => {
                let config = config.map_or_else(|| fresh.clone(), Value::Object);
                api::stream_create(link, &place.stream, &config).await
            }
        };
        match written {
            Ok(info) => made |= info.did_create,
            // Another process was faster to make it; or it was removed just now.
            Err(refused) if refused.is(error::STREAM_IN_USE) || refused.is(error::STREAM_NOT_FOUND) => {}
            Err(refused) if refused.is(error::SUBJECTS_OVERLAP) => {
                if let Some(other) = state.leave_out(link, &list, place).await? {
                    change(link, place, until, |topics| {
                        topics.remove(&*place.topic);
                    })
                    .await?;
                    return Err(taken(place, &other));
                }
            }
            Err(refused) => return Err(refused.into_error(&doing)),
        }
    }
    Err(busy(&doing))
}

/// Takes a topic out of its stream. The stream stays, also where it was the last one: another process may be adding the
/// next one at this moment.
pub(super) async fn remove(link: &Link, place: &Place) -> Result<()> {
    let doing = format!("removing '{}' from stream '{}'", place.pattern(), place.stream);
    let until = Instant::now() + WITHIN;
    let marked = Entry { removed: true, ..Entry::of(place) };
    if api::stream_info(link, OWNERS).await.map_err(|e| e.into_error(&doing))?.is_some() {
        change(link, place, until, |topics| {
            topics.insert(place.topic.to_string(), marked);
        })
        .await?;
    }
    let mut state = Agreement::default();
    while Instant::now() < until {
        let (mut list, _) = read(link, place).await?.unwrap_or_default();
        // Also where there is no list.
        let entry = list.topics.entry(place.topic.to_string()).or_insert(marked);
        if !entry.removed {
            // Somebody wants it again already.
            return Ok(());
        }
        let info = api::stream_info(link, &place.stream).await.map_err(|e| e.into_error(&doing))?;
        let wanted = info.as_ref().and_then(|info| state.next(&list, Some(&info.config), place));
        let Some(config) = wanted else {
            if read(link, place).await?.is_some() {
                change(link, place, until, |topics| topics.retain(|topic, entry| **topic != *place.topic || !entry.removed)).await?;
            }
            return Ok(());
        };
        match api::stream_update(link, &place.stream, &config).await {
            Ok(_) => {}
            Err(refused) if refused.is(error::STREAM_NOT_FOUND) => {}
            Err(refused) if refused.is(error::SUBJECTS_OVERLAP) => drop(state.leave_out(link, &list, place).await?),
            Err(refused) => return Err(refused.into_error(&doing)),
        }
    }
    Err(busy(&doing))
}

/// What is known after the rounds so far.
#[derive(Debug, Default)]
struct Agreement {
    /// Topics that were on the list in one of them: if they no longer are, they are not wanted.
    listed: BTreeMap<String, Entry>,
    /// Listed topics whose subjects another stream has.
    elsewhere: BTreeSet<String>,
}

impl Agreement {
    /// The config as the list wants it; `None` if it is so already.
    fn next(&mut self, list: &List, config: Option<&Map<String, Value>>, place: &Place) -> Option<Map<String, Value>> {
        let config = config?;
        self.listed.extend(list.topics.iter().map(|(topic, entry)| (topic.clone(), *entry)));
        let mut subjects: Vec<String> = match config.get("subjects").and_then(Value::as_array) {
            Some(list) => list.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
            None => Vec::new(),
        };
        let mut metadata = config.get("metadata").and_then(Value::as_object).cloned().unwrap_or_default();
        let before = (subjects.clone(), metadata.clone());
        for (topic, entry) in &self.listed {
            let (pattern, key) = (entry.pattern(topic), shards_key(topic));
            if list.topics.get(topic).is_none_or(|entry| entry.removed) {
                subjects.retain(|subject| *subject != pattern);
                metadata.remove(&key);
            } else if !self.elsewhere.contains(topic) {
                if !subjects.iter().any(|subject| super::place::covers(subject, &pattern)) {
                    subjects.push(pattern);
                }
                if entry.shards > 0 && !metadata.contains_key(&key) {
                    metadata.insert(key, entry.shards.to_string().into());
                }
            }
        }
        // A stream that is given no subject would listen to its name.
        let nothing = nothing(&place.stream);
        if subjects.len() > 1 {
            subjects.retain(|subject| *subject != nothing);
        } else if subjects.is_empty() {
            subjects.push(nothing);
        }
        if before == (subjects.clone(), metadata.clone()) {
            return None;
        }
        let mut config = config.clone();
        config.insert("subjects".into(), json!(subjects));
        config.insert("metadata".into(), metadata.into());
        Some(config)
    }

    /// After a refusal because of a subject that another stream has: those are left out from now on. The other stream if it
    /// is the subject of `place` itself.
    async fn leave_out(&mut self, link: &Link, list: &List, place: &Place) -> Result<Option<String>> {
        for (topic, entry) in list.topics.iter().filter(|(_, entry)| !entry.removed) {
            let pattern = entry.pattern(topic);
            let streams = api::streams_of(link, &pattern).await.map_err(|e| e.into_error("looking for the stream of a subject"))?;
            let Some(other) = streams.into_iter().find(|stream| *stream != place.stream) else { continue };
            if **topic == *place.topic {
                return Ok(Some(other));
            }
            self.elsewhere.insert(topic.clone());
        }
        Ok(None)
    }
}

/// The subject of a stream that has no topic.
fn nothing(stream: &str) -> String {
    format!("_trunkline.none.{stream}")
}

fn busy(doing: &str) -> Error {
    Error::new(Code::SubscribeFailed, format!("{doing}: others change the stream all the time")).with_retryable(true)
}

/// The subject of a topic belongs to another stream than the config says.
pub(super) fn taken(place: &Place, other: &str) -> Error {
    Error::new(Code::ConfigInvalid, format!("the subject '{}' belongs to another stream: '{other}'", place.pattern()))
        .field("stream")
        .next(format!("set `stream: {other}`, or give the topic another name"))
}

/// The list and its number; `None` if there is none.
async fn read(link: &Link, place: &Place) -> Result<Option<(List, u64)>> {
    let subject = place.topics();
    let found = match api::last_message(link, OWNERS, &subject).await {
        Ok(found) => found,
        Err(refused) if refused.is(error::STREAM_NOT_FOUND) => None,
        Err(refused) => return Err(refused.into_error("reading the topics of a stream")),
    };
    let Some(found) = found else { return Ok(None) };
    let bytes = super::admin::payload(&found);
    let list = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let broken = || Error::new(Code::SubscribeFailed, format!("what lies at '{subject}' is no list of topics")).with_retryable(false);
    Ok(Some((list.ok_or_else(broken)?, found.seq)))
}

/// Changes the list.
async fn change(link: &Link, place: &Place, until: Instant, how: impl Fn(&mut BTreeMap<String, Entry>)) -> Result<()> {
    let doing = "writing the topics of a stream";
    while Instant::now() < until {
        let (before, revision) = read(link, place).await?.unwrap_or_default();
        let mut list = before.clone();
        how(&mut list.topics);
        if list == before {
            return Ok(());
        }
        let body = serde_json::to_vec(&list).map_err(|e| Error::new(Code::SubscribeFailed, format!("{doing}: {e}")))?;
        if api::replace(link, &place.topics(), revision, body, api::WITHIN, doing).await? {
            return Ok(());
        }
    }
    Err(busy(doing))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> Place {
        Place { topic: "mine".into(), stream: "ALL".into(), shared: true, ordered: false, shards: 1 }
    }

    fn list(topics: &[(&str, u32, bool)]) -> List {
        let entries = topics.iter().map(|(topic, shards, removed)| ((*topic).to_owned(), Entry { shards: *shards, removed: *removed }));
        List { topics: entries.collect() }
    }

    fn config(subjects: &[&str]) -> Map<String, Value> {
        json!({ "name": "ALL", "subjects": subjects }).as_object().cloned().unwrap_or_default()
    }

    fn subjects(config: &Map<String, Value>) -> Vec<&str> {
        config["subjects"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
    }

    #[test]
    fn what_is_listed_is_added_and_the_rest_stays() {
        let mut state = Agreement::default();
        let listed = list(&[("a", 0, false), ("b", 3, false), ("gone", 0, true)]);
        let wanted = state.next(&listed, Some(&config(&["own.*", "gone"])), &place()).expect("it differs");
        assert_eq!(subjects(&wanted), ["own.*", "a", "b._shard.*"]);
        assert_eq!(wanted["metadata"], json!({ "trunkline.shards.b": "3" }));
        assert_eq!(wanted["name"], "ALL");
        assert_eq!(state.next(&listed, Some(&wanted), &place()), None);
    }

    #[test]
    fn what_was_taken_off_the_list_meanwhile_is_not_brought_back() {
        let mut state = Agreement::default();
        let wanted = state.next(&list(&[("a", 0, false), ("b", 2, false)]), Some(&config(&[])), &place()).expect("it differs");
        let wanted = state.next(&list(&[("a", 0, false)]), Some(&wanted), &place()).expect("it differs");
        assert_eq!((subjects(&wanted), &wanted["metadata"]), (vec!["a"], &json!({})));
    }

    #[test]
    fn a_stream_without_topics_listens_to_nothing() {
        let mut state = Agreement::default();
        let wanted = state.next(&list(&[("mine", 0, true)]), Some(&config(&["mine"])), &place()).expect("it differs");
        assert_eq!(subjects(&wanted), ["_trunkline.none.ALL"]);
        let wanted = state.next(&list(&[("mine", 0, false)]), Some(&wanted), &place()).expect("it differs");
        assert_eq!(subjects(&wanted), ["mine"]);
    }

    #[test]
    fn what_another_stream_has_is_left_out() {
        let mut state = Agreement { elsewhere: BTreeSet::from(["b".to_owned()]), ..Agreement::default() };
        let listed = list(&[("a", 0, false), ("b", 0, false)]);
        let wanted = state.next(&listed, Some(&config(&[])), &place()).expect("it differs");
        assert_eq!(subjects(&wanted), ["a"]);
    }
}
