//! One connection to a server, from its handshake to its death. It is never repaired: who finds it dead opens another.
//!
//! The client would connect again by itself and go on with what was queued. Here it may not: a message that was reported
//! as unconfirmed must not leave later, and a lease that was lost must not be kept. So the second handshake is refused.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_nats::rustls::ClientConfig;
use async_nats::{AuthError, Client, ConnectOptions, Event, HeaderMap, Message, Request, RequestErrorKind, ServerError, Subject};
use bytes::Bytes;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;
use tracing::instrument::WithSubscriber as _;
use tracing::subscriber::NoSubscriber;

use super::access::{self, Identity, Server};
use super::confirms::Confirms;
use super::error;
use crate::error::{Code, Error, Result};

/// How long a server may take for its handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// A server that leaves three pings of this distance unanswered is dead.
const PING: Duration = Duration::from_secs(2);
/// What may wait for a subscription's reader. More is never asked for.
pub(super) const CHANNEL: usize = 65_536;

/// What connections are opened with.
#[derive(Clone)]
pub(super) struct Dial {
    pub(super) servers: Vec<Server>,
    pub(super) identity: Option<Identity>,
    /// Set where TLS is asked for; the server may ask for it as well.
    pub(super) tls_required: bool,
    /// `None` if this machine has no authorities and none were given.
    pub(super) tls: Option<ClientConfig>,
    pub(super) name: String,
    /// The server that took us last is asked first: others may be slow to say that they are down.
    pub(super) first: Arc<AtomicUsize>,
}

impl std::fmt::Debug for Dial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dial").field("servers", &self.servers).finish_non_exhaustive()
    }
}

/// See the module.
pub(super) struct Link {
    pub(super) client: Client,
    /// The server's version: major, minor, patch.
    pub(super) version: (u32, u32, u32),
    /// The largest message with its headers, in bytes.
    pub(super) max_payload: usize,
    pub(super) confirms: Arc<Confirms>,
    dead: CancellationToken,
    denials: broadcast::Sender<Arc<str>>,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("version", &self.version).field("dead", &self.is_dead()).finish_non_exhaustive()
    }
}

/// Why a request has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missed {
    /// Nobody serves the subject.
    NoResponders,
    /// This user may not publish to it.
    Denied,
    /// The connection died.
    Dead,
    /// The time was over.
    Late,
}

impl Missed {
    pub(super) fn into_error(self, doing: &str, subject: &str) -> Error {
        match self {
            Missed::NoResponders => {
                Error::new(Code::ConnectionFailed, format!("{doing}: nobody answers on '{subject}'")).reason("no_responders")
            }
            Missed::Denied => error::denied(subject),
            Missed::Dead => error::dead(&format!("{doing}: the connection was lost")),
            Missed::Late => error::late(doing),
        }
    }
}

impl Dial {
    /// Opens a connection to the first server of the list that takes us.
    pub(super) async fn connect(&self) -> Result<Arc<Link>> {
        let mut worst: Option<Error> = None;
        let first = self.first.load(Ordering::Relaxed);
        for at in (0..self.servers.len()).map(|at| (first + at) % self.servers.len()) {
            match self.connect_to(&self.servers[at]).await {
                Ok(link) => {
                    self.first.store(at, Ordering::Relaxed);
                    return Ok(link);
                }
                // A refused credential says more than a server that is down.
                Err(error) if worst.as_ref().is_some_and(|worst| worst.code() == Code::AuthenticationFailed) => drop(error),
                Err(error) => worst = Some(error),
            }
        }
        Err(worst.unwrap_or_else(|| error::dead("no server is given")))
    }

    pub(super) async fn connect_to(&self, server: &Server) -> Result<Arc<Link>> {
        let dead = CancellationToken::new();
        let (denials, _) = broadcast::channel(64);
        let introduced = Arc::new(AtomicBool::new(false));
        let (identity, to) = (self.identity.clone(), server.clone());
        let options = ConnectOptions::with_auth_callback(move |nonce| {
            // Once only: see the module.
            let auth = if introduced.swap(true, Ordering::AcqRel) {
                Err(AuthError::new("this connection is over; its owner opens another"))
            } else {
                access::answer(identity.as_ref(), &to, &nonce)
            };
            std::future::ready(auth)
        });
        let on_event = {
            let (dead, denials) = (dead.clone(), denials.clone());
            move |event: Event| {
                heard(&event, &dead, &denials);
                std::future::ready(())
            }
        };
        let options = options
            .name(&self.name)
            .require_tls(self.tls_required || server.tls)
            .connection_timeout(HANDSHAKE)
            .request_timeout(None)
            .ping_interval(PING)
            .max_reconnects(1)
            .reconnect_delay_callback(|_| Duration::ZERO)
            .ignore_discovered_servers()
            .subscription_capacity(CHANNEL)
            .skip_subject_validation(true)
            .event_callback(on_event);
        let options = match &self.tls {
            Some(tls) => options.tls_client_config(tls.clone()),
            None => options,
        };
        // The client traces the handshake with its password in it.
        let connecting = async_nats::connect_with_options(server.addr(), options).with_subscriber(NoSubscriber::new());
        let client = tokio::time::timeout(HANDSHAKE * 2, connecting)
            .await
            .map_err(|_| Error::new(Code::ConnectionFailed, format!("{} did not answer in time", server.name())).reason("timeout"))?
            .map_err(|e| error::connect(&server.name(), &e))?;
        let info = client.server_info();
        let link = Link {
            confirms: Confirms::start(&client, &dead).await?,
            version: version(&info.version),
            max_payload: info.max_payload,
            client,
            dead,
            denials,
        };
        Ok(Arc::new(link))
    }
}

