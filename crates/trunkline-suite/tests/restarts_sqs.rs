//! SQS (ElasticMQ, which takes some hundred messages a second) killed and started again, with everything on its way.

#[tokio::test(flavor = "multi_thread")]
async fn nothing_confirmed_is_lost_over_ten_restarts() {
    trunkline_suite::promises::restarts("sqs", 10_000, 10).await;
}
