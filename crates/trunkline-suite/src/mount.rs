//! File systems of one's own, small enough to fill, or made to fail. They need root; where mounting is not allowed the test
//! that asks for one fails and says so.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// A file system that is mounted; no longer when it is dropped.
#[derive(Debug)]
pub struct Mount {
    dir: TempDir,
    /// The file that an ext4 lies in.
    image: Option<tempfile::NamedTempFile>,
}

fn run(what: &str, command: &mut Command) {
    let output = command.output();
    let done = output.as_ref().is_ok_and(|output| output.status.success());
    assert!(done, "cannot {what}: run the tests as root, with mount and e2fsprogs; {command:?} said {output:?}");
}

impl Mount {
    /// In memory, of this size (`3m`).
    ///
    /// # Panics
    /// If it cannot be mounted.
    #[must_use]
    pub fn tmpfs(size: &str) -> Self {
        let dir = TempDir::new().unwrap();
        run("mount a tmpfs", Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={size}"), "trunkline-suite"]).arg(dir.path()));
        Mount { dir, image: None }
    }

    /// An ext4 of 32 MiB in a file, which turns read-only when it finds an error.
    ///
    /// # Panics
    /// If it cannot be made or mounted.
    #[must_use]
    pub fn ext4() -> Self {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(32 << 20).unwrap();
        run("make an ext4", Command::new("mkfs.ext4").arg("-qF").arg(image.path()));
        let mount = Mount { dir: TempDir::new().unwrap(), image: Some(image) };
        mount.attach();
        mount
    }

    fn attach(&self) {
        if let Some(image) = &self.image {
            let mut command = Command::new("mount");
            run("mount an ext4", command.args(["-o", "loop,errors=remount-ro"]).arg(image.path()).arg(self.dir.path()));
        }
    }

    fn detach(&self) {
        // Lazily: it goes when the last file in it is closed.
        let _ = Command::new("umount").arg("-l").arg(self.dir.path()).status();
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Lets an ext4 find an error: from now on every write fails with `EROFS`, to files that are open too, as after a fault
    /// of the disk.
    ///
    /// # Panics
    /// If it cannot be told to.
    pub fn turn_read_only(&self) {
        let image = self.image.as_ref().expect("only an ext4 turns read-only").path();
        let output = Command::new("losetup").arg("-j").arg(image).output().unwrap();
        let listed = String::from_utf8_lossy(&output.stdout).into_owned();
        let device = listed.split(':').next().and_then(|path| path.strip_prefix("/dev/")).expect("a loop device").to_owned();
        std::fs::write(format!("/sys/fs/ext4/{device}/trigger_fs_error"), "trunkline-suite").unwrap();
        let refused = std::fs::write(self.path().join("probe"), "").unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    }

    /// Mounts an ext4 anew, checked, as after a repair. Nothing in it may be open.
    ///
    /// # Panics
    /// If it cannot be mounted.
    pub fn repair(&self) {
        let end = Instant::now() + Duration::from_secs(10);
        while !Command::new("umount").arg(self.dir.path()).status().unwrap().success() {
            assert!(Instant::now() < end, "files are open in it");
            std::thread::sleep(Duration::from_millis(50));
        }
        // 0: nothing found; 1: errors were corrected.
        let image = self.image.as_ref().expect("only an ext4 is repaired").path();
        let checked = Command::new("e2fsck").arg("-fp").arg(image).status().unwrap();
        assert!(matches!(checked.code(), Some(0 | 1)), "{checked:?}");
        self.attach();
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        self.detach();
    }
}
