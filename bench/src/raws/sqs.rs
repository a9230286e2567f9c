//! SQS alone: sends and deletes in batches of ten, eight long polls at a time.

use std::sync::Arc;

use async_trait::async_trait;
use aws_sdk_sqs::Client;
use aws_sdk_sqs::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_sqs::types::{DeleteMessageBatchRequestEntry, SendMessageBatchRequestEntry};
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hyper_util::client::legacy::connect::HttpConnector as Tcp;
use hyper_util::rt::TokioExecutor;
use serde_json::json;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::task::JoinSet;

use super::setting;
use crate::embedded::Error;
use crate::network::{OnMessage, Opening, Place, Raw, Target};

/// What the service takes in one call.
const BATCH: usize = 10;
/// Calls at a time, each way.
const CALLS: usize = 8;

type Waiting = (Bytes, oneshot::Sender<()>);

struct Sqs {
    client: Client,
    sending: mpsc::UnboundedSender<Waiting>,
}

/// Plain HTTP with a pool of connections: what the client needs for an emulator.
#[derive(Clone, Debug)]
struct Http(hyper_util::client::legacy::Client<Tcp, SdkBody>);

impl HttpConnector for Http {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let client = self.0.clone();
        HttpConnectorFuture::new(async move {
            let request = request.try_into_http1x().map_err(|e| ConnectorError::user(e.into()))?;
            let answer = client.request(request).await.map_err(|e| ConnectorError::io(e.into()))?;
            HttpResponse::try_from(answer.map(SdkBody::from_body_1_x)).map_err(|e| ConnectorError::other(e.into(), None))
        })
    }
}

impl HttpClient for Http {
    fn http_connector(&self, _: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        SharedHttpConnector::new(self.clone())
    }
}

pub(super) fn target() -> Result<Target, Error> {
    let (endpoint, region) = (setting("SQS")?, setting("SQS_REGION")?);
    let config = json!({ "region": region, "endpoint": endpoint, "accessKeyId": "AKIDBENCH", "secretAccessKey": "not-a-secret" });
    let open = move |place: Place| -> Opening {
        let (endpoint, region) = (endpoint.clone(), region.clone());
        Box::pin(async move {
            let http = Http(hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build_http());
            let config = aws_sdk_sqs::Config::builder()
                .behavior_version(BehaviorVersion::latest())
                .region(Region::new(region))
                .endpoint_url(endpoint)
                .credentials_provider(Credentials::new("AKIDBENCH", "not-a-secret", None, None, "bench"))
                .http_client(SharedHttpClient::new(http));
            let client = Client::from_conf(config.build());
            let queue = url(&client, &place.topic).await?;
            let (sending, waiting) = mpsc::unbounded_channel();
            let waiting = Arc::new(Mutex::new(waiting));
            for _ in 0..CALLS {
                tokio::spawn(send(client.clone(), queue.clone(), waiting.clone()));
            }
            Ok(Arc::new(Sqs { client, sending }) as Arc<dyn Raw>)
        })
    };
    Ok(Target { provider: "AWS_SQS", config, raw: Box::new(open) })
}

async fn url(client: &Client, queue: &str) -> Result<String, Error> {
    if queue.contains("://") {
        return Ok(queue.to_owned());
    }
    Ok(client.get_queue_url().queue_name(queue).send().await?.queue_url.ok_or("a queue without an address")?)
}

/// What waits goes in calls of ten. Payloads are no text, so they go as base64.
async fn send(client: Client, queue: String, waiting: Arc<Mutex<mpsc::UnboundedReceiver<Waiting>>>) {
    let mut batch = Vec::new();
    loop {
        if waiting.lock().await.recv_many(&mut batch, BATCH).await == 0 {
            return;
        }
        let entries = batch.iter().enumerate().map(|(at, (payload, _))| {
            let entry = SendMessageBatchRequestEntry::builder().id(at.to_string()).message_body(STANDARD.encode(payload));
            entry.build().expect("an id and a body")
        });
        let sent = client.send_message_batch().queue_url(&queue).set_entries(Some(entries.collect())).send().await;
        assert!(sent.expect("an answer").failed.is_empty(), "all are confirmed");
        for (_, done) in batch.drain(..) {
            let _ = done.send(());
        }
    }
}

#[async_trait]
impl Raw for Sqs {
    async fn produce(&self, payload: Bytes) -> Result<(), Error> {
        let (done, confirmed) = oneshot::channel();
        self.sending.send((payload, done)).map_err(|_| "the sender ended")?;
        Ok(confirmed.await?)
    }

    async fn consume(&self, group: &str, on: OnMessage) -> Result<(), Error> {
        let queue = url(&self.client, group).await?;
        let mut receivers = JoinSet::new();
        for _ in 0..CALLS {
            receivers.spawn(receive(self.client.clone(), queue.clone(), on.clone()));
        }
        // The first that is told to stop ends the others where they are: at most a batch of each is not deleted.
        receivers.join_next().await.ok_or("no receiver")??
    }
}

async fn receive(client: Client, queue: String, on: OnMessage) -> Result<(), Error> {
    loop {
        let call = client.receive_message().queue_url(&queue).max_number_of_messages(10).wait_time_seconds(20);
        let mut goes_on = true;
        let mut deletes = Vec::new();
        for (at, message) in call.send().await?.messages.unwrap_or_default().into_iter().enumerate() {
            goes_on &= on(&STANDARD.decode(message.body.unwrap_or_default())?);
            let delete = DeleteMessageBatchRequestEntry::builder().id(at.to_string());
            deletes.push(delete.receipt_handle(message.receipt_handle.unwrap_or_default()).build()?);
        }
        if !deletes.is_empty() {
            let deleted = client.delete_message_batch().queue_url(&queue).set_entries(Some(deletes)).send().await?;
            if !deleted.failed.is_empty() {
                return Err("a delete was refused".into());
            }
        }
        if !goes_on {
            return Ok(());
        }
    }
}
