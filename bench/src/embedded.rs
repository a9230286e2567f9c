//! The embedded broker beside the bare log.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use serde_json::json;
use trunkline::consume::handler::Raw;
use trunkline::{ConsumeOptions, Env, Trunkline};

use crate::cell::{Cell, median, relate, show};
use crate::{counters, instructions, load, raw};

pub(crate) type Error = Box<dyn std::error::Error + Send + Sync>;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// One JSON object a line instead of a table.
    #[arg(long)]
    json: bool,
    /// Messages per run of one process.
    #[arg(long, default_value_t = 1_000_000)]
    count: u64,
    /// Runs of each cell; the median is shown.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Bytes of payload.
    #[arg(long, default_value_t = 256)]
    payload: usize,
    /// Callers at a time.
    #[arg(long, default_value_t = 1_000)]
    in_flight: usize,
    /// Where to write (a directory on the disk to measure; by default the system's temporary directory).
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Only cells whose `op` is this: produce, consume, end_to_end, open, idle, processes.
    #[arg(long)]
    only: Option<String>,
    /// Also counts the instructions of the two hot paths, which needs `valgrind` and takes a minute.
    #[arg(long)]
    instructions: bool,
}

pub(crate) const EVENT: &str = "bench:messages";

/// Opens a fresh instance with one topic whose history is kept as `capture`.
pub(crate) async fn open(dir: &Path, capture: &str) -> Result<(Trunkline, Env), Error> {
    let trunkline = Trunkline::builder().url(dir.to_string_lossy()).sdk("bench").open().await?;
    if trunkline.catalog().list_products().is_empty() {
        trunkline
            .catalog()
            .create_broker(
                Some("bench"),
                json!({ "name": "Bench", "tag": "bench", "envs": [{ "slug": "prd", "type": "EMBEDDED", "config": {} }] }),
            )
            .await?;
        trunkline.catalog().create_topic(Some("bench"), json!({ "name": "Messages", "tag": EVENT, "capture": capture })).await?;
    }
    let env = trunkline.env("bench", "prd");
    Ok((trunkline, env))
}

pub(crate) struct Measure {
    cpu: f64,
    allocations: u64,
}

impl Measure {
    pub(crate) fn start() -> Self {
        Measure { cpu: counters::cpu_us(), allocations: counters::allocations() }
    }

    pub(crate) fn end(&self, messages: u64) -> (f64, f64) {
        let n = messages as f64;
        ((counters::cpu_us() - self.cpu) / n, (counters::allocations() - self.allocations) as f64 / n)
    }
}

fn cell(
    args: &Args,
    op: &'static str,
    side: &'static str,
    history: &'static str,
    processes: usize,
    runs: Vec<f64>,
    cost: &[(f64, f64)],
) -> Cell {
    let cpu: Vec<f64> = cost.iter().map(|c| c.0).collect();
    let allocations: Vec<f64> = cost.iter().map(|c| c.1).collect();
    Cell {
        provider: "EMBEDDED",
        op,
        side,
        history,
        payload: args.payload,
        processes,
        per_s: median(&runs),
        runs,
        ratio: None,
        cpu_us_per_msg: median(&cpu),
        allocations_per_msg: Some(median(&allocations)),
        instructions_per_msg: None,
        p50_us: None,
        p99_us: None,
        p999_us: None,
        worst_us: None,
        slowest_of_mean: None,
    }
}

