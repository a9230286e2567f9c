//! A file of messages: one a line, many in flight, and an exact account of what was confirmed when something fails.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;
use tokio::sync::mpsc;
use trunkline::{Code, Error, Receipt, Result};

use super::Args;
use crate::context::Ctx;
use crate::exit::INTERRUPTED_REASON;
use crate::output;

/// No provider takes a message as long as this; a file without line breaks must not fill the memory.
const LINE_MOST: u64 = 64 << 20;
/// How many lines an error names.
const NAMED: usize = 100;

/// A line with its number, and how many bytes of the file end with it.
struct Line {
    number: u64,
    end: u64,
    text: Result<Bytes>,
}

/// Produces every line.
pub(super) async fn run(args: &Args, file: &str, ctx: &Ctx) -> Result<()> {
    let stop = ctx.stop().drains();
    let (env, session) = (ctx.env().await?, args.session.read()?);
    let (mut lines, size) = read(file, args.from_line)?;
    let mut account = Account::new(size);
    let mut pending = FuturesUnordered::new();
    let mut reading = true;
    while reading || !pending.is_empty() {
        // The first one goes alone: it opens the route, and what is wrong with all of them is found with one.
        let most = if account.confirmed == 0 { 1 } else { args.in_flight as usize };
        tokio::select! {
            biased;
            () = stop.cancelled(), if reading => {
                reading = false;
                account.interrupted = true;
            }
            Some((number, end, done)) = pending.next(), if !pending.is_empty() => {
                account.settled(number, end, done);
                reading &= account.failed.is_empty();
            }
            line = lines.recv(), if reading && pending.len() < most => match line {
                None => reading = false,
                Some(Line { number, end, text }) => match text.and_then(|text| args.message(&env, text, session.as_ref())) {
                    Ok(produce) => {
                        account.next = number + 1;
                        pending.push(async move { (number, end, produce.await) });
                    }
                    Err(error) => {
                        account.failed.push((number, error));
                        reading = false;
                    }
                },
            },
        }
    }
    account.report(args, file, ctx)
}

/// What became of the lines.
struct Account {
    confirmed: u64,
    duplicates: u64,
    failed: Vec<(u64, Error)>,
    /// The first line that was not produced.
    next: u64,
    interrupted: bool,
    since: Instant,
    shown: Instant,
    bar: ProgressBar,
}

impl Account {
    fn new(size: Option<u64>) -> Self {
        let bar = ProgressBar::with_draw_target(size, ProgressDrawTarget::stderr());
        let template = if size.is_some() { "{bar:30} {percent:>3}%  {msg}  {eta} left" } else { "{spinner} {msg}" };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        let now = Instant::now();
        Account { confirmed: 0, duplicates: 0, failed: Vec::new(), next: 1, interrupted: false, since: now, shown: now, bar }
    }

    fn settled(&mut self, number: u64, end: u64, done: Result<Receipt>) {
        match done {
            Ok(receipt) => {
                self.confirmed += 1;
                self.duplicates += u64::from(receipt.duplicate == Some(true) || receipt.cached == Some(true));
            }
            Err(error) => self.failed.push((number, error)),
        }
        if self.shown.elapsed() > Duration::from_millis(100) {
            self.shown = Instant::now();
            self.bar.set_position(end);
            self.bar.set_message(format!("{} confirmed, {}/s", output::count(self.confirmed), output::count(self.rate())));
        }
    }

    fn rate(&self) -> u64 {
        (self.confirmed as f64 / self.since.elapsed().as_secs_f64().max(1e-3)) as u64
    }

