//! Redis alone: produces of one moment in one pipeline, `XREADGROUP` of 1,000 and one `XACK` for them.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use redis::aio::MultiplexedConnection;
use redis::{Client, Value};
use serde_json::json;
use tokio::sync::{mpsc, oneshot};

use super::setting;
use crate::embedded::Error;
use crate::network::{OnMessage, Opening, Place, Raw, Target};

const BATCH: usize = 1_000;

type Waiting = (Bytes, oneshot::Sender<()>);

struct Redis {
    client: Client,
    stream: String,
    queue: mpsc::UnboundedSender<Waiting>,
}

pub(super) fn target() -> Result<Target, Error> {
    let url = setting("REDIS")?;
    let config = json!({ "url": url });
    let open = move |place: Place| -> Opening {
        let (url, stream) = (url.clone(), place.topic);
        Box::pin(async move {
            let client = Client::open(url)?;
            let connection = client.get_multiplexed_async_connection().await?;
            let (queue, waiting) = mpsc::unbounded_channel();
            tokio::spawn(send(connection, stream.clone(), waiting));
            Ok(Arc::new(Redis { client, stream, queue }) as Arc<dyn Raw>)
        })
    };
    Ok(Target { provider: "REDIS", config, raw: Box::new(open) })
}

/// What waits goes in one pipeline.
async fn send(mut connection: MultiplexedConnection, stream: String, mut waiting: mpsc::UnboundedReceiver<Waiting>) {
    let mut batch = Vec::new();
    while waiting.recv_many(&mut batch, BATCH).await > 0 {
        let mut pipeline = redis::pipe();
        for (payload, _) in &batch {
            pipeline.cmd("XADD").arg(&stream).arg("NOMKSTREAM").arg("*").arg("payload").arg(&payload[..]);
        }
        let sent: redis::RedisResult<Vec<Value>> = pipeline.query_async(&mut connection).await;
        sent.expect("confirmed");
        for (_, done) in batch.drain(..) {
            let _ = done.send(());
        }
    }
}

#[async_trait]
impl Raw for Redis {
    async fn produce(&self, payload: Bytes) -> Result<(), Error> {
        let (done, confirmed) = oneshot::channel();
        self.queue.send((payload, done)).map_err(|_| "the sender ended")?;
        Ok(confirmed.await?)
    }

    async fn consume(&self, group: &str, on: OnMessage) -> Result<(), Error> {
        let config = redis::AsyncConnectionConfig::new().set_response_timeout(None);
        let mut connection = self.client.get_multiplexed_async_connection_with_config(&config).await?;
        loop {
            let mut read = redis::cmd("XREADGROUP");
            read.arg("GROUP")
                .arg(group)
                .arg("raw")
                .arg("COUNT")
                .arg(BATCH)
                .arg("BLOCK")
                .arg(5_000)
                .arg("STREAMS")
                .arg(&self.stream)
                .arg(">");
            let got: Value = read.query_async(&mut connection).await?;
            let mut ack = redis::cmd("XACK");
            ack.arg(&self.stream).arg(group);
            let mut goes_on = true;
            for entry in entries(&got) {
                let [Value::BulkString(id), Value::Array(fields)] = entry.as_slice() else { return Err("no entry".into()) };
                let payload = fields.chunks(2).find_map(|pair| match pair {
                    [Value::BulkString(name), Value::BulkString(value)] if name == b"payload" => Some(value),
                    _ => None,
                });
                goes_on = on(payload.ok_or("no payload")?);
                ack.arg(&id[..]);
            }
            let _: i64 = ack.query_async(&mut connection).await?;
            if !goes_on {
                return Ok(());
            }
        }
    }
}

/// The entries of the one stream of a reply.
fn entries(reply: &Value) -> impl Iterator<Item = &Vec<Value>> {
    let stream = match reply {
        Value::Array(streams) => streams.first(),
        _ => None,
    };
    let entries = match stream {
        Some(Value::Array(of)) => of.get(1),
        _ => None,
    };
    let list: &[Value] = match entries {
        Some(Value::Array(list)) => list,
        _ => &[],
    };
    list.iter().filter_map(|entry| match entry {
        Value::Array(entry) => Some(entry),
        _ => None,
    })
}
