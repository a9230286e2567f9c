//! The three commands a new user would try next. They are printed only because they work.

use std::path::Path;

use trunkline::MessageId;

/// A command, and what it is good for.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Next {
    /// What it shows.
    pub(crate) shows: &'static str,
    /// As it is typed.
    pub(crate) command: String,
}

/// How a command is written for a demo whose data lies in `dir`.
fn writer(dir: &Path, elsewhere: bool) -> impl Fn(&'static str, &str) -> Next {
    let program = program();
    // A trunkline.yaml here speaks of another product.
    let whose = if elsewhere { format!(" --product {} --env {}", super::stage::PRODUCT, super::stage::ENV) } else { String::new() };
    let data = format!("--data {}{whose}", quoted(&dir.display().to_string()));
    move |shows, command| Next { shows, command: format!("{program} {command} {data}") }
}

/// What removes what the demo made on a server.
pub(crate) fn remove(dir: &Path, elsewhere: bool) -> Next {
    writer(dir, elsewhere)("remove what the demo made on the server", &format!("brokers delete {} --purge", super::stage::BROKER))
}

/// The commands for a demo whose data lies in `dir`, about the message `id`, which died if `dead`.
pub(crate) fn next(dir: &Path, id: MessageId, dead: bool, elsewhere: bool) -> Vec<Next> {
    let made = writer(dir, elsewhere);
    let mut all = vec![made("the life of one message", &format!("messages show {id}"))];
    if dead {
        all.push(made("what died, and why", "dead groups"));
        all.push(made("hand the dead letters over again (without --dry-run)", "dead reprocess --group billing --dry-run"));
    } else {
        all.push(made("the newest messages", "messages query --limit 5"));
        all.push(made("how long messages waited and ran", "stats"));
    }
    all
}

/// `trunkline` where the shell finds this very program by that name, else its path.
fn program() -> String {
    let Ok(own) = std::env::current_exe() else { return "trunkline".into() };
    let path = std::env::var_os("PATH").unwrap_or_default();
    let first = std::env::split_paths(&path).map(|dir| dir.join("trunkline")).find(|path| path.is_file());
    let same = first.and_then(|path| path.canonicalize().ok()).is_some_and(|path| own.canonicalize().is_ok_and(|own| own == path));
    if same { "trunkline".into() } else { quoted(&own.display().to_string()) }
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:=@,%".contains(c);
    if !word.is_empty() && word.chars().all(plain) { word.to_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_the_shell() {
        assert_eq!(quoted("/tmp/a-b_1.x"), "/tmp/a-b_1.x");
        assert_eq!(quoted("/tmp/my demo's"), r"'/tmp/my demo'\''s'");
    }

    #[test]
    fn there_are_three_about_this_directory() {
        for dead in [true, false] {
            let all = next(Path::new("/tmp/demo"), MessageId::now(), dead, false);
            assert_eq!(all.len(), 3);
            assert!(all.iter().all(|next| next.command.ends_with("--data /tmp/demo")));
        }
        assert!(next(Path::new("/d"), MessageId::now(), true, true)[0].command.ends_with("--data /d --product demo --env local"));
    }
}
