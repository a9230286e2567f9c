//! Each lie is caught by the scenario that is there for it; without a lie the same wrapping passes.

use std::collections::HashSet;
use std::sync::Arc;

use trunkline_suite::Broker;
use trunkline_suite::conformance::{Outcome, Scenario, scenarios};
use trunkline_suite::liar::{Liar, Lie};
use trunkline_suite::model::{Model, Traits};

/// The honest broker that has to do what the lie is about.
fn honest(lie: Lie) -> Arc<dyn Broker> {
    let refuses = lie.caught_by().starts_with("refuse/");
    Arc::new(Model::new(if refuses { Traits::QUEUE } else { Traits::LOG }))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_lie_is_caught() {
    let mut lies = tokio::task::JoinSet::new();
    for lie in Lie::ALL {
        lies.spawn(async move {
            let scenario = Scenario::named(lie.caught_by()).unwrap_or_else(|| panic!("no scenario {}", lie.caught_by()));
            (lie, scenario.run(Arc::new(Liar::new(honest(*lie), Some(*lie)))).await)
        });
    }
    let mut missed = Vec::new();
    for (lie, outcome) in lies.join_all().await {
        match outcome {
            Outcome::Failed(failure) => println!("{lie:?} caught: {failure}"),
            other => missed.push(format!("{lie:?} by {}: {other:?}", lie.caught_by())),
        }
    }
    assert!(missed.is_empty(), "not caught:\n{}", missed.join("\n"));
    assert!(Lie::ALL.len() >= 14);
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
