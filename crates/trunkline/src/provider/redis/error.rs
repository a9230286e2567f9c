//! What Redis and its client say, in the product's codes. Texts of the server are repeated only where they are known to
//! hold no argument of a command.

use std::error::Error as _;
use std::io;

use redis::{RedisError, ServerError};

use crate::error::{Code, Error};

/// Why a call failed.
#[derive(Debug, Clone)]
pub(super) struct Failed {
    pub(super) error: Error,
    /// Whether the server may have done it all the same.
    pub(super) sent: bool,
}

impl Failed {
    pub(super) fn before(error: Error) -> Self {
        Failed { error, sent: false }
    }
}

pub(super) fn closed() -> Error {
    Error::new(Code::Closed, "the connection is closed")
}

/// No connection, or it broke.
pub(super) fn connection(message: impl Into<String>) -> Error {
    Error::new(Code::ConnectionFailed, message).next("check that Redis runs and can be reached; `trunkline doctor` says where it ends")
}

/// What the client says of a connection: broken, refused, not Redis.
pub(super) fn transport(error: &RedisError) -> Error {
    let io = error.source().and_then(|source| source.downcast_ref::<io::Error>()).map(io::Error::kind);
    match (io, error.kind()) {
        (Some(kind), _) => connection(format!("the connection to Redis broke: {kind}")),
        (None, redis::ErrorKind::Parse) => connection("what answers there does not speak the protocol of Redis"),
        (None, redis::ErrorKind::AuthenticationFailed) => refused("Redis refused user name or password"),
        (None, _) => connection("the connection to Redis broke"),
    }
}

/// Nothing came back in time.
pub(super) fn silence(doing: &str) -> Error {
    Error::new(Code::Timeout, format!("Redis did not answer in time ({doing})")).next("check the server's load, and the network to it")
}

fn refused(message: &str) -> Error {
    Error::new(Code::AuthenticationFailed, message).next("check `username` and `password`, and that the ACL user is on")
}

/// What the server answered instead of doing it. It did nothing then.
pub(super) fn server(error: &ServerError, other: Code) -> Error {
    let text = error.details().unwrap_or_default();
    match error.code() {
        "WRONGPASS" => refused("Redis refused user name or password"),
        "NOAUTH" => refused("Redis wants a user name and password, and none were given"),
        "NOPERM" => Error::new(Code::AuthenticationFailed, format!("the ACL user may not do this: {text}"))
            .reason("permission")
            .next("grant what the provider's page lists under permissions"),
        "OOM" => server_full(),
        "MISCONF" => Error::new(Code::PublishFailed, "Redis takes no writes because it could not write its own files")
            .reason("disk")
            .next("look at the server's log and its disk"),
        "NOREPLICAS" => Error::new(Code::PublishFailed, "Redis takes no writes because too few replicas are connected")
            .reason("no_replicas")
            .next("look at the replicas, or at `min-replicas-to-write`"),
        "READONLY" => connection("this Redis is a replica and takes no writes").reason("read_only"),
        "LOADING" => connection("Redis is still loading its data").reason("loading"),
        "BUSY" => connection("Redis is busy with a script").reason("busy"),
        "MASTERDOWN" | "CLUSTERDOWN" | "TRYAGAIN" => connection("this Redis has lost its master").reason("failover"),
        "MOVED" | "ASK" | "CROSSSLOT" => cluster(),
        "WRONGTYPE" => Error::new(Code::ConfigInvalid, "a key of this name is there and is no stream")
            .reason("not_a_stream")
            .next("choose another name for the topic, or remove the key"),
        // A read that waited for a stream that was removed meanwhile.
        "NOGROUP" | "UNBLOCKED" => gone("the group or its stream is not there"),
        "EXECABORT" if text.contains("OOM") => server_full(),
        "ERR" if text.starts_with("max number of clients") => connection("Redis has no room for another client").reason("too_many_clients"),
        "ERR" if text.starts_with("DB index") => {
            Error::new(Code::ConfigInvalid, "the database does not exist on this Redis").field("db").next("choose a `db` the server has")
        }
        "ERR" if text.contains("without any password configured") => refused("a password was given, and this Redis has none for that user"),
        code => Error::new(other, format!("Redis refused: {code} {}", plain(text))),
    }
}

pub(super) fn cluster() -> Error {
    Error::new(Code::CapabilityUnsupported, "this server is a node of a Redis Cluster")
        .reason("cluster")
        .next("give the address of a Redis that is not a cluster")
}

/// `maxmemory` is reached: nothing was stored, and a later try may succeed.
pub(super) fn server_full() -> Error {
    Error::new(Code::PublishFailed, "Redis has reached `maxmemory` and takes no more")
        .reason("server_full")
        .next("let the consumers catch up, remove groups nobody uses, or raise `maxmemory`")
}

/// What was made is there no more: removed by somebody, or lost by the server.
pub(super) fn gone(what: &str) -> Error {
    Error::new(Code::GroupNotFound, what).reason("data_gone").next("if nobody removed it, the server lost its data: check its persistence")
}

/// The text of an error without the arguments that some errors repeat.
fn plain(text: &str) -> &str {
    let text = text.split(", with args").next().unwrap_or_default();
    text.split(" script:").next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(line: &str) -> ServerError {
        match redis::parse_redis_value(format!("-{line}\r\n").as_bytes()) {
            Ok(redis::Value::ServerError(error)) => error,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn answers_become_codes() {
        for (line, code, reason, retryable) in [
            ("WRONGPASS invalid username-password pair or user is disabled.", Code::AuthenticationFailed, None, false),
            ("NOAUTH Authentication required.", Code::AuthenticationFailed, None, false),
            ("NOPERM User x has no permissions to run the 'eval' command", Code::AuthenticationFailed, Some("permission"), false),
            ("OOM command not allowed when used memory > 'maxmemory'.", Code::PublishFailed, Some("server_full"), true),
            ("EXECABORT Transaction discarded because of: OOM command not allowed", Code::PublishFailed, Some("server_full"), true),
            ("MISCONF Errors writing to the AOF file: No space left on device", Code::PublishFailed, Some("disk"), true),
            ("READONLY You can't write against a read only replica.", Code::ConnectionFailed, Some("read_only"), true),
            ("LOADING Redis is loading the dataset in memory", Code::ConnectionFailed, Some("loading"), true),
            ("MOVED 1234 10.0.0.1:6379", Code::CapabilityUnsupported, Some("cluster"), false),
            ("WRONGTYPE Operation against a key holding the wrong kind of value", Code::ConfigInvalid, Some("not_a_stream"), false),
            ("NOGROUP No such key 'x' or consumer group 'g'", Code::GroupNotFound, Some("data_gone"), false),
            ("UNBLOCKED the stream key no longer exists", Code::GroupNotFound, Some("data_gone"), false),
            ("ERR DB index is out of range", Code::ConfigInvalid, None, false),
            ("ERR something else", Code::SubscribeFailed, None, true),
        ] {
            let got = server(&error(line), Code::SubscribeFailed);
            assert_eq!((got.code(), got.detail_str("reason"), got.retryable()), (code, reason, retryable), "{line}");
        }
    }

    #[test]
    fn arguments_are_not_repeated() {
        let got = server(&error("ERR unknown command 'XADD', with args beginning with: 'hunter2'"), Code::PublishFailed);
        assert!(!got.to_string().contains("hunter2"), "{got}");
    }
}
