//! The small files that say what a directory is: of which topic, of which group.

use std::io;
use std::path::Path;

use super::disk::{Disk, How, read_all, write_whole};
use super::error;
use super::segment::{VERSION, len32, u32_at, u64_at};
use crate::error::Result;

/// The name of such a file.
pub(super) const META: &str = "meta";

/// What is fixed about a topic, or where a group started: a name and some numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Meta {
    pub(super) name: String,
    pub(super) numbers: Vec<u64>,
}

impl Meta {
    fn encode(&self, magic: [u8; 8]) -> Vec<u8> {
        let mut out = magic.to_vec();
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&len32(self.name.len()).to_le_bytes());
        out.extend_from_slice(&(self.numbers.len() as u64).to_le_bytes());
        for number in &self.numbers {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(self.name.as_bytes());
        out.extend_from_slice(&crc32fast::hash(&out).to_le_bytes());
        out
    }

    fn decode(bytes: &[u8], magic: [u8; 8], path: &Path) -> Result<Self> {
        if bytes.len() < 28 || bytes[..8] != magic {
            return Err(error::damaged(path, "it does not start as it should"));
        }
        if u32_at(bytes, 8) > VERSION {
            return Err(error::newer(path, u32_at(bytes, 8)));
        }
        let (body, crc) = bytes.split_at(bytes.len() - 4);
        if u32_at(crc, 0) != crc32fast::hash(body) {
            return Err(error::damaged(path, "it fails the checksum"));
        }
        let numbers: Vec<u64> = (0..u64_at(body, 16))
            .map_while(|i| {
                let at = 24 + usize::try_from(i).ok()? * 8;
                (at + 8 <= body.len()).then(|| u64_at(body, at))
            })
            .collect();
        let name = body.get(24 + numbers.len() * 8..).and_then(|name| std::str::from_utf8(name).ok());
        let name = name.filter(|name| name.len() == u32_at(body, 12) as usize);
        Ok(Meta { name: name.ok_or_else(|| error::damaged(path, "its name is cut"))?.to_owned(), numbers })
    }

    /// The file of the directory; `None` if there is none.
    pub(super) fn load(disk: &dyn Disk, dir: &Path, magic: [u8; 8]) -> Result<Option<Self>> {
        let path = dir.join(META);
        let bytes = match disk.open(&path, How::Read).and_then(|file| read_all(&*file)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            result => result.map_err(|e| error::disk(&e, "cannot read", &path))?,
        };
        Meta::decode(&bytes, magic, &path).map(Some)
    }

    /// Puts the file into the directory, which is created if missing.
    pub(super) fn store(&self, disk: &dyn Disk, dir: &Path, magic: [u8; 8]) -> Result<()> {
        let write = || {
            disk.make_dir(dir)?;
            write_whole(disk, dir, META, &self.encode(magic))?;
            dir.parent().map_or(Ok(()), |above| disk.sync_dir(above))
        };
        write().map_err(|e| error::disk(&e, "cannot create", dir))
    }
}
