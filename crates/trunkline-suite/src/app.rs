//! Real processes of whole programs on one data directory: `suite-app` and the tests share this.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use trunkline::provider::Provider;
use trunkline::provider::embedded::{Embedded, Options};
use trunkline::{Builder, Schedule, Trunkline};

use crate::faulty::Faults;
use crate::kill::Worker;
use crate::ledger::{Account, Entry, read};
use crate::promise::{Lot, Site, builder, data, furnish_on, retries};

/// Short, so that a test with many deaths is.
pub const LEASE: Duration = Duration::from_millis(400);
/// How many messages a program handles at a time.
pub const CONCURRENCY: usize = 8;
/// How many it has in hand, at most.
pub const IN_HAND: usize = 32;
/// How many messages `suite-app produce-some` produces.
pub const SOME: u64 = 1_000;
/// How long a test waits for what other processes do.
const PATIENCE: Duration = Duration::from_secs(60);

/// A file of this name says that the broker is a server, whose config is in the catalogue.
const SERVER: &str = "server";

/// How each of the processes is opened: as any program, but with short leases.
#[must_use]
pub fn open(dir: &Path, faults: &Arc<Faults>) -> Builder {
    let (log, faulty) = (data(dir).join("log"), faults.between());
    if dir.join(SERVER).exists() {
        return builder(&data(dir), Lot::Store).single_host(true).wrap_providers(faulty);
    }
    builder(&data(dir), Lot::Store).wrap_providers(move |given| {
        let short = Embedded::open(Options { lease: LEASE, ..Options::new(&log) });
        faulty(short.map_or(given, |provider| Arc::new(provider) as Arc<dyn Provider>))
    })
}

/// When a failed message comes again: the first retry is held, the second waits in the lot.
#[must_use]
pub fn schedule() -> Schedule {
    retries(&[100, 5_100])
}

/// How often the handler of `suite-app consume` fails for a message.
#[must_use]
pub fn failures(n: u64) -> u32 {
    match n {
        n if n % 50 == 7 => 2,
        n if n % 10 == 3 => 1,
        _ => 0,
    }
}

/// Processes on one directory, what they write down, and an instance beside them. All end with it.
#[derive(Debug)]
pub struct Apps {
    /// Holds the data directory and the ledgers.
    pub dir: PathBuf,
    /// For what the test itself does.
    pub trunkline: Trunkline,
    /// The processes, in the order they were started.
    pub workers: Vec<Worker>,
    program: &'static str,
    ledgers: Vec<PathBuf>,
}

impl Apps {
    /// Nobody yet; a topic with these fields is there. `program` is the path of `suite-app`.
    ///
    /// # Panics
    /// If the instance cannot be opened.
    pub async fn new(program: &'static str, dir: &Path, topic: Value) -> Self {
        Apps::with(program, dir, &Site::embedded(serde_json::json!({})), topic).await
    }

    /// The same, on a server. The host of the processes is all there is.
    ///
    /// # Panics
    /// If the instance cannot be opened.
    pub async fn on_server(program: &'static str, dir: &Path, site: &Site, topic: Value) -> Self {
        std::fs::write(dir.join(SERVER), site.kind).unwrap();
        Apps::with(program, dir, site, topic).await
    }

    async fn with(program: &'static str, dir: &Path, site: &Site, topic: Value) -> Self {
        let trunkline = open(dir, &Arc::default()).open().await.unwrap();
        furnish_on(&trunkline, site, topic).await;
        Apps { dir: dir.to_owned(), trunkline, workers: Vec::new(), program, ledgers: Vec::new() }
    }

    /// Starts a process; its number.
    pub fn start(&mut self, what: &str, argument: &str) -> usize {
        let ledger = self.dir.join(format!("{}.ledger", self.ledgers.len()));
        self.ledgers.push(ledger.clone());
        let mut command = Command::new(self.program);
        command.arg(what).arg(&self.dir).arg(&ledger).arg(argument).stdin(Stdio::null());
        self.workers.push(Worker::run(command, ledger));
        self.workers.len() - 1
    }

    /// Waits until a process has ended by itself.
    ///
    /// # Panics
    /// If it takes too long.
    pub async fn ended(&mut self, at: usize) {
        let end = Instant::now() + PATIENCE;
        while !self.workers[at].ended() {
            assert!(Instant::now() < end, "the process did not end within {PATIENCE:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Sets the wall clock of all processes, those of later too, so many milliseconds off the host's. It returns when every
    /// process follows.
    ///
    /// # Panics
    /// If the file that says so cannot be written.
    pub fn set_clock(&self, by: i64) {
        let temporary = self.dir.join("clock.new");
        std::fs::write(&temporary, by.to_string()).unwrap();
        std::fs::rename(temporary, self.dir.join("clock")).unwrap();
        trunkline::clock::set(by);
        std::thread::sleep(5 * FOLLOW);
    }

    /// What all wrote down so far.
    #[must_use]
    pub fn entries(&self) -> Vec<Vec<Entry>> {
        self.ledgers.iter().map(|ledger| read(ledger).unwrap_or_default()).collect()
    }

    /// What it comes to.
    #[must_use]
    pub fn account(&self) -> Account {
        let mut account = Account::default();
        self.entries().iter().for_each(|entries| account.add(entries));
        account
    }

    /// Waits until the entries of all satisfy this. There is no event to wait for: they are other processes' files.
    ///
    /// # Panics
    /// If that takes too long.
    pub async fn wait(&self, what: &str, mut enough: impl FnMut(&[Vec<Entry>]) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !enough(&self.entries()) {
            assert!(Instant::now() < end, "not within {PATIENCE:?}: {what}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until everything confirmed was handled.
    pub async fn wait_for_all(&self) {
        self.wait("all that was confirmed is handled", |_| self.account().unhandled() == 0).await;
    }

    /// Ends everybody.
    pub async fn close(mut self) {
        self.workers.clear();
        self.trunkline.close(Duration::from_secs(5)).await;
    }
}

/// How often a process looks at the clock that it is told.
const FOLLOW: Duration = Duration::from_millis(2);

/// Sets the clock of this process to what the file beside the data says, from now on; at once, if there is one.
pub fn follow_clock(dir: &Path) {
    let path = dir.join("clock");
    let look = move || {
        if let Some(by) = std::fs::read_to_string(&path).ok().and_then(|text| text.parse().ok()) {
            trunkline::clock::set(by);
        }
    };
    look();
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(FOLLOW);
            look();
        }
    });
}
