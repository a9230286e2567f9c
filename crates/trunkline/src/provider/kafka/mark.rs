//! What is written beside a committed offset: who owned the shard, what is settled beyond the offset, and which message
//! was started last. It makes a settle hold that is out of order, and counts the starts of a message that kills its
//! handlers.
//!
//! Kafka keeps a text beside each offset (4,096 characters unless the broker says otherwise). It is `tl1:` and base64url
//! of: flags, epoch, seek, in hand, suspects, count of suspects, mark, count of the mark, and a bit for each offset from the
//! committed one on that is settled. Numbers are little-endian.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

const PREFIX: &str = "tl1:";
const CLEAN: u8 = 1;

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Mark {
    /// The owner gave the shard up in peace: nobody was handling anything.
    pub(super) clean: bool,
    /// The ownership that wrote it.
    pub(super) epoch: u64,
    /// The last seek that was followed.
    pub(super) seek: u64,
    /// As many messages an owner may have in hand.
    pub(super) in_hand: u32,
    /// So many of the next messages may have been in hand when an owner died.
    pub(super) suspects: u32,
    /// How often these were handed out, at most.
    pub(super) suspect_count: u32,
    /// The message that was started alone, and how often it was handed out, at most.
    pub(super) started: Option<(i64, u32)>,
    /// Settled or not, from the committed offset on.
    pub(super) settled: Vec<bool>,
}

impl Mark {
    pub(super) fn encode(&self) -> String {
        let mut out = Vec::with_capacity(41 + self.settled.len() / 8 + 1);
        out.push(if self.clean { CLEAN } else { 0 });
        out.extend_from_slice(&self.epoch.to_le_bytes());
        out.extend_from_slice(&self.seek.to_le_bytes());
        out.extend_from_slice(&self.in_hand.to_le_bytes());
        out.extend_from_slice(&self.suspects.to_le_bytes());
        out.extend_from_slice(&self.suspect_count.to_le_bytes());
        let (at, count) = self.started.unwrap_or((-1, 0));
        out.extend_from_slice(&at.to_le_bytes());
        out.extend_from_slice(&count.to_le_bytes());
        let last = self.settled.iter().rposition(|settled| *settled).map_or(0, |at| at + 1);
        out.extend(self.settled[..last].chunks(8).map(|bits| bits.iter().rev().fold(0_u8, |byte, bit| byte << 1 | u8::from(*bit))));
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(out))
    }

    /// `None` for what another client wrote.
    pub(super) fn decode(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?.strip_prefix(PREFIX)?;
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let mut rest = &bytes[..];
        fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
            let (head, tail) = rest.split_first_chunk::<N>()?;
            *rest = tail;
            Some(*head)
        }
        let [flags] = take(&mut rest)?;
        let mut mark = Mark {
            clean: flags & CLEAN != 0,
            epoch: u64::from_le_bytes(take(&mut rest)?),
            seek: u64::from_le_bytes(take(&mut rest)?),
            in_hand: u32::from_le_bytes(take(&mut rest)?),
            suspects: u32::from_le_bytes(take(&mut rest)?),
            suspect_count: u32::from_le_bytes(take(&mut rest)?),
            ..Mark::default()
        };
        let (at, count) = (i64::from_le_bytes(take(&mut rest)?), u32::from_le_bytes(take(&mut rest)?));
        mark.started = (at >= 0).then_some((at, count));
        mark.settled = rest.iter().flat_map(|byte| (0..8).map(move |bit| byte >> bit & 1 == 1)).collect();
        Some(mark)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_survives_as_text() {
        let mark = Mark {
            clean: true,
            epoch: 7,
            seek: 1_700_000_000_123,
            in_hand: 256,
            suspects: 3,
            suspect_count: 2,
            started: Some((41, 5)),
            settled: vec![false, true, false, false, false, false, false, false, true, false],
        };
        let text = mark.encode();
        let back = Mark::decode(text.as_bytes()).expect("a mark");
        // What is not settled at the end is not written; the last byte is filled up.
        assert_eq!(back.settled.iter().rposition(|s| *s), Some(8));
        assert_eq!(back.settled[..9], mark.settled[..9]);
        assert_eq!(Mark { settled: Vec::new(), ..back }, Mark { settled: Vec::new(), ..mark });
        let none = Mark { started: None, settled: Vec::new(), ..mark };
        assert_eq!(Mark::decode(none.encode().as_bytes()), Some(none));
    }

    #[test]
    fn the_widest_window_fits_beside_an_offset() {
        let mark = Mark { settled: vec![true; super::super::window::WIDTH], ..Mark::default() };
        assert!(mark.encode().len() <= 4_096, "{}", mark.encode().len());
    }

    #[test]
    fn what_others_wrote_is_no_mark() {
        for text in [&b""[..], b"tl1:", b"tl1:AA", b"tl1:!!", b"host-1 12:30", b"\xff"] {
            assert_eq!(Mark::decode(text), None, "{text:?}");
        }
    }
}
