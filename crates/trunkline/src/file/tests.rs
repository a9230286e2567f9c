//! The file is checked like the calls, planned without writing, and applied twice without a change.

use super::*;
use crate::catalog::tests::{SECRET, catalog};
use crate::error::Code;

const FILE: &str = "
product: shop
env: dev
store: { url: 'sqlite:.trunkline', singleHost: true }
brokers:
  - tag: order-events
    envs:
      - slug: dev
        type: EMBEDDED
      - { env: prd, type: REDIS, config: { host: h, password: hunter2-hunter2 } }
    topics:
      - tag: created
        sample: { orderId: '1' }
      - { tag: 'order-events:paid', name: Paid, ordering: key, defaults: { retry: { delays: [1s, 30s] } } }
sessions:
  - { tag: user, selector: '$Session{userId}', expiry: 7, period: days, schema: { userId: '1' } }
";

fn file(text: &str) -> File {
    File::parse(text).unwrap_or_else(|error| panic!("{error:?}"))
}

fn actions(changes: &[Change]) -> Vec<(&str, Action)> {
    changes.iter().map(|change| (change.tag.as_str(), change.action)).collect()
}

#[test]
fn what_is_wrong_is_refused() {
    for (text, code, field) in [
        ("brokers: [", Code::InputInvalid, ""),
        ("product: a\nproduct: b", Code::InputInvalid, ""),
        ("[1]", Code::InputInvalid, ""),
        ("prodct: a", Code::InputInvalid, "prodct"),
        ("product: a b", Code::InputInvalid, "product"),
        ("brokers: 3", Code::InputInvalid, "brokers"),
        ("sessions: [{ tag: x }]", Code::InputInvalid, "selector"),
        ("caches: [{ tag: x }]", Code::InputInvalid, "expiry"),
        ("caches: [{ tag: x, expiry: 0 }]", Code::InputInvalid, "expiry"),
        ("caches: [{ tag: x, expiry: 5m }, { tag: x, expiry: 1m }]", Code::InputInvalid, "caches[1].tag"),
        ("store: { singleHost: hunter2-hunter2 }", Code::InputInvalid, "store.singleHost"),
        ("brokers: [{ tag: b }]", Code::InputInvalid, "envs"),
        ("brokers: [{ tag: b, envs: [{ slug: a, type: REDIS, config: { port: 1 } }] }]", Code::ConfigInvalid, "host"),
        ("brokers: [{ tag: b, envs: [{ slug: a, type: REDIS, config: { host: h, db: hunter2-hunter2 } }] }]", Code::ConfigInvalid, "db"),
        ("brokers: [{ tag: b, envs: [{ slug: a, type: EMBEDDED }], topics: [{ tag: 'c:t' }] }]", Code::InputInvalid, "tag"),
        ("brokers: [{ tag: b, envs: [{ slug: a, type: EMBEDDED }], topics: [{ tag: t, smaple: 1 }] }]", Code::InputInvalid, "smaple"),
        (
            "brokers: [{ tag: b, envs: [{ slug: a, type: EMBEDDED }], topics: [{ tag: t }, { tag: 'b:t' }] }]",
            Code::InputInvalid,
            "topics[1].tag",
        ),
        (
            "brokers: [{ tag: b, envs: [{ slug: a, type: EMBEDDED }] }, { tag: b, envs: [{ slug: a, type: EMBEDDED }] }]",
            Code::InputInvalid,
            "brokers[1].tag",
        ),
    ] {
        let error = File::parse(text).expect_err(text);
        assert_eq!((error.code(), error.detail_str("field")), (code, Some(field)), "{text}: {error:?}");
        assert!(!format!("{error:?}").contains(SECRET), "{error:?}");
    }
    let broken = File::parse("product: shop\nbrokers:\n  - tag: [").expect_err("broken");
    assert!(broken.details().get("line").is_some_and(|line| line.as_u64() >= Some(3)), "{broken:?}");
    assert_eq!(file(""), File::default());
    let read = file(FILE);
    assert_eq!((read.env.as_deref(), read.store.single_host, read.store.url.as_deref()), (Some("dev"), true, Some("sqlite:.trunkline")));
    assert!(!format!("{read:?}").contains(SECRET));
}

