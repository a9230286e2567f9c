//! librdkafka's clients: how they are configured, what they log, and the one without a group that asks and produces.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::ClientContext;
use rdkafka::config::{ClientConfig, FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseProducer, NoCustomPartitioner, Producer, ProducerContext};
use rdkafka::types::RDKafkaErrorCode as Kafka;

use super::error::{Fault, error};
use super::native::Rk;
use crate::config::{KafkaConfig, SaslMechanism};
use crate::error::{Code, Error, Result};
use crate::provider::net::pem;

/// How often a client's thread looks whether it shall end, and sees to what is due.
pub(super) const TICK: Duration = Duration::from_millis(50);
/// A client is destroyed within this long, or left to a thread of its own.
pub(super) const DESTROY: Duration = Duration::from_secs(5);

/// The properties of every client of a config, and what its log lines must not say.
#[derive(Clone)]
pub(super) struct Properties {
    config: ClientConfig,
    own: Arc<[(String, String)]>,
    secrets: Arc<[String]>,
}

impl std::fmt::Debug for Properties {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Properties").finish_non_exhaustive()
    }
}

impl Properties {
    /// Reads certificates; what librdkafka itself does not take is found when the first client is made.
    pub(super) async fn new(config: &KafkaConfig) -> Result<Self> {
        let mut out = ClientConfig::new();
        let mut secrets = Vec::new();
        let servers = match &config.common.endpoint {
            Some(endpoint) => address(endpoint).to_owned(),
            None => config.brokers.iter().map(|broker| address(broker)).collect::<Vec<_>>().join(","),
        };
        out.set("bootstrap.servers", servers)
            .set("client.id", config.client_id.as_deref().unwrap_or("trunkline"))
            // A broker that comes back is found again at once: librdkafka waits up to ten seconds by itself.
            .set("reconnect.backoff.ms", "50")
            .set("reconnect.backoff.max.ms", "1000")
            .set("socket.keepalive.enable", "true")
            .set("socket.nagle.disable", "true")
            .set("socket.connection.setup.timeout.ms", "10000")
            // A network that swallows everything is noticed within this time.
            .set("socket.timeout.ms", "15000")
            // Partitions that were added from outside are seen within this time.
            .set("topic.metadata.refresh.interval.ms", "30000")
            .set("allow.auto.create.topics", "false")
            .set("log.connection.close", "false");
        let tls = config.common.tls.as_ref();
        let encrypted = config.ssl.unwrap_or(tls.is_some());
        if !encrypted && tls.is_some() {
            return Err(invalid("ssl", "`ssl` is false and `tls` is given: leave one of them out"));
        }
        let protocol = match (encrypted, &config.sasl) {
            (false, None) => "plaintext",
            (true, None) => "ssl",
            (false, Some(_)) => "sasl_plaintext",
            (true, Some(_)) => "sasl_ssl",
        };
        out.set("security.protocol", protocol);
        if cfg!(feature = "kafka-vendored") && encrypted && tls.is_none_or(|tls| tls.ca.is_none()) {
            // An OpenSSL of our own does not know where this system keeps its authorities: the usual places are tried.
            out.set("ssl.ca.location", "probe");
        }
        if let Some(sasl) = &config.sasl {
            let (mechanism, plain) = match sasl.mechanism {
                SaslMechanism::Plain => ("PLAIN", true),
                SaslMechanism::ScramSha256 => ("SCRAM-SHA-256", false),
                SaslMechanism::ScramSha512 => ("SCRAM-SHA-512", false),
            };
            if plain && !encrypted && !config.options.0.contains_key("security.protocol") {
                return Err(invalid("ssl", "`sasl.mechanism` plain would send the password as it is: it needs `ssl: true`")
                    .next("set `ssl: true`, or use a scram mechanism"));
            }
            out.set("sasl.mechanism", mechanism).set("sasl.username", &sasl.username).set("sasl.password", sasl.password.expose());
            secrets.push(sasl.password.expose().to_owned());
        }
        if let Some(tls) = tls {
            if tls.server_name.is_some() {
                return Err(invalid("tls.serverName", "`tls.serverName` cannot be kept: brokers are checked by the names they advertise")
                    .next("give the brokers certificates of their advertised names, or leave `tls.serverName` out"));
            }
            match (&tls.cert, &tls.key) {
                (Some(_), None) => return Err(Error::input("tls.key", "`tls.cert` is given without `tls.key`")),
                (None, Some(_)) => return Err(Error::input("tls.cert", "`tls.key` is given without `tls.cert`")),
                _ => {}
            }
            if let Some(ca) = &tls.ca {
                out.set("ssl.ca.pem", text(&pem::load("tls.ca", ca).await?));
            }
            if let Some(cert) = &tls.cert {
                out.set("ssl.certificate.pem", text(&pem::load("tls.cert", cert).await?));
            }
            if let Some(key) = &tls.key {
                out.set("ssl.key.pem", text(&pem::load("tls.key", key.expose()).await?));
            }
            if tls.insecure {
                out.set("enable.ssl.certificate.verification", "false");
            }
        }
        secrets.extend(config.options.0.iter().filter(|(name, _)| crate::config::fields::is_secret_option(name)).map(|(_, v)| v.clone()));
        secrets.retain(|secret| secret.len() >= 3);
        let own = config.options.0.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        Ok(Properties { config: out, own, secrets: secrets.into() })
    }

