//! TLS towards a broker, from the `tls` of its config.

use std::sync::Arc;

use rustls_native_certs::load_native_certs;
use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::{self, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::pem;
use crate::config::Tls;
use crate::error::{Code, Error, Result};

/// What a client shows and trusts.
///
/// # Errors
/// `INPUT_INVALID` naming the field that holds no certificate or key.
pub(crate) async fn client(tls: &Tls) -> Result<Arc<ClientConfig>> {
    let crypto = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&crypto))
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::input("tls", format!("TLS cannot be set up: {e}")))?;
    let config = match &tls.server_name {
        _ if tls.insecure => config.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(crypto))),
        // A client that always expects the host's name is given the config's in its place.
        Some(name) => {
            let roots = Arc::new(roots(tls.ca.as_deref()).await?);
            let inner = WebPkiServerVerifier::builder_with_provider(roots, crypto).build();
            let inner = inner.map_err(|e| Error::input("tls.ca", format!("there is no authority to check a server with: {e}")))?;
            config.dangerous().with_custom_certificate_verifier(Arc::new(Named { inner, name: server_name(tls, name)? }))
        }
        None => config.with_root_certificates(roots(tls.ca.as_deref()).await?),
    };
    let config = match (&tls.cert, &tls.key) {
        (Some(cert), Some(key)) => {
            let (certs, key) = (certificates("tls.cert", cert).await?, pem::load("tls.key", key.expose()).await?);
            let key = PrivateKeyDer::from_pem_slice(&key).map_err(|_| Error::input("tls.key", "`tls.key` holds no private key"))?;
            config
                .with_client_auth_cert(certs, key)
                .map_err(|_| Error::input("tls.key", "`tls.key` is not the key of the certificate in `tls.cert`"))?
        }
        (None, None) => config.with_no_client_auth(),
        (Some(_), None) => return Err(Error::input("tls.key", "`tls.cert` is given without `tls.key`")),
        (None, Some(_)) => return Err(Error::input("tls.cert", "`tls.key` is given without `tls.cert`")),
    };
    Ok(Arc::new(config))
}

/// For who asks for no TLS, where this system has no authorities: if the server asks for it, its certificate is refused.
#[cfg(feature = "nats")]
pub(crate) fn trusting_nobody() -> Option<Arc<ClientConfig>> {
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider())).with_safe_default_protocol_versions().ok()?;
    Some(Arc::new(config.with_root_certificates(RootCertStore::empty()).with_no_client_auth()))
}

/// The name expected in the server's certificate: the config's, else the host.
///
/// # Errors
/// `INPUT_INVALID` if it cannot be one.
pub(crate) fn server_name(tls: &Tls, host: &str) -> Result<ServerName<'static>> {
    let name = tls.server_name.as_deref().unwrap_or(host).to_owned();
    ServerName::try_from(name)
        .map_err(|_| Error::input("tls.serverName", "`tls.serverName` (or the host) is not a name a certificate holds"))
}

async fn roots(ca: Option<&str>) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    let certs = match ca {
        Some(ca) => certificates("tls.ca", ca).await?,
        None => tokio::task::spawn_blocking(|| load_native_certs().certs).await.unwrap_or_default(),
    };
    roots.add_parsable_certificates(certs);
    if roots.is_empty() {
        let message =
            if ca.is_some() { "`tls.ca` holds no certificate" } else { "this system has no certificate authorities: give one in `tls.ca`" };
        return Err(Error::input("tls.ca", message));
    }
    Ok(roots)
}

async fn certificates(field: &str, given: &str) -> Result<Vec<CertificateDer<'static>>> {
    let text = pem::load(field, given).await?;
    let certs: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    certs.ok().filter(|certs| !certs.is_empty()).ok_or_else(|| Error::input(field, format!("`{field}` holds no certificate")))
}

/// Why a handshake failed, with what to change.
pub(crate) fn refused(error: &std::io::Error) -> Error {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let (why, next) = match inner {
        Some(rustls::Error::InvalidCertificate(why)) => (
            format!("the server's certificate is not accepted: {why}"),
            "give the authority that signed it in `tls.ca`, and its name in `tls.serverName`",
        ),
        Some(rustls::Error::InvalidMessage(_)) => ("what answers there does not speak TLS".to_owned(), NO_TLS),
        Some(rustls::Error::AlertReceived(alert)) => (
            format!("the server ended the TLS handshake: {alert:?}"),
            "check `tls.cert` and `tls.key`: the server may want a client certificate",
        ),
        Some(other) => (format!("the TLS handshake failed: {other}"), "check the server's TLS settings"),
        None => (format!("the connection broke in the TLS handshake: {}", error.kind()), "check that this port speaks TLS"),
    };
    Error::new(Code::ConnectionFailed, why).reason("tls").next(next)
}

/// Expects the name that the config gives, whatever the address is called.
#[derive(Debug)]
struct Named {
    inner: Arc<WebPkiServerVerifier>,
    name: ServerName<'static>,
}

impl ServerCertVerifier for Named {
    fn verify_server_cert(
        &self,
        end: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.inner.verify_server_cert(end, between, &self.name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
/// Nothing answered the handshake.
pub(crate) fn unanswered() -> Error {
    let why = "nothing answers the TLS handshake: what is there may not speak TLS";
    Error::new(Code::ConnectionFailed, why).reason("tls").next(NO_TLS)
}

const NO_TLS: &str = "use the server's TLS port, or leave TLS out";

/// Accepts any certificate: `insecure`.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
