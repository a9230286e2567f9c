//! An env that moves to another server.

use super::*;

#[tokio::test]
async fn an_update_says_what_it_leaves_behind() {
    let bed = Bed::new(|builder| builder).await;
    bed.env.create_group(EVENT, "audit", crate::Start::Earliest).await.expect("a group");
    bed.produce(3, 10).await;
    let all = bed.env.consume(EVENT, |_: Raw, _: Context| async {}).group("audit").await.expect("it starts");
    until("one group is through", || all.settled() == 3).await;
    all.close(DEADLINE).await;
    let elsewhere = json!({ "envs": [{ "slug": "prd", "type": "EMBEDDED", "config": { "path": "elsewhere" } }] });
    let same = bed.trunkline.update_broker(Some("shop"), "orders", json!({ "name": "All orders" })).await.expect("updated");
    assert_eq!((same.changed, same.left_behind.len()), (true, 0));
    let update = bed.trunkline.update_broker(Some("shop"), "orders", elsewhere).await.expect("updated");
    let shown = serde_json::to_value(&update).expect("JSON");
    assert_eq!(shown["leftBehind"], json!([{ "topic": EVENT, "env": "prd", "group": "shop", "depth": 3 }]));
    assert_eq!(shown["tag"], "orders");
    bed.trunkline.close(Duration::from_secs(5)).await;
}