fn heard(event: &Event, dead: &CancellationToken, denials: &broadcast::Sender<Arc<str>>) {
    match event {
        Event::Disconnected | Event::Closed => dead.cancel(),
        // Something was dropped that was asked for: only a new start knows what.
        Event::SlowConsumer(_) => dead.cancel(),
        Event::ServerError(ServerError::Other(text)) if text.to_lowercase().contains("permissions violation") => {
            // Nobody may be waiting for it.
            let _ = denials.send(text.as_str().into());
        }
        _ => {}
    }
}

impl Link {
    pub(super) fn is_dead(&self) -> bool {
        self.dead.is_cancelled()
    }

    /// Done when the connection is dead.
    pub(super) fn died(&self) -> tokio_util::sync::WaitForCancellationFuture<'_> {
        self.dead.cancelled()
    }

    /// Flushes what is queued, ends the client's tasks and closes the socket.
    pub(super) async fn close(&self, deadline: Instant) {
        let _ = tokio::time::timeout_at(deadline.into(), self.client.drain()).await;
        self.dead.cancel();
    }

    /// From now on, what the server says about missing permissions.
    pub(super) fn denials(&self) -> broadcast::Receiver<Arc<str>> {
        self.denials.subscribe()
    }

    /// One question, one answer. A missing permission is found at once, not when the time is over.
    pub(super) async fn request(&self, subject: &Subject, payload: Bytes, within: Duration) -> Result<Message, Missed> {
        self.request_with(subject, None, payload, within).await
    }

    pub(super) async fn request_with(
        &self,
        subject: &Subject,
        headers: Option<HeaderMap>,
        payload: Bytes,
        within: Duration,
    ) -> Result<Message, Missed> {
        let mut denials = self.denials();
        let mut request = Request::new().payload(payload);
        if let Some(headers) = headers {
            request = request.headers(headers);
        }
        let answer = self.client.send_request(subject.clone(), request);
        tokio::select! {
            answer = answer => answer.map_err(|e| if e.kind() == RequestErrorKind::NoResponders { Missed::NoResponders } else { Missed::Dead }),
            _ = denied(&mut denials, std::slice::from_ref(subject)) => Err(Missed::Denied),
            () = self.dead.cancelled() => Err(Missed::Dead),
            () = tokio::time::sleep(within) => Err(Missed::Late),
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // The reader of the confirms ends with it, and then the client's own tasks.
        self.dead.cancel();
    }
}

/// The first of these subjects that the server says may not be used.
pub(super) async fn denied(denials: &mut broadcast::Receiver<Arc<str>>, subjects: &[Subject]) -> Subject {
    loop {
        match denials.recv().await {
            Ok(text) => {
                if let Some(subject) = named(&text, subjects) {
                    return subject;
                }
            }
            Err(broadcast::error::RecvError::Lagged(_)) => {}
            Err(broadcast::error::RecvError::Closed) => return std::future::pending().await,
        }
    }
}

/// Which of these subjects a refusal names.
pub(super) fn named(text: &str, subjects: &[Subject]) -> Option<Subject> {
    let quoted = text.split('"').nth(1)?;
    subjects.iter().find(|subject| subject.as_str() == quoted).cloned()
}

/// `2.14.5`, `2.12.0-RC.1` and the like.
pub(super) fn version(text: &str) -> (u32, u32, u32) {
    let mut parts = text.split(['.', '-', '+']).map(|part| part.parse().unwrap_or(0));
    let mut next = || parts.next().unwrap_or(0);
    (next(), next(), next())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        assert_eq!(version("2.14.5"), (2, 14, 5));
        assert_eq!(version("2.11.0-preview.2"), (2, 11, 0));
        assert_eq!(version(""), (0, 0, 0));
    }
}
