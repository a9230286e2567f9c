//! The gRPC connection: one HTTP/2 connection for all calls and streams, made when it is first used and again when it broke.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use googleapis_tonic_google_pubsub_v1::google::pubsub::v1::publisher_client::PublisherClient;
use googleapis_tonic_google_pubsub_v1::google::pubsub::v1::subscriber_client::SubscriberClient;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tonic::codegen::http::Uri;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

use super::credentials::Auth;
use super::error::{Failure, Kind, NotSent, closed, failure, unanswered};
use super::options::Options;
use crate::config::PubsubConfig;
use crate::error::{Code, Error, Result};
use crate::provider::net::tls;

/// Where the service is.
const SERVICE: &str = "https://pubsub.googleapis.com";
/// A call that takes longer than this has failed.
const CALL: Duration = Duration::from_secs(10);
/// What may be under way to us, on one stream and in all: large messages must not wait for each other's acknowledgement.
const WINDOW: (u32, u32) = (4 << 20, 16 << 20);

/// An IO of the connection, with or without TLS.
pub(super) trait Io: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin {}
impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin> Io for T {}

/// Where to connect to.
#[derive(Clone)]
pub(super) struct Target {
    uri: Uri,
    pub(super) host: String,
    pub(super) port: u16,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl Target {
    async fn of(config: &PubsubConfig) -> Result<Target> {
        let given = config.common.endpoint.as_deref().unwrap_or(SERVICE);
        let wrong = |what: &str| {
            let error = Error::new(Code::ConfigInvalid, format!("`endpoint` {what}")).field("endpoint");
            error.next("give it as https://host, or as http://host:port for an emulator")
        };
        let parse = |text: &str| text.parse::<Uri>().map_err(|_| wrong("is not an address"));
        let uri = if given.contains("://") {
            parse(given)?
        } else {
            // As PUBSUB_EMULATOR_HOST has it.
            let secure = config.common.tls.is_some() || parse(&format!("https://{given}"))?.host().is_some_and(is_google);
            parse(&format!("{}://{given}", if secure { "https" } else { "http" }))?
        };
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(|| wrong("names no host"))?;
        let host = host.trim_matches(['[', ']']).to_owned();
        let plain = match uri.scheme_str() {
            Some("http") => true,
            Some("https") => false,
            _ => return Err(wrong("must start with https:// or http://")),
        };
        let port = uri.port_u16().unwrap_or(if plain { 80 } else { 443 });
        let tls = if plain {
            None
        } else {
            let wishes = config.common.tls.clone().unwrap_or_default();
            let mut client = (*tls::client(&wishes).await?).clone();
            client.alpn_protocols = vec![b"h2".to_vec()];
            Some((TlsConnector::from(Arc::new(client)), tls::server_name(&wishes, &host)?))
        };
        Ok(Target { uri, host, port, tls })
    }

    /// Whether nothing protects what passes.
    pub(super) fn is_plain(&self) -> bool {
        self.tls.is_none()
    }

    /// Whether it is Google's service.
    pub(super) fn is_service(&self) -> bool {
        is_google(&self.host)
    }

    /// A connection of its own, with what protects it.
    pub(super) async fn connect(&self, patience: Duration) -> Result<Box<dyn Io>> {
        let name = format!("{}:{}", self.host, self.port);
        let late = || Error::new(Code::ConnectionFailed, format!("nothing answers at {name} in time"));
        let tcp = tokio::time::timeout(patience, TcpStream::connect((&*self.host, self.port))).await.map_err(|_| late())?;
        let tcp = tcp.map_err(|e| Error::new(Code::ConnectionFailed, format!("nothing answers at {name}: {e}")))?;
        let _ = tcp.set_nodelay(true);
        let Some((connector, name)) = &self.tls else { return Ok(Box::new(tcp)) };
        match tokio::time::timeout(patience, connector.connect(name.clone(), tcp)).await {
            Ok(Ok(stream)) => Ok(Box::new(stream)),
            Ok(Err(error)) => Err(tls::refused(&error)),
            Err(_) => Err(tls::unanswered()),
        }
    }
}

fn is_google(host: &str) -> bool {
    host == "googleapis.com" || host.ends_with(".googleapis.com")
}

/// See the module.
pub(super) struct Link {
    pub(super) target: Target,
    auth: Auth,
    options: Options,
    channel: Mutex<(u64, Option<Channel>)>,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("host", &self.target.host).field("port", &self.target.port).finish_non_exhaustive()
    }
}

impl Link {
    /// Prepares it; nothing is connected yet.
    pub(super) async fn of(config: &PubsubConfig, options: Options) -> Result<Link> {
        let target = Target::of(config).await?;
        let auth = Auth::of(config, target.is_plain()).await?;
        let options = options.fitted(target.is_service());
        let channel = channel(&target, &options);
        Ok(Link { target, auth, options, channel: Mutex::new((0, Some(channel))) })
    }

    pub(super) fn options(&self) -> &Options {
        &self.options
    }

    /// Lets go of the connection, which ends when the calls on it have.
    pub(super) fn close(&self) {
        self.channel.lock().1 = None;
    }

    /// Takes another connection from now on: this one gave no answer. Does nothing if that was done already.
    fn replace(&self, generation: u64) {
        let mut state = self.channel.lock();
        if state.0 == generation && state.1.is_some() {
            *state = (generation + 1, Some(channel(&self.target, &self.options)));
        }
    }