    /// The properties with these added; the config's `options` come last and win.
    pub(super) fn with(&self, more: &[(&str, &str)]) -> ClientConfig {
        let mut config = self.config.clone();
        for (name, value) in more {
            config.set(*name, *value);
        }
        for (name, value) in &*self.own {
            config.set(name, value);
        }
        // Who asks librdkafka for its debugging wants to see it.
        config.set_log_level(if self.option("debug").is_some() { RDKafkaLogLevel::Debug } else { RDKafkaLogLevel::Info });
        config
    }

    /// What the user set, if anything.
    pub(super) fn option(&self, name: &str) -> Option<&str> {
        self.own.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str())
    }

    /// A new ear for a client.
    pub(super) fn ear(&self) -> Ear {
        Ear { secrets: Arc::clone(&self.secrets), last: Arc::default() }
    }

    /// The first server a client talks to, for the first stages of a connection test.
    pub(super) fn first_server(&self) -> (String, u16) {
        let servers = self.option("bootstrap.servers").or_else(|| self.config.get("bootstrap.servers")).unwrap_or_default();
        let first = servers.split(',').next().unwrap_or_default().trim();
        match first.rsplit_once(':').map(|(host, port)| (host, port.parse())) {
            Some((host, Ok(port))) => (host.trim_matches(['[', ']']).to_owned(), port),
            _ => (first.to_owned(), 9092),
        }
    }

    /// Whether the connection is encrypted.
    pub(super) fn encrypted(&self) -> bool {
        let protocol = self.option("security.protocol").or_else(|| self.config.get("security.protocol")).unwrap_or_default();
        protocol.to_ascii_lowercase().contains("ssl")
    }

    /// Whether there is a user.
    pub(super) fn authenticates(&self) -> bool {
        let protocol = self.option("security.protocol").or_else(|| self.config.get("security.protocol")).unwrap_or_default();
        protocol.to_ascii_lowercase().contains("sasl")
    }
}

fn text(pem: &[u8]) -> String {
    String::from_utf8_lossy(pem).into_owned()
}

/// `host:port` of an address that may carry a scheme.
fn address(given: &str) -> &str {
    let rest = given.split_once("://").map_or(given, |(_, rest)| rest);
    rest.split(['/', '?']).next().unwrap_or(rest).trim()
}

fn invalid(field: &str, message: &str) -> Error {
    Error::new(Code::ConfigInvalid, message).field(field).detail("provider", "KAFKA")
}

/// Hears what a client logs and complains about. Shared by all parts of it.
#[derive(Debug, Clone)]
pub(super) struct Ear {
    secrets: Arc<[String]>,
    last: Arc<Mutex<Option<Fault>>>,
}

impl Ear {
    /// The last complaint about the connection.
    pub(super) fn last(&self) -> Option<Fault> {
        self.last.lock().clone()
    }