    /// The summary, or the first failure with all that is known of the others.
    fn report(mut self, args: &Args, file: &str, ctx: &Ctx) -> Result<()> {
        self.bar.finish_and_clear();
        self.failed.sort_by_key(|(number, _)| *number);
        let rate = self.rate();
        let Account { confirmed, duplicates, failed, next, interrupted, since, .. } = self;
        let ms = trunkline::message::millis(since.elapsed());
        if let Some((line, first)) = failed.first() {
            let lines: Vec<u64> = failed.iter().map(|(number, _)| *number).take(NAMED).collect();
            let alone = failed.len() == 1 && *line == next;
            let then = if alone {
                format!("{confirmed} lines before it were confirmed, nothing after it was sent: mend it and go on with --from-line {line}")
            } else {
                format!(
                    "{confirmed} lines were confirmed, {} were not ({}), nothing from line {next} on was sent: produce these again, then go on with --from-line {next}",
                    failed.len(),
                    lines.iter().take(5).map(u64::to_string).collect::<Vec<_>>().join(", ") + if lines.len() > 5 { ", …" } else { "" },
                )
            };
            return Err(first
                .clone()
                .context(&format!("line {line} of {file}"))
                .detail("line", *line)
                .detail("confirmed", confirmed)
                .detail("failed", failed.len())
                .detail("failedLines", lines)
                .detail("nextLine", if alone { *line } else { next })
                .next(match first.detail_str("next") {
                    Some(own) if alone => format!("{own}; {then}"),
                    _ => then,
                }));
        }
        if interrupted {
            return Err(Error::new(Code::Closed, format!("interrupted; {confirmed} lines were confirmed"))
                .reason(INTERRUPTED_REASON)
                .detail("confirmed", confirmed)
                .detail("nextLine", next)
                .next(format!("go on with --from-line {next}")));
        }
        let value = json!({ "event": args.event, "produced": confirmed - duplicates, "duplicates": duplicates, "failed": 0, "ms": ms, "perSecond": rate });
        let twice = if duplicates > 0 { format!(", {} published before", output::count(duplicates)) } else { String::new() };
        let took = humantime::format_duration(Duration::from_millis(ms));
        ctx.done(
            &value,
            format!(
                "produced {} messages to {} in {took} ({}/s){twice}",
                output::count(confirmed - duplicates),
                args.event,
                output::count(rate)
            ),
        )
    }
}

/// Reads lines on a thread of its own, so that a slow pipe holds up nothing. Empty lines are passed over.
fn read(file: &str, from: u64) -> Result<(mpsc::Receiver<Line>, Option<u64>)> {
    let failed = |error: std::io::Error| {
        Error::input("file", format!("{file} cannot be read: {error}")).next("check the path, or use `-` for stdin")
    };
    let (mut reader, size): (Box<dyn BufRead + Send>, _) = if file == "-" {
        (Box::new(BufReader::new(std::io::stdin())), None)
    } else {
        let opened = File::open(file).map_err(failed)?;
        let size = opened.metadata().ok().filter(std::fs::Metadata::is_file).map(|about| about.len());
        (Box::new(BufReader::with_capacity(1 << 18, opened)), size)
    };
    let (sender, lines) = mpsc::channel(1_024);
    let name = file.to_owned();
    std::thread::spawn(move || {
        let mut end = 0;
        for number in 1.. {
            let mut line = Vec::new();
            let text = match reader.by_ref().take(LINE_MOST).read_until(b'\n', &mut line) {
                Ok(0) => return,
                Ok(read) if read as u64 == LINE_MOST && line.last() != Some(&b'\n') => {
                    Err(Error::new(Code::PayloadTooLarge, format!("the line is longer than {LINE_MOST} bytes"))
                        .next("write one message a line"))
                }
                Ok(read) => {
                    end += read as u64;
                    Ok(())
                }
                Err(error) => Err(Error::input("file", format!("{name} cannot be read: {error}"))),
            };
            if number < from && text.is_ok() {
                continue;
            }
            let text = text.map(|()| Bytes::copy_from_slice(line.trim_ascii()));
            if text.as_ref().is_ok_and(Bytes::is_empty) {
                continue;
            }
            let last = text.is_err();
            if sender.blocking_send(Line { number, end, text }).is_err() || last {
                return;
            }
        }
    });
    Ok((lines, size))
}
