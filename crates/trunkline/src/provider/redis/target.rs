//! Where Redis is and how to log in: from the config, and step by step to a connection that is ready for commands.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::{MultiplexedConnection, SendError};
use redis::{AsyncConnectionConfig, ConnectionAddr, IntoConnectionInfo, ProtocolVersion, PushInfo, RedisConnectionInfo, Value};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

use super::config::RedisConfig;
use super::envelope::bytes;
use super::error;
use crate::config::{Tls, invalid};
use crate::error::{Code, Error, Result};
use crate::provider::net::tls;

const PORT: u16 = 6379;
/// Each of resolving, connecting, the TLS handshake and logging in may take this long.
const STEP: Duration = Duration::from_secs(5);
/// Requests that may queue in the client before a caller waits.
const QUEUE: usize = 1_024;

/// See the module. Holds the password, and does not show it.
pub(super) struct Target {
    place: Place,
    login: RedisConnectionInfo,
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
}

#[derive(Clone)]
enum Place {
    Tcp(String, u16),
    Unix(PathBuf),
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target").field("place", &self.name()).field("tls", &self.tls.is_some()).finish_non_exhaustive()
    }
}

/// Bytes both ways, whatever they run over.
pub(super) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A connection that is logged in. Dropping it closes it.
#[derive(Debug)]
pub(super) struct Wire {
    pub(super) connection: MultiplexedConnection,
    pub(super) hello: Hello,
    driver: JoinHandle<()>,
}

/// What the server says of itself and of the connection.
#[derive(Debug, Clone, Default)]
pub(super) struct Hello {
    /// The number of the connection, for `CLIENT UNBLOCK`.
    pub(super) id: i64,
    /// As it is written: `7.0.15`.
    pub(super) version: String,
}

/// Streams with what is needed of them came with this version.
const OLDEST: (u32, u32) = (7, 0);

impl Hello {
    fn of(value: Value) -> Result<Self> {
        let mut hello = Hello::default();
        for (name, value) in pairs(value) {
            match (&name[..], value) {
                (b"id", Value::Int(id)) => hello.id = id,
                (b"version", Value::BulkString(version)) => hello.version = String::from_utf8_lossy(&version).into_owned(),
                (b"mode", Value::BulkString(mode)) if mode == b"cluster" => return Err(error::cluster()),
                (b"mode", Value::BulkString(mode)) if mode == b"sentinel" => {
                    return Err(error::connection("this is a Sentinel, not a Redis")
                        .reason("sentinel")
                        .next("give the address of the master"));
                }
                _ => {}
            }
        }
        let mut numbers = hello.version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
        let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        if version < OLDEST {
            let message = format!("this server is Redis {}; streams need {}.{} or later", hello.version, OLDEST.0, OLDEST.1);
            return Err(Error::new(Code::CapabilityUnsupported, message).reason("version").next("use a newer Redis"));
        }
        Ok(hello)
    }
}

/// The names and values of a reply, whichever protocol it came by.
pub(super) fn pairs(value: Value) -> Vec<(Vec<u8>, Value)> {
    match value {
        Value::Map(map) => map.into_iter().map(|(name, value)| (bytes(name), value)).collect(),
        Value::Array(flat) => {
            let mut flat = flat.into_iter();
            std::iter::from_fn(|| Some((bytes(flat.next()?), flat.next()?))).collect()
        }
        _ => Vec::new(),
    }
}

impl Wire {
    /// Whether the connection has ended.
    pub(super) fn ended(&self) -> bool {
        self.driver.is_finished()
    }
}

