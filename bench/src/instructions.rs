//! Instructions per message of the two hot paths: the bench runs itself under valgrind, once with some messages and once
//! with more, so that what opening costs falls out of the difference. It counts user space, and is exact enough to repeat.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::cell::Cell;
use crate::embedded::Error;

const FEW: u64 = 5_000;
const MANY: u64 = 25_000;

/// Counts for the cells of one process that are there.
pub(crate) fn add(cells: &mut [Cell], payload: usize, base: &Path) -> Result<(), Error> {
    let found = Command::new("valgrind").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !found.is_ok_and(|status| status.success()) {
        return Err("--instructions needs valgrind: install it (Debian: apt-get install valgrind)".into());
    }
    for cell in cells.iter_mut().filter(|cell| cell.processes == 1 && matches!(cell.op, "produce" | "consume")) {
        let few = run(cell, payload, base, FEW)?;
        let many = run(cell, payload, base, MANY)?;
        cell.instructions_per_msg = Some((many.saturating_sub(few)) as f64 / (MANY - FEW) as f64);
    }
    Ok(())
}

fn run(cell: &Cell, payload: usize, base: &Path, count: u64) -> Result<u64, Error> {
    let dir = base.join(format!("count-{}-{}-{}-{count}", cell.op, cell.side, cell.history));
    let out = dir.with_extension("out");
    let worker = |role: &str| -> Result<Vec<String>, Error> {
        let program = std::env::current_exe()?.display().to_string();
        let words = ["worker", "--role", role, "--side", cell.side, "--history", cell.history, "--seconds", "0"];
        let numbers = ["--payload".to_owned(), payload.to_string(), "--count".into(), count.to_string(), "--dir".into()];
        let all = std::iter::once(program).chain(words.map(str::to_owned)).chain(numbers);
        Ok(all.chain([dir.display().to_string()]).collect())
    };
    if cell.op == "consume" {
        let fill = worker("fill")?;
        check(Command::new(&fill[0]).args(&fill[1..]))?;
    }
    let counted = worker(if cell.op == "consume" { "drain" } else { "fill" })?;
    // Of valgrind's tools the one that counts and does nothing else; what runs in it must not mind being slow.
    let mut command = Command::new("valgrind");
    command.args(["--tool=lackey", "--basic-counts=yes"]).arg(format!("--log-file={}", out.display()));
    check(command.args(&counted))?;
    let report = std::fs::read_to_string(&out)?;
    let total = report.lines().find_map(|line| line.split_once("guest instrs:"));
    total.and_then(|(_, number)| number.trim().replace(',', "").parse().ok()).ok_or_else(|| "valgrind left no count".into())
}

fn check(command: &mut Command) -> Result<(), Error> {
    let output = command.stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("a counted run failed: {}", String::from_utf8_lossy(&output.stderr)).into())
}
