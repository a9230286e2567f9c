//! Asking before something that cannot be taken back.

use std::io::{BufRead, IsTerminal, Write};

use trunkline::{Error, Result};

/// What is asked where nobody can answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Otherwise {
    /// Go on.
    GoOn,
    /// `--yes` is needed.
    Refuse,
}

/// Asks on the terminal; without one it goes on or refuses. `Ok(false)`: the user said no.
///
/// # Errors
/// `INPUT_INVALID` where it refuses.
pub fn ask(question: &str, otherwise: Otherwise) -> Result<bool> {
    if !(std::io::stdin().is_terminal() && std::io::stderr().is_terminal()) {
        return match otherwise {
            Otherwise::GoOn => Ok(true),
            Otherwise::Refuse => {
                Err(Error::input("yes", format!("{question} There is no terminal to answer on")).next("say `--yes` if you mean it"))
            }
        };
    }
    let mut err = anstream::stderr();
    let asked = write!(err, "{question} [y/N] ").and_then(|()| err.flush());
    let mut answer = String::new();
    let read = asked.and_then(|()| std::io::stdin().lock().read_line(&mut answer));
    read.map_err(|error| Error::input("yes", format!("no answer could be read: {error}")))?;
    Ok(says_yes(&answer))
}

fn says_yes(answer: &str) -> bool {
    matches!(answer.trim().to_lowercase().as_str(), "y" | "yes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_yes_is_yes() {
        assert!(says_yes("y\n") && says_yes(" YES "));
        assert!(!says_yes("") && !says_yes("n") && !says_yes("yeah"));
    }
}
