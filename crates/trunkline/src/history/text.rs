//! Looking for a text in bytes.

/// Whether `needle` stands in `bytes`, byte by byte.
pub(super) fn contains(bytes: &[u8], needle: &str) -> bool {
    match std::str::from_utf8(bytes) {
        // The standard library searches text with vector instructions, and bytes not at all.
        Ok(text) => text.contains(needle),
        Err(_) => bytes.windows(needle.len().max(1)).any(|window| window == needle.as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::contains;

    #[test]
    fn text_is_found_in_any_bytes() {
        assert!(contains(b"{\"order\":42}", "r\":4") && !contains(b"abc", "abd"));
        assert!(contains(b"\xff\xfeabc\xff", "bc") && !contains(b"\xff", "bc"));
    }
}
