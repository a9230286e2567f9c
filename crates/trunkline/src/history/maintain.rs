//! What has to be done beside recording: merging, dropping, replaying what another process left in the spill.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::error::{Error, Result};

use super::compact;
use super::encode::Encoder;
use super::files::failed;
use super::open::Options;
use super::reader::Blocks;
use super::retention;
use super::sink::Sink;
use super::spill::Spill;

/// Steps done in a row before the thread rests.
const STEPS: usize = 64;

#[derive(Debug)]
struct Tools {
    lock: File,
    sink: Sink,
    encoder: Encoder,
    spill: Spill,
    is_swept: bool,
}

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    process: String,
    options: Options,
    blocks: Arc<Blocks>,
    tools: Mutex<Option<Tools>>,
    ended: Mutex<bool>,
    wake: Condvar,
}

/// One process at a time merges and drops; the others find the lock taken and go on.
#[derive(Debug, Clone)]
pub(super) struct Maintainer(Arc<Inner>);

impl Maintainer {
    pub(super) fn new(root: &Path, process: &str, options: &Options, blocks: Arc<Blocks>) -> Self {
        Maintainer(Arc::new(Inner {
            root: root.to_owned(),
            process: format!("{process}m"),
            options: options.clone(),
            blocks,
            tools: Mutex::default(),
            ended: Mutex::new(false),
            wake: Condvar::new(),
        }))
    }

    /// Starts the thread, if there is to be one.
    pub(super) fn start(&self) -> Result<()> {
        let every = self.0.options.maintain_every;
        if every.is_zero() {
            return Ok(());
        }
        let own = self.clone();
        let started = std::thread::Builder::new().name("trunkline-maintain".into()).spawn(move || own.run(every));
        started.map(drop).map_err(|e| Error::store(format!("the history's thread cannot be started: {e}")))
    }

    fn run(&self, every: Duration) {
        loop {
            {
                let mut ended = self.0.ended.lock();
                if !*ended {
                    self.0.wake.wait_for(&mut ended, every);
                }
                if *ended {
                    return;
                }
            }
            for _ in 0..STEPS {
                match self.step() {
                    Ok(true) if !*self.0.ended.lock() => {}
                    Ok(_) => break,
                    Err(e) => {
                        tracing::warn!(error = %e, "the history cannot be maintained");
                        break;
                    }
                }
            }
        }
    }

    /// Ends the thread after the step it is at.
    pub(super) fn end(&self) {
        *self.0.ended.lock() = true;
        self.0.wake.notify_all();
    }

    /// One bounded step; `false` if there is nothing more to do now.
    pub(super) fn step(&self) -> Result<bool> {
        let mut tools = self.0.tools.lock();
        let result = self.step_with(&mut tools);
        if !matches!(result, Ok(true)) {
            // The lock and the files go with them: another process may be next.
            *tools = None;
        }
        result
    }

    fn step_with(&self, tools: &mut Option<Tools>) -> Result<bool> {
        if tools.is_none() {
            *tools = self.tools()?;
        }
        let Some(tools) = tools else { return Ok(false) };
        debug_assert!(tools.lock.metadata().is_ok());
        let now = self.0.options.clock.now();
        if tools.spill.replay(&mut tools.sink, now)? > 0 {
            return Ok(true);
        }
        if !tools.is_swept {
            retention::sweep(&tools.sink.index, &self.0.root, now)?;
            tools.is_swept = true;
        }
        let dropped = retention::step(&mut tools.sink.index, &self.0.root, self.0.options.max_bytes, now)?;
        let merged = compact::step(&mut tools.sink, &mut tools.encoder, &self.0.blocks, now)?;
        if !dropped && !merged {
            tools.sink.index.checkpoint().map_err(super::index::failed("checkpointing the history"))?;
        }
        Ok(dropped || merged)
    }

    /// What is needed, if no other process is at it.
    fn tools(&self) -> Result<Option<Tools>> {
        let inner = &self.0;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(inner.root.join("maintain.lock"))
            .map_err(failed("opening the history's lock"))?;
        if lock.try_lock().is_err() {
            return Ok(None);
        }
        // Each holder writes files of its own name: one that was closed is never opened again.
        let process = format!("{}{:04x}", inner.process, rand::random::<u16>());
        Ok(Some(Tools {
            lock,
            sink: Sink::open(&inner.root, &process, inner.options.max_bytes, inner.options.busy)?,
            encoder: Encoder::new(1)?,
            spill: Spill::new(&inner.root, &process, inner.options.max_spill_bytes),
            is_swept: false,
        }))
    }
}
