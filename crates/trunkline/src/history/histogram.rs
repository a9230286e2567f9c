//! Latencies in fixed buckets: any two histograms can be added, whoever made them.
//!
//! Four buckets to each doubling, from 4 µs to nine hours: a percentile is off by at most an eighth.

use super::wire::{Input, put};

/// How many buckets there are.
pub(super) const BUCKETS: usize = 128;

/// Counts per bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Histogram {
    counts: Box<[u64; BUCKETS]>,
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram { counts: Box::new([0; BUCKETS]) }
    }
}

fn bucket(micros: u64) -> usize {
    if micros < 16 {
        return (micros >> 2) as usize;
    }
    let octave = 63 - micros.leading_zeros() as usize;
    ((octave - 3) * 4 + ((micros >> (octave - 2)) & 3) as usize).min(BUCKETS - 1)
}

/// The middle of a bucket, in microseconds.
fn middle(bucket: usize) -> f64 {
    if bucket < 4 {
        return (bucket * 4 + 2) as f64;
    }
    let width = (1u64 << (bucket / 4 + 1)) as f64;
    (4 + bucket % 4) as f64 * width + width / 2.0
}

impl Histogram {
    /// Counts one.
    #[inline]
    pub(super) fn add(&mut self, micros: u64) {
        self.counts[bucket(micros)] += 1;
    }

    /// Adds all of another.
    pub(super) fn merge(&mut self, other: &Histogram) {
        for (mine, theirs) in self.counts.iter_mut().zip(other.counts.iter()) {
            *mine += theirs;
        }
    }

    /// How many were counted.
    pub(super) fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The value below which this share lies, in ms; `None` if nothing was counted.
    pub(super) fn percentile(&self, share: f64) -> Option<f64> {
        let total = self.total();
        let rank = ((total as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        for (at, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Some(middle(at) / 1_000.0);
            }
        }
        None
    }

    /// Pairs of bucket and count, only where something was counted.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        put(out, self.counts.iter().filter(|count| **count > 0).count() as u64);
        for (at, count) in self.counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            out.push(at as u8);
            put(out, *count);
        }
    }

    /// Adds the histogram of [`Histogram::encode`].
    pub(super) fn merge_encoded(&mut self, input: &mut Input<'_>) -> Option<()> {
        for _ in 0..input.number()? {
            let at = usize::from(input.byte()?);
            *self.counts.get_mut(at)? += input.number()?;
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_narrow_and_in_order() {
        let mut last = 0;
        for micros in (0..2_000).chain((11..34).flat_map(|o| [1u64 << o, (1 << o) + (1 << (o - 1)), (1 << (o + 1)) - 1])) {
            let at = bucket(micros);
            assert!(at >= last || micros < 2_048, "{micros}");
            last = at;
            assert!((middle(at) - micros as f64).abs() <= (micros as f64 / 7.0).max(2.0), "{micros} {}", middle(at));
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn merging_is_adding() {
        let (mut a, mut b, mut both) = (Histogram::default(), Histogram::default(), Histogram::default());
        for i in 0..1_000u64 {
            let micros = i * i * 37;
            if i % 3 == 0 {
                a.add(micros)
            } else {
                b.add(micros)
            }
            both.add(micros);
        }
        let mut out = Vec::new();
        b.encode(&mut out);
        a.merge_encoded(&mut Input::new(&out)).expect("encoded");
        assert_eq!(a, both);
        assert_eq!(Histogram::default().percentile(0.5), None);
        let p50 = both.percentile(0.5).expect("counted");
        assert!((p50 - 9_250.0).abs() < 9_250.0 / 7.0, "{p50}");
    }
}
