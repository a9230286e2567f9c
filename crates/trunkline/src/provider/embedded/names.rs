//! Names of topics and groups as names of directories: injective, on every file system, of bounded length.

use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};

/// Leaves room for a suffix within the 255 bytes a file system allows.
const LONGEST: usize = 200;

/// `name` as the name of a directory. Two names never give the same one: what is not a lower-case letter, a digit, `-`,
/// `_` or an inner `.` is escaped, so that also a file system that ignores case keeps them apart.
#[must_use]
pub(super) fn escape(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for (at, byte) in name.bytes().enumerate() {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' => out.push(char::from(byte)),
            b'.' if at > 0 => out.push('.'),
            _ => {
                let _ = write!(out, "%{byte:02x}");
            }
        }
    }
    if out.len() <= LONGEST {
        return out;
    }
    // A shortened name ends with `~` and a hash; `~` itself never stands in an escaped one.
    let hash = Sha256::digest(name.as_bytes());
    out.truncate(LONGEST - 41);
    out.push('~');
    for byte in &hash[..20] {
        let _ = write!(out, "{byte:02x}");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escaped_names_differ() {
        let long = "x".repeat(300);
        let longer = "x".repeat(301);
        let names = ["a.b", "a%2eb", "A.b", "a/b", "..", ".", "", "é", "a b", &long, &longer];
        let escaped: std::collections::BTreeSet<String> = names.iter().map(|name| escape(name)).collect();
        assert_eq!(escaped.len(), names.len());
        assert!(escaped.iter().all(|name| name.len() <= LONGEST && !name.contains('/') && !name.starts_with('.')));
    }
}
