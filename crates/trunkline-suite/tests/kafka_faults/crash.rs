//! Members that are killed: their messages move, and what kills them is counted.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;
use trunkline::delivery::{Deliveries, EnvelopeId};
use trunkline::provider::{GroupSpec, Provider as _, TopicSpec};
use trunkline_suite::server::setting;

use crate::bed::{group, join, listen, message, open, send, spec};

struct Member {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Member {
    fn start(topic: &TopicSpec, group: &GroupSpec, done: usize) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kafka-member"));
        command.args([&setting("KAFKA"), &*topic.name, &topic.shards.to_string(), &group.name, &done.to_string()]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Member { child, out }
    }

    /// The next message it took: its id, and how often it was handed out. It has no other way to tell.
    fn took(&mut self) -> (String, u32) {
        let mut line = String::new();
        self.out.read_line(&mut line).unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        let [id, _, count] = words[..] else { panic!("the member ended: {line:?}") };
        (id.to_owned(), count.parse().unwrap())
    }

    /// SIGKILL.
    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_member_settled_stays_settled_and_the_rest_moves() {
    let kafka = open(&json!({})).await.unwrap();
    let (topic, group) = (spec(1, false), group());
    kafka.ensure(&topic, std::slice::from_ref(&group)).await.unwrap();
    let mut sent = Vec::new();
    for n in 0..20 {
        let message = message(format!("{n}"));
        sent.push(message.id);
        send(&kafka, &topic, message).await;
    }
    let mut member = Member::start(&topic, &group, 5);
    let first: Vec<_> = (0..10).map(|_| member.took().0).collect();
    assert_eq!(first, sent[..10].iter().map(ToString::to_string).collect::<Vec<_>>());
    member.kill();
    let killed = Instant::now();
    let member = join(&kafka, &topic, &group).await;
    let told = listen(&*member, true, |told| told.messages.len() == 15).await;
    let declared = Duration::from_millis(kafka.capabilities(&topic).takeover_ms);
    println!("taken over after {:?}, declared {declared:?}", killed.elapsed());
    let came: Vec<_> = told.messages.iter().map(|m| m.id).collect();
    assert_eq!(came, sent[5..].iter().map(|id| EnvelopeId::Id(*id)).collect::<Vec<_>>());
    assert!(told.messages.iter().all(|m| matches!(m.deliveries, Deliveries::UpperBound(1 | 2))));
    assert!(told.messages[..5].iter().all(|m| m.deliveries == Deliveries::UpperBound(2)), "these were in hand");
}

/// A message that kills its handlers is found: its count rises with each death, its neighbours' does not.
#[tokio::test(flavor = "multi_thread")]
async fn each_death_counts_for_the_message_that_was_started() {
    let kafka = open(&json!({})).await.unwrap();
    let (topic, group) = (spec(1, false), group());
    kafka.ensure(&topic, std::slice::from_ref(&group)).await.unwrap();
    let poison = message("poison");
    let id = poison.id.to_string();
    send(&kafka, &topic, poison).await;
    for n in 0..5 {
        send(&kafka, &topic, message(format!("innocent {n}"))).await;
    }
    let mut counts = Vec::new();
    for _ in 0..4 {
        let mut member = Member::start(&topic, &group, 0);
        let (first, count) = member.took();
        assert_eq!(first, id, "the order of a shard");
        counts.push(count);
        member.kill();
    }
    assert_eq!(counts, [1, 2, 3, 4]);
    let member = join(&kafka, &topic, &group).await;
    let told = listen(&*member, true, |told| told.messages.len() == 6).await;
    let counts: Vec<_> = told.messages.iter().map(|m| m.deliveries.count()).collect();
    assert_eq!(counts, [5, 2, 2, 2, 2, 2], "the neighbours were in hand of the first that died, and no other");
    member.close(Instant::now() + Duration::from_secs(10)).await;
}
