//! TLS towards the server: the authority, the client's own certificate, the name that is expected.

use std::sync::Arc;

use async_nats::rustls::client::WebPkiServerVerifier;
use async_nats::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use async_nats::rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use async_nats::rustls::pki_types::pem::PemObject;
use async_nats::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use async_nats::rustls::{ClientConfig, DigitallySignedStruct, Error as TlsError, RootCertStore, SignatureScheme};

use crate::config::Tls;
use crate::error::{Code, Error, Result};
use crate::provider::net::pem;

/// The client's side of TLS. Certificates are read now, so that a wrong one is found when the broker is opened.
pub(super) async fn client_config(tls: &Tls) -> Result<ClientConfig> {
    let provider = Arc::new(ring::default_provider());
    let roots = Arc::new(roots(tls).await?);
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::new(Code::ConfigInvalid, format!("TLS cannot be set up: {e}")))?;
    let verifier: Option<Arc<dyn ServerCertVerifier>> = match (&tls.server_name, tls.insecure) {
        (_, true) => Some(Arc::new(Anyone(provider))),
        (Some(name), false) => {
            let name = ServerName::try_from(name.clone())
                .map_err(|_| Error::input("tls.serverName", "`tls.serverName` is neither a host name nor an address"))?;
            let inner = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider)
                .build()
                .map_err(|e| Error::input("tls.ca", format!("no authority to check the server's certificate with: {e}")))?;
            Some(Arc::new(Named { inner, name }))
        }
        (None, false) => None,
    };
    let builder = match verifier {
        Some(verifier) => builder.dangerous().with_custom_certificate_verifier(verifier),
        None => builder.with_root_certificates(roots),
    };
    match (&tls.cert, &tls.key) {
        (None, None) => Ok(builder.with_no_client_auth()),
        (Some(cert), Some(key)) => {
            let chain = certificates("tls.cert", &pem::load("tls.cert", cert).await?)?;
            let key = PrivateKeyDer::from_pem_slice(&pem::load("tls.key", key.expose()).await?)
                .map_err(|_| Error::input("tls.key", "`tls.key` holds no private key"))?;
            builder.with_client_auth_cert(chain, key).map_err(|e| Error::input("tls.cert", format!("`tls.cert` and `tls.key`: {e}")))
        }
        (Some(_), None) => Err(Error::input("tls.key", "`tls.cert` needs `tls.key`")),
        (None, Some(_)) => Err(Error::input("tls.cert", "`tls.key` needs `tls.cert`")),
    }
}

async fn roots(tls: &Tls) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    if let Some(ca) = &tls.ca {
        for certificate in certificates("tls.ca", &pem::load("tls.ca", ca).await?)? {
            roots.add(certificate).map_err(|e| Error::input("tls.ca", format!("`tls.ca`: {e}")))?;
        }
        return Ok(roots);
    }
    let system = tokio::task::spawn_blocking(rustls_native_certs::load_native_certs).await;
    if let Ok(system) = system {
        roots.add_parsable_certificates(system.certs);
    }
    Ok(roots)
}

fn certificates(field: &str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(Error::input(field, format!("`{field}` holds no certificate"))),
    }
}

/// Expects another name in the certificate than that of the address.
#[derive(Debug)]
struct Named {
    inner: Arc<WebPkiServerVerifier>,
    name: ServerName<'static>,
}

impl ServerCertVerifier for Named {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        self.inner.verify_server_cert(end_entity, intermediates, &self.name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// `insecure`: any certificate will do, as long as the server has its key.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