#[tokio::test]
async fn a_plan_writes_nothing_and_an_apply_is_done_once() {
    use Action::{Create, Unchanged};
    let catalog = catalog().await;
    let read = file(FILE);
    let plan = read.plan(&catalog, None, false).await.expect("plan");
    assert_eq!(
        actions(&plan),
        [("order-events", Create), ("order-events:created", Create), ("order-events:paid", Create), ("user", Create)]
    );
    assert!(catalog.list_products().is_empty());
    assert_eq!(plan[0].after.as_ref().expect("after")["envs"][1]["config"]["password"], "***");
    assert!(!format!("{plan:?}").contains(SECRET));

    assert_eq!(actions(&read.apply(&catalog, None, false).await.expect("apply")), actions(&plan));
    let version = catalog.snapshot().version();
    let again = read.apply(&catalog, None, false).await.expect("again");
    assert!(again.iter().all(|change| change.action == Unchanged), "{again:?}");
    assert_eq!(catalog.snapshot().version(), version);
    let topics = catalog.list_topics("shop", "order-events").expect("list");
    assert_eq!((topics[0].name.as_str(), topics[1].name.as_str()), ("created", "Paid"));
}

#[tokio::test]
async fn what_differs_is_shown_before_and_after() {
    let catalog = catalog().await;
    file(FILE).apply(&catalog, None, false).await.expect("apply");
    let changed = file(&FILE.replace(SECRET, "other").replace("orderId", "id"));
    let plan = changed.plan(&catalog, None, false).await.expect("plan");
    assert_eq!(actions(&plan)[..2], [("order-events", Action::Update), ("order-events:created", Action::Update)]);
    let config = |value: &Option<Value>| value.as_ref().expect("value")["envs"][1]["config"]["password"].clone();
    assert_eq!((config(&plan[0].before), config(&plan[0].after)), (json!("***"), json!("*** (changed)")));
    assert_eq!(plan[1].after.as_ref().expect("after")["sample"], json!({ "id": "1" }));
    let fixed = file(&FILE.replace("ordering: key", "ordering: none"));
    assert_eq!(fixed.plan(&catalog, None, false).await.expect_err("fixed").detail_str("field"), Some("ordering"));
}

#[tokio::test]
async fn only_prune_removes() {
    let catalog = catalog().await;
    file(FILE).apply(&catalog, None, false).await.expect("apply");
    let other = json!({ "name": "O", "tag": "old", "envs": [{ "slug": "dev", "type": "EMBEDDED" }] });
    catalog.create_broker(Some("shop"), other).await.expect("broker");
    let less = file("product: shop\nbrokers: [{ tag: order-events, envs: [{ slug: dev, type: EMBEDDED }], topics: [{ tag: paid }] }]");
    let kept = less.plan(&catalog, None, false).await.expect("plan");
    assert!(kept.iter().all(|change| change.action == Action::Unchanged || change.tag == "order-events"), "{kept:?}");
    let pruned = less.apply(&catalog, None, true).await.expect("apply");
    let gone: Vec<_> = pruned.iter().filter(|change| change.action == Action::Delete).map(|change| change.tag.as_str()).collect();
    assert_eq!(gone, ["old", "order-events:created", "user"]);
    let brokers = catalog.list_brokers("shop").expect("list");
    assert_eq!((brokers.len(), brokers[0].envs.len(), brokers[0].topics.len()), (1, 1, 1));
    assert_eq!(brokers[0].topics[0].physical.keys().collect::<Vec<_>>(), ["dev"]);
}

#[tokio::test]
async fn caches_are_applied_and_pruned_as_topics_are() {
    let catalog = catalog().await;
    let one = |expiry: &str| file(&format!("product: shop\ncaches: [{{ tag: quotes, expiry: {expiry} }}]"));
    assert_eq!(actions(&one("5m").apply(&catalog, None, false).await.expect("new")), [("quotes", Action::Create)]);
    assert_eq!(actions(&one("300000").apply(&catalog, None, false).await.expect("again")), [("quotes", Action::Unchanged)]);
    assert_eq!(actions(&one("1m").apply(&catalog, None, false).await.expect("update")), [("quotes", Action::Update)]);
    assert_eq!(catalog.cache("shop", "quotes").expect("there").expiry, 60_000);
    let gone = file("product: shop").apply(&catalog, None, true).await.expect("prune");
    assert_eq!(actions(&gone), [("quotes", Action::Delete)]);
    assert_eq!(catalog.cache("shop", "quotes").expect_err("gone").code(), Code::CacheNotFound);
}
