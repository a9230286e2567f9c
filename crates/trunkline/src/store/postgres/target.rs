//! From a URL to a server, a database and a schema.
//!
//! What the client library does not know is read here and taken out: `schema`, the certificates, and the stricter modes of
//! `sslmode`. The password never leaves the library's config: it is in no name, no error and no `Debug`.

use std::fmt;
use std::str::FromStr as _;
use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode};
use tokio_rustls::rustls::ClientConfig;

use crate::config::Tls;
use crate::error::{Error, Result};
use crate::provider::net::tls;
use crate::secret::Secret;

/// The schema, unless the URL names another.
const SCHEMA: &str = "trunkline";
/// How long a connection may take to be made, unless the URL says otherwise.
const CONNECT: Duration = Duration::from_secs(5);

/// Where the tables are, and how to get there.
#[derive(Clone)]
pub(super) struct Target {
    pub(super) config: Config,
    pub(super) tls: Option<Arc<ClientConfig>>,
    pub(super) schema: String,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.location())
    }
}

impl Target {
    /// Reads a URL; `field` is where it was given.
    pub(super) async fn parse(url: &str, field: &str) -> Result<Target> {
        let (plain, own) = Own::take(url, field)?;
        // The library's error may quote what it could not read.
        let mut config = Config::from_str(&plain).map_err(|_| unreadable(field, "is no PostgreSQL URL"))?;
        if config.get_hosts().is_empty() {
            return Err(unreadable(field, "names no host"));
        }
        if config.get_password().is_none()
            && let Ok(password) = std::env::var("PGPASSWORD")
        {
            config.password(password);
        }
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT);
        }
        // A server that is gone without a word is noticed.
        config.keepalives_idle(Duration::from_secs(15)).keepalives_interval(Duration::from_secs(5)).keepalives_retries(3);
        config.tcp_user_timeout(Duration::from_secs(20));
        if config.get_application_name().is_none() {
            config.application_name("trunkline");
        }
        let tls = own.tls(&mut config).await?;
        Ok(Target { config, tls, schema: own.schema })
    }

    /// Where it is, without user and password.
    pub(super) fn location(&self) -> String {
        let ports = self.config.get_ports();
        let hosts: Vec<String> = self.config.get_hosts().iter().enumerate().map(|(at, host)| shown(host, ports, at)).collect();
        let database = self.config.get_dbname().or(self.config.get_user()).unwrap_or_default();
        let schema = if self.schema == SCHEMA { String::new() } else { format!("?schema={}", self.schema) };
        format!("postgres://{}/{database}{schema}", hosts.join(","))
    }
}

fn shown(host: &Host, ports: &[u16], at: usize) -> String {
    let port = ports.get(at).or(ports.first()).filter(|port| **port != 5432).map(|port| format!(":{port}")).unwrap_or_default();
    match host {
        Host::Tcp(name) => format!("{name}{port}"),
        #[cfg(unix)]
        Host::Unix(path) => format!("{}{port}", path.display()),
    }
}

/// The parameters that are ours.
#[derive(Default)]
struct Own {
    schema: String,
    mode: Option<String>,
    tls: Tls,
}

impl Own {
    /// Takes our parameters out of a URL.
    fn take(url: &str, field: &str) -> Result<(String, Own)> {
        let (base, query) = url.split_once('?').unwrap_or((url, ""));
        let mut own = Own { schema: SCHEMA.to_owned(), ..Own::default() };
        let mut rest = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = decoded(value).ok_or_else(|| unreadable(field, &format!("has a broken value of `{name}`")))?;
            match name {
                "schema" if is_name(&value) => own.schema = value,
                "schema" => return Err(unreadable(field, "names a schema that is not 1 to 40 of a-z, 0-9 and _, a letter first")),
                "sslmode" => own.mode = Some(value),
                "sslrootcert" => own.tls.ca = Some(value),
                "sslcert" => own.tls.cert = Some(value),
                "sslkey" => own.tls.key = Some(Secret::new(value)),
                _ => rest.push(pair),
            }
        }
        if let Some(mode) = own.mode.as_deref().filter(|mode| !MODES.contains(mode)) {
            let mode: String = mode.chars().take(20).collect();
            return Err(unreadable(field, &format!("has the unknown sslmode '{mode}'; there are: {}", MODES.join(", "))));
        }
        let plain = if rest.is_empty() { base.to_owned() } else { format!("{base}?{}", rest.join("&")) };
        Ok((plain, own))
    }

    /// As in PostgreSQL's own clients: `prefer` and `require` check no certificate unless an authority is given.
    async fn tls(&self, config: &mut Config) -> Result<Option<Arc<ClientConfig>>> {
        let (mode, checked) = match self.mode.as_deref() {
            Some("disable") => return Ok(config.ssl_mode(SslMode::Disable)).map(|_| None),
            None | Some("prefer") => (SslMode::Prefer, self.tls.ca.is_some()),
            Some("require") => (SslMode::Require, self.tls.ca.is_some()),
            Some(_) => (SslMode::Require, true),
        };
        config.ssl_mode(mode);
        let wanted = Tls { insecure: !checked, ..self.tls.clone() };
        tls::client(&wanted).await.map(Some)
    }
}

const MODES: &[&str] = &["disable", "prefer", "require", "verify-ca", "verify-full"];

/// Whether a text is a name that needs no quotes anywhere.
fn is_name(text: &str) -> bool {
    (1..=40).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

/// Undoes `%2F`.
fn decoded(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        out.push(if byte == b'%' {
            let hex = [rest.next()?, rest.next()?];
            u8::from_str_radix(std::str::from_utf8(&hex).ok()?, 16).ok()?
        } else {
            byte
        });
    }
    String::from_utf8(out).ok()
}

/// The URL itself is not shown: it may hold a password.
fn unreadable(field: &str, what: &str) -> Error {
    Error::input(field, format!("`{field}` {what}")).next("use postgres://USER@HOST:PORT/DATABASE, with ?schema=NAME for another schema")
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_url_is_read_and_shows_no_password() {
        for (url, location) in [
            ("postgres://me:hunter2@db/app", "postgres://db/app"),
            ("postgresql://me:hunter2@db:6000/app?schema=other&sslmode=require", "postgres://db:6000/app?schema=other"),
            ("postgres://me:hunter2@a,b:1/app?application_name=x", "postgres://a,b:1/app"),
            ("postgres://me:hunter2@db", "postgres://db/me"),
        ] {
            let target = Target::parse(url, "url").await.unwrap();
            assert_eq!(target.location().replace(":5432", ""), location);
            assert!(!format!("{target:?}").contains("hunter2"));
        }
    }

    #[tokio::test]
    async fn what_cannot_be_meant_is_refused_without_showing_it() {
        for url in [
            "postgres://me:hunter2@db/app?schema=Public",
            "postgres://me:hunter2@db/app?schema=a%22b",
            "postgres://me:hunter2@db/app?sslmode=perhaps",
            "postgres://me:hunter2@db/app?hunter2=1",
            "postgres://me:hunter2@db:port/app",
            "postgres://",
        ] {
            let error = Target::parse(url, "url").await.unwrap_err();
            assert_eq!((error.code().as_str(), error.detail_str("field")), ("INPUT_INVALID", Some("url")), "{url}");
            assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
        }
    }
}
