//! A real broker: the client alone, as one who knows it writes it, beside Trunkline on the same client and server.
//!
//! Both sides settle every message, have as many in flight, and take turns, so that a slow minute meets both.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::{Value, json};
use trunkline::consume::handler::Raw as Payload;
use trunkline::removal::Removal;
use trunkline::{ConsumeOptions, Env, Start, Trunkline};

use crate::cell::{Cell, median, relate, show};
use crate::embedded::{Error, Measure};
use crate::load;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which broker: kafka, rabbitmq, redis, sqs, pubsub, nats. Its address comes from what `scripts/brokers up` prints.
    broker: String,
    /// One JSON object a line instead of a table.
    #[arg(long)]
    json: bool,
    /// Messages per run.
    #[arg(long, default_value_t = 100_000)]
    count: u64,
    /// Pairs of runs; the median is shown.
    #[arg(long, default_value_t = 7)]
    runs: usize,
    /// Bytes of payload, one table part for each.
    #[arg(long, value_delimiter = ',', default_values_t = [256, 8_192])]
    payload: Vec<usize>,
    /// Callers at a time.
    #[arg(long, default_value_t = 1_000)]
    in_flight: usize,
    /// Messages that a consumer of Trunkline has in hand; its own default if not given.
    #[arg(long)]
    prefetch: Option<usize>,
    /// Messages per second of the latency part.
    #[arg(long, default_value_t = 1_000)]
    rate: u64,
    /// Only cells whose `op` is this: produce, consume, end_to_end.
    #[arg(long)]
    only: Option<String>,
}

/// What the handler of a raw consumer does with a payload; `false` ends the consuming.
pub(crate) type OnMessage = Arc<dyn Fn(&[u8]) -> bool + Send + Sync>;

/// The client alone.
#[async_trait]
pub(crate) trait Raw: Send + Sync {
    /// Sends one message to the topic and waits for its confirm; called by many at the same time.
    async fn produce(&self, payload: Bytes) -> Result<(), Error>;

    /// Receives as a member of the group and settles every message, until `on` says to stop; what was settled by then is
    /// confirmed by the broker when it returns.
    async fn consume(&self, group: &str, on: OnMessage) -> Result<(), Error>;
}

/// A broker to be measured.
pub(crate) struct Target {
    /// As `KAFKA`.
    pub(crate) provider: &'static str,
    /// The config of the env.
    pub(crate) config: Value,
    /// Opens the client alone for a topic's name on the broker.
    pub(crate) raw: OpenRaw,
}

/// A client alone that is being opened.
pub(crate) type Opening = futures_util::future::BoxFuture<'static, Result<Arc<dyn Raw>, Error>>;

/// Opens the client alone for a topic.
pub(crate) type OpenRaw = Box<dyn Fn(Place) -> Opening + Send + Sync>;

/// A topic as it is called on the broker.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) topic: String,
    /// RabbitMQ's exchange.
    pub(crate) exchange: String,
}

const EVENT: &str = "bench:messages";
const HISTORIES: [&str; 2] = ["off", "metadata"];

/// An instance of its own with one topic on the broker, and the topic's name there.
async fn open(target: &Target, dir: &std::path::Path, capture: &str, groups: &[String]) -> Result<(Trunkline, Env, Place), Error> {
    let trunkline = Trunkline::builder().url(dir.to_string_lossy()).sdk("bench").single_host(true).open().await?;
    let tag = format!("b{}", &uuid::Uuid::now_v7().simple().to_string()[..20]);
    let broker = json!({ "name": "Bench", "tag": "bench", "envs": [{ "slug": "prd", "type": target.provider, "config": target.config }] });
    trunkline.catalog().create_broker(Some(&tag), broker).await?;
    let mut topic = json!({ "name": "Messages", "tag": EVENT, "capture": capture });
    if target.provider == "KAFKA" {
        topic["shards"] = json!(4);
    }
    trunkline.catalog().create_topic(Some(&tag), topic).await?;
    let env = trunkline.env(&tag, "prd");
    for group in groups {
        env.create_group(EVENT, group, Start::Earliest).await?;
    }
    let physical = trunkline.catalog().route(&tag, "prd", &EVENT.parse()?)?.physical.clone();
    let exchange = physical.exchange.unwrap_or_else(|| physical.name.clone());
    Ok((trunkline, env, Place { topic: physical.name, exchange }))
}

