//! Group commit: what many callers write at the same time goes into one statement, and all are answered after its commit.
//!
//! While one batch is being confirmed the next one gathers, so that under load a batch is as large as what came meanwhile,
//! and a lone caller waits for nobody.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio_util::task::TaskTracker;

use super::errors::closed;
use crate::error::{Error, Result};

/// About how many rows one statement takes.
const ROWS: usize = 512;
/// How many batches are at the server at once.
const WORKERS: usize = 2;
/// How many callers may wait before more are held back.
const QUEUE: usize = 4096;

/// One caller's rows, and where its answer goes.
struct Call<I, O> {
    rows: Vec<I>,
    reply: oneshot::Sender<Result<Vec<O>>>,
}

/// Writes rows in batches; an answer for each row.
type Write<I, O> = Arc<dyn Fn(Vec<I>) -> BoxFuture<'static, Result<Vec<O>>> + Send + Sync>;

/// The callers of one kind of write.
#[derive(Debug)]
pub(super) struct Batcher<I, O> {
    queue: mpsc::Sender<Call<I, O>>,
}

impl<I: Clone + Send + Sync + 'static, O: Send + 'static> Batcher<I, O> {
    /// Starts the workers; they end when the batcher is dropped and what was given to it is done.
    pub(super) fn start(
        tasks: &TaskTracker,
        weight: fn(&I) -> usize,
        write: impl Fn(Vec<I>) -> BoxFuture<'static, Result<Vec<O>>> + Send + Sync + 'static,
    ) -> Self {
        let write: Write<I, O> = Arc::new(write);
        let (queue, calls) = mpsc::channel(QUEUE);
        let calls = Arc::new(Mutex::new(calls));
        for _ in 0..WORKERS {
            tasks.spawn(work(calls.clone(), weight, write.clone()));
        }
        Batcher { queue }
    }

    /// Writes these rows with those of others; durable when it returns.
    pub(super) async fn write(&self, rows: Vec<I>) -> Result<Vec<O>> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let (reply, answer) = oneshot::channel();
        self.queue.send(Call { rows, reply }).await.map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }
}

async fn work<I: Clone + Send + Sync + 'static, O: Send + 'static>(
    calls: Arc<Mutex<mpsc::Receiver<Call<I, O>>>>,
    weight: fn(&I) -> usize,
    write: Write<I, O>,
) {
    loop {
        let batch = gather(&mut *calls.lock().await, weight).await;
        if batch.is_empty() {
            return;
        }
        let rows: Vec<I> = batch.iter().flat_map(|call| call.rows.iter().cloned()).collect();
        match write(rows).await {
            Ok(answers) => {
                let mut answers = answers.into_iter();
                for call in batch {
                    let mine = answers.by_ref().take(call.rows.len()).collect();
                    let _ = call.reply.send(Ok(mine));
                }
            }
            Err(error) => apart(batch, &error, &write).await,
        }
    }
}

/// Waits for the first call and takes what else is there; nothing at the end.
async fn gather<I, O>(calls: &mut mpsc::Receiver<Call<I, O>>, weight: fn(&I) -> usize) -> Vec<Call<I, O>> {
    let mut batch = Vec::new();
    let mut sum = 0;
    let mut next = calls.recv().await;
    while let Some(call) = next {
        sum += call.rows.iter().map(weight).sum::<usize>();
        batch.push(call);
        next = if sum < ROWS { calls.try_recv().ok() } else { None };
    }
    batch
}

/// A statement that failed because of one caller's rows must not fail the others'.
async fn apart<I: Clone, O>(batch: Vec<Call<I, O>>, error: &Error, write: &Write<I, O>) {
    if batch.len() == 1 || error.retryable() {
        for call in batch {
            let _ = call.reply.send(Err(error.clone()));
        }
        return;
    }
    for call in batch {
        let result = write(call.rows).await;
        let _ = call.reply.send(result);
    }
}
