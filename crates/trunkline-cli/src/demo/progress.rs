//! The demo while it runs: bars on a terminal, plain lines elsewhere, nothing for programs.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::demo::members::GROUPS;
use crate::output;

/// How often a plain line is written.
const EACH: Duration = Duration::from_secs(1);

/// How far the demo is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    /// Confirmed produces.
    pub(crate) produced: u64,
    /// Of each group: handled, failed runs, dead letters.
    pub(crate) groups: [(u64, u64, u64); GROUPS.len()],
}

impl Standing {
    /// Whether every message of every group has come to an end.
    pub(crate) fn is_over(&self, messages: u64) -> bool {
        self.produced >= messages && self.groups.iter().all(|(done, _, dead)| done + dead >= messages)
    }

    fn line(&self, messages: u64) -> String {
        let mut line = format!("produced {} of {}", output::count(self.produced), output::count(messages));
        for (group, (done, failed, dead)) in GROUPS.iter().zip(self.groups) {
            line.push_str(&format!("; {} handled {}", group.name, output::count(done)));
            if failed > 0 {
                line.push_str(&format!(", {} failed runs, {} dead letters", output::count(failed), output::count(dead)));
            }
        }
        line
    }
}

/// Whatever shows the progress.
#[derive(Debug)]
pub(crate) enum Progress {
    /// For programs.
    Silent,
    /// Not a terminal: a line a second.
    Lines { messages: u64, last: Option<Instant>, said: Standing },
    /// A terminal: a bar for the producers and one for each group.
    Bars { all: MultiProgress, produced: ProgressBar, groups: Vec<ProgressBar> },
}

impl Progress {
    /// For so many messages.
    pub(crate) fn new(messages: u64, json: bool) -> Self {
        if json {
            return Progress::Silent;
        }
        if !std::io::stderr().is_terminal() {
            return Progress::Lines { messages, last: None, said: Standing::default() };
        }
        let all = MultiProgress::new();
        let style =
            ProgressStyle::with_template("{prefix:>10} {bar:36} {pos:>6} of {len}  {msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = |name: &'static str| all.add(ProgressBar::new(messages).with_style(style.clone()).with_prefix(name));
        let produced = bar("produced");
        let groups = GROUPS.iter().map(|group| bar(group.name)).collect();
        Progress::Bars { all, produced, groups }
    }

    /// Shows where it stands.
    pub(crate) fn show(&mut self, now: Standing) {
        match self {
            Progress::Silent => {}
            Progress::Lines { messages, last, said } => {
                let due = last.is_none_or(|last| last.elapsed() >= EACH);
                if due && now != *said {
                    output::note(now.line(*messages));
                    (*last, *said) = (Some(Instant::now()), now);
                }
            }
            Progress::Bars { produced, groups, .. } => {
                produced.set_position(now.produced);
                for (bar, (done, failed, dead)) in groups.iter().zip(now.groups) {
                    bar.set_position(done + dead);
                    if failed > 0 {
                        bar.set_message(format!("{failed} failed runs, {dead} dead letters"));
                    }
                }
            }
        }
    }

    /// The last word.
    pub(crate) fn finish(self, now: Standing) {
        match self {
            Progress::Silent => {}
            Progress::Lines { messages, said, .. } => {
                if now != said {
                    output::note(now.line(messages));
                }
            }
            Progress::Bars { all, produced, groups } => {
                produced.finish();
                groups.iter().for_each(ProgressBar::finish);
                drop(all);
                // The bars stay; what follows begins on a line of its own.
                output::note("\n");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_over_when_every_group_is_through() {
        let mut now = Standing { produced: 10, groups: [(8, 6, 2), (9, 0, 0)] };
        assert!(!now.is_over(10), "one is missing at audit");
        now.groups[1].0 = 10;
        assert!(now.is_over(10));
        assert_eq!(now.line(10), "produced 10 of 10; billing handled 8, 6 failed runs, 2 dead letters; audit handled 10");
    }
}
