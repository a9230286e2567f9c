//! Each lie is caught by the scenario that is there for it; without a lie the same wrapping passes.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use trunkline::Result;
use trunkline::provider::Provider;
use trunkline::provider::embedded::{Embedded, MemoryDisk, Options};
use trunkline_suite::conformance::{Outcome, Scenario, scenarios};
use trunkline_suite::liar::{Liar, Lie};
use trunkline_suite::model::{Model, Traits};
use trunkline_suite::{Broker, Pace};

/// Lies on top of what `honest` gives, and says which lies were not caught.
async fn uncaught(honest: impl Fn(Lie) -> Option<Arc<dyn Broker>>) -> Vec<String> {
    let mut lies = tokio::task::JoinSet::new();
    for lie in Lie::ALL.iter().copied() {
        let Some(broker) = honest(lie) else { continue };
        lies.spawn(async move {
            let scenario = Scenario::named(lie.caught_by()).unwrap_or_else(|| panic!("no scenario {}", lie.caught_by()));
            (lie, scenario.run(Arc::new(Liar::new(broker, Some(lie)))).await)
        });
    }
    let mut missed = Vec::new();
    for (lie, outcome) in lies.join_all().await {
        match outcome {
            Outcome::Failed(failure) => println!("{lie:?} caught: {failure}"),
            other => missed.push(format!("{lie:?} by {}: {other:?}", lie.caught_by())),
        }
    }
    missed
}

#[tokio::test(flavor = "multi_thread")]
async fn every_lie_is_caught() {
    // On top of the honest broker that has to do what the lie is about.
    let honest = |lie: Lie| -> Option<Arc<dyn Broker>> {
        let refuses = lie.caught_by().starts_with("refuse/");
        Some(Arc::new(Model::new(if refuses { Traits::QUEUE } else { Traits::LOG })))
    };
    let missed = uncaught(honest).await;
    assert!(missed.is_empty(), "not caught:\n{}", missed.join("\n"));
    assert!(Lie::ALL.len() >= 14);
}

/// The embedded broker in memory, each connection with a handle of its own.
#[derive(Debug)]
struct InMemory(MemoryDisk);

#[async_trait]
impl Broker for InMemory {
    fn name(&self) -> &str {
        "embedded, in memory"
    }

    fn pace(&self) -> Pace {
        Pace::LOCAL
    }

    async fn open(&self) -> Result<Arc<dyn Provider>> {
        let options = Options { lease: Duration::from_millis(1000), ..Options::new("/log") };
        Ok(Arc::new(Embedded::with_disk(Arc::new(self.0.clone()), options)?))
    }

    async fn restart(&self) -> Result<bool> {
        Ok(false)
    }

    fn leaves_out(&self) -> &[(&'static str, &'static str)] {
        &[]
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_lie_is_caught_on_top_of_the_embedded_broker() {
    // It has nothing it must refuse to read or order, and it counts no death within one process.
    let applies = |lie: Lie| !lie.caught_by().starts_with("refuse/") && lie != Lie::CountStands;
    let missed = uncaught(|lie| applies(lie).then(|| Arc::new(InMemory(MemoryDisk::new())) as Arc<dyn Broker>)).await;
    assert!(missed.is_empty(), "not caught:\n{}", missed.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_lie_nothing_is_caught() {
    for traits in [Traits::LOG, Traits::QUEUE] {
        let broker = Arc::new(Liar::new(Arc::new(Model::new(traits)), None));
        for scenario in scenarios() {
            let outcome = scenario.run(Arc::<Liar>::clone(&broker)).await;
            assert!(!matches!(outcome, Outcome::Failed(_)), "{outcome:?}");
        }
    }
}

#[test]
fn scenarios_have_names_of_their_own() {
    let names: HashSet<_> = scenarios().iter().map(|scenario| scenario.name).collect();
    assert_eq!(names.len(), scenarios().len());
}
