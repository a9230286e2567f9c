//! The history as the core sees it: there, or missing for a stated reason. Messages go on either way.

use std::path::Path;

use crate::error::Result;
use crate::history::{Batch, History, Options, Recorder};
use crate::{Code, Error};

/// See the module.
#[derive(Debug, Clone)]
pub(crate) enum Tracker {
    On(History, Recorder),
    Off(Error),
}

impl Tracker {
    /// Opens the history of a data directory. One that is damaged, newer or read-only is an error; a disk that is full or
    /// failing right now is not: this process then goes on without a history, and every query says why.
    pub(crate) fn open(directory: &Path) -> Result<Tracker> {
        let open = || -> Result<Tracker> {
            let history = History::open(directory, Options::default())?;
            let recorder = history.recorder()?;
            Ok(Tracker::On(history, recorder))
        };
        match open() {
            Err(error)
                if error.code() == Code::StoreFailed && !matches!(error.detail_str("reason"), Some("damaged" | "newer" | "read_only")) =>
            {
                tracing::warn!(%error, "this process keeps no history");
                Ok(Tracker::Off(error))
            }
            opened => opened,
        }
    }

    /// Never waits.
    pub(crate) fn record(&self, batch: Batch) {
        if let Tracker::On(_, recorder) = self {
            recorder.record(batch);
        }
    }

    /// Writes what this process did a moment ago.
    pub(crate) async fn flush(&self) -> Result<()> {
        match self {
            Tracker::On(_, recorder) => recorder.flush().await,
            Tracker::Off(_) => self.history().map(drop),
        }
    }

    /// The history, with what this process did a moment ago in it; where that cannot be written now it is shown as a gap,
    /// and the rest can be read all the same.
    pub(crate) async fn flushed(&self) -> Result<&History> {
        match self.flush().await {
            Err(error) if error.code() == Code::StoreFailed => tracing::warn!(%error, "the last of the history cannot be written"),
            flushed => flushed?,
        }
        self.history()
    }

    pub(crate) fn history(&self) -> Result<&History> {
        match self {
            Tracker::On(history, _) => Ok(history),
            Tracker::Off(error) => Err(error.clone().context("this process keeps no history")),
        }
    }

    pub(crate) async fn close(&self) -> Result<()> {
        match self {
            Tracker::On(history, _) => history.close().await,
            Tracker::Off(_) => Ok(()),
        }
    }
}
