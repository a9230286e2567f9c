//! Roll-ups: counts per minute, hour and day of each topic and group, so that statistics never read messages.
//!
//! They commit in one transaction with the blocks they were counted from: a recount of the blocks agrees.

use std::collections::HashMap;
use std::sync::Arc;

use serde::Serialize;

use crate::message::Millis;
use crate::store::Address;

use super::histogram::Histogram;
use super::row::{Kind, Tally};
use super::wire::{Input, put, put_bytes};
use super::{Capture, Filed};

/// The widths that are kept, in ms.
pub(super) const WIDTHS: [Millis; 3] = [60_000, 3_600_000, 86_400_000];

/// What was counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Counters {
    /// Confirmed produces.
    pub produced: u64,
    /// Produces that were given up.
    pub publish_failed: u64,
    /// Deliveries handled, drops included.
    pub delivered: u64,
    /// Attempts that failed.
    pub failed_attempts: u64,
    /// Failed attempts that are tried again.
    pub retried: u64,
    /// Deliveries buried.
    pub dead: u64,
    /// Replays.
    pub replayed: u64,
    /// Deliveries acked without success, by the handler's word.
    pub dropped: u64,
    /// Bytes of the payloads produced.
    pub bytes: u64,
    /// Messages of topics whose `capture` was `off`: counted above, but not to be found.
    #[serde(skip)]
    pub uncaptured: u64,
}

impl Counters {
    fn list(&self) -> [u64; 9] {
        [
            self.produced,
            self.publish_failed,
            self.delivered,
            self.failed_attempts,
            self.retried,
            self.dead,
            self.replayed,
            self.dropped,
            self.bytes,
        ]
    }

    fn list_mut(&mut self) -> [&mut u64; 9] {
        [
            &mut self.produced,
            &mut self.publish_failed,
            &mut self.delivered,
            &mut self.failed_attempts,
            &mut self.retried,
            &mut self.dead,
            &mut self.replayed,
            &mut self.dropped,
            &mut self.bytes,
        ]
    }

    /// Adds all of another.
    pub fn add(&mut self, other: &Counters) {
        for (mine, theirs) in self.list_mut().into_iter().zip(other.list()) {
            *mine += theirs;
        }
        self.uncaptured += other.uncaptured;
    }
}

/// Counters with their latencies.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) counters: Counters,
    pub(super) wait: Histogram,
    pub(super) run: Histogram,
}

impl Counts {
    /// Counts one record.
    pub(super) fn count(&mut self, row: &Tally) {
        let counters = &mut self.counters;
        match row.kind {
            Kind::Produced => {
                counters.produced += 1;
                counters.bytes += row.size;
            }
            Kind::Failed => counters.publish_failed += 1,
            Kind::Delivered => counters.delivered += 1,
            Kind::Dropped => {
                counters.delivered += 1;
                counters.dropped += 1;
            }
            Kind::Held | Kind::Waiting => {
                counters.failed_attempts += u64::from(row.failed);
                counters.retried += 1;
            }
            Kind::Dead => {
                // One that expired was never tried.
                counters.failed_attempts += u64::from(row.attempts > 0);
                counters.dead += 1;
            }
            Kind::Reprocessed => {}
            Kind::Replayed => counters.replayed += 1,
        }
        if row.is_first() {
            self.wait.add(row.first_us);
        }
        if row.kind.is_step() && row.kind != Kind::Reprocessed {
            self.run.add(row.run_us);
        }
    }

    pub(super) fn merge(&mut self, other: &Counts) {
        self.counters.add(&other.counters);
        self.wait.merge(&other.wait);
        self.run.merge(&other.run);
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(96);
        self.counters.list().iter().for_each(|count| put(&mut out, *count));
        self.wait.encode(&mut out);
        self.run.encode(&mut out);
        // Most have none: then it is left out.
        if self.counters.uncaptured > 0 {
            put(&mut out, self.counters.uncaptured);
        }
        out
    }

    /// Adds the counts of [`Counts::encode`].
    pub(super) fn merge_encoded(&mut self, bytes: &[u8]) -> Option<()> {
        let mut input = Input::new(bytes);
        for count in self.counters.list_mut() {
            *count += input.number()?;
        }
        self.wait.merge_encoded(&mut input)?;
        self.run.merge_encoded(&mut input)?;
        if !input.is_empty() {
            self.counters.uncaptured += input.number()?;
        }
        input.is_empty().then_some(())
    }
}

/// What one topic, or one group of it, adds.
#[derive(Debug)]
pub(super) struct Series {
    pub(super) address: Address,
    pub(super) group: Arc<str>,
    /// Whether what is counted can be found.
    captured: bool,
    /// By the start of the minute.
    pub(super) minutes: Vec<(Millis, Counts)>,
}

/// What a run of batches adds to the roll-ups.
#[derive(Debug, Default)]
pub(super) struct Deltas {
    pub(super) series: Vec<Series>,
    /// By the addresses of topic and group; held, so that no other comes to lie there.
    known: HashMap<(usize, usize), usize>,
    held: Vec<(Arc<Filed>, Option<Arc<str>>)>,
}

impl Deltas {
    /// Where to count what one topic, and group, does.
    pub(super) fn series(&mut self, filed: &Arc<Filed>, group: Option<&Arc<str>>) -> &mut Series {
        let key = (Arc::as_ptr(filed) as usize, group.map_or(0, |group| group.as_ptr() as usize));
        let at = *self.known.entry(key).or_insert_with(|| {
            self.held.push((filed.clone(), group.cloned()));
            self.series.push(Series {
                address: filed.address.clone(),
                group: group.cloned().unwrap_or_else(|| "".into()),
                captured: filed.class.capture != Capture::Off,
                minutes: Vec::new(),
            });
            self.series.len() - 1
        });
        &mut self.series[at]
    }

    pub(super) fn is_empty(&self) -> bool {
        self.series.is_empty()
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        put(out, self.series.len() as u64);
        for series in &self.series {
            for text in [&*series.address.product, &*series.address.env, series.address.event.as_str(), &*series.group] {
                put_bytes(out, text.as_bytes());
            }
            put(out, series.minutes.len() as u64);
            for (minute, counts) in &series.minutes {
                put(out, *minute);
                put_bytes(out, &counts.encode());
            }
        }
    }

    pub(super) fn decode(input: &mut Input<'_>) -> Option<Deltas> {
        let mut deltas = Deltas::default();
        for _ in 0..input.number()? {
            let (product, env, event, group) = (input.text()?, input.text()?, input.text()?, input.text()?);
            let address = Address { product: product.into(), env: env.into(), event: event.parse().ok()? };
            let mut series = Series { address, group: group.into(), captured: true, minutes: Vec::new() };
            for _ in 0..input.number()? {
                let minute = input.number()?;
                let mut counts = Counts::default();
                counts.merge_encoded(input.bytes()?)?;
                series.minutes.push((minute, counts));
            }
            deltas.series.push(series);
        }
        Some(deltas)
    }
}

impl Series {
    /// Counts one record, in the minute it ended in.
    #[inline]
    pub(super) fn count(&mut self, row: &Tally) {
        let ms = row.ended_us() / 1_000;
        let minute = ms - ms % WIDTHS[0];
        let at = self.minutes.iter().rposition(|(known, _)| *known == minute).unwrap_or_else(|| {
            self.minutes.push((minute, Counts::default()));
            self.minutes.len() - 1
        });
        self.minutes[at].1.count(row);
        if !self.captured && matches!(row.kind, Kind::Produced | Kind::Failed) {
            self.minutes[at].1.counters.uncaptured += 1;
        }
    }
}