pub(crate) fn run(args: &Args) -> Result<(), Error> {
    let base = match &args.dir {
        Some(dir) => tempfile::tempdir_in(dir)?,
        None => tempfile::tempdir()?,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut cells = Vec::new();
    let wants = |op: &str| args.only.as_deref().is_none_or(|only| only == op);
    if wants("produce") {
        cells.extend(runtime.block_on(produce(args, base.path()))?);
    }
    if wants("consume") {
        cells.extend(runtime.block_on(consume(args, base.path()))?);
    }
    if wants("end_to_end") {
        cells.extend(runtime.block_on(latency(args, base.path()))?);
    }
    if wants("open") {
        cells.extend(runtime.block_on(opening(args, base.path()))?);
    }
    if wants("idle") {
        cells.extend(runtime.block_on(idle(args, base.path()))?);
    }
    if wants("processes") {
        cells.extend(processes(args, base.path())?);
    }
    if args.instructions {
        instructions::add(&mut cells, args.payload, base.path())?;
    }
    relate(&mut cells);
    show(&cells, args.json);
    Ok(())
}

const HISTORIES: [&str; 3] = ["off", "metadata", "full"];

/// Rates, costs and the worst answer of one side.
type Own = (Vec<f64>, Vec<(f64, f64)>, f64);

/// Raw and Trunkline in turns, so that a slow minute of the machine meets both.
async fn produce(args: &Args, base: &Path) -> Result<Vec<Cell>, Error> {
    let mut raws = (Vec::new(), Vec::new(), 0f64);
    let mut ours: Vec<Own> = vec![(Vec::new(), Vec::new(), 0.0); HISTORIES.len()];
    for round in 0..args.runs {
        let path = base.join(format!("raw-{round}.log"));
        let appender = raw::Appender::open(&path)?;
        let number = Arc::new(AtomicU64::new(0));
        let size = args.payload;
        let measure = Measure::start();
        let closed = load::closed(args.count, args.in_flight, move || {
            let (appender, n) = (appender.clone(), number.fetch_add(1, Ordering::Relaxed));
            async move { appender.append(load::payload(size, n)).await }
        })
        .await;
        raws.0.push(closed.per_s);
        raws.1.push(measure.end(args.count));
        raws.2 = raws.2.max(closed.worst_us);
        std::fs::remove_file(&path)?;
        for (history, own) in HISTORIES.iter().zip(&mut ours) {
            let dir = base.join(format!("produce-{round}-{history}"));
            let (trunkline, env) = open(&dir, history).await?;
            env.produce_raw(EVENT, load::payload(args.payload, 0)).await?;
            let number = Arc::new(AtomicU64::new(0));
            let measure = Measure::start();
            let closed = load::closed(args.count, args.in_flight, move || {
                let (env, n) = (env.clone(), number.fetch_add(1, Ordering::Relaxed));
                async move {
                    env.produce_raw(EVENT, load::payload(size, n)).await.expect("confirmed");
                }
            })
            .await;
            own.0.push(closed.per_s);
            trunkline.close(Duration::from_secs(30)).await;
            own.1.push(measure.end(args.count));
            own.2 = own.2.max(closed.worst_us);
            std::fs::remove_dir_all(&dir)?;
        }
    }
    let mut cells = vec![Cell { worst_us: Some(raws.2), ..cell(args, "produce", "raw", "-", 1, raws.0, &raws.1) }];
    for (history, (runs, cost, worst)) in HISTORIES.iter().zip(ours) {
        cells.push(Cell { worst_us: Some(worst), ..cell(args, "produce", "trunkline", history, 1, runs, &cost) });
    }
    Ok(cells)
}

/// Consumes until `count` messages were handled; messages per second from the first to the last.
pub(crate) async fn drain(env: &Env, count: u64, options: ConsumeOptions) -> Result<f64, Error> {
    let handled = Arc::new(AtomicU64::new(0));
    let all = Arc::new(tokio::sync::Notify::new());
    let first = Arc::new(OnceLock::new());
    let consumer = {
        let (handled, all, first) = (handled.clone(), all.clone(), first.clone());
        env.consume(EVENT, move |_: Raw, _| {
            first.get_or_init(Instant::now);
            if handled.fetch_add(1, Ordering::Relaxed) + 1 >= count {
                all.notify_one();
            }
            std::future::ready(())
        })
        .options(options)
        .await?
    };
    all.notified().await;
    let per_s = count as f64 / first.get().map_or(0.0, |first| first.elapsed().as_secs_f64());
    consumer.close(Duration::from_secs(10)).await;
    Ok(per_s)
}

pub(crate) async fn fill(env: &Env, count: u64, in_flight: usize, size: usize) {
    let env = env.clone();
    let number = Arc::new(AtomicU64::new(0));
    load::closed(count, in_flight, move || {
        let (env, n) = (env.clone(), number.fetch_add(1, Ordering::Relaxed));
        async move {
            env.produce_raw(EVENT, load::payload(size, n)).await.expect("confirmed");
        }
    })
    .await;
}

async fn consume(args: &Args, base: &Path) -> Result<Vec<Cell>, Error> {
    let mut raws = (Vec::new(), Vec::new());
    let path = base.join("consume-raw.log");
    let appender = raw::Appender::open(&path)?;
    let (size, number) = (args.payload, Arc::new(AtomicU64::new(0)));
    load::closed(args.count, 4_000, move || {
        let (appender, n) = (appender.clone(), number.fetch_add(1, Ordering::Relaxed));
        async move { appender.append(load::payload(size, n)).await }
    })
    .await;
    for round in 0..args.runs {
        let measure = Measure::start();
        let start = Instant::now();
        let n = raw::read_and_ack(&path, &base.join(format!("acks-{round}")))?;
        raws.0.push(n as f64 / start.elapsed().as_secs_f64());
        raws.1.push(measure.end(n));
    }
    let mut cells = vec![cell(args, "consume", "raw", "-", 1, raws.0, &raws.1)];
    for history in HISTORIES {
        let dir = base.join(format!("consume-{history}"));
        let (trunkline, env) = open(&dir, history).await?;
        fill(&env, args.count, 4_000, args.payload).await;
        let (mut runs, mut cost) = (Vec::new(), Vec::new());
        for round in 0..args.runs {
            let measure = Measure::start();
            runs.push(drain(&env, args.count, ConsumeOptions { group: Some(format!("g{round}")), ..ConsumeOptions::default() }).await?);
            cost.push(measure.end(args.count));
        }
        trunkline.close(Duration::from_secs(30)).await;
        std::fs::remove_dir_all(&dir)?;
        cells.push(cell(args, "consume", "trunkline", history, 1, runs, &cost));
    }
    Ok(cells)
}

/// Produce to handler at 1,000 messages a second, open loop: a slow answer does not slow the next one.
async fn latency(args: &Args, base: &Path) -> Result<Vec<Cell>, Error> {
    let sync = raw::sync_us(&base.join("sync"))?;
    let mut cells = vec![Cell { p50_us: Some(sync), ..cell(args, "end_to_end", "raw", "-", 1, vec![], &[]) }];
    for history in ["off", "metadata"] {
        let dir = base.join(format!("latency-{history}"));
        let (trunkline, env) = open(&dir, history).await?;
        let origin = Instant::now();
        let times: Arc<std::sync::Mutex<Vec<f64>>> = Arc::default();
        let seen = times.clone();
        let consumer = env
            .consume(EVENT, move |payload: Raw, _| {
                let at = u64::from_le_bytes(payload.0[..8].try_into().expect("eight bytes"));
                seen.lock().expect("nobody panics with it").push(origin.elapsed().as_nanos() as f64 / 1e3 - at as f64 / 1e3);
                std::future::ready(())
            })
            .await?;
        let measure = Measure::start();
        let mut tick = tokio::time::interval(Duration::from_millis(1));
        let count = 5_000;
        for n in 0..count {
            tick.tick().await;
            let env = env.clone();
            let mut payload = load::payload(args.payload, n).to_vec();
            payload[..8].copy_from_slice(&(origin.elapsed().as_nanos() as u64).to_le_bytes());
            tokio::spawn(async move { env.produce_raw(EVENT, payload).await });
        }
        let until = Instant::now() + Duration::from_secs(10);
        while times.lock().expect("nobody panics with it").len() < count as usize && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let cost = measure.end(count);
        consumer.close(Duration::from_secs(5)).await;
        trunkline.close(Duration::from_secs(30)).await;
        let mut sorted = times.lock().expect("nobody panics with it").clone();
        sorted.sort_by(f64::total_cmp);
        let at = |share: f64| sorted.get(((sorted.len() as f64 * share) as usize).min(sorted.len().saturating_sub(1))).copied();
        cells.push(Cell {
            p50_us: at(0.50),
            p99_us: at(0.99),
            worst_us: sorted.last().copied(),
            ..cell(args, "end_to_end", "trunkline", history, 1, vec![1_000.0], &[cost])
        });
        std::fs::remove_dir_all(&dir)?;
    }
    Ok(cells)
}

/// An existing directory with 100,000 messages, opened anew each time, to the first confirm.
async fn opening(args: &Args, base: &Path) -> Result<Vec<Cell>, Error> {
    let dir = base.join("open");
    let (trunkline, env) = open(&dir, "metadata").await?;
    fill(&env, 100_000, 1_000, args.payload).await;
    trunkline.close(Duration::from_secs(30)).await;
    let mut times = Vec::new();
    for n in 0..20 {
        let start = Instant::now();
        let (trunkline, env) = open(&dir, "metadata").await?;
        env.produce_raw(EVENT, load::payload(args.payload, n)).await?;
        times.push(start.elapsed().as_secs_f64() * 1e6);
        trunkline.close(Duration::from_secs(30)).await;
    }
    let worst = times.iter().copied().fold(0.0, f64::max);
    let cell = cell(args, "open", "trunkline", "metadata", 1, vec![], &[]);
    Ok(vec![Cell { p50_us: Some(median(&times)), worst_us: Some(worst), allocations_per_msg: None, ..cell }])
}

/// A consumer without messages.
async fn idle(args: &Args, base: &Path) -> Result<Vec<Cell>, Error> {
    let (trunkline, env) = open(&base.join("idle"), "metadata").await?;
    let consumer = env.consume(EVENT, |_: Raw, _| std::future::ready(())).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (before, seconds) = (counters::cpu_us(), 10);
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let cost = (counters::cpu_us() - before) / seconds as f64;
    consumer.close(Duration::from_secs(5)).await;
    trunkline.close(Duration::from_secs(5)).await;
    Ok(vec![Cell { allocations_per_msg: None, ..cell(args, "idle", "trunkline", "metadata", 1, vec![], &[(cost, 0.0)]) }])
}

/// Four producing and four consuming processes on one directory at the same time.
fn processes(args: &Args, base: &Path) -> Result<Vec<Cell>, Error> {
    let mut cells = Vec::new();
    for history in ["off", "metadata"] {
        let dir = base.join(format!("processes-{history}"));
        let runtime = tokio::runtime::Runtime::new()?;
        runtime.block_on(async {
            let (trunkline, _) = open(&dir, history).await?;
            trunkline.close(Duration::from_secs(5)).await;
            Ok::<_, Error>(())
        })?;
        let seconds = 10;
        let spawn = |role: &str| -> Result<Child, Error> {
            Ok(Command::new(std::env::current_exe()?)
                .args(["worker", "--role", role, "--seconds", &seconds.to_string()])
                .args(["--payload", &args.payload.to_string(), "--dir"])
                .arg(&dir)
                .stdout(Stdio::piped())
                .spawn()?)
        };
        let consumers = (0..4).map(|_| spawn("consume")).collect::<Result<Vec<_>, _>>()?;
        let producers = (0..4).map(|_| spawn("produce")).collect::<Result<Vec<_>, _>>()?;
        for (op, children) in [("produce", producers), ("consume", consumers)] {
            let reports: Vec<crate::worker::Report> = children
                .into_iter()
                .map(|child| Ok::<_, Error>(serde_json::from_slice(&child.wait_with_output()?.stdout)?))
                .collect::<Result<_, _>>()?;
            let rates: Vec<f64> = reports.iter().map(|r| r.per_s).collect();
            let sum: f64 = rates.iter().sum();
            let messages: u64 = reports.iter().map(|r| r.messages).sum();
            let cpu: f64 = reports.iter().map(|r| r.cpu_us).sum();
            cells.push(Cell {
                worst_us: (op == "produce").then(|| reports.iter().map(|r| r.worst_us).fold(0.0, f64::max)),
                slowest_of_mean: Some(rates.iter().copied().fold(f64::INFINITY, f64::min) / (sum / 4.0)),
                allocations_per_msg: None,
                ..cell(args, op, "trunkline", history, 4, vec![sum], &[(cpu / messages.max(1) as f64, 0.0)])
            });
        }
        std::fs::remove_dir_all(&dir)?;
    }
    Ok(cells)
}