    fn without_secrets(&self, line: &str) -> String {
        self.secrets.iter().fold(line.to_owned(), |line, secret| if line.contains(secret) { line.replace(secret, "***") } else { line })
    }

    pub(super) fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        let line = self.without_secrets(line);
        match level {
            // While a broker is away every try fails anew: the state says so once.
            _ if facility == "FAIL" => tracing::debug!(target: "trunkline::kafka", facility, "{line}"),
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical | RDKafkaLogLevel::Error => {
                tracing::warn!(target: "trunkline::kafka", facility, "{line}");
            }
            RDKafkaLogLevel::Warning | RDKafkaLogLevel::Notice => tracing::info!(target: "trunkline::kafka", facility, "{line}"),
            RDKafkaLogLevel::Info | RDKafkaLogLevel::Debug => tracing::debug!(target: "trunkline::kafka", facility, "{line}"),
        }
    }

    pub(super) fn complain(&self, complaint: &KafkaError, said: &str) {
        let code = complaint.rdkafka_error_code().unwrap_or(Kafka::Fail);
        let said = self.without_secrets(said);
        tracing::debug!(target: "trunkline::kafka", %code, "{said}");
        // That all are down says less than why the last one is.
        if code != Kafka::AllBrokersDown || self.last.lock().is_none() {
            *self.last.lock() = Some(Fault::new(code, said));
        }
    }
}

/// What a client without a group tells: its delivery reports go to `reports`.
#[derive(Debug)]
pub(super) struct Context<R> {
    ear: Ear,
    pub(super) reports: R,
}

impl<R> Context<R> {
    pub(super) fn new(ear: Ear, reports: R) -> Self {
        Context { ear, reports }
    }
}

impl<R: Send + Sync> ClientContext for Context<R> {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        self.ear.log(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.ear.complain(&error, reason);
    }
}

impl<R: Send + Sync> ConsumerContext for Context<R> {}

/// Where the delivery reports of a client go.
pub(super) trait Reports: Send + Sync + 'static {
    /// The report of one message, named by what was given to `send`.
    fn report(&self, result: &rdkafka::message::DeliveryResult<'_>, name: usize);
}

/// For a client that produces nothing.
#[derive(Debug)]
pub(super) struct NoReports;

impl Reports for NoReports {
    fn report(&self, _: &rdkafka::message::DeliveryResult<'_>, _: usize) {}
}

impl<R: Reports> ProducerContext<NoCustomPartitioner> for Context<R> {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &rdkafka::message::DeliveryResult<'_>, name: usize) {
        self.reports.report(result, name);
    }
}

/// A client without a group and the thread that serves it; both end when this is dropped.
pub(super) struct Client<R: Reports> {
    producer: Arc<BaseProducer<Context<R>>>,
    pub(super) ear: Ear,
    ended: Arc<AtomicBool>,
}

impl<R: Reports> std::fmt::Debug for Client<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

impl<R: Reports> Client<R> {
    /// Connects in the background.
    pub(super) fn new(properties: &Properties, more: &[(&str, &str)], reports: R) -> Result<Self> {
        let ear = properties.ear();
        let context = Context::new(ear.clone(), reports);
        let made = BaseProducer::from_config_and_context(&properties.with(more), context);
        let producer = Arc::new(made.map_err(|e| error("the client cannot be set up", &e.into()))?);
        let ended = Arc::new(AtomicBool::new(false));
        let (polled, end) = (Arc::clone(&producer), Arc::clone(&ended));
        // The thread drops its handle last: destroying a client may block.
        let spawned = thread::Builder::new().name("trunkline-kafka".into()).spawn(move || {
            while !end.load(Ordering::Acquire) {
                polled.poll(TICK);
            }
            let limit = Instant::now() + DESTROY;
            while Arc::strong_count(&polled) > 1 && Instant::now() < limit {
                polled.poll(Duration::from_millis(5));
            }
        });
        spawned.map_err(|e| Error::new(Code::ConnectionFailed, format!("no thread for the client: {e}")))?;
        Ok(Client { producer, ear, ended })
    }

    /// The producer itself.
    pub(super) fn producer(&self) -> &BaseProducer<Context<R>> {
        &self.producer
    }

