//! Where a config leads: host, port, virtual host, who logs in, and TLS.

use std::fmt;
use std::sync::Arc;

use lapin::tcp::RustlsConnector;
use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo, SASLMechanism};

use super::config::RabbitmqConfig;
use crate::config::Tls;
use crate::error::{Code, Error, Result};
use crate::provider::net::tls;

/// Seconds between heartbeats: a peer that is silent for two of them is dead. The server may ask for less.
const HEARTBEAT: u16 = 10;

/// See the module.
#[derive(Clone)]
pub(super) struct Target {
    pub(super) uri: AMQPUri,
    /// How TLS is spoken, and the name expected in the certificate.
    pub(super) tls: Option<(Arc<RustlsConnector>, String)>,
}

impl Target {
    pub(super) async fn new(config: &RabbitmqConfig) -> Result<Target> {
        let uri = uri(config)?;
        let asked = config.common.tls.as_ref();
        let tls = if uri.scheme == AMQPScheme::AMQPS {
            let default = Tls::default();
            let asked = asked.unwrap_or(&default);
            let name = tls::server_name(asked, &uri.authority.host)?.to_str().into_owned();
            Some((Arc::new(RustlsConnector::from(tls::client(asked).await?)), name))
        } else {
            None
        };
        Ok(Target { uri, tls })
    }

    pub(super) fn host(&self) -> &str {
        &self.uri.authority.host
    }

    pub(super) fn port(&self) -> u16 {
        self.uri.authority.port
    }

    /// For messages; without credentials.
    pub(super) fn address(&self) -> String {
        let host = self.host();
        if host.contains(':') { format!("[{host}]:{}", self.port()) } else { format!("{host}:{}", self.port()) }
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}/{}", self.uri.scheme, self.address(), self.uri.vhost)
    }
}

/// `endpoint` replaces host, port and scheme and leaves the rest, as a private endpoint in front of the same server does.
fn uri(config: &RabbitmqConfig) -> Result<AMQPUri> {
    let mut uri = match (&config.url, &config.host) {
        (Some(url), _) => parse("url", url.expose())?,
        (None, host) => {
            let scheme = if config.common.tls.is_some() { AMQPScheme::AMQPS } else { AMQPScheme::AMQP };
            let port = config.port.unwrap_or(default_port(&scheme));
            let user = config.username.clone().unwrap_or_else(|| "guest".into());
            let password = config.password.as_ref().map_or_else(|| "guest".into(), |password| password.expose().to_owned());
            AMQPUri {
                authority: AMQPAuthority {
                    userinfo: AMQPUserInfo { username: user, password },
                    host: host.clone().unwrap_or_default(),
                    port,
                },
                vhost: config.vhost.clone().unwrap_or_default(),
                query: AMQPQueryString::default(),
                scheme,
            }
        }
    };
    if let Some(endpoint) = &config.common.endpoint {
        let there = parse("endpoint", endpoint)?;
        (uri.scheme, uri.authority.host, uri.authority.port) = (there.scheme, there.authority.host, there.authority.port);
    }
    if config.common.tls.is_some() && uri.scheme == AMQPScheme::AMQP {
        let field = if config.common.endpoint.is_some() { "endpoint" } else { "url" };
        return Err(invalid(field, format!("`{field}` says `amqp` beside `tls`")).next("write `amqps://`, or leave `tls` out"));
    }
    if uri.vhost.is_empty() {
        uri.vhost = "/".into();
    }
    if uri.vhost.len() > 255 {
        return Err(invalid("vhost", "`vhost` is longer than 255 bytes"));
    }
    uri.query.heartbeat.get_or_insert(HEARTBEAT);
    uri.query.auth_mechanism.get_or_insert(SASLMechanism::Plain);
    Ok(uri)
}

const fn default_port(scheme: &AMQPScheme) -> u16 {
    match scheme {
        AMQPScheme::AMQP => 5672,
        AMQPScheme::AMQPS => 5671,
    }
}

fn invalid(field: &str, message: impl Into<String>) -> Error {
    Error::new(Code::ConfigInvalid, message).field(field)
}

/// An AMQP URI as RabbitMQ writes it; an empty path is the virtual host `/`.
fn parse(field: &str, text: &str) -> Result<AMQPUri> {
    let form = || invalid(field, format!("`{field}` is not of the form amqp://user:password@host:port/vhost, or amqps://…"));
    // The parser's own messages quote what they were given.
    let mut uri: AMQPUri = text.trim().parse().map_err(|_| form())?;
    // It takes an IPv6 address for no host at all.
    let authority = text.split_once("://").map_or("", |(_, rest)| rest).split(['/', '?', '#']).next().unwrap_or_default();
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    if let Some((address, _)) = host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        uri.authority.host = address.to_owned();
    } else if host.is_empty() || host.starts_with(':') {
        return Err(form());
    }
    Ok(uri)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::config::{ProviderConfig, ProviderKind};

    fn of(config: &Value) -> Result<AMQPUri> {
        match ProviderConfig::parse(ProviderKind::RabbitMq, config)? {
            ProviderConfig::RabbitMq(config) => uri(&config),
            _ => unreachable!("it was parsed as RabbitMQ's"),
        }
    }

    #[test]
    fn every_spelling_leads_to_the_same_place() {
        let wanted = of(&json!({"url": "amqp://me:p%40ss@there:5673/my%2Fhost"})).expect("a url");
        assert_eq!((wanted.vhost.as_str(), wanted.authority.userinfo.password.as_str()), ("my/host", "p@ss"));
        let spelled = json!({"host": "there", "port": 5673, "username": "me", "password": "p@ss", "vhost": "my/host"});
        assert_eq!(of(&spelled).expect("fields"), wanted);
        let moved = json!({"url": "amqp://me:p%40ss@elsewhere/my%2Fhost", "endpoint": "amqp://there:5673"});
        assert_eq!(of(&moved).expect("an endpoint"), wanted);
    }

    #[test]
    fn defaults_are_the_brokers_own() {
        for (config, scheme, host, port, vhost) in [
            (json!({"host": "h"}), "amqp", "h", 5672, "/"),
            (json!({"host": "h", "tls": {}}), "amqps", "h", 5671, "/"),
            (json!({"url": "amqps://h"}), "amqps", "h", 5671, "/"),
            (json!({"url": "amqp://h/"}), "amqp", "h", 5672, "/"),
            (json!({"url": "amqp://[::1]:5999/v"}), "amqp", "::1", 5999, "v"),
        ] {
            let uri = of(&config).expect("a config");
            assert_eq!((uri.scheme.to_string().as_str(), uri.authority.host.as_str()), (scheme, host), "{config}");
            assert_eq!((uri.authority.port, uri.vhost.as_str()), (port, vhost), "{config}");
            assert_eq!(uri.query.heartbeat, Some(HEARTBEAT));
        }
        let guest = of(&json!({"host": "h"})).expect("a config").authority.userinfo;
        assert_eq!((guest.username.as_str(), guest.password.as_str()), ("guest", "guest"));
        assert_eq!(of(&json!({"url": "amqp://h?heartbeat=3"})).expect("a url").query.heartbeat, Some(3));
    }

    #[test]
    fn a_wrong_url_is_told_without_its_password() {
        for config in [
            json!({"url": "http://me:hunter2@h"}),
            json!({"url": "amqp://me:hunter2@"}),
            json!({"url": "amqp://me:hunter2@h:port"}),
            json!({"url": "amqp://me:hunter2@h", "tls": {}}),
        ] {
            let error = of(&config).expect_err("not a url");
            assert_eq!(error.code(), Code::ConfigInvalid, "{config}");
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
        }
    }
}