impl Wire {
    /// Ends the connection for all who use it.
    pub(super) fn end(&self) {
        self.driver.abort();
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Target {
    /// Reads the config, and the certificates it names.
    ///
    /// # Errors
    /// `CONFIG_INVALID` or `INPUT_INVALID`, naming the field.
    pub(super) async fn new(config: &RedisConfig) -> Result<Self> {
        let (mut place, login, mut secure, mut insecure) = match (&config.url, &config.host) {
            (Some(url), _) => of_url("url", url.expose())?,
            (None, Some(host)) => {
                let mut login = RedisConnectionInfo::default().set_db(i64::from(config.db.unwrap_or(0)));
                if let Some(name) = &config.username {
                    login = login.set_username(name);
                }
                // A user without a password takes any: Redis only learns the user from a login.
                if let Some(password) = config.password.as_ref().map(|p| p.expose()).or(config.username.as_ref().map(|_| "")) {
                    login = login.set_password(password);
                }
                (Place::Tcp(host.trim_matches(['[', ']']).to_owned(), config.port.unwrap_or(PORT)), login, false, false)
            }
            (None, None) => return Err(invalid("host", "`host` or `url` is required")),
        };
        if let Some(endpoint) = &config.common.endpoint {
            let text = if endpoint.contains("://") { endpoint.clone() } else { format!("redis://{endpoint}") };
            let (other, _, other_secure, other_insecure) = of_url("endpoint", &text)?;
            (place, secure, insecure) = (other, secure || other_secure, insecure || other_insecure);
        }
        let tls = match (&config.common.tls, secure) {
            (None, false) => None,
            (given, _) => {
                let mut wanted: Tls = given.clone().unwrap_or_default();
                wanted.insecure |= insecure;
                let Place::Tcp(host, _) = &place else { return Err(invalid("tls", "a unix socket takes no TLS")) };
                Some((tls::client(&wanted).await?, tls::server_name(&wanted, host)?))
            }
        };
        Ok(Target { place, login, tls })
    }

    /// For people: where it is.
    pub(super) fn name(&self) -> String {
        match &self.place {
            Place::Tcp(host, port) => format!("{host}:{port}"),
            Place::Unix(path) => path.display().to_string(),
        }
    }

    /// Host and port, where it has them.
    pub(super) fn address(&self) -> Option<(&str, u16)> {
        match &self.place {
            Place::Tcp(host, port) => Some((host, *port)),
            Place::Unix(_) => None,
        }
    }

    pub(super) fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// A socket to it.
    ///
    /// # Errors
    /// `CONNECTION_FAILED` or `TIMEOUT`; `details.stage` says where it ended.
    pub(super) async fn reach(&self) -> Result<Box<dyn Io>> {
        match &self.place {
            Place::Tcp(host, port) => {
                let found = step("resolve", lookup_host((host.as_str(), *port))).await?;
                let found = found.map_err(|e| error::connection(format!("'{host}' cannot be resolved: {e}")).detail("stage", "resolve"))?;
                let found: Vec<_> = found.collect();
                let socket = step("connect", TcpStream::connect(&*found)).await?;
                let socket =
                    socket.map_err(|e| error::connection(format!("nothing answers at {}: {e}", self.name())).detail("stage", "connect"))?;
                // Small writes must not wait for the acknowledgement of the one before.
                let _ = socket.set_nodelay(true);
                Ok(Box::new(socket))
            }
            Place::Unix(path) => {
                let socket = step("connect", UnixStream::connect(path)).await?;
                let socket =
                    socket.map_err(|e| error::connection(format!("nothing answers at {}: {e}", self.name())).detail("stage", "connect"))?;
                Ok(Box::new(socket))
            }
        }
    }

    /// The TLS handshake, where the config wants it.
    ///
    /// # Errors
    /// `CONNECTION_FAILED` with `details.reason: tls`.
    pub(super) async fn secure(&self, socket: Box<dyn Io>) -> Result<Box<dyn Io>> {
        let Some((config, name)) = &self.tls else { return Ok(socket) };
        let handshake = TlsConnector::from(Arc::clone(config)).connect(name.clone(), socket);
        // A Redis without TLS takes the first bytes for half a command, and waits for the rest.
        let unanswered = |_| tls::unanswered().detail("stage", "tls");
        let shaken = tokio::time::timeout(STEP, handshake).await.map_err(unanswered)?;
        Ok(Box::new(shaken.map_err(|e| tls::refused(&e).detail("stage", "tls"))?))
    }

    /// Logs in, chooses the database, and asks who answers. With `pushes` the connection can subscribe to channels.
    ///
    /// # Errors
    /// `AUTHENTICATION_FAILED`, `CONFIG_INVALID` for a database that is not there, `CAPABILITY_UNSUPPORTED` for a server that
    /// is too old, `CONNECTION_FAILED`.
    pub(super) async fn log_in(&self, socket: Box<dyn Io>, pushes: Option<Pushes>) -> Result<Wire> {
        let logged_in = async {
            // The client's own response timeout of 500 ms would break blocking reads: every call here has a deadline of its own.
            let mut config =
                AsyncConnectionConfig::new().set_response_timeout(None).set_connection_timeout(None).set_pipeline_buffer_size(QUEUE);
            let mut setup = RedisConnectionInfo::default().set_skip_set_lib_name();
            if let Some(pushes) = pushes {
                setup = self.login.clone().set_skip_set_lib_name().set_protocol(ProtocolVersion::RESP3);
                config = config.set_push_sender(move |push: PushInfo| {
                    pushes(push);
                    Ok::<(), SendError>(())
                });
            }
            let pushing = setup.protocol() == ProtocolVersion::RESP3;
            let opened = MultiplexedConnection::new_with_config(&setup, socket, config).await;
            let (connection, driver) = opened.map_err(|e| self.dropped(&e))?;
            let mut wire = Wire { connection, driver: tokio::spawn(driver), hello: Hello::default() };
            if !pushing {
                wire.hello = self.introduce(&mut wire.connection).await?;
            }
            Ok(wire)
        };
        step("authenticate", logged_in).await?.map_err(|error: Error| error.detail("stage", "authenticate"))
    }

    /// Step by step, so that each refusal is told apart.
    async fn introduce(&self, connection: &mut MultiplexedConnection) -> Result<Hello> {
        let mut say = async |cmd: &redis::Cmd| match connection.send_packed_command(cmd).await {
            Ok(Value::ServerError(refused)) => Err(error::server(&refused, Code::ConnectionFailed)),
            Ok(value) => Ok(value),
            Err(broken) => Err(self.dropped(&broken)),
        };
        if let Some(password) = self.login.password() {
            let mut auth = redis::cmd("AUTH");
            if let Some(user) = self.login.username() {
                auth.arg(user);
            }
            say(auth.arg(password)).await?;
        }
        let hello = Hello::of(say(&redis::cmd("HELLO")).await?)?;
        if self.login.db() != 0 {
            say(redis::cmd("SELECT").arg(self.login.db())).await?;
        }
        Ok(hello)
    }

    /// The connection ended while it was being set up.
    fn dropped(&self, broken: &redis::RedisError) -> Error {
        if let Some([(_, refused), ..]) = broken.clone().into_server_errors().as_deref() {
            return error::server(refused, Code::ConnectionFailed);
        }
        if self.tls.is_none() && broken.is_io_error() {
            return error::connection("the server closed the connection at the first word: it may expect TLS")
                .reason("tls")
                .next("use `rediss://…` or `tls`, or the server's port without TLS");
        }
        error::transport(broken)
    }

    /// All of it.
    pub(super) async fn open(&self, pushes: Option<Pushes>) -> Result<Wire> {
        let socket = self.reach().await?;
        let socket = self.secure(socket).await?;
        self.log_in(socket, pushes).await
    }
}

/// What a connection that listens to channels is told; must not wait.
pub(super) type Pushes = Box<dyn Fn(PushInfo) + Send + Sync>;

async fn step<T>(stage: &'static str, work: impl Future<Output = T>) -> Result<T> {
    tokio::time::timeout(STEP, work).await.map_err(|_| error::silence(stage).detail("stage", stage))
}

/// Place, login, whether TLS is wanted, and whether any certificate will do.
fn of_url(field: &str, url: &str) -> Result<(Place, RedisConnectionInfo, bool, bool)> {
    // The client's own text would quote the URL.
    let wrong =
        || invalid(field, format!("`{field}` is not a URL of Redis: `redis://user:password@host:6379/0`, or `rediss://…` with TLS"));
    let secure = ["rediss://", "valkeys://"].iter().find_map(|scheme| url.strip_prefix(scheme));
    let plain = secure.map(|rest| format!("redis://{rest}"));
    let parsed = redis::parse_redis_url(plain.as_deref().unwrap_or(url)).ok_or_else(wrong)?;
    let insecure = parsed.fragment() == Some("insecure");
    let info = parsed.into_connection_info().map_err(|_| wrong())?;
    let mut login = info.redis_settings().clone();
    if login.username().is_some() && login.password().is_none() {
        login = login.set_password("");
    }
    match info.addr() {
        ConnectionAddr::Tcp(host, port) => Ok((Place::Tcp(host.clone(), *port), login, secure.is_some(), insecure)),
        ConnectionAddr::Unix(path) => Ok((Place::Unix(path.clone()), login, false, false)),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::{ProviderConfig, ProviderKind};

    async fn target(config: serde_json::Value) -> Result<Target> {
        match ProviderConfig::parse(ProviderKind::Redis, &config)? {
            ProviderConfig::Redis(config) => Target::new(&config).await,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn every_spelling_leads_to_a_server() {
        for (config, name, user, password, db, tls) in [
            (json!({"host": "h"}), "h:6379", None, None, 0, false),
            (json!({"host": "h", "port": 1, "username": "u", "password": "p", "db": 3}), "h:1", Some("u"), Some("p"), 3, false),
            (json!({"host": "h", "password": "p"}), "h:6379", None, Some("p"), 0, false),
            (json!({"host": "h", "username": "u"}), "h:6379", Some("u"), Some(""), 0, false),
            (json!({"host": "h", "tls": {"insecure": true}}), "h:6379", None, None, 0, true),
            (json!({"url": "redis://h"}), "h:6379", None, None, 0, false),
            (json!({"url": "redis://u:p%40ss@h:2/4"}), "h:2", Some("u"), Some("p@ss"), 4, false),
            (json!({"url": "rediss://:p@h#insecure"}), "h:6379", None, Some("p"), 0, true),
            (json!({"url": "redis://u:p@h/4", "endpoint": "rediss://e:7#insecure"}), "e:7", Some("u"), Some("p"), 4, true),
            (json!({"host": "h", "endpoint": "e:7"}), "e:7", None, None, 0, false),
            (json!({"url": "redis://[::1]:5"}), "::1:5", None, None, 0, false),
            (json!({"url": "unix:///run/redis.sock?db=2"}), "/run/redis.sock", None, None, 2, false),
        ] {
            let target = target(config.clone()).await.expect("a target");
            let login = (target.login.username(), target.login.password(), target.login.db());
            assert_eq!((target.name().as_str(), login, target.is_tls()), (name, (user, password, db), tls), "{config}");
            assert!(!format!("{target:?}").contains("p@ss"));
        }
    }

    #[tokio::test]
    async fn what_leads_nowhere_is_refused_without_showing_it() {
        for (config, field) in [
            (json!({"url": "http://u:hunter2@h"}), "url"),
            (json!({"url": "redis://u:hunter2@h/x"}), "url"),
            (json!({"host": "h", "endpoint": "http://hunter2"}), "endpoint"),
            (json!({"host": "h", "tls": {"cert": "hunter2"}}), "tls.key"),
            (json!({"host": "h", "tls": {"ca": "/nowhere/hunter2"}}), "tls.ca"),
        ] {
            let error = target(config.clone()).await.expect_err("refused");
            assert_eq!(error.detail_str("field"), Some(field), "{config}: {error:?}");
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn old_servers_clusters_and_sentinels_are_told_apart() {
        let hello = |version: &str, mode: &str| {
            let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
            Hello::of(Value::Array(vec![text("version"), text(version), text("id"), Value::Int(7), text("mode"), text(mode)]))
        };
        let ok = hello("7.0.15", "standalone").expect("new enough");
        assert_eq!((ok.id, ok.version.as_str()), (7, "7.0.15"));
        assert!(hello("8.2.1", "standalone").is_ok());
        for (version, mode, reason) in
            [("6.2.9", "standalone", "version"), ("7.2.0", "cluster", "cluster"), ("7.2.0", "sentinel", "sentinel")]
        {
            assert_eq!(hello(version, mode).expect_err(reason).detail_str("reason"), Some(reason));
        }
    }
}
