//! TLS to Redis: the trusted certificates, and the client certificate.

use std::fmt;
use std::io;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{CertificateError, ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::call_error::{CallError, ClientError};
use tower_admission::store::FailureKind;

/// Certificates for TLS connections to Redis: see [`RedisStore::tls`](super::RedisStore::tls).
///
/// The default trusts the CAs of the system and shows no client certificate, like `rediss://` without this type.
///
/// ```no_run
/// use tower_admission_redis::{RedisStore, RedisTls};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let tls = RedisTls::new()
///     .ca(std::fs::read("ca.pem")?)
///     .client_certificate(std::fs::read("client.pem")?, std::fs::read("client.key")?);
/// let store = RedisStore::connect("rediss://redis.internal:6380")?.tls(tls)?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Default)]
#[must_use = "certificates have no effect until `RedisStore::tls` gets them"]
pub struct RedisTls {
    ca: Vec<Vec<u8>>,
    /// The chain and the key.
    client: Option<(Vec<u8>, Vec<u8>)>,
    server_name: Option<String>,
}

impl RedisTls {
    /// Creates settings that trust the CAs of the system and show no client certificate.
    pub fn new() -> Self {
        Self::default()
    }

    /// Trusts the CA certificates in `pem` instead of those of the system. Further calls add more.
    ///
    /// The environment variable `SSL_CERT_FILE` also replaces the CAs of the system.
    pub fn ca(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.ca.push(pem.into());
        self
    }

    /// Sets the client certificate for servers with `tls-auth-clients`. Default: none.
    ///
    /// `chain` is the certificate in PEM, followed by the certificates of intermediate CAs. `key` is its private key in PEM
    /// (PKCS #8, PKCS #1 or SEC 1, without a passphrase).
    pub fn client_certificate(
        mut self,
        chain: impl Into<Vec<u8>>,
        key: impl Into<Vec<u8>>,
    ) -> Self {
        self.client = Some((chain.into(), key.into()));
        self
    }

    /// Sets the DNS name or IP address that the server's certificate must contain. Default: the host of the connection.
    ///
    /// Set it when the nodes of a cluster, or Sentinel, announce addresses that are not in their certificates.
    pub fn server_name(mut self, name: impl Into<String>) -> Self {
        self.server_name = Some(name.into());
        self
    }
}

impl fmt::Debug for RedisTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the key, and without the certificates, which are long.
        f.debug_struct("RedisTls")
            .field("has_ca", &!self.ca.is_empty())
            .field("has_client_certificate", &self.client.is_some())
            .field("server_name", &self.server_name)
            .finish()
    }
}

/// Wraps connections in TLS.
#[derive(Clone)]
pub(super) struct Tls {
    config: Arc<ClientConfig>,
    server_name: Option<ServerName<'static>>,
}

impl Tls {
    pub(super) fn new(certificates: &RedisTls) -> Result<Self, CallError> {
        let server_name = certificates.server_name.as_deref().map(server_name);
        Ok(Self {
            config: Arc::new(config(certificates).map_err(unusable)?),
            server_name: server_name.transpose()?,
        })
    }

    pub(super) async fn connect(
        &self,
        host: &str,
        stream: TcpStream,
    ) -> Result<TlsStream<TcpStream>, CallError> {
        let name = match &self.server_name {
            Some(name) => name.clone(),
            None => server_name(host)?,
        };
        let connector = TlsConnector::from(self.config.clone());
        let mut stream = connector
            .connect(name, stream)
            .await
            .map_err(not_connected)?;
        greet(&mut stream).await.map_err(not_connected)?;
        Ok(stream)
    }
}

/// Waits for one line from the server, whatever it says: one that rejects our certificate does it
/// after the handshake, and the client library would lose the reason.
async fn greet(stream: &mut TlsStream<TcpStream>) -> io::Result<()> {
    // The reason can be read also where nothing can be written any more.
    let written = stream.write_all(b"PING\r\n").await;
    while stream.read_u8().await? != b'\n' {}
    written
}

