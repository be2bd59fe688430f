//! TLS with the certificate and the key that the settings name.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tide_feed::config::File;
use tokio_rustls::TlsAcceptor;

/// The listener cannot speak TLS. The texts name files, never their content.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("could not read \"{}\": {reason}", path.display())]
    Read { path: PathBuf, reason: String },
    #[error("\"{}\" holds no certificate in PEM form", path.display())]
    NoCertificate { path: PathBuf },
    #[error("\"{}\" holds no usable private key in PEM form (it must not be encrypted)", path.display())]
    NoKey { path: PathBuf },
    #[error("the certificate in \"{}\" and the key in \"{}\" cannot be used", certificate.display(), key.display())]
    Unusable { certificate: PathBuf, key: PathBuf, source: rustls::Error },
}

/// TLS 1.2 and 1.3; HTTP/1.1 only, for websockets want nothing else.
///
/// # Errors
/// The files could not be read, or are not what they should be.
pub fn acceptor(certificate: &File, key: &File) -> Result<TlsAcceptor, TlsError> {
    let chain = read_chain(certificate)?;
    let private_key = read_key(key)?;
    let unusable = |source| TlsError::Unusable {
        certificate: certificate.path.clone(),
        key: key.path.clone(),
        source,
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .with_no_client_auth()
        .with_single_cert(chain, private_key)
        .map_err(unusable)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn read_chain(file: &File) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let no_certificate = || TlsError::NoCertificate { path: file.path.clone() };
    let chain: Vec<_> = CertificateDer::pem_slice_iter(content(file)?)
        .collect::<Result<_, _>>()
        .map_err(|_| no_certificate())?;
    if chain.is_empty() { Err(no_certificate()) } else { Ok(chain) }
}

fn read_key(file: &File) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(content(file)?)
        .map_err(|_| TlsError::NoKey { path: file.path.clone() })
}

fn content(file: &File) -> Result<&[u8], TlsError> {
    let unreadable =
        |reason: &String| TlsError::Read { path: file.path.clone(), reason: reason.clone() };
    file.content.as_deref().map(str::as_bytes).map_err(unreadable)
}

#[cfg(test)]
pub(crate) mod tests {
    use rustls::pki_types::ServerName;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// A certificate for "localhost".
    pub(crate) struct Certificate {
        pub(crate) certificate: File,
        pub(crate) key: File,
        pub(crate) der: CertificateDer<'static>,
    }

    fn file(name: &str, content: String) -> File {
        File { path: name.into(), content: Ok(content) }
    }

    impl Certificate {
        pub(crate) fn new() -> Certificate {
            let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
            Certificate {
                certificate: file("cert.pem", made.cert.pem()),
                key: file("key.pem", made.signing_key.serialize_pem()),
                der: made.cert.der().clone(),
            }
        }

        pub(crate) fn connector(&self) -> tokio_rustls::TlsConnector {
            let mut roots = rustls::RootCertStore::empty();
            roots.add(self.der.clone()).unwrap();
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let config = rustls::ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(roots)
                .with_no_client_auth();
            tokio_rustls::TlsConnector::from(Arc::new(config))
        }
    }

    #[tokio::test]
    async fn a_client_that_trusts_the_certificate_gets_through() {
        let certificate = Certificate::new();
        let acceptor = acceptor(&certificate.certificate, &certificate.key).unwrap();
        let (near, far) = tokio::io::duplex(4096);
        let server = tokio::spawn(async move {
            let mut stream = acceptor.accept(far).await.unwrap();
            stream.write_all(b"hello").await.unwrap();
            stream.shutdown().await.unwrap();
        });

        let name = ServerName::try_from("localhost").unwrap();
        let mut stream = certificate.connector().connect(name, near).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();

        assert_eq!(text, "hello");
        server.await.unwrap();
    }

    #[test]
    fn what_is_wrong_with_the_files_is_said_by_name() {
        let Certificate { certificate, key, .. } = Certificate::new();
        let missing = File { path: "missing.pem".into(), content: Err("no such file".into()) };

        let error = |cert: &File, key: &File| acceptor(cert, key).err().unwrap();

        let is_missing =
            |error| matches!(error, TlsError::Read { path, .. } if path == missing.path);
        assert!(is_missing(error(&missing, &key)));
        assert!(is_missing(error(&certificate, &missing)));
        assert!(matches!(error(&key, &key), TlsError::NoCertificate { .. }));
        assert!(matches!(error(&certificate, &certificate), TlsError::NoKey { .. }));
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let (one, other) = (Certificate::new(), Certificate::new());

        let result = acceptor(&one.certificate, &other.key);

        assert!(matches!(result, Err(TlsError::Unusable { .. })));
    }
}
