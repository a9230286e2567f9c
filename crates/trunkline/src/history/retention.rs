//! Dropping what its time, or its room, is over for: whole files, never rows one by one.

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, SystemTime};

use rusqlite::{TransactionBehavior, params};

use crate::error::Result;
use crate::message::Millis;

use super::files::is_closed;
use super::index::{Index, failed};
use super::rollup::WIDTHS;

/// Queries that began before a block was replaced are over by then, and its bytes can be given back.
const GRACE: Millis = 60_000;
/// How long minutes and hours are kept in the roll-ups; days are kept for good.
pub(super) const KEEP: [Millis; 2] = [8 * 86_400_000, 100 * 86_400_000];
/// Files dropped in one step.
const FILES: usize = 16;

/// Drops what is over; `false` if nothing was.
pub(super) fn step(index: &mut Index, root: &Path, max_bytes: u64, now: Millis) -> Result<bool> {
    let due = due(index, max_bytes, now).map_err(failed("looking for what is over"))?;
    let mut dropped = false;
    // A writer notices at the next day that its file is over; until then the file stays.
    let closed = due.into_iter().map(|(file, name)| (file, root.join(name))).filter(|(_, path)| !path.exists() || is_closed(path));
    for (file, path) in closed.take(FILES) {
        drop_file(index, file).map_err(failed("dropping what is over"))?;
        let _ = fs::remove_file(&path);
        // The folders of the day and the class go with their last file.
        path.ancestors().skip(1).take(2).for_each(|folder| drop(fs::remove_dir(folder)));
        dropped = true;
    }
    give_back(index, root, now).map_err(failed("giving back room"))?;
    for (width, keep) in WIDTHS.iter().zip(KEEP) {
        index
            .sql
            .prepare_cached("DELETE FROM rollup WHERE (width, series, start) IN (SELECT r.width, r.series, r.start FROM series s JOIN rollup r ON r.width = ?1 AND r.series = s.id AND r.start < ?2 LIMIT 10000)")
            .and_then(|mut statement| statement.execute(params![*width as i64, now.saturating_sub(keep) as i64]))
            .map_err(failed("dropping old roll-ups"))?;
    }
    Ok(dropped)
}

/// Files that are over: by age, by the bytes of their class, by the bytes of all; the oldest day first.
fn due(index: &Index, max_bytes: u64, now: Millis) -> rusqlite::Result<Vec<(i64, String)>> {
    struct Known {
        id: i64,
        name: String,
        class: String,
        is_over: bool,
        class_bytes: u64,
        live: u64,
    }
    let mut statement =
        index.sql.prepare_cached("SELECT id, name, class, age_ms, class_bytes, day, live, bytes FROM file ORDER BY day, id")?;
    let files = statement.query_map([], |row| {
        let (age, day) = (row.get::<_, i64>(3)? as u64, row.get::<_, i64>(5)? as u64);
        let live = row.get::<_, i64>(6)?.max(0) as u64;
        let is_past = age > 0 && ((day + 1) * 86_400_000).saturating_add(age) <= now;
        let is_empty = live == 0 && day * 86_400_000 + GRACE <= now;
        Ok(Known {
            id: row.get(0)?,
            name: row.get(1)?,
            class: row.get(2)?,
            is_over: is_past || is_empty,
            class_bytes: row.get::<_, i64>(4)? as u64,
            // Where holes cannot be made, what was replaced still takes room.
            live: if cfg!(target_os = "linux") { live } else { row.get::<_, i64>(7)? as u64 },
        })
    })?;
    let files: Vec<Known> = files.collect::<rusqlite::Result<_>>()?;
    let mut of_class = std::collections::HashMap::<&str, u64>::new();
    let mut all = 0;
    for file in files.iter().filter(|file| !file.is_over) {
        *of_class.entry(&file.class).or_default() += file.live;
        all += file.live;
    }
    let mut due = Vec::new();
    for file in &files {
        let of_class = of_class.entry(&file.class).or_default();
        if !file.is_over && all <= max_bytes && (file.class_bytes == 0 || *of_class <= file.class_bytes) {
            continue;
        }
        if !file.is_over {
            *of_class -= file.live;
            all -= file.live;
        }
        due.push((file.id, file.name.clone()));
    }
    Ok(due)
}

fn drop_file(index: &mut Index, file: i64) -> rusqlite::Result<()> {
    let tx = index.sql.transaction_with_behavior(TransactionBehavior::Immediate)?;
    tx.execute(
        "INSERT INTO dropped (one, id_to) SELECT 1, max(id_to) FROM block WHERE file = ?1 HAVING max(id_to) IS NOT NULL
         ON CONFLICT (one) DO UPDATE SET id_to = max(id_to, excluded.id_to)",
        [file],
    )?;
    tx.execute("DELETE FROM block WHERE file = ?1", [file])?;
    tx.execute("DELETE FROM freed WHERE file = ?1", [file])?;
    tx.execute("DELETE FROM file WHERE id = ?1", [file])?;
    tx.commit()
}

/// Gives the room of replaced blocks back to the file system, where it takes it.
fn give_back(index: &Index, root: &Path, now: Millis) -> rusqlite::Result<()> {
    let mut statement = index
        .sql
        .prepare_cached("SELECT freed.id, name, offset, len FROM freed JOIN file ON file.id = freed.file WHERE at <= ?1 LIMIT 1000")?;
    let freed = statement.query_map([now.saturating_sub(GRACE) as i64], |row| {
        Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?, row.get::<_, i64>(2)? as u64, row.get::<_, u32>(3)?))
    })?;
    let freed: Vec<_> = freed.collect::<rusqlite::Result<_>>()?;
    if freed.is_empty() {
        return Ok(());
    }
    let tx = index.sql.unchecked_transaction()?;
    for (id, name, offset, len) in freed {
        punch(&root.join(name), offset, u64::from(len));
        tx.prepare_cached("DELETE FROM freed WHERE id = ?1")?.execute([id])?;
    }
    tx.commit()
}

#[cfg(target_os = "linux")]
fn punch(path: &Path, offset: u64, len: u64) {
    use rustix::fs::{FallocateFlags, fallocate};
    if let Ok(file) = File::options().write(true).open(path) {
        let _ = fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len);
    }
}

#[cfg(not(target_os = "linux"))]
fn punch(_: &Path, _: u64, _: u64) {}

/// Removes files that no index row names: a process died, or failed, between the body and the index.
pub(super) fn sweep(index: &Index, root: &Path, _now: Millis) -> Result<()> {
    let folders = |path: &Path| -> Vec<_> {
        fs::read_dir(path).map(|entries| entries.flatten().map(|entry| entry.path()).collect()).unwrap_or_default()
    };
    for path in folders(root).iter().flat_map(|class| folders(class)).flat_map(|day| folders(&day)) {
        let Some(name) = path.strip_prefix(root).ok().and_then(Path::to_str) else { continue };
        let known = index
            .sql
            .query_row("SELECT count(*) FROM file WHERE name = ?1", [name.replace('\\', "/")], |row| row.get::<_, i64>(0))
            .map_err(failed("looking for forgotten files"))?;
        let is_old = fs::metadata(&path)
            .and_then(|meta| meta.modified())
            .is_ok_and(|at| SystemTime::now().duration_since(at).is_ok_and(|age| age > Duration::from_secs(600)));
        if known == 0 && is_old && name.ends_with(".blk") && is_closed(&path) {
            let _ = fs::remove_file(&path);
        }
    }
    Ok(())
}
