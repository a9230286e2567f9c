//! Levels: how wide the ids of one block may lie apart, so that a lookup knows how far to look.
//!
//! Fresh records of one moment go to level 0. What comes late (an outcome an hour after its produce) would stretch a block
//! over an hour, so it is put apart, in a block of a level that allows it.

use crate::message::Millis;

/// The widest span of ids, in ms, by level.
pub(super) const SPANS: [Millis; 5] = [1_000, 10_000, 100_000, 3_600_000, 86_400_000];

/// Fewer records than this do not get a narrow block of their own if they can go to a wider one.
const MIN: usize = 16;

/// The level of a block whose ids lie between `from` and `to`, both included.
pub(super) fn level_of(from: Millis, to: Millis) -> u8 {
    SPANS.iter().position(|span| to - from < *span).unwrap_or(SPANS.len() - 1) as u8
}

/// Splits records, sorted by id, into blocks: `times[i]` is the time in the id of record `i`. Each block holds at most
/// `max` records, and its ids lie less than a day apart. `min` is [`MIN`] where blocks are written at once; a compactor asks
/// for more, to make many small blocks into fewer wide ones.
pub(super) fn split(times: &[Millis], min: Option<usize>, max: usize) -> Vec<Vec<u32>> {
    let min = min.unwrap_or(MIN).min(max);
    let mut blocks = Vec::new();
    let mut left: Vec<u32> = (0..times.len() as u32).collect();
    for (level, span) in SPANS.iter().enumerate() {
        let last = level + 1 == SPANS.len();
        let mut rest = Vec::new();
        let mut end = left.len();
        while end > 0 {
            let newest = times[left[end - 1] as usize];
            let start = left[..end].partition_point(|i| times[*i as usize] + span <= newest);
            // Records that are all there is would only be stretched by waiting for company.
            if last || end - start >= min || (start == 0 && end == left.len() && rest.is_empty()) {
                chunk(&left[start..end], max, &mut blocks);
                end = start;
            } else {
                rest.push(left[end - 1]);
                end -= 1;
            }
        }
        if rest.is_empty() {
            break;
        }
        rest.reverse();
        left = rest;
    }
    blocks
}

/// Even parts of at most `max`, so that no tiny one remains.
fn chunk(part: &[u32], max: usize, blocks: &mut Vec<Vec<u32>>) {
    let parts = part.len().div_ceil(max).max(1);
    blocks.extend(part.chunks(part.len().div_ceil(parts).max(1)).map(<[u32]>::to_vec));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_ones_are_put_apart() {
        let now = 10_000_000;
        let mut times: Vec<u64> = (0..5).map(|i| now - 3_000_000 + i * 50_000).collect();
        times.extend((0..2_000).map(|i| now + i / 10));
        let blocks = split(&times, None, 1_000);
        assert_eq!(blocks.iter().map(Vec::len).collect::<Vec<_>>(), [1_000, 1_000, 5]);
        let levels: Vec<u8> = blocks.iter().map(|b| level_of(times[b[0] as usize], times[b[b.len() - 1] as usize])).collect();
        assert_eq!(levels, [0, 0, 3]);
    }

    #[test]
    fn every_record_is_in_one_block_within_its_span() {
        let mut times: Vec<u64> = (0..3_000u64).map(|i| (i * 7_919_113) % 400_000_000 + (i % 3) * 1_000_000_000).collect();
        times.sort_unstable();
        for max in [1, 7, 1_000] {
            let blocks = split(&times, None, max);
            let mut all: Vec<u32> = blocks.iter().flatten().copied().collect();
            all.sort_unstable();
            assert_eq!(all, (0..3_000).collect::<Vec<u32>>());
            for block in &blocks {
                let (from, to) = (times[block[0] as usize], times[block[block.len() - 1] as usize]);
                assert!(block.len() <= max && to - from < SPANS[usize::from(level_of(from, to))]);
            }
        }
        assert!(split(&[], None, 10).is_empty());
        assert_eq!(split(&[5, 5_000], None, 10), [[0, 1]]);
    }
}
