//! TLS on a connection: the server's certificate is verified unless the configuration says otherwise.
//!
//! Sessions are never resumed. A resumed one shows no certificate, and an expired one would go unseen.

use std::{
    io::{self, Read},
    net::SocketAddr,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore,
    SignatureScheme,
    client::{
        Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
    server::ParsedCertificate,
};
use thiserror::Error;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{Late, Place};
use crate::model::Tls;

/// Largest file of authorities that is read: ten times what Debian believes.
const MAX_CA_FILE: u64 = 4 << 20;

/// Why there is no TLS session.
#[derive(Debug, Error)]
pub enum TlsError {
    /// The handshake failed: a certificate that is not believed, or something else than TLS.
    #[error("no TLS session with {target}: {source}")]
    Handshake {
        /// Address asked.
        target: SocketAddr,
        /// What was wrong.
        source: io::Error,
    },
    /// The handshake took too long.
    #[error(transparent)]
    Late(#[from] Late),
    /// The authorities' file cannot be read.
    #[error("cannot read the certificates of {}: {source}", path.display())]
    CaFile {
        /// The file.
        path: PathBuf,
        /// What failed.
        source: rustls::pki_types::pem::Error,
    },
    /// The authorities' file has something that is no authority.
    #[error("{} has no usable certificate{}", path.display(), reason.as_ref().map_or_else(String::new, |r| format!(": {r}")))]
    NoAuthority {
        /// The file.
        path: PathBuf,
        /// What is wrong with one of them.
        reason: Option<rustls::Error>,
    },
    /// Neither `server_name` nor what stands in for it can be in a certificate.
    #[error("{name} cannot be the name in a certificate; set `server_name`")]
    Name {
        /// The name.
        name: String,
    },
    /// The library does not accept its own settings.
    #[error("TLS cannot be set up: {0}")]
    Setup(#[from] rustls::Error),
    /// The server does not agree to the protocol wanted.
    #[error("{target} does not agree to speak {wanted} (ALPN)")]
    Protocol {
        /// Address asked.
        target: SocketAddr,
        /// What was wanted.
        wanted: &'static str,
    },
}

/// Makes TLS sessions for one check.
pub(super) struct Connector {
    settings: Tls,
    /// Protocol offered by ALPN; whether the server must agree.
    protocol: Option<(&'static str, bool)>,
    /// Made at the first use, again while it cannot be made, because a file may appear, and again when the
    /// authorities' file is another one.
    config: Option<(Option<Stamp>, Arc<ClientConfig>)>,
}

/// Which version of a file it is: device and number, time of change, length.
type Stamp = (u64, u64, i64, i64, u64);

impl Connector {
    pub(super) fn new(settings: &Tls, protocol: Option<(&'static str, bool)>) -> Self {
        Self {
            settings: settings.clone(),
            protocol,
            config: None,
        }
    }

    /// Makes a session. `name` is the server's where the configuration names none.
    pub(super) async fn wrap(
        &mut self,
        stream: TcpStream,
        place: &Place,
        name: Option<&str>,
    ) -> Result<TlsStream<TcpStream>, TlsError> {
        let config = self.config()?;
        let server = match self.settings.server_name.as_deref().or(name) {
            Some(name) => {
                let name = name.to_owned();
                ServerName::try_from(name.clone()).map_err(|_| TlsError::Name { name })?
            }
            None => ServerName::IpAddress(place.target.ip().into()),
        };
        let target = place.target;
        let handshake = TlsConnector::from(config).connect(server, stream);
        let stream = place
            .within(place.limits.tls, "finish the TLS handshake", handshake)
            .await?
            .map_err(|source| TlsError::Handshake { target, source })?;
        if let Some((wanted, true)) = self.protocol
            && stream.get_ref().1.alpn_protocol() != Some(wanted.as_bytes())
        {
            return Err(TlsError::Protocol { target, wanted });
        }
        Ok(stream)
    }

    /// While the file is being replaced it may be missing, or half there: what was read before counts until then.
    fn config(&mut self) -> Result<Arc<ClientConfig>, TlsError> {
        let stamp = self.settings.ca_file.as_deref().and_then(stamp);
        let known = match self.config.take() {
            Some((known, config)) if known == stamp => Some((known, config)),
            Some((known, config)) => match self.configure() {
                Ok(new) => Some((stamp, Arc::new(new))),
                Err(_) => Some((known, config)),
            },
            None => None,
        };
        let (known, config) = match known {
            Some(known) => known,
            None => (stamp, Arc::new(self.configure()?)),
        };
        self.config = Some((known, config.clone()));
        Ok(config)
    }

    fn configure(&self) -> Result<ClientConfig, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()?;
        let listed = match &self.settings.ca_file {
            Some(path) if self.settings.verify => Some(Listed::read(path, provider.clone())?),
            _ => None,
        };
        let mut config = if self.settings.verify && listed.is_none() {
            builder.with_root_certificates(system_authorities())
        } else {
            let verifier = Verifier { listed, provider };
            builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(verifier))
        }
        .with_no_client_auth();
        config.resumption = Resumption::disabled();
        if let Some((protocol, _)) = self.protocol {
            config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        }
        Ok(config)
    }
}

/// The system's authorities, read once in the life of the process: all checks share them.
fn system_authorities() -> Arc<RootCertStore> {
    static SYSTEM: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    SYSTEM
        .get_or_init(|| {
            let found = rustls_native_certs::load_native_certs();
            for error in &found.errors {
                tracing::warn!(%error, "some of the system's certificates cannot be read");
            }
            let mut store = RootCertStore::empty();
            store.add_parsable_certificates(found.certs);
            if store.is_empty() {
                tracing::warn!(
                    "this system has no certificates of authorities: install ca-certificates, or set `ca_file`"
                );
            }
            Arc::new(store)
        })
        .clone()
}

fn stamp(path: &Path) -> Option<Stamp> {
    let file = std::fs::metadata(path).ok()?;
    Some((
        file.dev(),
        file.ino(),
        file.mtime(),
        file.mtime_nsec(),
        file.len(),
    ))
}

fn read_authorities(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let unreadable = |source| TlsError::CaFile {
        path: path.to_owned(),
        source,
    };
    let read = || -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        std::fs::File::open(path)?
            .take(MAX_CA_FILE)
            .read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().map_err(|error| unreadable(rustls::pki_types::pem::Error::Io(error)))?;
    CertificateDer::pem_slice_iter(&bytes)
        .map(|certificate| certificate.map_err(unreadable))
        .collect()
}

/// Believes the certificates of the authorities in a file, and the certificates in it themselves. The library takes
/// no certificate of an authority for a server's, which is what `openssl req -x509` makes for a server that has
/// no authority: whoever names just that certificate means that server.
#[derive(Debug)]
struct Listed {
    certificates: Vec<CertificateDer<'static>>,
    by_authority: Arc<WebPkiServerVerifier>,
}

impl Listed {
    fn read(path: &Path, provider: Arc<CryptoProvider>) -> Result<Self, TlsError> {
        let certificates = read_authorities(path)?;
        let mut store = RootCertStore::empty();
        let mut reason = None;
        for certificate in &certificates {
            if let Err(error) = store.add(certificate.clone()) {
                reason = Some(error);
            }
        }
        if store.is_empty() {
            let path = path.to_owned();
            return Err(TlsError::NoAuthority { path, reason });
        }
        let by_authority = WebPkiServerVerifier::builder_with_provider(store.into(), provider)
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        Ok(Self {
            certificates,
            by_authority,
        })
    }

    fn verify(
        &self,
        certificate: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verifier = &self.by_authority;
        match verifier.verify_server_cert(certificate, chain, name, ocsp, now) {
            // It looks at the time before it looks whose certificate it is, and at the name only afterwards.
            Err(error) if is_authority(&error) && self.certificates.contains(certificate) => {
                verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
                Ok(ServerCertVerified::assertion())
            }
            verified => verified,
        }
    }
}

/// Whether a certificate was refused for being that of an authority.
fn is_authority(error: &rustls::Error) -> bool {
    let rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(error))) = error
    else {
        return false;
    };
    let refused = error.downcast_ref::<webpki::Error>();
    refused == Some(&webpki::Error::CaUsedAsEndEntity)
}

/// Believes what is listed, or every certificate where nothing is, but only of whoever holds its key.
#[derive(Debug)]
struct Verifier {
    listed: Option<Listed>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match &self.listed {
            Some(listed) => listed.verify(certificate, chain, name, ocsp, now),
            None => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
