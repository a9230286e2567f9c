//! When a schedule fires: once, every so often, or by a cron pattern in a time zone.

use std::time::Duration;

use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::{AmbiguousOffset, TimeZone};
use serde_json::{Map, Value, json};

use crate::config::fields::{Field, INPUT, Kind};
use crate::error::{Error, Result};
use crate::message::{Millis, millis};
use crate::policy_config::{duration, humane};

/// The shortest time between two firings.
const EVERY_LEAST: Duration = Duration::from_secs(1);
/// So many missed firings are counted one by one.
const COUNTED: u64 = 10_000;
/// So many times of a clock that repeats itself are passed over.
const REPEATED: usize = 100_000;

const TIMING: &[Field] = &[
    Field::new("start_at", Kind::By(instant_like)).aliases(&["startAt"]),
    Field::new("cron", Kind::Text),
    Field::new("every", Kind::Duration),
    Field::new("limit", Kind::Int(1, i64::MAX)),
    Field::new("endDate", Kind::By(instant_like)).aliases(&["end_date"]),
    Field::new("tz", Kind::Text),
];

/// When a schedule fires. `cron` and `every` exclude each other; without either it fires once, at `start_at`.
///
/// ```
/// use std::time::Duration;
/// use trunkline::schedules::Timing;
/// let daily = Timing::cron("0 9 * * MON-FRI").tz("Europe/Berlin").limit(10);
/// let often = Timing::every(Duration::from_secs(60));
/// assert_eq!(often.every, Some(Duration::from_secs(60)));
/// assert_eq!(daily.limit, Some(10));
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Timing {
    /// Not before this (ms since 1970). With `every` it is the first firing (default: one `every` from now).
    pub start_at: Option<Millis>,
    /// A cron pattern of five fields, or of six with seconds in front: `0 9 * * MON-FRI`, `@hourly`.
    pub cron: Option<String>,
    /// The time from one firing to the next; at least 1 s.
    pub every: Option<Duration>,
    /// At most so many firings; missed ones do not count.
    pub limit: Option<u64>,
    /// Nothing fires at or after this (ms since 1970).
    pub end_date: Option<Millis>,
    /// The time zone of `cron`, by its IANA name (default: UTC).
    pub tz: Option<String>,
}

impl Timing {
    /// Once, at this time (ms since 1970); at once if that has passed.
    #[must_use]
    pub fn at(at: Millis) -> Self {
        Timing { start_at: Some(at), ..Timing::default() }
    }

    /// Every so often.
    #[must_use]
    pub fn every(every: Duration) -> Self {
        Timing { every: Some(every), ..Timing::default() }
    }

    /// By a cron pattern.
    #[must_use]
    pub fn cron(pattern: impl Into<String>) -> Self {
        Timing { cron: Some(pattern.into()), ..Timing::default() }
    }

    /// Not before this (ms since 1970).
    #[must_use]
    pub fn starting(mut self, at: Millis) -> Self {
        self.start_at = Some(at);
        self
    }

    /// At most so many firings.
    #[must_use]
    pub fn limit(mut self, firings: u64) -> Self {
        self.limit = Some(firings);
        self
    }

    /// Nothing at or after this (ms since 1970).
    #[must_use]
    pub fn until(mut self, end: Millis) -> Self {
        self.end_date = Some(end);
        self
    }

    /// In this time zone.
    #[must_use]
    pub fn tz(mut self, name: impl Into<String>) -> Self {
        self.tz = Some(name.into());
        self
    }

    /// Reads `{ start_at?, cron?, every?, limit?, endDate?, tz? }`. Times are milliseconds since 1970 or texts: RFC 3339, or
    /// without an offset, by the clocks of `tz`.
    ///
    /// # Errors
    /// `INPUT_INVALID` naming the field.
    pub fn read(path: &str, value: &Value) -> Result<Self> {
        let map = INPUT.object(path, TIMING, value)?;
        let text = |name: &str| map.get(name).and_then(Value::as_str).map(str::to_owned);
        let tz = text("tz");
        let zone = zone(tz.as_deref())?;
        let time = |name: &str| map.get(name).map(|value| instant(name, value, &zone)).transpose();
        Ok(Timing {
            start_at: time("start_at")?,
            cron: text("cron"),
            every: map.get("every").map(|value| duration("every", value)).transpose()?,
            limit: map.get("limit").and_then(Value::as_u64),
            end_date: time("endDate")?,
            tz,
        })
    }

