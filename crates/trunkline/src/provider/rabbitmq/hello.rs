//! What a server says before anybody logs in: that it is RabbitMQ, and which version. The client keeps it to itself.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::time::Duration;

use lapin::types::parsing::parse_field_table;
use lapin::types::{AMQPValue, FieldTable};

use super::connection::{Stream, dial};
use super::error::{no_answer, of_io};
use super::target::Target;
use crate::error::{Code, Error, Result};

/// The start of every AMQP 0-9-1 connection.
const HEADER: &[u8] = b"AMQP\0\0\x09\x01";
/// The first frame is no larger than this (AMQP 0-9-1, section 4.2.1: frame-min-size before tuning; servers list more).
const MOST: usize = 64 << 10;

/// A version of RabbitMQ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version(pub(super) u16, pub(super) u16);

impl Version {
    /// From 4.3 on a nack that gives back is not counted, while a reject is.
    pub(super) const UNCOUNTED_NACK: Version = Version(4, 3);
    /// From 4.0 on a queue that was declared is synced; before, its name is only written to disk when nothing has been
    /// declared for half a second, and who is killed earlier has lost the queue with all that was confirmed.
    pub(super) const SYNCED_QUEUES: Version = Version(4, 0);

    fn parse(text: &str) -> Option<Version> {
        let mut parts = text.split(['.', '-', '+']);
        Some(Version(parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    }
}

/// Connects, and reads what the server says of itself.
pub(super) async fn version(target: &Target, limit: Duration) -> Result<Version> {
    let doing = format!("connecting to {}", target.address());
    let asked = async {
        let (stream, _socket) = dial(target).await?;
        greet(stream, &doing).await
    };
    tokio::time::timeout(limit, asked).await.unwrap_or_else(|_| Err(no_answer(&doing, limit)))
}

/// Says hello on a stream that was just connected.
pub(super) async fn greet(mut stream: Stream, doing: &str) -> Result<Version> {
    let frame = first_frame(&mut stream).await.map_err(|e| of_io(doing, &e))?;
    let properties = frame.as_deref().and_then(server_properties);
    let Some(properties) = properties else {
        return Err(Error::new(Code::ConnectionFailed, format!("{doing}: the peer does not speak AMQP 0-9-1"))
            .with_retryable(false)
            .reason("not_amqp")
            .next("check the port: 5672 is AMQP, 5671 is AMQP over TLS (`amqps://`), 15672 is the management page"));
    };
    let version = match properties.inner().get("version") {
        Some(AMQPValue::LongString(text)) => Version::parse(&text.to_string()),
        _ => None,
    };
    // Another broker that speaks the protocol: only what every version does is relied on.
    Ok(version.unwrap_or(Version(0, 0)))
}

/// The payload of the first frame; `None` if it is not one.
async fn first_frame(stream: &mut Stream) -> io::Result<Option<Vec<u8>>> {
    write(stream, HEADER).await?;
    let mut head = [0; 7];
    read(stream, &mut head).await?;
    let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
    // A method frame on channel 0.
    if head[..3] != [1, 0, 0] || size > MOST {
        return Ok(None);
    }
    let mut payload = vec![0; size];
    read(stream, &mut payload).await?;
    Ok(Some(payload))
}

/// Class 10, method 10 (connection.start), version 0-9, then the table.
fn server_properties(payload: &[u8]) -> Option<FieldTable> {
    let table = payload.strip_prefix(&[0, 10, 0, 10, 0, 9])?;
    parse_field_table(table).ok().map(|(_, table)| table)
}

async fn write(stream: &mut Stream, mut bytes: &[u8]) -> io::Result<()> {
    use futures_io::AsyncWrite;
    while !bytes.is_empty() {
        let n = poll_fn(|cx| Pin::new(&mut *stream).poll_write(cx, bytes)).await?;
        if n == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        bytes = &bytes[n..];
    }
    poll_fn(|cx| Pin::new(&mut *stream).poll_flush(cx)).await
}

async fn read(stream: &mut Stream, mut bytes: &mut [u8]) -> io::Result<()> {
    use futures_io::AsyncRead;
    while !bytes.is_empty() {
        let n = poll_fn(|cx| Pin::new(&mut *stream).poll_read(cx, bytes)).await?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        bytes = &mut bytes[n..];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_told_apart() {
        assert_eq!(Version::parse("3.10.8"), Some(Version(3, 10)));
        assert_eq!(Version::parse("4.3.0-rc.1"), Some(Version(4, 3)));
        assert_eq!(Version::parse("4.3+5.g1"), Some(Version(4, 3)));
        assert_eq!(Version::parse("tanzu"), None);
        assert!(Version(3, 13) < Version::UNCOUNTED_NACK && Version(4, 2) < Version::UNCOUNTED_NACK);
        assert!(Version(4, 3) >= Version::UNCOUNTED_NACK && Version(5, 0) >= Version::UNCOUNTED_NACK);
    }
}
