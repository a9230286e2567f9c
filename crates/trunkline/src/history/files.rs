//! The files that hold the blocks: `<class>/<day>/<process>-<n>.blk`, each written by one process and only ever appended to.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

use super::Class;
use super::index::class_name;

/// A file grows to this and no further, so that the oldest can be dropped when bytes are short.
const FILE_MAX: u64 = 256 << 20;

/// A typed error from what the file system says.
pub(super) fn failed(doing: &'static str) -> impl Fn(io::Error) -> Error {
    move |e| {
        let reason = match e.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "disk_full",
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => "read_only",
            _ => "io",
        };
        Error::store(format!("{doing} failed: {e}")).reason(reason)
    }
}

/// A file being written. Its lock tells retention that it is.
#[derive(Debug)]
struct Open {
    file: File,
    name: String,
    len: u64,
}

/// Where one process appends.
#[derive(Debug)]
pub(super) struct Files {
    root: PathBuf,
    process: String,
    made: u64,
    file_max: u64,
    open: HashMap<(Class, u32), Open>,
}

impl Files {
    pub(super) fn new(root: &Path, process: &str, max_bytes: u64) -> Self {
        // A small history is made of smaller files: about 16 of them at the bound.
        let file_max = (max_bytes / 16).clamp(64 << 10, FILE_MAX);
        Files { root: root.to_owned(), process: process.to_owned(), made: 0, file_max, open: HashMap::new() }
    }

    /// Appends a block; the name of its file and the offset in it.
    pub(super) fn append(&mut self, class: Class, day: u32, bytes: &[u8]) -> Result<(String, u64)> {
        self.open.retain(|(_, of), _| *of == day);
        if self.open.get(&(class, day)).is_none_or(|open| open.len + bytes.len() as u64 > self.file_max && open.len > 0) {
            let open = self.create(class, day)?;
            self.open.insert((class, day), open);
        }
        let Some(open) = self.open.get_mut(&(class, day)) else { return Err(Error::store("no file to write to")) };
        if let Err(e) = open.file.write_all(bytes) {
            // What was written of it is not in the index; the next block goes to a new file.
            self.open.remove(&(class, day));
            return Err(failed("writing the history")(e));
        }
        let offset = open.len;
        open.len += bytes.len() as u64;
        Ok((open.name.clone(), offset))
    }

    fn create(&mut self, class: Class, day: u32) -> Result<Open> {
        let folder = format!("{}/{day}", class_name(class));
        fs::create_dir_all(self.root.join(&folder)).map_err(failed("making a folder of the history"))?;
        let (file, name) = loop {
            self.made += 1;
            let name = format!("{folder}/{}-{}.blk", self.process, self.made);
            match OpenOptions::new().append(true).create_new(true).open(self.root.join(&name)) {
                Ok(file) => break (file, name),
                // Of an earlier sink of this process, which was given up after a failure.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(failed("making a file of the history")(e)),
            }
        };
        file.lock().map_err(failed("locking a file of the history"))?;
        Ok(Open { file, name, len: 0 })
    }

    /// Lets go of files of other days: nothing is appended to them any more.
    pub(super) fn close_others(&mut self, day: u32) {
        self.open.retain(|(_, of), _| *of == day);
    }

    /// Lets go of all files.
    pub(super) fn close(&mut self) {
        self.open.clear();
    }
}

/// Whether nobody writes to this file any more.
pub(super) fn is_closed(path: &Path) -> bool {
    File::open(path).is_ok_and(|file| file.try_lock().is_ok())
}

/// Reads at an offset without moving anything.
pub(super) fn read_at(file: &File, offset: u64, out: &mut [u8]) -> io::Result<()> {
    #[cfg(unix)]
    return std::os::unix::fs::FileExt::read_exact_at(file, out, offset);
    #[cfg(windows)]
    {
        let mut done = 0;
        while done < out.len() {
            match std::os::windows::fs::FileExt::seek_read(file, &mut out[done..], offset + done as u64)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => done += n,
            }
        }
        Ok(())
    }
}
