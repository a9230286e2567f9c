//! One process of a cell with several: produces or consumes for some seconds and reports.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use trunkline::ConsumeOptions;
use trunkline::consume::handler::Raw;

use crate::embedded::{EVENT, Error, drain, fill, open};
use crate::{counters, load, raw};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[arg(long)]
    role: String,
    #[arg(long)]
    dir: PathBuf,
    #[arg(long)]
    payload: usize,
    #[arg(long)]
    seconds: u64,
    /// Of `fill` and `drain`.
    #[arg(long, default_value_t = 0)]
    count: u64,
    /// Of `fill` and `drain`: raw or trunkline.
    #[arg(long, default_value = "trunkline")]
    side: String,
    #[arg(long, default_value = "off")]
    history: String,
}

/// What a worker prints.
#[derive(Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) messages: u64,
    pub(crate) per_s: f64,
    pub(crate) worst_us: f64,
    pub(crate) cpu_us: f64,
}

pub(crate) fn run(args: &Args) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    if args.count > 0 {
        return runtime.block_on(counted(args));
    }
    runtime.block_on(async {
        let (trunkline, env) = open(&args.dir, "off").await?;
        let messages = Arc::new(AtomicU64::new(0));
        let worst = Arc::new(AtomicU64::new(0));
        let start = Instant::now();
        let span = Duration::from_secs(args.seconds);
        if args.role == "produce" {
            let stop = Arc::new(AtomicBool::new(false));
            let tasks: Vec<_> = (0..250u64)
                .map(|task| {
                    let (env, messages, worst, stop, size) = (env.clone(), messages.clone(), worst.clone(), stop.clone(), args.payload);
                    tokio::spawn(async move {
                        let mut n = task;
                        while !stop.load(Ordering::Relaxed) {
                            let at = Instant::now();
                            env.produce_raw(EVENT, load::payload(size, n)).await.expect("confirmed");
                            worst.fetch_max(at.elapsed().as_micros() as u64, Ordering::Relaxed);
                            messages.fetch_add(1, Ordering::Relaxed);
                            n += 250;
                        }
                    })
                })
                .collect();
            tokio::time::sleep(span).await;
            stop.store(true, Ordering::Relaxed);
            for task in tasks {
                task.await?;
            }
        } else {
            let handled = messages.clone();
            let consumer = env
                .consume(EVENT, move |_: Raw, _| {
                    handled.fetch_add(1, Ordering::Relaxed);
                    std::future::ready(())
                })
                .await?;
            tokio::time::sleep(span).await;
            consumer.close(Duration::from_secs(10)).await;
        }
        let messages = messages.load(Ordering::Relaxed);
        let per_s = messages as f64 / start.elapsed().as_secs_f64();
        trunkline.close(Duration::from_secs(10)).await;
        let report = Report { messages, per_s, worst_us: worst.load(Ordering::Relaxed) as f64, cpu_us: counters::cpu_us() };
        println!("{}", serde_json::to_string(&report)?);
        Ok(())
    })
}

/// So many messages in or out, and nothing else: what `--instructions` counts.
async fn counted(args: &Args) -> Result<(), Error> {
    let log = args.dir.with_extension("log");
    match (args.role.as_str(), args.side.as_str()) {
        ("fill", "raw") => {
            let appender = raw::Appender::open(&log)?;
            let (size, number) = (args.payload, Arc::new(AtomicU64::new(0)));
            load::closed(args.count, 1_000, move || {
                let (appender, n) = (appender.clone(), number.fetch_add(1, Ordering::Relaxed));
                async move { appender.append(load::payload(size, n)).await }
            })
            .await;
        }
        ("drain", "raw") => {
            let read = raw::read_and_ack(&log, &log.with_extension("acks"))?;
            assert_eq!(read, args.count);
        }
        ("fill", _) => {
            let (trunkline, env) = open(&args.dir, &args.history).await?;
            fill(&env, args.count, 1_000, args.payload).await;
            trunkline.close(Duration::from_secs(60)).await;
        }
        ("drain", _) => {
            let (trunkline, env) = open(&args.dir, &args.history).await?;
            drain(&env, args.count, ConsumeOptions::default()).await?;
            trunkline.close(Duration::from_secs(60)).await;
        }
        (role, _) => return Err(format!("no role '{role}'").into()),
    }
    Ok(())
}
