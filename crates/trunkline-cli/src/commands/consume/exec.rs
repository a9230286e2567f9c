//! A command run for every message: payload in, exit code out.

use std::os::fd::AsFd;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStderr, Command};
use trunkline::{Context, Result, Verdict};

use crate::children::Group;
use crate::output;

/// `EX_DATAERR`: the message is dead-lettered now.
const BURY: i32 = 65;
/// `EX_TEMPFAIL`: the message comes again, not counted as a failure.
const LATER: i32 = 75;
/// What is left of stderr is waited for this long after the command ended: a grandchild may keep it open.
const STDERR: Duration = Duration::from_millis(200);
/// Of the last line of stderr, this much becomes the error.
const ERROR_MOST: usize = 4_096;

/// The command and what it means.
#[derive(Debug)]
pub(super) struct Exec {
    /// Run by `sh -c`.
    pub command: String,
    /// When a message that exited with 75 comes again.
    pub later: Duration,
    /// Whether our own output is JSON: then the command's goes to stderr.
    pub json: bool,
}

impl Exec {
    /// Runs it once: its verdict, and whether the line about it could be printed.
    pub(super) async fn handle(&self, payload: &[u8], context: &Context) -> (Verdict, Result<()>) {
        let since = Instant::now();
        let mut child = match self.spawn(context) {
            Ok(child) => child,
            Err(error) => return (Verdict::Failed(format!("the command cannot be started: {error}")), Ok(())),
        };
        let group = Group::of(child.id());
        let mut last = String::new();
        let ended = tokio::select! {
            ended = attend(&mut child, payload, &mut last) => ended,
            () = context.signal.cancelled() => {
                // A timeout counts as one; what a close cut short is given back uncounted.
                drop(group);
                return (Verdict::Cancelled, Ok(()));
            }
        };
        group.ended();
        let code = ended.as_ref().ok().and_then(ExitStatus::code);
        let verdict = match ended {
            Ok(status) => self.verdict(status, &last),
            Err(error) => Verdict::Failed(format!("the command's end cannot be awaited: {error}")),
        };
        let printed = if self.json { print(context, &verdict, code, since) } else { Ok(()) };
        (verdict, printed)
    }

    fn verdict(&self, status: ExitStatus, last: &str) -> Verdict {
        use std::os::unix::process::ExitStatusExt;
        let why = |fallback: String| if last.is_empty() { fallback } else { last.to_owned() };
        match (status.code(), status.signal()) {
            (Some(0), _) => Verdict::Done,
            (Some(BURY), _) => Verdict::Bury(why("buried by the command".into())),
            (Some(LATER), _) => Verdict::RetryAfter(self.later),
            (Some(code), _) => Verdict::Failed(why(format!("the command exited with {code}"))),
            (None, signal) => Verdict::Failed(format!("the command was killed by signal {}", signal.unwrap_or_default())),
        }
    }

