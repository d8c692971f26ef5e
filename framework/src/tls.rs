//! Connections to others over TLS: whom to believe is the machine's business.

use std::sync::Arc;

use tokio::sync::OnceCell;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// What connects to those whom the machine's own authorities vouch for, or
/// those of `SSL_CERT_FILE`; they are read once.
///
/// # Errors
/// A sentence, when they cannot be read.
pub async fn connector() -> Result<TlsConnector, String> {
    static TLS: OnceCell<TlsConnector> = OnceCell::const_new();
    let made = TLS.get_or_try_init(|| async {
        let read = tokio::task::spawn_blocking(rustls_native_certs::load_native_certs);
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(read.await.map_err(|e| e.to_string())?.certs);
        let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| e.to_string())?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(TlsConnector::from(Arc::new(config)))
    });
    made.await.cloned()
}