    /// As it is written.
    #[must_use]
    pub fn to_value(&self) -> Value {
        let fields = [
            ("start_at", self.start_at.map(Value::from)),
            ("cron", self.cron.clone().map(Value::from)),
            ("every", self.every.map(|every| humane(every).into())),
            ("limit", self.limit.map(Value::from)),
            ("endDate", self.end_date.map(Value::from)),
            ("tz", self.tz.clone().map(Value::from)),
        ];
        let given: Map<String, Value> = fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect();
        json!(given)
    }
}

fn wrong(field: &str, message: impl Into<String>) -> Error {
    Error::input(field, message)
}

fn instant_like(path: &str, value: &Value) -> Result<()> {
    instant(path, value, &TimeZone::UTC).map(drop)
}

/// A time as it is given: milliseconds, RFC 3339, or a date and time by the clocks of a zone.
fn instant(path: &str, value: &Value, zone: &TimeZone) -> Result<Millis> {
    let read = match value {
        Value::Number(ms) => ms.as_u64(),
        Value::String(text) => {
            let absolute = text.parse::<Timestamp>().ok();
            absolute.or_else(|| text.parse::<DateTime>().ok().and_then(|civil| resolve(zone, civil))).and_then(of_timestamp)
        }
        _ => None,
    };
    read.ok_or_else(|| INPUT.wrong(path, "milliseconds since 1970 or a time like '2026-11-22T09:00:00Z'", value))
}

fn zone(name: Option<&str>) -> Result<TimeZone> {
    let Some(name) = name else { return Ok(TimeZone::UTC) };
    TimeZone::get(name).map_err(|_| {
        wrong("tz", format!("`tz`: '{name}' is no time zone that is known here"))
            .next("use an IANA name like Europe/Berlin or America/New_York")
    })
}

fn of_timestamp(at: Timestamp) -> Option<Millis> {
    u64::try_from(at.as_millisecond()).ok()
}

/// The moment at which the clocks of a zone show this: right after the gap if they never do, the first one if they do twice.
fn resolve(zone: &TimeZone, civil: DateTime) -> Option<Timestamp> {
    let ambiguous = zone.to_ambiguous_timestamp(civil);
    match ambiguous.offset() {
        // By the later offset the time lies before the gap, so the next change of the zone is the gap's end.
        AmbiguousOffset::Gap { after, .. } => zone.following(after.to_timestamp(civil).ok()?).next().map(|change| change.timestamp()),
        _ => ambiguous.earlier().ok(),
    }
}

/// A timing that was checked, and can be asked.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    rhythm: Rhythm,
    start: Option<Millis>,
    end: Option<Millis>,
    limit: Option<u64>,
}

#[derive(Debug, Clone)]
enum Rhythm {
    Once(Millis),
    Every { first: Millis, every: u64 },
    Cron(Box<Pattern>),
}

#[derive(Debug, Clone)]
struct Pattern {
    cron: Cron,
    zone: TimeZone,
    /// It runs in every hour: then it goes on through the hour that clocks show twice, and has nothing to do in one they skip.
    hourly: bool,
}