fn config(certificates: &RedisTls) -> Result<ClientConfig, String> {
    // The application's provider if it has chosen one. Ours is not installed for the process:
    // the application may still do that, and could not after us.
    let provider = CryptoProvider::get_default()
        .cloned()
        .unwrap_or_else(|| Arc::new(rustls::crypto::ring::default_provider()));
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots(&certificates.ca)?);
    let Some((chain, key)) = &certificates.client else {
        return Ok(builder.with_no_client_auth());
    };
    let chain = read_certificates(chain, "the client certificate")?;
    let key =
        PrivateKeyDer::from_pem_slice(key).map_err(|error| unreadable("the client key", &error))?;
    let config = builder.with_client_auth_cert(chain, key);
    config.map_err(|error| format!("the client certificate and its key cannot be used: {error}"))
}

fn roots(ca: &[Vec<u8>]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    if ca.is_empty() {
        let found = rustls_native_certs::load_native_certs();
        // Some systems list certificates that nothing can use.
        roots.add_parsable_certificates(found.certs);
        if roots.is_empty() {
            let errors = found.errors.iter().map(|error| format!("; {error}"));
            return Err(format!(
                "the system has no CA certificates (install ca-certificates, set SSL_CERT_FILE, \
                 or give the CA){}",
                errors.collect::<String>()
            ));
        }
    }
    for pem in ca {
        for certificate in read_certificates(pem, "the CA")? {
            let added = roots.add(certificate);
            added.map_err(|error| format!("the CA cannot be used: {error}"))?;
        }
    }
    Ok(roots)
}

fn read_certificates(pem: &[u8], what: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let read = read.map_err(|error| unreadable(what, &error))?;
    if read.is_empty() {
        return Err(format!("{what} is no certificate in PEM"));
    }
    Ok(read)
}

/// Without the line that is wrong, which the library quotes: it may have the key in it.
fn unreadable(what: &str, error: &pem::Error) -> String {
    let reason = match error {
        pem::Error::NoItemsFound => {
            "there is no private key in PEM (one with a passphrase is not supported)"
        }
        pem::Error::MissingSectionEnd { .. } | pem::Error::IllegalSectionStart { .. } => {
            "it needs -----BEGIN ..----- and -----END ..----- as lines of their own (were newlines lost?)"
        }
        pem::Error::Base64Decode(_) => "it has characters that are not base64",
        _ => "it is not PEM",
    };
    format!("{what} cannot be read: {reason}")
}

fn server_name(host: &str) -> Result<ServerName<'static>, CallError> {
    let name = ServerName::try_from(host.to_owned());
    name.map_err(|_| unusable(format!("{host:?} is neither a DNS name nor an IP address")))
}

fn unusable(reason: String) -> CallError {
    CallError::because(FailureKind::Configuration, reason)
}

/// A handshake that failed, in words that say what to do.
fn not_connected(error: io::Error) -> CallError {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref());
    match cause {
        // A bad signature is that of another CA with the same name.
        Some(rustls::Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        )) => CallError::because(
            FailureKind::Tls,
            format!(
                "{error}: the CA of the server's certificate is not trusted: give it to the store, \
                 or set SSL_CERT_FILE"
            ),
        ),
        _ => error.into_failure(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_a_key_is_told_without_the_key() {
        for (key, told) in [
            ("", "no private key"),
            (
                "-----BEGIN ENCRYPTED PRIVATE KEY-----\nSECRET==\n-----END ENCRYPTED PRIVATE KEY-----",
                "passphrase",
            ),
            (
                "-----BEGIN PRIVATE KEY----- SECRET -----END PRIVATE KEY-----",
                "newlines",
            ),
            ("-----BEGIN PRIVATE KEY-----\nSECRET\n", "END"),
            (
                "-----BEGIN PRIVATE KEY-----\nSE!CRET\n-----END PRIVATE KEY-----",
                "base64",
            ),
        ] {
            let error = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap_err();
            let words = unreadable("the key", &error);
            assert!(words.contains(told), "{words}");
            for secret in ["SECRET", "83, 69, 67"] {
                assert!(!words.contains(secret), "{words}");
            }
        }
    }
}
