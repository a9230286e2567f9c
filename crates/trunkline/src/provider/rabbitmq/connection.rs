//! One connection to the server: how it is opened, watched, and ended.
//!
//! The client's own recovery stays off: a connection that broke is given up, and what was on it is opened anew.

use std::net::Shutdown;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_compat::CompatExt;
use futures_util::StreamExt;
use lapin::tcp::AsyncTcpStream;
use lapin::{Channel, Connection, ConnectionProperties, Event};
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::error::{closed, connecting, no_answer, of_io, within};
use super::target::Target;
use crate::error::{Code, Error, Result};
use crate::provider::net::tls;

/// How long a connection may take to be made.
pub(super) const CONNECT: Duration = Duration::from_secs(10);
/// How long a TLS handshake may take of it.
const HANDSHAKE: Duration = Duration::from_secs(7);
/// How long the server may take to answer a call.
pub(super) const ANSWER: Duration = Duration::from_secs(15);
/// A connection carries at most this many channels; the server's own limit is 2,047.
const CHANNELS: usize = 500;

/// A socket, plain or with TLS.
pub(super) type Stream = AsyncTcpStream<async_compat::Compat<TcpStream>>;

/// An open connection.
#[derive(Debug)]
pub(super) struct Link {
    connection: Connection,
    socket: std::net::TcpStream,
    blocked: watch::Receiver<bool>,
    listens: JoinHandle<()>,
    channels: AtomicUsize,
    given_up: AtomicBool,
}

/// A connection made up to TLS, and a handle with which it can be ended at any time.
pub(super) async fn dial(target: &Target) -> Result<(Stream, std::net::TcpStream)> {
    let doing = format!("connecting to {}", target.address());
    let dialled = async {
        let tcp = TcpStream::connect((target.host(), target.port())).await?;
        tcp.set_nodelay(true)?;
        let handle = std::net::TcpStream::from(tcp.as_fd().try_clone_to_owned()?);
        Ok((tcp, handle))
    };
    let (tcp, handle) = dialled.await.map_err(|e: std::io::Error| of_io(&doing, &e))?;
    let stream = AsyncTcpStream::Plain(tcp.compat());
    let stream = match &target.tls {
        None => stream,
        Some((connector, name)) => {
            let shaken = tokio::time::timeout(HANDSHAKE, stream.into_rustls(connector, name)).await;
            shaken.map_err(|_| tls::unanswered())?.map_err(|e| tls::refused(&e).context(&doing))?
        }
    };
    Ok((stream, handle))
}

impl Link {
    /// Connects and logs in. `name` is what the server's tools show.
    pub(super) async fn open(target: &Arc<Target>, name: &str) -> Result<Arc<Link>> {
        let failed: Arc<Mutex<Option<Error>>> = Arc::default();
        let socket: Arc<Mutex<Option<std::net::TcpStream>>> = Arc::default();
        let connect = {
            let (target, failed, socket) = (target.clone(), failed.clone(), socket.clone());
            async move |_, _| {
                mute();
                match tokio::time::timeout(CONNECT, dial(&target)).await {
                    Ok(Ok((stream, handle))) => {
                        *socket.lock() = Some(handle);
                        Ok(stream)
                    }
                    Ok(Err(error)) => {
                        *failed.lock() = Some(error);
                        Err(std::io::Error::from(std::io::ErrorKind::NotConnected).into())
                    }
                    Err(_) => Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()),
                }
            }
        };
        let doing = format!("connecting to {}", target.address());
        let runtime = lapin::runtime::default_runtime().map_err(|e| connecting(&target.address(), &e))?;
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        let opened = Connection::connector(target.uri.clone(), runtime, connect, properties);
        let connection = match tokio::time::timeout(CONNECT, opened).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => {
                let before = failed.lock().take();
                return Err(before.unwrap_or_else(|| connecting(&target.address(), &error)));
            }
            Err(_) => {
                if let Some(socket) = socket.lock().take() {
                    let _ = socket.shutdown(Shutdown::Both);
                }
                return Err(no_answer(&doing, CONNECT));
            }
        };
        let Some(socket) = socket.lock().take() else {
            return Err(Error::new(Code::ConnectionFailed, format!("{doing}: the client made no socket")));
        };
        let (tell, blocked) = watch::channel(false);
        let mut events = Box::pin(connection.events_listener());
        let listens = tokio::spawn(async move {
            while let Some(event) = events.next().await {
                match event {
                    Event::ConnectionBlocked(reason) => {
                        tracing::warn!(%reason, "RabbitMQ takes no messages for now");
                        tell.send_replace(true);
                    }
                    Event::ConnectionUnblocked => {
                        tell.send_replace(false);
                    }
                    _ => {}
                }
            }
        });
        Ok(Arc::new(Link { connection, socket, blocked, listens, channels: AtomicUsize::new(0), given_up: AtomicBool::new(false) }))
    }

    pub(super) fn lives(&self) -> bool {
        !self.given_up.load(Ordering::Relaxed) && self.connection.status().connected()
    }

    /// Whether it lives and has room for more channels.
    pub(super) fn has_room(&self) -> bool {
        let most = CHANNELS.min(usize::from(self.connection.configuration().channel_max()).saturating_sub(8));
        self.lives() && self.channels.load(Ordering::Relaxed) < most
    }

    /// Whether the server takes no messages for now (`connection.blocked`).
    pub(super) fn blocked(&self) -> watch::Receiver<bool> {
        self.blocked.clone()
    }

    pub(super) fn frame_max(&self) -> usize {
        self.connection.configuration().frame_max() as usize
    }

    /// A new channel.
    pub(super) async fn channel(self: &Arc<Self>) -> Result<LinkChannel> {
        if self.given_up.load(Ordering::Relaxed) {
            return Err(closed());
        }
        let channel = within("opening a channel", ANSWER, self.connection.create_channel()).await?;
        self.channels.fetch_add(1, Ordering::Relaxed);
        Ok(LinkChannel { channel, link: self.clone() })
    }

    /// Says good-bye, and ends it at the deadline in any case.
    pub(super) async fn close(&self, deadline: Instant) {
        if !self.given_up.swap(true, Ordering::Relaxed) {
            let close = self.connection.close(200, "closed".into());
            let _ = tokio::time::timeout_at(deadline.into(), close).await;
        }
        self.abort();
    }

    /// Ends it without a word: nothing that was not yet written goes out.
    pub(super) fn abort(&self) {
        self.given_up.store(true, Ordering::Relaxed);
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.listens.abort();
        self.abort();
    }
}

/// A channel, counted on its connection.
#[derive(Debug)]
pub(super) struct LinkChannel {
    channel: Channel,
    link: Arc<Link>,
}

impl LinkChannel {
    pub(super) fn link(&self) -> &Arc<Link> {
        &self.link
    }

    /// Closes it; what the server had to say before, it has said when this returns `true`.
    pub(super) async fn close(&self, limit: Duration) -> bool {
        let closed = tokio::time::timeout(limit, self.channel.close(200, "closed".into())).await;
        matches!(closed, Ok(Ok(())))
    }
}

impl std::ops::Deref for LinkChannel {
    type Target = Channel;

    fn deref(&self) -> &Channel {
        &self.channel
    }
}

impl Drop for LinkChannel {
    fn drop(&mut self) {
        self.link.channels.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The client logs a returned message with its payload, from the thread that runs this. What it has to say is in its
/// answers; its thread logs nothing.
fn mute() {
    let guard = tracing::subscriber::set_default(tracing::subscriber::NoSubscriber::default());
    std::mem::forget(guard);
}
