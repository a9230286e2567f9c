//! SQLite's locks and shared memory do not reach other hosts: a network file system would damage the file.

use std::path::Path;

use crate::error::{Error, Result};

/// Magic numbers of `statfs` and their names.
const NETWORK: &[(u64, &str)] = &[
    (0x6969, "NFS"),
    (0x517b, "SMB"),
    (0xff53_4d42, "CIFS"),
    (0xfe53_4d42, "SMB2"),
    (0x0102_1997, "9p"),
    (0x00c3_6400, "Ceph"),
    (0x5346_414f, "AFS"),
    (0x0bd0_0bd0, "Lustre"),
    (0x7461_636f, "OCFS2"),
    (0x0116_1970, "GFS2"),
];
/// What runs over FUSE looks the same to `statfs`; the mount table tells them apart.
const FUSE: u64 = 0x6573_5546;
const NETWORK_FUSE: &[&str] = &[
    "fuse.sshfs",
    "fuse.glusterfs",
    "fuse.s3fs",
    "fuse.rclone",
    "fuse.ceph",
    "fuse.davfs",
    "fuse.gcsfuse",
    "fuse.juicefs",
    "fuse.curlftpfs",
];

/// Refuses a directory on a network file system.
pub(super) fn refuse_network(dir: &Path) -> Result<()> {
    let Ok(stat) = rustix::fs::statfs(dir) else { return Ok(()) };
    // The type's width and sign differ between platforms; all magic numbers have 32 bits.
    let magic = (stat.f_type as u64) & 0xffff_ffff;
    let mounts = || std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let dir_path = dir.canonicalize().unwrap_or_else(|_| dir.to_path_buf());
    match network_name(magic, &dir_path, mounts) {
        None => Ok(()),
        Some(name) => Err(Error::store(format!("{} lies on a network file system ({name})", dir.display()))
            .reason("network_filesystem")
            .next("keep the data directory on a local disk, or use a PostgreSQL store to share it between hosts")),
    }
}

fn network_name(magic: u64, dir: &Path, mounts: impl FnOnce() -> String) -> Option<String> {
    if magic == FUSE {
        return fs_type(&mounts(), dir).filter(|name| NETWORK_FUSE.contains(&name.as_str()));
    }
    NETWORK.iter().find(|(number, _)| *number == magic).map(|(_, name)| (*name).to_owned())
}

/// The type of the file system that `dir` lies on, by the longest mount point in front of it.
fn fs_type(mountinfo: &str, dir: &Path) -> Option<String> {
    let mount = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let point = left.split(' ').nth(4)?.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\");
        Some((point, right.split(' ').next()?.to_owned()))
    };
    let mounts = mountinfo.lines().filter_map(mount).filter(|(point, _)| dir.starts_with(point));
    mounts.max_by_key(|(point, _)| point.len()).map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "22 1 254:0 / / rw - ext4 /dev/vda rw\n\
        40 22 0:50 / /home/me/far\\040away rw,nosuid shared:1 - fuse.sshfs me@host:/ rw\n\
        41 22 0:51 / /home/me/near rw - fuse.mergerfs a:b rw\n";

    #[test]
    fn network_file_systems_are_known() {
        let name = |magic, dir: &str| network_name(magic, Path::new(dir), || MOUNTS.to_owned());
        assert_eq!(name(0x6969, "/x").as_deref(), Some("NFS"));
        assert_eq!(name(0xff53_4d42, "/x").as_deref(), Some("CIFS"));
        assert_eq!(name(0x0102_1997, "/x").as_deref(), Some("9p"));
        assert_eq!(name(0xef53, "/x"), None, "ext4");
        assert_eq!(name(FUSE, "/home/me/far away/.trunkline").as_deref(), Some("fuse.sshfs"));
        assert_eq!(name(FUSE, "/home/me/near/.trunkline"), None);
        assert!(refuse_network(Path::new("/")).is_ok());
    }
}