pub(crate) fn run(args: &Args) -> Result<(), Error> {
    let target = crate::raws::target(&args.broker)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let wants = |op: &str| args.only.as_deref().is_none_or(|only| only == op);
    let mut cells = Vec::new();
    for size in &args.payload {
        // Eight times the bytes: fewer messages do.
        let count = if *size > 1_024 { args.count / 4 } else { args.count };
        let part = Part { args, target: &target, size: *size, count };
        if wants("produce") {
            cells.extend(runtime.block_on(part.produce())?);
        }
        if wants("consume") {
            cells.extend(runtime.block_on(part.consume())?);
        }
        if wants("end_to_end") {
            cells.extend(runtime.block_on(part.latency())?);
        }
    }
    relate(&mut cells);
    show(&cells, args.json);
    Ok(())
}

struct Part<'a> {
    args: &'a Args,
    target: &'a Target,
    size: usize,
    count: u64,
}

/// Rates and costs of one side.
#[derive(Default)]
struct Side {
    runs: Vec<f64>,
    cost: Vec<(f64, f64)>,
    worst: f64,
}

impl Part<'_> {
    fn cell(&self, op: &'static str, side: &'static str, history: &'static str, runs: Side) -> Cell {
        let cpu: Vec<f64> = runs.cost.iter().map(|cost| cost.0).collect();
        let allocations: Vec<f64> = runs.cost.iter().map(|cost| cost.1).collect();
        Cell {
            provider: self.target.provider,
            op,
            side,
            history,
            payload: self.size,
            processes: 1,
            per_s: median(&runs.runs),
            runs: runs.runs,
            ratio: None,
            cpu_us_per_msg: median(&cpu),
            allocations_per_msg: Some(median(&allocations)),
            instructions_per_msg: None,
            p50_us: None,
            p99_us: None,
            p999_us: None,
            worst_us: (runs.worst > 0.0).then_some(runs.worst),
            slowest_of_mean: None,
        }
    }

    async fn produce(&self) -> Result<Vec<Cell>, Error> {
        let base = tempfile::tempdir()?;
        let mut sides: [Side; 3] = Default::default();
        let mut instances = Vec::new();
        // A queue on SQS belongs to one group, and a message goes to each: with the default group's alone both sides send once.
        let groups = if self.target.provider == "AWS_SQS" { vec![] } else { vec!["bench".to_owned()] };
        for history in HISTORIES {
            instances.push(open(self.target, &base.path().join(history), history, &groups).await?);
        }
        let raw = (self.target.raw)(instances[0].2.clone()).await?;
        for (_, env, _) in &instances {
            env.produce_raw(EVENT, load::payload(self.size, 0)).await?;
        }
        raw.produce(load::payload(self.size, 0)).await?;
        for _ in 0..self.args.runs {
            for (at, side) in sides.iter_mut().enumerate() {
                let (number, size) = (Arc::new(AtomicU64::new(0)), self.size);
                let measure = Measure::start();
                let closed = if at == 0 {
                    let raw = raw.clone();
                    load::closed(self.count, self.args.in_flight, move || {
                        let (raw, n) = (raw.clone(), number.fetch_add(1, Ordering::Relaxed));
                        async move { raw.produce(load::payload(size, n)).await.expect("confirmed") }
                    })
                    .await
                } else {
                    let env = instances[at - 1].1.clone();
                    load::closed(self.count, self.args.in_flight, move || {
                        let (env, n) = (env.clone(), number.fetch_add(1, Ordering::Relaxed));
                        async move { env.produce_raw(EVENT, load::payload(size, n)).await.map(drop).expect("confirmed") }
                    })
                    .await
                };
                side.runs.push(closed.per_s);
                side.cost.push(measure.end(self.count));
                side.worst = side.worst.max(closed.worst_us);
            }
        }
        self.end(instances).await;
        let [raw, off, metadata] = sides;
        Ok(vec![
            self.cell("produce", "raw", "-", raw),
            self.cell("produce", "trunkline", "off", off),
            self.cell("produce", "trunkline", "metadata", metadata),
        ])
    }

    /// Every run has a group of its own on one topic that is filled once, so that all read the same messages. From the first
    /// message on: how long a member takes to join a group is the broker's.
    async fn consume(&self) -> Result<Vec<Cell>, Error> {
        let base = tempfile::tempdir()?;
        let names = |side: &str| (0..self.args.runs).map(|n| format!("{side}{n}")).collect::<Vec<_>>();
        let mut sides: [Side; 3] = Default::default();
        let mut instances = Vec::new();
        for history in HISTORIES {
            let mut groups = names("ours");
            if history == "off" {
                groups.extend(names("raw"));
            }
            let instance = open(self.target, &base.path().join(history), history, &groups).await?;
            let (env, size, number) = (instance.1.clone(), self.size, Arc::new(AtomicU64::new(0)));
            load::closed(self.count, self.args.in_flight, move || {
                let (env, n) = (env.clone(), number.fetch_add(1, Ordering::Relaxed));
                async move { env.produce_raw(EVENT, load::payload(size, n)).await.map(drop).expect("confirmed") }
            })
            .await;
            instances.push(instance);
        }
        let raw = (self.target.raw)(instances[0].2.clone()).await?;
        for run in 0..self.args.runs {
            for (at, side) in sides.iter_mut().enumerate() {
                let measure = Measure::start();
                let per_s = if at == 0 {
                    let group = instances[0].0.catalog().route(instances[0].1.product_tag(), "prd", &EVENT.parse()?)?;
                    let group = group.group_name(&format!("raw{run}"));
                    let (left, first) = (AtomicU64::new(self.count), Arc::new(OnceLock::new()));
                    let start = first.clone();
                    let on = move |_: &[u8]| {
                        start.get_or_init(Instant::now);
                        left.fetch_sub(1, Ordering::Relaxed) > 1
                    };
                    raw.consume(&group, Arc::new(on)).await?;
                    self.count as f64 / first.get().map_or(0.0, |first: &Instant| first.elapsed().as_secs_f64())
                } else {
                    let group = Some(format!("ours{run}"));
                    let options = ConsumeOptions { group, prefetch: self.args.prefetch, ..ConsumeOptions::default() };
                    crate::embedded::drain(&instances[at - 1].1, self.count, options).await?
                };
                side.runs.push(per_s);
                side.cost.push(measure.end(self.count));
            }
        }
        self.end(instances).await;
        let [raw, off, metadata] = sides;
        Ok(vec![
            self.cell("consume", "raw", "-", raw),
            self.cell("consume", "trunkline", "off", off),
            self.cell("consume", "trunkline", "metadata", metadata),
        ])
    }

    /// At a fixed rate, open loop: a slow answer does not slow the next one. From the call to the handler.
    async fn latency(&self) -> Result<Vec<Cell>, Error> {
        let base = tempfile::tempdir()?;
        let groups = ["raw".to_owned(), "ours".to_owned()];
        let mut cells = Vec::new();
        for (at, history) in ["-", "off", "metadata"].into_iter().enumerate() {
            let instance = open(self.target, &base.path().join(at.to_string()), if at == 0 { "off" } else { history }, &groups).await?;
            let (origin, count) = (Instant::now(), self.args.rate * 10);
            let times: Arc<parking_lot::Mutex<Vec<f64>>> = Arc::default();
            let seen = times.clone();
            let note = move |payload: &[u8]| {
                let at = u64::from_le_bytes(payload[..8].try_into().expect("eight bytes"));
                let mut seen = seen.lock();
                seen.push((origin.elapsed().as_nanos() as f64 - at as f64) / 1e3);
                (seen.len() as u64) < count
            };
            let over = Arc::new(AtomicBool::new(false));
            let raw = (self.target.raw)(instance.2.clone()).await?;
            let measure = Measure::start();
            let listening = if at == 0 {
                let group = instance.0.catalog().route(instance.1.product_tag(), "prd", &EVENT.parse()?)?.group_name("raw");
                let (raw, over) = (raw.clone(), over.clone());
                Some(tokio::spawn(async move {
                    let result = raw.consume(&group, Arc::new(note)).await;
                    over.store(true, Ordering::Release);
                    result
                }))
            } else {
                let over = over.clone();
                let handler = move |payload: Payload, _| {
                    if !note(&payload.0) {
                        over.store(true, Ordering::Release);
                    }
                    std::future::ready(())
                };
                let consumer = instance.1.consume(EVENT, handler).group("ours").await?;
                Some(tokio::spawn(async move {
                    std::future::pending::<()>().await;
                    drop(consumer);
                    Ok(())
                }))
            };
            // The first message pays for what is made then; it is not counted.
            let mut first = load::payload(self.size, 0).to_vec();
            first[..8].copy_from_slice(&0_u64.to_le_bytes());
            if at == 0 {
                raw.produce(first.into()).await?;
            } else {
                instance.1.produce_raw(EVENT, first).await?;
            }
            let until = Instant::now() + Duration::from_secs(30);
            while times.lock().is_empty() && Instant::now() < until {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            times.lock().clear();
            let mut tick = tokio::time::interval(Duration::from_secs(1) / u32::try_from(self.args.rate).unwrap_or(1_000));
            for n in 0..count {
                tick.tick().await;
                let mut payload = load::payload(self.size, n).to_vec();
                payload[..8].copy_from_slice(&(origin.elapsed().as_nanos() as u64).to_le_bytes());
                if at == 0 {
                    let raw = raw.clone();
                    tokio::spawn(async move { raw.produce(payload.into()).await });
                } else {
                    let env = instance.1.clone();
                    tokio::spawn(async move { env.produce_raw(EVENT, payload).await });
                }
            }
            let until = Instant::now() + Duration::from_secs(30);
            while !over.load(Ordering::Acquire) && Instant::now() < until {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            let cost = measure.end(count);
            if let Some(task) = listening {
                task.abort();
            }
            self.end(vec![instance]).await;
            let mut sorted = times.lock().clone();
            sorted.sort_by(f64::total_cmp);
            let share = |share: f64| sorted.get(((sorted.len() as f64 * share) as usize).min(sorted.len().saturating_sub(1))).copied();
            let side = Side { runs: vec![sorted.len() as f64 / 10.0], cost: vec![cost], worst: sorted.last().copied().unwrap_or(0.0) };
            cells.push(Cell {
                p50_us: share(0.50),
                p99_us: share(0.99),
                p999_us: share(0.999),
                ..self.cell("end_to_end", if at == 0 { "raw" } else { "trunkline" }, history, side)
            });
        }
        Ok(cells)
    }

    /// Removes what was made on the broker.
    async fn end(&self, instances: Vec<(Trunkline, Env, Place)>) {
        for (trunkline, env, _) in instances {
            let removed = match EVENT.parse() {
                Ok(event) => trunkline.delete_topic(env.product_tag(), &event, Removal { purge: true, force: true }).await.map(drop),
                Err(error) => Err(error),
            };
            if let Err(error) = removed {
                eprintln!("{} stays on the broker: {error}", env.product_tag());
            }
            trunkline.close(Duration::from_secs(30)).await;
        }
    }
}
