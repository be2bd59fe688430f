//! TLS from the certificate and key files that the settings name.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fs, io};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

/// The listener cannot speak TLS. The texts name files, never their content.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("could not read \"{}\"", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("\"{}\" holds no certificate in PEM form", path.display())]
    NoCertificate { path: PathBuf },
    #[error("\"{}\" holds no usable private key in PEM form (it must not be encrypted)", path.display())]
    NoKey { path: PathBuf },
    #[error("the certificate in \"{}\" and the key in \"{}\" cannot be used", certificate.display(), key.display())]
    Unusable { certificate: PathBuf, key: PathBuf, source: rustls::Error },
}

/// Reads both files. TLS 1.2 and 1.3; HTTP/1.1 only, for websockets want nothing else.
pub fn acceptor(certificate: &Path, key: &Path) -> Result<TlsAcceptor, TlsError> {
    let chain = read_chain(certificate)?;
    let private_key = read_key(key)?;
    let unusable = |source| TlsError::Unusable {
        certificate: certificate.to_owned(),
        key: key.to_owned(),
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

fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let no_certificate = || TlsError::NoCertificate { path: path.to_owned() };
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&read(path)?)
        .collect::<Result<_, _>>()
        .map_err(|_| no_certificate())?;
    if chain.is_empty() { Err(no_certificate()) } else { Ok(chain) }
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(&read(path)?)
        .map_err(|_| TlsError::NoKey { path: path.to_owned() })
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|source| TlsError::Read { path: path.to_owned(), source })
}

#[cfg(test)]
pub(crate) mod tests {
    use rustls::pki_types::ServerName;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// A certificate for "localhost" in files of its own.
    pub(crate) struct Certificate {
        folder: PathBuf,
        pub(crate) der: CertificateDer<'static>,
    }

    impl Certificate {
        pub(crate) fn new(name: &str) -> Certificate {
            let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
            let folder =
                std::env::temp_dir().join(format!("pg_tide-{}-{name}", std::process::id()));
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("cert.pem"), made.cert.pem()).unwrap();
            fs::write(folder.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
            Certificate { folder, der: made.cert.der().clone() }
        }

        pub(crate) fn certificate(&self) -> PathBuf {
            self.folder.join("cert.pem")
        }

        pub(crate) fn key(&self) -> PathBuf {
            self.folder.join("key.pem")
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

    impl Drop for Certificate {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }

    #[tokio::test]
    async fn a_client_that_trusts_the_certificate_gets_through() {
        let certificate = Certificate::new("trust");
        let acceptor = acceptor(&certificate.certificate(), &certificate.key()).unwrap();
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
        let certificate = Certificate::new("wrong");
        let (cert, key) = (certificate.certificate(), certificate.key());
        let missing = cert.with_file_name("missing.pem");

        let error = |cert: &Path, key: &Path| acceptor(cert, key).err().unwrap();

        assert!(matches!(error(&missing, &key), TlsError::Read { path, .. } if path == missing));
        assert!(matches!(error(&cert, &missing), TlsError::Read { path, .. } if path == missing));
        assert!(matches!(error(&key, &key), TlsError::NoCertificate { .. }));
        assert!(matches!(error(&cert, &cert), TlsError::NoKey { .. }));
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let (one, other) = (Certificate::new("one"), Certificate::new("other"));

        let result = acceptor(&one.certificate(), &other.key());

        assert!(matches!(result, Err(TlsError::Unusable { .. })));
    }
}