impl Plan {
    /// Checks a timing; with it, the timing as it is to be stored, whose `every` has a first firing.
    ///
    /// # Errors
    /// `INPUT_INVALID` naming the field.
    pub(crate) fn of(mut timing: Timing, now: Millis) -> Result<(Plan, Timing)> {
        let zone = zone(timing.tz.as_deref())?;
        if timing.limit == Some(0) {
            return Err(wrong("limit", "`limit` must be at least 1"));
        }
        let rhythm = match (&timing.cron, timing.every) {
            (Some(_), Some(_)) => return Err(wrong("every", "`cron` and `every` exclude each other")),
            (Some(pattern), None) => Rhythm::Cron(Box::new(Pattern::read(pattern, zone)?)),
            (None, Some(every)) if every < EVERY_LEAST => return Err(wrong("every", "`every` must be at least 1 s")),
            (None, Some(every)) => {
                let first = *timing.start_at.get_or_insert(now + millis(every));
                Rhythm::Every { first, every: millis(every) }
            }
            (None, None) => Rhythm::Once(timing.start_at.ok_or_else(|| {
                wrong("start_at", "a schedule needs `start_at`, `cron` or `every`")
                    .next("for one message after a while, produce it with a delay")
            })?),
        };
        let plan = Plan { rhythm, start: timing.start_at, end: timing.end_date, limit: timing.limit };
        if plan.first(now).is_none() {
            let field = if timing.end_date.is_some() { "endDate" } else { "cron" };
            return Err(wrong(field, "the schedule would never fire").next("check `cron`, `start_at` and `endDate`"));
        }
        Ok((plan, timing))
    }

    /// The plan of a timing that was stored.
    pub(crate) fn stored(timing: &Value, now: Millis) -> Result<Plan> {
        let timing = Timing::read("schedule", timing)?;
        let zone = zone(timing.tz.as_deref())?;
        let rhythm = match (&timing.cron, timing.every) {
            (Some(pattern), _) => Rhythm::Cron(Box::new(Pattern::read(pattern, zone)?)),
            (None, Some(every)) => Rhythm::Every { first: timing.start_at.unwrap_or(now), every: millis(every) },
            (None, None) => Rhythm::Once(timing.start_at.unwrap_or(now)),
        };
        Ok(Plan { rhythm, start: timing.start_at, end: timing.end_date, limit: timing.limit })
    }

    /// The first due time of a schedule that is made or resumed now: none that has passed, but for one that fires once.
    pub(crate) fn first(&self, now: Millis) -> Option<Millis> {
        match self.rhythm {
            Rhythm::Once(at) => Some(at).filter(|at| self.is_before_end(*at)),
            _ => self.next_after(now.saturating_sub(1)),
        }
    }

    /// The due time that follows, if there is one before the end.
    pub(crate) fn next_after(&self, after: Millis) -> Option<Millis> {
        let next = match &self.rhythm {
            Rhythm::Once(at) => Some(*at).filter(|at| *at > after),
            Rhythm::Every { first, .. } if after < *first => Some(*first),
            Rhythm::Every { first, every } => ((after - first) / every + 1).checked_mul(*every).and_then(|by| first.checked_add(by)),
            Rhythm::Cron(pattern) => pattern.next_after(self.start.map_or(after, |start| after.max(start.saturating_sub(1)))),
        };
        next.filter(|at| self.is_before_end(*at))
    }

    fn is_before_end(&self, at: Millis) -> bool {
        self.end.is_none_or(|end| at < end)
    }

    /// The due time after one that was fired as number `fired`.
    pub(crate) fn follow(&self, due: Millis, fired: u64) -> Option<Millis> {
        if self.limit.is_some_and(|limit| fired >= limit) { None } else { self.next_after(due) }
    }

    /// Of what has been due since `due`: the latest, and how many lie before it. More than 10,000 are not counted one by one.
    pub(crate) fn latest(&self, due: Millis, now: Millis) -> (Millis, u64) {
        let (mut latest, mut missed) = (due, 0);
        if let Rhythm::Every { every, .. } = self.rhythm {
            let last = self.end.map_or(now, |end| now.min(end.saturating_sub(1)));
            missed = last.saturating_sub(due) / every;
            return (due + missed * every, missed);
        }
        while let Some(next) = self.next_after(latest).filter(|next| *next <= now) {
            (latest, missed) = (next, missed + 1);
            if missed == COUNTED {
                return (self.near(latest, now), missed);
            }
        }
        (latest, missed)
    }

    /// The latest due time up to now, looked for backwards in growing steps.
    fn near(&self, from: Millis, now: Millis) -> Millis {
        const MINUTE: u64 = 60_000;
        for back in [1, 60, 1_440, 1_440 * 31, 1_440 * 366].map(|minutes| minutes * MINUTE) {
            let mut latest = None;
            let mut at = now.saturating_sub(back).max(from);
            while let Some(next) = self.next_after(at).filter(|next| *next <= now) {
                (at, latest) = (next, Some(next));
            }
            if let Some(latest) = latest {
                return latest;
            }
        }
        from
    }
}