    /// A request that says who we are, and what it is about (`topic=projects/p/topics/t`), which Google routes by.
    pub(super) async fn request<T>(&self, doing: &str, about: &str, message: T) -> Result<Request<T>, Failure> {
        let headers = self.auth.headers().await.map_err(|error| Failure::new(Kind::Unknown, error.context(doing)))?;
        let mut request = Request::new(message);
        *request.metadata_mut() = MetadataMap::from_headers(headers);
        if let Ok(about) = MetadataValue::try_from(routed(about)) {
            request.metadata_mut().insert("x-goog-request-params", about);
        }
        Ok(request)
    }

    fn current(&self) -> Result<(u64, Channel), Failure> {
        let state = self.channel.lock();
        state.1.clone().map(|channel| (state.0, channel)).ok_or_else(|| Failure::new(Kind::Other, closed()))
    }

    /// For a stream.
    pub(super) fn subscriber(&self) -> Result<SubscriberClient<Channel>, Failure> {
        Ok(SubscriberClient::new(self.current()?.1).max_decoding_message_size(usize::MAX))
    }

    /// One call of the publisher's service, with a deadline.
    pub(super) async fn publisher<T, R, F>(
        &self,
        doing: &str,
        about: &str,
        message: T,
        call: impl FnOnce(PublisherClient<Channel>, Request<T>) -> F,
    ) -> Result<R, Failure>
    where
        F: Future<Output = Result<Response<R>, Status>>,
    {
        let request = self.request(doing, about, message).await?;
        let (generation, channel) = self.current()?;
        self.answer(doing, generation, call(PublisherClient::new(channel), request)).await
    }

    /// One call of the subscriber's service, with a deadline.
    pub(super) async fn subscribe<T, R, F>(
        &self,
        doing: &str,
        about: &str,
        message: T,
        call: impl FnOnce(SubscriberClient<Channel>, Request<T>) -> F,
    ) -> Result<R, Failure>
    where
        F: Future<Output = Result<Response<R>, Status>>,
    {
        let request = self.request(doing, about, message).await?;
        let (generation, channel) = self.current()?;
        let client = SubscriberClient::new(channel).max_decoding_message_size(usize::MAX);
        self.answer(doing, generation, call(client, request)).await
    }

    async fn answer<R>(&self, doing: &str, generation: u64, call: impl Future<Output = Result<Response<R>, Status>>) -> Result<R, Failure> {
        match tokio::time::timeout(CALL, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(failure(doing, &status)),
            Err(_) => {
                self.replace(generation);
                Err(unanswered(doing))
            }
        }
    }
}

fn channel(target: &Target, options: &Options) -> Channel {
    let patience = options.patience;
    let endpoint = Endpoint::from(target.uri.clone())
        .initial_stream_window_size(WINDOW.0)
        .initial_connection_window_size(WINDOW.1)
        .http2_keep_alive_interval(options.ping)
        .keep_alive_timeout(patience)
        .keep_alive_while_idle(false);
    let endpoint = endpoint.clone().user_agent(concat!("trunkline/", env!("CARGO_PKG_VERSION"))).unwrap_or(endpoint);
    let target = target.clone();
    let connect = tower::service_fn(move |_: Uri| {
        let target = target.clone();
        async move { target.connect(patience).await.map(TokioIo::new).map_err(NotSent) }
    });
    endpoint.connect_with_connector_lazy(connect)
}

/// As a header may hold it: what is not plain in a URL is escaped.
fn routed(about: &str) -> String {
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b"-._~/=".contains(b);
    about.bytes().map(|b| if plain(&b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ProviderConfig, ProviderKind};

    async fn target(endpoint: &str) -> Result<Target> {
        let mut config = serde_json::json!({ "projectId": "p", "endpoint": endpoint });
        if !endpoint.starts_with("127.") {
            config["tls"] = serde_json::json!({ "insecure": true });
        }
        match ProviderConfig::parse(ProviderKind::GooglePubSub, &config)? {
            ProviderConfig::GooglePubSub(config) => Target::of(&config).await,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn endpoints_have_host_and_port() {
        for (endpoint, host, port, plain, service) in [
            ("http://127.0.0.1:8085", "127.0.0.1", 8085, true, false),
            ("http://[::1]:8085", "::1", 8085, true, false),
            ("127.0.0.1:8085", "127.0.0.1", 8085, true, false),
            ("emulator:8085", "emulator", 8085, false, false),
            ("https://europe-west1-pubsub.googleapis.com", "europe-west1-pubsub.googleapis.com", 443, false, true),
            ("europe-west1-pubsub.googleapis.com:443", "europe-west1-pubsub.googleapis.com", 443, false, true),
            ("https://notgoogleapis.com", "notgoogleapis.com", 443, false, false),
        ] {
            let target = target(endpoint).await.expect("an endpoint");
            assert_eq!((&*target.host, target.port, target.is_plain(), target.is_service()), (host, port, plain, service));
        }
        for endpoint in ["ftp://host", "https://", "http://ho st"] {
            let error = target(endpoint).await.err().expect("no endpoint");
            assert_eq!((error.code(), error.detail_str("field")), (Code::ConfigInvalid, Some("endpoint")));
        }
    }

    #[test]
    fn what_a_call_is_about_is_escaped() {
        assert_eq!(routed("topic=projects/p/topics/a+b%c"), "topic=projects/p/topics/a%2Bb%25c");
    }
}
