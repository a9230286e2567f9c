//! What Redis does in one step: the Lua scripts. Each says above it what its keys and arguments are.

use std::sync::LazyLock;

use redis::Cmd;

use super::link::Argument;

/// A script and its name on the server.
#[derive(Debug)]
pub(super) struct Script {
    code: &'static str,
    hash: String,
}

impl Script {
    fn new(code: &'static str) -> Self {
        Script { code, hash: redis::Script::new(code).get_hash().to_owned() }
    }

    /// The command that runs it, by name or in full.
    pub(super) fn call(&self, by_name: bool, keys: &[&str], args: &[&dyn Argument]) -> Cmd {
        let mut cmd = if by_name { redis::cmd("EVALSHA") } else { redis::cmd("EVAL") };
        cmd.arg(if by_name { &*self.hash } else { self.code }).arg(keys.len());
        for key in keys {
            cmd.arg(*key);
        }
        for arg in args {
            arg.put(&mut cmd);
        }
        cmd
    }
}

macro_rules! scripts {
    ($($(#[$doc:meta])* $name:ident = $file:literal;)*) => {
        $($(#[$doc])* pub(super) static $name: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!(concat!("lua/", $file, ".lua"))));)*

        #[cfg(test)]
        const ALL: &[(&str, &LazyLock<Script>)] = &[$(($file, &$name),)*];
    };
}

scripts! {
    /// Makes a topic with its groups, or says how it differs.
    ENSURE = "ensure";
    /// Removes a topic with everything that belongs to it.
    REMOVE = "remove";
    /// Removes a group of a topic.
    REMOVE_GROUP = "remove_group";
    /// Sets a group to another place, with nothing pending.
    SEEK = "seek";
    /// Keeps the leases that are still held, and names those that are not.
    KEEP = "keep";
    /// Gives entries back: to be claimed at once or later.
    RELEASE = "release";
    /// Acks entries, unless the group was set back or the shard has another owner.
    ACK = "ack";
    /// Takes pending entries over: of an ordered shard only for its owner.
    CLAIM = "claim";
    /// Takes over entries whose lease has ended.
    RECLAIM = "reclaim";
    /// Says that a member lives, renews what it owns, and takes what is free up to its share.
    OWN = "own";
    /// Gives up the ownership of a shard.
    DISOWN = "disown";
    /// Removes a consumer that has nothing pending.
    REAP = "reap";
    /// Removes settled entries that need not be kept.
    TRIM = "trim";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_script_says_what_it_takes_and_has_a_name_of_its_own() {
        let mut hashes: Vec<_> = ALL.iter().map(|(_, script)| script.hash.clone()).collect();
        hashes.sort();
        hashes.dedup();
        assert_eq!(hashes.len(), ALL.len());
        for (name, script) in ALL {
            assert!(script.code.starts_with("-- KEYS: "), "{name} does not begin with its keys");
            assert!(script.code.lines().nth(1).is_some_and(|line| line.starts_with("-- ARGV: ")), "{name} does not name its arguments");
        }
    }
}