    pub(super) fn rk(&self) -> Rk {
        Rk::new(self.producer.client().native_ptr())
    }
}

impl<R: Reports> Drop for Client<R> {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
    }
}

/// A call that blocks, on a thread that may. The client lives until it returns.
pub(super) async fn blocking<T: Send + 'static>(
    client: &Arc<Client<NoReports>>,
    work: impl FnOnce(Rk) -> Result<T, Fault> + Send + 'static,
) -> Result<T, Fault> {
    let client = Arc::clone(client);
    let done = tokio::task::spawn_blocking(move || work(client.rk())).await;
    done.unwrap_or_else(|_| Err(Fault::new(Kafka::Fail, "the runtime is shutting down")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ProviderConfig, ProviderKind};
    use serde_json::json;

    async fn properties(config: serde_json::Value) -> Result<Properties> {
        match ProviderConfig::parse(ProviderKind::Kafka, &config)? {
            ProviderConfig::Kafka(config) => Properties::new(&config).await,
            _ => unreachable!("asked for Kafka"),
        }
    }

    #[tokio::test]
    async fn every_field_becomes_a_property_and_options_come_last() {
        let pem = "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n";
        let config = json!({
            "brokers": "kafka://a:1, b:2", "clientId": "me", "ssl": true,
            "sasl": { "mechanism": "scram-sha-512", "username": "u", "password": "hunter2" },
            "tls": { "ca": pem, "cert": pem, "key": pem, "insecure": true },
            "options": { "linger.ms": 7, "client.id": "mine", "sasl.oauthbearer.client.secret": "s3cr3t" },
        });
        let properties = properties(config).await.expect("taken");
        let all = properties.with(&[("linger.ms", "1"), ("acks", "all")]);
        for (name, value) in [
            ("bootstrap.servers", "a:1,b:2"),
            ("client.id", "mine"),
            ("security.protocol", "sasl_ssl"),
            ("sasl.mechanism", "SCRAM-SHA-512"),
            ("sasl.username", "u"),
            ("sasl.password", "hunter2"),
            ("ssl.ca.pem", pem),
            ("ssl.certificate.pem", pem),
            ("ssl.key.pem", pem),
            ("enable.ssl.certificate.verification", "false"),
            ("linger.ms", "7"),
            ("acks", "all"),
        ] {
            assert_eq!(all.get(name), Some(value), "{name}");
        }
        assert_eq!(properties.first_server(), ("a".to_owned(), 1));
        assert!(!format!("{properties:?}").contains("hunter2"));
        let ear = properties.ear();
        assert_eq!(ear.without_secrets("user u with hunter2 and s3cr3t"), "user u with *** and ***");
    }

    #[tokio::test]
    async fn what_cannot_be_kept_is_refused_by_its_field() {
        let sasl = json!({ "mechanism": "plain", "username": "u", "password": "hunter2" });
        for (config, field) in [
            (json!({ "brokers": "a:1", "sasl": sasl }), "ssl"),
            (json!({ "brokers": "a:1", "ssl": false, "tls": { "insecure": true } }), "ssl"),
            (json!({ "brokers": "a:1", "tls": { "serverName": "b" } }), "tls.serverName"),
            (json!({ "brokers": "a:1", "tls": { "cert": "c" } }), "tls.key"),
            (json!({ "brokers": "a:1", "tls": { "key": "k" } }), "tls.cert"),
        ] {
            let error = properties(config).await.expect_err(field);
            assert!(matches!(error.code(), Code::ConfigInvalid | Code::InputInvalid), "{error:?}");
            assert_eq!(error.detail_str("field"), Some(field));
            assert!(!format!("{error:?}").contains("hunter2"));
        }
        let properties = properties(json!({ "brokers": "a:1", "options": { "queued.min.messages": "many-hunter2" } })).await;
        let error = Client::new(&properties.expect("checked by librdkafka"), &[], NoReports).expect_err("not a number");
        assert_eq!(error.code(), Code::ConfigInvalid, "{error:?}");
        assert!(error.message().contains("queued.min.messages") && !format!("{error:?}").contains("hunter2"), "{error:?}");
    }
}
