//! `trunkline consume`: prints the messages of an event, or runs a command for each.

mod exec;
mod show;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use trunkline::{ConsumeOptions, Consumer, Context, Error, Raw, Result, Schedule, Start, State, Verdict};

use crate::context::{Ctx, DRAIN};
use crate::session::SessionArgs;
use crate::{output, values};

/// Prints the messages of an event, or runs a command for each; acks what was handled
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  trunkline consume order-events:order-created
  trunkline consume order-events:order-created --exec './handle-order.sh' --concurrency 4
  trunkline consume order-events:order-created --output json --max 10 --idle-exit 5s | jq .message

`trunkline help exec` says what CMD gets and what its exit code means: 0 done, 65 bury, 75 later, else failed.")]
pub struct Args {
    /// Where from: brokerTag:topicTag
    event: String,
    /// Runs CMD in a shell for every message; its exit code is the verdict
    #[arg(long, value_name = "CMD")]
    exec: Option<String>,
    /// The consumer group [default: the config's, else the product's tag]
    #[arg(long)]
    group: Option<String>,
    /// How many messages are handled at a time [default: 1 to print, else the topic's, else 16]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    concurrency: Option<u32>,
    /// Where a group that is new to the topic starts: earliest, latest, or a time (10m: ten minutes ago)
    #[arg(long, value_name = "WHERE", value_parser = values::start)]
    from: Option<Start>,
    /// Ends after this many messages
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max: Option<u32>,
    /// Ends when there was nothing to do for this long
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    idle_exit: Option<Duration>,
    /// When a failed message is tried again: 1s,5s,30s, or `none` [default: the topic's]
    #[arg(long, value_name = "DELAYS", value_parser = values::schedule)]
    retry: Option<Schedule>,
    /// A run longer than this fails [default: 30s]
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    timeout: Option<Duration>,
    /// With --exec: when a message that exited with 75 comes again
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = values::duration, requires = "exec")]
    later: Duration,
    #[command(flatten)]
    session: SessionArgs,
    /// Handles at once even if at least half of the messages fail
    #[arg(long)]
    no_breaker: bool,
    /// A cache of the product that must exist; it has no other effect
    #[arg(long, value_name = "TAG")]
    cache: Option<String>,
}

/// Consumes until it is stopped, `--max` is reached, or there was nothing to do for `--idle-exit`.
pub async fn run(args: Args, ctx: &Ctx) -> Result<()> {
    let stop = ctx.stop().drains();
    let env = ctx.env().await?;
    let work = Arc::new(Work::new(&args, ctx.is_json()));
    let options = ConsumeOptions {
        group: args.group.clone(),
        concurrency: args.concurrency.or_else(|| args.exec.is_none().then_some(1)).map(|n| n as usize),
        retry: args.retry.clone(),
        timeout: args.timeout,
        breaker: args.no_breaker.then_some(false),
        from: args.from.clone(),
        cache: args.cache.clone(),
        session: args.session.read()?,
        ..ConsumeOptions::default()
    };
    let handler = work.clone();
    let consumer = env
        .consume(&args.event, move |Raw(payload), context: Context| {
            let work = handler.clone();
            async move { work.handle(&payload, &context).await }
        })
        .options(options)
        .await?;
    if !ctx.is_json() {
        output::note(format!("consuming {} as group {}; Ctrl-C stops", args.event, consumer.group()));
    }
    let end = work.until_over(&consumer, args.idle_exit, &stop).await;
    // Whoever waits for a ticket that does not come would hold up the drain.
    let within = if work.over.is_cancelled() { Duration::from_millis(50) } else { DRAIN };
    work.closing.cancel();
    consumer.close(within).await;
    if !ctx.is_json() && args.exec.is_some() {
        output::note(work.summary());
    }
    let failure = work.failure.lock().ok().and_then(|mut failure| failure.take());
    failure.map_or(end, Err)
}

/// How often it is looked whether anybody still reads the output.
const LOOK: Duration = Duration::from_millis(500);

/// What the handler shares with the loop that waits for the end.
struct Work {
    exec: Option<exec::Exec>,
    json: bool,
    /// How many more messages may be taken.
    tickets: AtomicI64,
    running: AtomicU64,
    done: AtomicU64,
    failed: AtomicU64,
    later: AtomicU64,
    buried: AtomicU64,
    since: Instant,
    /// When the last run began or ended, in ms after `since`.
    active: AtomicU64,
    /// The last message is handled, or nobody reads the output.
    over: CancellationToken,
    /// The consumer gives back what it has in hand.
    closing: CancellationToken,
    failure: std::sync::Mutex<Option<Error>>,
    left: AtomicI64,
}

