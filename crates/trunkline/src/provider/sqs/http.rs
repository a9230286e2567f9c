//! The HTTP client under the AWS client: `rustls`, with the `tls` fields of a config.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use aws_smithy_runtime_api::client::connector_metadata::ConnectorMetadata;
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector as Tcp;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::config::Tls;
use crate::error::{Error, Result};
use crate::provider::net::tls;

const CONNECT: Duration = Duration::from_secs(3);
/// Below the minute after which AWS closes an idle connection.
const IDLE: Duration = Duration::from_secs(45);

/// The request was not sent: no connection could be made. Everything else leaves open whether the server has it.
#[derive(Debug)]
pub(super) struct NotSent(hyper_util::client::legacy::Error);

impl fmt::Display for NotSent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no connection could be made")
    }
}

impl std::error::Error for NotSent {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

#[derive(Clone)]
struct Http(Client<HttpsConnector<Tcp>, SdkBody>);

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Http")
    }
}

impl HttpConnector for Http {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let request = match request.try_into_http1x() {
            Ok(request) => request,
            Err(error) => return HttpConnectorFuture::ready(Err(ConnectorError::user(error.into()))),
        };
        let answer = self.0.request(request);
        HttpConnectorFuture::new(async move {
            let answer = answer.await.map_err(|error| {
                if error.is_connect() {
                    ConnectorError::io(NotSent(error).into()).never_connected()
                } else {
                    ConnectorError::io(error.into())
                }
            })?;
            HttpResponse::try_from(answer.map(SdkBody::from_body_1_x)).map_err(|e| ConnectorError::other(e.into(), None))
        })
    }
}

/// One connector for all: it keeps the pool of connections.
#[derive(Debug)]
struct Shared(SharedHttpConnector);

impl HttpClient for Shared {
    fn http_connector(&self, _: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        self.0.clone()
    }

    fn connector_metadata(&self) -> Option<ConnectorMetadata> {
        Some(ConnectorMetadata::new("hyper", Some("1.x".into())))
    }
}

/// A client with a pool of its own; `tls` is needed for `https` only.
///
/// # Errors
/// `INPUT_INVALID` naming the `tls` field that cannot be used.
pub(super) async fn client(tls: Option<&Tls>) -> Result<SharedHttpClient> {
    let mut tcp = Tcp::new();
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT));
    tcp.set_keepalive(Some(Duration::from_secs(30)));
    tcp.enforce_http(false);
    let trusts = match tls {
        Some(given) => Arc::unwrap_or_clone(tls::client(given).await?),
        None => nobody()?,
    };
    let mut https = HttpsConnectorBuilder::new().with_tls_config(trusts).https_or_http();
    if let Some(given) = tls.filter(|given| given.server_name.is_some()) {
        https = https.with_server_name_resolver(FixedServerNameResolver::new(tls::server_name(given, "")?));
    }
    let client = Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE)
        .pool_max_idle_per_host(64)
        .build(https.enable_http1().wrap_connector(tcp));
    Ok(SharedHttpClient::new(Shared(SharedHttpConnector::new(Http(client)))))
}

/// For plain `http`, also where a system knows no authority.
fn nobody() -> Result<ClientConfig> {
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider())).with_safe_default_protocol_versions();
    let config = config.map_err(|e| Error::input("tls", format!("TLS cannot be set up: {e}")))?;
    Ok(config.with_root_certificates(RootCertStore::empty()).with_no_client_auth())
}