    fn spawn(&self, context: &Context) -> std::io::Result<Child> {
        let mut command = Command::new("sh");
        command.arg("-c").arg(&self.command).stdin(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        // A group of its own: Ctrl-C reaches only us, so that what runs can finish; a timeout ends its children too.
        command.process_group(0);
        command.stdout(if self.json { Stdio::from(std::io::stderr().as_fd().try_clone_to_owned()?) } else { Stdio::inherit() });
        command
            .env("TRUNKLINE_ID", context.process_id.to_string())
            .env("TRUNKLINE_EVENT", context.event.as_str())
            .env("TRUNKLINE_GROUP", &*context.group)
            .env("TRUNKLINE_ATTEMPT", context.attempt.to_string())
            .env("TRUNKLINE_PRODUCED_AT", context.produced_at.to_string())
            // The consumer's own token is none of its children's.
            .env_remove("TRUNKLINE_SESSION")
            .env("TRUNKLINE_HEADERS", serde_json::to_string(&context.headers).unwrap_or_default());
        // No variable can hold a zero byte.
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace('\0', "");
        match &context.key {
            Some(key) => command.env("TRUNKLINE_KEY", text(key)),
            None => command.env_remove("TRUNKLINE_KEY"),
        };
        for (name, value) in context.headers.iter() {
            command.env(variable(name), text(value));
        }
        command.spawn()
    }
}

/// Feeds the payload, watches stderr, waits for the end.
async fn attend(child: &mut Child, payload: &[u8], last: &mut String) -> std::io::Result<ExitStatus> {
    let (stdin, stderr) = (child.stdin.take(), child.stderr.take());
    let feed = async {
        if let Some(mut stdin) = stdin {
            // A command that does not read its input is free not to.
            let _ = stdin.write_all(payload).await;
        }
        std::future::pending::<()>().await;
    };
    let watch = async {
        let mut reading = std::pin::pin!(read(stderr, last));
        tokio::select! {
            () = &mut reading => child.wait().await,
            ended = child.wait() => {
                let _ = tokio::time::timeout(STDERR, reading).await;
                ended
            }
        }
    };
    tokio::select! {
        ended = watch => ended,
        () = feed => child.wait().await,
    }
}

/// One run as a line of JSON.
fn print(context: &Context, verdict: &Verdict, code: Option<i32>, since: Instant) -> Result<()> {
    let (word, error) = match verdict {
        Verdict::Done | Verdict::Drop => ("done", None),
        Verdict::Failed(error) => ("failed", Some(error)),
        Verdict::RetryAfter(_) => ("later", None),
        Verdict::Bury(reason) => ("buried", Some(reason)),
        _ => ("cancelled", None),
    };
    output::json_line(&json!({
        "process_id": context.process_id,
        "event": context.event,
        "group": &*context.group,
        "attempt": context.attempt,
        "key": context.key.as_ref().map(|key| String::from_utf8_lossy(key)),
        "verdict": word,
        "exitCode": code,
        "error": error,
        "ms": trunkline::message::millis(since.elapsed()),
    }))
}

/// `TRUNKLINE_HEADER_X_TENANT` for `x-tenant`.
fn variable(name: &str) -> String {
    let name: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }).collect();
    format!("TRUNKLINE_HEADER_{name}")
}

/// Passes stderr on, and remembers its last line that is not empty.
async fn read(stderr: Option<ChildStderr>, last: &mut String) {
    let Some(stderr) = stderr else { return };
    let mut reader = BufReader::new(stderr);
    let mut line = Vec::new();
    while matches!(reader.read_until(b'\n', &mut line).await, Ok(n) if n > 0) {
        let text = String::from_utf8_lossy(&line);
        output::note(text.trim_end_matches(['\n', '\r']));
        if !text.trim().is_empty() {
            *last = text.trim().chars().take(ERROR_MOST).collect();
        }
        line.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    #[test]
    fn exit_codes_are_verdicts() {
        let exec = Exec { command: String::new(), later: Duration::from_secs(5), json: false };
        let of = |code: i32, last: &str| exec.verdict(ExitStatus::from_raw(code << 8), last);
        assert_eq!(of(0, "noise"), Verdict::Done);
        assert_eq!(of(65, "bad order"), Verdict::Bury("bad order".into()));
        assert_eq!(of(75, ""), Verdict::RetryAfter(Duration::from_secs(5)));
        assert_eq!(of(1, "boom"), Verdict::Failed("boom".into()));
        assert_eq!(of(3, ""), Verdict::Failed("the command exited with 3".into()));
        assert_eq!(exec.verdict(ExitStatus::from_raw(9), ""), Verdict::Failed("the command was killed by signal 9".into()));
    }

    #[test]
    fn headers_become_variables() {
        assert_eq!(variable("x-tenant.id"), "TRUNKLINE_HEADER_X_TENANT_ID");
    }
}
