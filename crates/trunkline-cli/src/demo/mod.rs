//! `trunkline demo`: real webhooks through a broker, with failures, and a check that nothing was lost.
//!
//! The parts in the order they are used: the [`input`], the [`script`] of what goes wrong, the [`stage`], the [`members`]
//! and the [`sender`], the [`progress`] meanwhile; then the [`evidence`] goes to the [`check`], and the [`summary`] tells.

pub(crate) mod check;
pub(crate) mod evidence;
pub(crate) mod input;
pub(crate) mod members;
pub(crate) mod next;
pub(crate) mod progress;
pub(crate) mod script;
pub(crate) mod sender;
pub(crate) mod stage;
pub(crate) mod summary;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use trunkline::dead_letter::DeadFilter;
use trunkline::{Env, Error, MessageId, Result};

use crate::context::Ctx;
use check::check;
use evidence::Evidence;
use members::{GROUPS, Members, Notebook};
use progress::{Progress, Standing};
use script::Script;
use stage::{Server, Stage};
use summary::{Summary, Told};

/// How often it is looked at where the demo stands.
const LOOK: Duration = Duration::from_millis(50);
/// If nothing moves for this long, what is missing will not come any more: longer than any server keeps what was handed out
/// and not settled.
const PATIENCE: Duration = Duration::from_secs(20);
const PATIENCE_AFAR: Duration = Duration::from_secs(60);
/// How long members and instances get to end.
const END: Duration = Duration::from_secs(10);
/// At least so many members must have worked. Shards that lie on a server may be shared out only when the demo is over: there
/// it is one of each group.
const LEAST_MEMBERS: usize = 4;
const LEAST_MEMBERS_AFAR: usize = GROUPS.len();

/// What is played.
#[derive(Debug)]
pub(crate) struct Play<'a> {
    /// An NDJSON file instead of the built-in input.
    pub(crate) input: Option<&'a Path>,
    /// How often the input is produced.
    pub(crate) rounds: usize,
    /// The data directory, instead of a temporary one.
    pub(crate) dir: Option<&'a Path>,
    /// Where the messages go.
    pub(crate) server: &'a Server,
}

/// Plays the demo and tells what came of it.
///
/// # Errors
/// What keeps it from playing. Broken promises are in the summary.
pub(crate) async fn play(play: &Play<'_>, ctx: &Ctx) -> Result<Summary> {
    let stop = ctx.stop().drains();
    let webhooks = input::load(play.input)?;
    let script = Arc::new(Script::of(&webhooks));
    let stage = Stage::set(play.dir, play.server).await?;
    let book = Arc::new(Notebook::default());
    let members = Members::start(&stage.homes, &script, &book).await?;
    let env = stage::env(&stage.homes[0]);
    let messages = (webhooks.len() * play.rounds) as u64;
    let confirmed = AtomicU64::new(0);
    let since = Instant::now();
    let sending = async {
        let sent = sender::produce_all(&env, &webhooks, play.rounds, &confirmed).await;
        (sent, since.elapsed())
    };
    let is_here = play.server.kind == trunkline::config::ProviderKind::Embedded;
    let patience = if is_here { PATIENCE } else { PATIENCE_AFAR };
    let watching = watch(&env, &book, &confirmed, (messages, patience), Progress::new(messages, ctx.is_json()));
    let ended = tokio::select! {
        ended = async { tokio::join!(sending, watching) } => Some(ended),
        () = stop.cancelled() => None,
    };
    let took = since.elapsed();
    members.close(END).await;
    let Some(((sent, sending_took), watched)) = ended else {
        stage.close(END).await;
        return Err(crate::context::interrupted("the demo was stopped"));
    };
    watched?;
    let mut evidence = Evidence { confirmed: sent?, runs: book.take(), ..Evidence::default() };
    for group in GROUPS {
        evidence.dead.insert(group.name, dead(&env, group.name).await?);
    }
    // What the other instances recorded is on disk when they are closed, and then the numbers of the history are final.
    stage.leave_one(END).await;
    let names: Vec<&'static str> = GROUPS.iter().map(|group| group.name).collect();
    let checks = check(&evidence, &names, if is_here { LEAST_MEMBERS } else { LEAST_MEMBERS_AFAR });
    let (stats, waits) = (summary::stats_of(&env).await?, summary::waits_of(&env, &evidence).await?);
    stage.close(END).await;
    let elsewhere = ctx.file()?.is_some();
    let next = next::next(&stage.dir, example(&evidence)?, evidence.dead.values().any(|dead| !dead.is_empty()), elsewhere);
    let (provider, made) = (play.server.kind.as_str(), (!is_here).then(|| next::remove(&stage.dir, elsewhere)));
    let told = Told { stats, waits, producing: sending_took, total: took, provider, made, next };
    Ok(Summary::new(&stage.dir, &webhooks, &evidence, checks, told))
}

/// Shows the progress until everything came to an end, or nothing moves any more.
async fn watch(
    env: &Env,
    book: &Notebook,
    confirmed: &AtomicU64,
    (messages, patience): (u64, Duration),
    mut progress: Progress,
) -> Result<()> {
    let mut last = (Standing::default(), Instant::now());
    loop {
        let now = standing(env, book, confirmed).await?;
        if now != last.0 {
            last = (now, Instant::now());
        }
        if now.is_over(messages) || last.1.elapsed() > patience {
            progress.finish(now);
            return Ok(());
        }
        progress.show(now);
        tokio::time::sleep(LOOK).await;
    }
}

async fn standing(env: &Env, book: &Notebook, confirmed: &AtomicU64) -> Result<Standing> {
    let mut now = Standing { produced: confirmed.load(Ordering::Relaxed), ..Standing::default() };
    for (at, group) in GROUPS.iter().enumerate() {
        let filter = DeadFilter { group: Some(group.name.to_owned()), ..DeadFilter::default() };
        let dead = env.dead_letters(&filter, 1, 1).await?.1;
        now.groups[at] = (book.done(at), book.failed(at), dead);
    }
    Ok(now)
}

/// All dead letters of a group.
async fn dead(env: &Env, group: &str) -> Result<Vec<MessageId>> {
    const PAGE: usize = 1_000;
    let filter = DeadFilter { group: Some(group.to_owned()), ..DeadFilter::default() };
    let mut ids = Vec::new();
    for page in 1.. {
        let (entries, total) = env.dead_letters(&filter, page, PAGE).await?;
        ids.extend(entries.iter().map(|entry| entry.message.id));
        if entries.len() < PAGE || ids.len() as u64 >= total {
            break;
        }
    }
    Ok(ids)
}

/// A message whose life is worth a look: one that died, else one that failed at first, else any.
fn example(evidence: &Evidence) -> Result<MessageId> {
    let dead = evidence.dead.values().flatten().next().copied();
    let failed = || evidence.runs.iter().find(|run| run.how == evidence::Ended::Failed).map(|run| run.id);
    let any = || evidence.confirmed.first().map(|message| message.id);
    dead.or_else(failed).or_else(any).ok_or_else(|| Error::input("rounds", "nothing was produced"))
}