impl Work {
    fn new(args: &Args, json: bool) -> Self {
        let most = args.max.map_or(i64::MAX, i64::from);
        Work {
            exec: args.exec.as_ref().map(|command| exec::Exec { command: command.clone(), later: args.later, json }),
            json,
            tickets: AtomicI64::new(most),
            running: AtomicU64::new(0),
            done: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            later: AtomicU64::new(0),
            buried: AtomicU64::new(0),
            since: Instant::now(),
            active: AtomicU64::new(0),
            over: CancellationToken::new(),
            closing: CancellationToken::new(),
            failure: std::sync::Mutex::new(None),
            left: AtomicI64::new(most),
        }
    }

    async fn handle(&self, payload: &[u8], context: &Context) -> Verdict {
        if self.over.is_cancelled() || self.tickets.fetch_sub(1, Ordering::AcqRel) <= 0 {
            // Not ours to handle: it is given back when the consumer closes, uncounted.
            return std::future::pending().await;
        }
        self.touch();
        self.running.fetch_add(1, Ordering::AcqRel);
        let verdict = match &self.exec {
            Some(exec) => {
                let (verdict, printed) = exec.handle(payload, context).await;
                printed.unwrap_or_else(|error| self.fail(error));
                Ok(verdict)
            }
            None => show::message(self.json, payload, context).map(|()| Verdict::Done),
        };
        self.touch();
        self.running.fetch_sub(1, Ordering::AcqRel);
        match verdict {
            Ok(verdict) => {
                if verdict == Verdict::Cancelled && self.closing.is_cancelled() {
                    // It is given back: nothing came of it.
                    return verdict;
                }
                match verdict {
                    Verdict::Done | Verdict::Drop => &self.done,
                    Verdict::RetryAfter(_) => &self.later,
                    Verdict::Bury(_) => &self.buried,
                    // What was told to stop before the close ran into its timeout.
                    _ => &self.failed,
                }
                .fetch_add(1, Ordering::AcqRel);
                if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
                    self.over.cancel();
                }
                verdict
            }
            Err(error) => {
                // What could not be shown was not handled: it is given back.
                self.fail(error);
                std::future::pending().await
            }
        }
    }

    /// Ends the consumer with this error.
    fn fail(&self, error: Error) {
        if let Ok(mut failure) = self.failure.lock() {
            failure.get_or_insert(error);
        }
        self.over.cancel();
    }

    fn touch(&self) {
        self.active.store(trunkline::message::millis(self.since.elapsed()), Ordering::Release);
    }

    async fn until_over(&self, consumer: &Consumer, idle_exit: Option<Duration>, stop: &CancellationToken) -> Result<()> {
        let mut states = consumer.states();
        let mut look = tokio::time::interval(LOOK);
        self.touch();
        loop {
            let idle = async {
                let Some(idle) = idle_exit else { return std::future::pending().await };
                let quiet_at = self.since + Duration::from_millis(self.active.load(Ordering::Acquire)) + idle;
                let at = if self.running.load(Ordering::Acquire) == 0 { quiet_at } else { Instant::now() + idle };
                tokio::time::sleep_until(at.into()).await;
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                () = self.over.cancelled() => return Ok(()),
                changed = states.changed() => {
                    let state = *states.borrow_and_update();
                    match state {
                        State::Degraded(_) if !self.json => output::note(format!("consumer {}", state.text())),
                        State::Closed => return Err(closed()),
                        _ if changed.is_err() => return Err(closed()),
                        _ => {}
                    }
                }
                // While there is nothing to print, only asking tells that nobody would read it.
                _ = look.tick() => {
                    if output::reader_is_gone() {
                        return Ok(());
                    }
                }
                () = idle => {
                    let quiet = self.since.elapsed().saturating_sub(Duration::from_millis(self.active.load(Ordering::Acquire)));
                    if self.running.load(Ordering::Acquire) == 0 && Some(quiet) >= idle_exit {
                        return Ok(());
                    }
                }
            }
        }
    }

    fn summary(&self) -> String {
        let [done, failed, later, buried] =
            [&self.done, &self.failed, &self.later, &self.buried].map(|count| output::count(count.load(Ordering::Acquire)));
        format!("{done} done, {failed} failed attempts, {later} put off, {buried} buried")
    }
}

fn closed() -> Error {
    Error::new(trunkline::Code::SubscribeFailed, "the consumer ended by itself").next("see `trunkline doctor`, and run it again")
}