impl Pattern {
    fn read(pattern: &str, zone: TimeZone) -> Result<Self> {
        let parser = CronParser::builder().seconds(Seconds::Optional).year(Year::Disallowed).build();
        let cron = parser.parse(pattern.trim()).map_err(|error| {
            wrong("cron", format!("`cron`: {error}"))
                .next("write minute, hour, day of month, month and day of week, as in `0 9 * * MON-FRI`")
        })?;
        let fields: Vec<&str> = pattern.split_whitespace().collect();
        let hourly = match fields.as_slice() {
            [_, hour, _, _, _] | [_, _, hour, _, _, _] => *hour == "*",
            [name] => name.eq_ignore_ascii_case("@hourly"),
            _ => false,
        };
        Ok(Pattern { cron, zone, hourly })
    }

    fn next_after(&self, after: Millis) -> Option<Millis> {
        // A pattern knows whole seconds.
        let second = Timestamp::from_second(i64::try_from(after / 1_000).ok()?).ok()?;
        let here = second.to_zoned(self.zone.clone());
        if self.hourly {
            return self.cron.find_next_occurrence(&here, false).ok().and_then(|next| of_timestamp(next.timestamp()));
        }
        let mut civil = here.datetime();
        // In the hour that clocks show for the second time, all that they show has been.
        for _ in 0..REPEATED {
            civil = self.cron.find_next_occurrence(&civil, false).ok()?;
            let at = of_timestamp(resolve(&self.zone, civil)?)?;
            if at > after {
                return Some(at);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    const NOW: Millis = 1_800_000_000_000;

    fn ms(text: &str) -> Millis {
        instant("t", &text.into(), &TimeZone::UTC).expect("a time")
    }

    fn plan(timing: Timing) -> Plan {
        Plan::of(timing, NOW).expect("a plan").0
    }

    /// The due times from a moment on, in UTC.
    fn times(timing: Timing, from: &str, n: usize) -> Vec<String> {
        let plan = Plan::of(timing, ms(from)).expect("a plan").0;
        std::iter::successors(plan.first(ms(from)), |at| plan.next_after(*at))
            .take(n)
            .map(|at| Timestamp::from_millisecond(at as i64).expect("a time").to_string())
            .collect()
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let field = |value: Value| {
            let error = Timing::read("schedule", &value).and_then(|timing| Plan::of(timing, NOW)).expect_err("refused");
            assert_eq!(error.code(), Code::InputInvalid, "{error:?}");
            error.detail_str("field").unwrap_or_default().rsplit('.').next().unwrap_or_default().to_owned()
        };
        assert_eq!(field(json!({ "limit": 3 })), "start_at");
        assert_eq!(field(json!({ "cron": "* * * * *", "every": "5m" })), "every");
        assert_eq!(field(json!({ "every": 999 })), "every");
        assert_eq!(field(json!({ "every": "soon" })), "every");
        assert_eq!(field(json!({ "every": "1m", "limit": 0 })), "limit");
        assert_eq!(field(json!({ "cron": "99 * * * *" })), "cron");
        assert_eq!(field(json!({ "cron": "0 0 30 2 *" })), "cron");
        assert_eq!(field(json!({ "cron": "0 9 * * *", "tz": "Europe/Berlinn" })), "tz");
        assert_eq!(field(json!({ "start_at": "tomorrow" })), "start_at");
        assert_eq!(field(json!({ "every": "1m", "endDate": NOW })), "endDate");
        assert_eq!(field(json!({ "evry": "1m" })), "evry");
    }

    #[test]
    fn a_timing_survives_its_text() {
        let value = json!({ "start_at": NOW, "every": "1m 30s", "limit": 3, "endDate": NOW + 1_000_000, "tz": "Europe/Berlin" });
        let timing = Timing::read("schedule", &value).expect("a timing");
        assert_eq!(timing.to_value(), value);
        let local = Timing::read("schedule", &json!({ "start_at": "2026-07-01T09:00:00", "tz": "Europe/Berlin" })).expect("local");
        assert_eq!(local.start_at, Some(ms("2026-07-01T07:00:00Z")));
    }

    #[test]
    fn every_counts_from_its_start_and_the_end_is_not_part() {
        let every = Timing::every(Duration::from_secs(60));
        let first = |timing: Timing| plan(timing).first(NOW);
        assert_eq!(first(every.clone()), Some(NOW + 60_000));
        assert_eq!(first(every.clone().starting(NOW - 90_000)), Some(NOW + 30_000), "what has passed is no firing");
        assert_eq!(first(every.clone().starting(NOW)), Some(NOW));
        let ended = plan(every.until(NOW + 120_000));
        assert_eq!((ended.next_after(NOW), ended.next_after(NOW + 60_000)), (Some(NOW + 60_000), None));
        assert_eq!(ended.latest(NOW + 60_000, NOW + 900_000), (NOW + 60_000, 0));
        assert_eq!(first(Timing::at(NOW - 5)), Some(NOW - 5), "one that fires once fires although its time has passed");
    }

    #[test]
    fn a_time_that_clocks_skip_fires_right_after_the_gap() {
        let daily = |cron: &str| Timing::cron(cron).tz("Europe/Berlin");
        // On 29 March 2026 clocks go from 2:00 to 3:00, which is 1:00 UTC.
        let from = "2026-03-28T12:00:00Z";
        assert_eq!(times(daily("30 2 * * *"), from, 2), ["2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"]);
        assert_eq!(times(daily("0,30 2,3 * * *"), from, 3), ["2026-03-29T01:00:00Z", "2026-03-29T01:30:00Z", "2026-03-30T00:00:00Z"]);
        let hourly = times(daily("30 * * * *"), "2026-03-29T00:00:00Z", 3);
        assert_eq!(hourly, ["2026-03-29T00:30:00Z", "2026-03-29T01:30:00Z", "2026-03-29T02:30:00Z"]);
    }

    #[test]
    fn a_time_that_clocks_show_twice_fires_the_first_time() {
        let daily = |cron: &str| Timing::cron(cron).tz("Europe/Berlin");
        // On 25 October 2026 clocks go from 3:00 back to 2:00, which is 1:00 UTC.
        let from = "2026-10-24T12:00:00Z";
        assert_eq!(times(daily("30 2 * * *"), from, 2), ["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"]);
        assert_eq!(times(daily("0,30 2 * * *"), from, 3), ["2026-10-25T00:00:00Z", "2026-10-25T00:30:00Z", "2026-10-26T01:00:00Z"]);
        assert_eq!(times(daily("30 2 * * *"), "2026-10-25T01:10:00Z", 1), ["2026-10-26T01:30:00Z"]);
        let hourly = times(daily("30 * * * *"), "2026-10-25T00:00:00Z", 3);
        assert_eq!(hourly, ["2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z", "2026-10-25T02:30:00Z"], "every hour is every hour");
    }

    #[test]
    fn of_what_was_missed_the_latest_is_left() {
        let hourly = plan(Timing::cron("0 * * * *"));
        let due = hourly.first(NOW).expect("due");
        assert_eq!(hourly.latest(due, due), (due, 0));
        assert_eq!(hourly.latest(due, due + 3 * 3_600_000 + 5), (due + 3 * 3_600_000, 3));
        let secondly = plan(Timing::cron("* * * * * *"));
        assert_eq!(secondly.latest(NOW, NOW + 40_000_500), (NOW + 40_000_000, COUNTED));
        let every = plan(Timing::every(Duration::from_secs(1)).starting(NOW));
        assert_eq!(every.latest(NOW, NOW + 40_000_500), (NOW + 40_000_000, 40_000));
        assert_eq!(plan(Timing::at(NOW)).latest(NOW, NOW + 1_000_000), (NOW, 0));
    }

    #[test]
    fn a_limit_ends_it() {
        let twice = plan(Timing::every(Duration::from_secs(1)).starting(NOW).limit(2));
        assert_eq!((twice.follow(NOW, 1), twice.follow(NOW + 1_000, 2)), (Some(NOW + 1_000), None));
    }
}
