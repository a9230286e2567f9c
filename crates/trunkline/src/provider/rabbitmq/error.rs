//! What the server and its client say, in the product's codes. The server's texts name queues and exchanges, no secrets.

use std::time::Duration;

use lapin::ErrorKind;

use crate::error::{Code, Error, Result};

/// The server's reply codes that are told apart (AMQP 0-9-1, section 1.2.3, constants).
pub(super) mod reply {
    pub(in super::super) const ACCESS_REFUSED: u16 = 403;
    pub(in super::super) const NOT_FOUND: u16 = 404;
    pub(in super::super) const RESOURCE_LOCKED: u16 = 405;
    pub(in super::super) const PRECONDITION_FAILED: u16 = 406;
    pub(in super::super) const NOT_ALLOWED: u16 = 530;
}

/// The code and the text of what the server itself said.
pub(super) fn said(error: &lapin::Error) -> Option<(u16, &str)> {
    match error.kind() {
        ErrorKind::ProtocolError(error) => Some((error.get_id(), error.get_message().as_str())),
        _ => None,
    }
}

/// Whether the server closed the channel with this code.
pub(super) fn is(error: &lapin::Error, code: u16) -> bool {
    said(error).is_some_and(|(said, _)| said == code)
}

/// A failure on a connection that stands.
pub(super) fn of(doing: &str, error: &lapin::Error) -> Error {
    let Some((code, text)) = said(error) else { return lost(doing, error) };
    match code {
        reply::ACCESS_REFUSED => Error::new(Code::AuthenticationFailed, format!("{doing}: {text}"))
            .reason("permission_denied")
            .next("grant the user the permission that the text names (`rabbitmqctl set_permissions`)"),
        reply::NOT_FOUND => Error::new(Code::TopicNotFound, format!("{doing}: {text}")),
        reply::PRECONDITION_FAILED if text.contains("timed out") => {
            Error::new(Code::SubscribeFailed, format!("{doing}: a delivery was held longer than the server's consumer_timeout"))
                .reason("consumer_timeout")
                .next("let handlers end sooner, ask for a smaller `prefetch`, or raise `consumer_timeout` on the server")
        }
        reply::PRECONDITION_FAILED | reply::RESOURCE_LOCKED => {
            Error::new(Code::ConfigInvalid, format!("{doing}: {text}")).reason("precondition_failed")
        }
        _ => Error::new(Code::ConnectionFailed, format!("{doing}: {text}")),
    }
}

/// A failure of the connection itself.
fn lost(doing: &str, error: &lapin::Error) -> Error {
    let what = match error.kind() {
        ErrorKind::IOError(error) => format!("the connection broke: {error}"),
        ErrorKind::MissingHeartbeatError => "the server gave no sign of life".to_owned(),
        ErrorKind::ChannelsLimitReached => "the server allows no more channels on this connection".to_owned(),
        ErrorKind::InvalidChannelState(..) | ErrorKind::InvalidConnectionState(_) => "the connection was lost".to_owned(),
        ErrorKind::InvalidProtocolVersion(_) | ErrorKind::ParsingError(_) => "the peer does not speak AMQP 0-9-1".to_owned(),
        _ => "the client failed".to_owned(),
    };
    Error::new(Code::ConnectionFailed, format!("{doing}: {what}"))
}

/// A failure while a connection is made: a refusal here is about who logs in and where.
pub(super) fn connecting(address: &str, error: &lapin::Error) -> Error {
    let doing = format!("connecting to {address}");
    match said(error) {
        Some((reply::ACCESS_REFUSED, text)) => Error::new(Code::AuthenticationFailed, format!("{doing}: {text}"))
            .reason("credentials")
            .next("check user and password; `guest` may only log in from the server's own host"),
        Some((reply::NOT_ALLOWED, text)) => Error::new(Code::AuthenticationFailed, format!("{doing}: {text}"))
            .reason("vhost")
            .next("check `vhost`, and that the user has permissions in it (`rabbitmqctl list_permissions -p VHOST`)"),
        Some((_, text)) => Error::new(Code::ConnectionFailed, format!("{doing}: {text}")),
        None => match error.kind() {
            ErrorKind::IOError(io) => of_io(&doing, io),
            _ => lost(&doing, error),
        },
    }
}

/// A failure of the socket.
pub(super) fn of_io(doing: &str, error: &std::io::Error) -> Error {
    Error::new(Code::ConnectionFailed, format!("{doing}: {error}"))
}

pub(super) fn closed() -> Error {
    Error::new(Code::Closed, "the connection is closed")
}

pub(super) fn no_answer(doing: &str, limit: Duration) -> Error {
    Error::new(Code::Timeout, format!("{doing}: the server gave no answer within {limit:?}"))
}

/// A call to the server that must not wait for ever.
pub(super) async fn within<T>(doing: &str, limit: Duration, call: impl Future<Output = lapin::Result<T>>) -> Result<T> {
    match tokio::time::timeout(limit, call).await {
        Ok(answer) => answer.map_err(|error| of(doing, &error)),
        Err(_) => Err(no_answer(doing, limit)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(code: u16, text: &str) -> lapin::Error {
        let error = lapin::protocol::AMQPError::from_id(code, text.into()).expect("a known code");
        ErrorKind::ProtocolError(error).into()
    }

    #[test]
    fn each_refusal_has_its_own_code_and_reason() {
        let reason = |error: &Error| error.details().get("reason").and_then(|reason| reason.as_str()).map(str::to_owned);
        let login = connecting("h:1", &server(403, "ACCESS_REFUSED - Login was refused"));
        let vhost = connecting("h:1", &server(530, "NOT_ALLOWED - vhost v not found"));
        let permission = of("consuming", &server(403, "ACCESS_REFUSED - read access to queue 'q' refused"));
        for (error, wanted) in [(&login, "credentials"), (&vhost, "vhost"), (&permission, "permission_denied")] {
            assert_eq!((error.code(), reason(error).as_deref()), (Code::AuthenticationFailed, Some(wanted)));
            assert!(!error.retryable());
        }
        let held = of("consuming", &server(406, "PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out"));
        assert_eq!((held.code(), reason(&held).as_deref()), (Code::SubscribeFailed, Some("consumer_timeout")));
        assert_eq!(of("sending", &server(404, "NOT_FOUND - no exchange 'x'")).code(), Code::TopicNotFound);
        let forced = of("sending", &server(320, "CONNECTION_FORCED - broker forced connection closure"));
        assert_eq!((forced.code(), forced.retryable()), (Code::ConnectionFailed, true));
        let io = ErrorKind::IOError(std::sync::Arc::new(std::io::ErrorKind::ConnectionReset.into())).into();
        assert_eq!(of("sending", &io).code(), Code::ConnectionFailed);
    }
}
