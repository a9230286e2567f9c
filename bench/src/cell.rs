//! One measured cell, and how all of them are shown.

use comfy_table::{Table, presets};
use serde::Serialize;

/// What every bench of the project prints, one line a cell.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Cell {
    pub(crate) provider: &'static str,
    /// `produce`, `consume` or `end_to_end`; `open` (an existing directory to the first confirm) and `idle` (a consumer
    /// without messages: its cost is µs of CPU per second) belong to the embedded broker.
    pub(crate) op: &'static str,
    /// `raw` or `trunkline`.
    pub(crate) side: &'static str,
    /// `off`, `metadata`, `full`; `-` on the raw side.
    pub(crate) history: &'static str,
    /// Bytes of payload.
    pub(crate) payload: usize,
    pub(crate) processes: usize,
    /// Messages per second, the median of the runs.
    pub(crate) per_s: f64,
    pub(crate) runs: Vec<f64>,
    /// Against the raw side of the same op, payload and number of processes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ratio: Option<f64>,
    /// User and system time of all processes.
    pub(crate) cpu_us_per_msg: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) allocations_per_msg: Option<f64>,
    /// Of user space, counted by valgrind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) instructions_per_msg: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) p50_us: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) p99_us: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) p999_us: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) worst_us: Option<f64>,
    /// The slowest process over the mean of all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) slowest_of_mean: Option<f64>,
}

/// The middle of some figures.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}

/// Sets each cell's ratio to the raw cell it belongs to.
pub(crate) fn relate(cells: &mut [Cell]) {
    let raw: Vec<_> = cells.iter().filter(|c| c.side == "raw").map(|c| (c.op, c.payload, c.processes, c.per_s)).collect();
    for cell in cells.iter_mut().filter(|c| c.side != "raw" && c.p50_us.is_none()) {
        let own = raw.iter().find(|r| (r.0, r.1, r.2) == (cell.op, cell.payload, cell.processes));
        cell.ratio = own.map(|r| cell.per_s / r.3);
    }
}

/// Prints all cells.
pub(crate) fn show(cells: &[Cell], json: bool) {
    if json {
        for cell in cells {
            println!("{}", serde_json::to_string(cell).unwrap_or_default());
        }
        return;
    }
    let mut table = Table::new();
    table.load_preset(presets::UTF8_HORIZONTAL_ONLY).set_header([
        "op",
        "side",
        "history",
        "bytes",
        "procs",
        "msg/s",
        "ratio",
        "cpu µs",
        "allocs",
        "instr.",
        "p50 µs",
        "p99 µs",
        "p99.9 µs",
        "worst µs",
        "slowest/mean",
    ]);
    let number = |value: Option<f64>, digits: usize| value.map_or_else(|| "-".into(), |v| format!("{v:.digits$}"));
    for c in cells {
        table.add_row([
            c.op.to_owned(),
            c.side.to_owned(),
            c.history.to_owned(),
            c.payload.to_string(),
            c.processes.to_string(),
            format!("{:.0}", c.per_s),
            number(c.ratio, 2),
            format!("{:.2}", c.cpu_us_per_msg),
            number(c.allocations_per_msg, 2),
            number(c.instructions_per_msg, 0),
            number(c.p50_us, 0),
            number(c.p99_us, 0),
            number(c.p999_us, 0),
            number(c.worst_us, 0),
            number(c.slowest_of_mean, 2),
        ]);
    }
    println!("{table}");
}
