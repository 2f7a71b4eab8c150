//! The broker as a whole: configuration, opening, serving, stopping.

use crate::{
    admin::AdminToken,
    api,
    audit::{Audit, AuditError},
    listener::{BoundedListener, Peer},
    metrics::Metrics,
    rate::{Limiter, Rate},
    refusals::Refusals,
    session::Sessions,
    signers::Signers,
    store::{Store, StoreError},
};
use attestation::{Tee, Verifier, sample::SampleVerifier};
use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};
use thiserror::Error;
use tokio::{net::TcpListener, sync::Notify};
use tokio_rustls::TlsAcceptor;

/// How long requests in flight may take to end when the broker stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// What a broker is started with.
pub struct BrokerConfig {
    /// File of the store; made when it is not there.
    pub store: PathBuf,
    /// Accept evidence of type `sample`, which proves nothing.
    pub development: bool,
    /// Whose evidence is taken: one verifier for each kind of hardware. With none (and not in development) nobody gets anything.
    pub verifiers: Vec<Box<dyn Verifier>>,
    /// The administrator's key; without it nobody can store anything over the network.
    pub admin: Option<AdminToken>,
    /// Life of a session and of a token.
    pub session_lifetime: Duration,
    /// Attested sessions at once, and challenges at once; beyond it the oldest goes.
    pub max_sessions: usize,
    /// How often one address may begin a handshake.
    pub rate: Rate,
    /// File of the audit log; made when it is not there. Without one nothing is logged but to standard error.
    pub audit: Option<PathBuf>,
    /// Certificate and key, see [`crate::tls::server`]; without them plain HTTP is spoken.
    pub tls: Option<TlsAcceptor>,
}

impl std::fmt::Debug for BrokerConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BrokerConfig").field("store", &self.store).field("development", &self.development).finish_non_exhaustive()
    }
}

impl BrokerConfig {
    /// A broker over this store, with neither development nor administrator, 10 000 sessions of five minutes.
    pub fn new(store: &Path) -> Self {
        Self {
            store: store.to_owned(),
            development: false,
            verifiers: Vec::new(),
            admin: None,
            session_lifetime: Duration::from_secs(300),
            max_sessions: 10_000,
            rate: Rate::default(),
            audit: None,
            tls: None,
        }
    }
}

/// Why a broker does not start.
#[derive(Debug, Error)]
pub enum BrokerError {
    /// The store.
    #[error("broker store: {0}")]
    Store(#[from] StoreError),
    /// The audit log.
    #[error(transparent)]
    Audit(#[from] AuditError),
}

/// What all requests share.
pub(crate) struct Shared {
    pub(crate) store: Store,
    pub(crate) sessions: Sessions,
    pub(crate) signers: RwLock<Arc<Signers>>,
    pub(crate) limiter: Limiter,
    pub(crate) audit: Option<Audit>,
    pub(crate) refusals: Refusals,
    pub(crate) verifiers: BTreeMap<Tee, Box<dyn Verifier>>,
    pub(crate) metrics: Metrics,
    pub(crate) admin: Option<AdminToken>,
    pub(crate) development: bool,
    pub(crate) session_lifetime: Duration,
}

impl Shared {
    /// The keys of the tokens as they are now.
    pub(crate) fn signers(&self) -> Arc<Signers> {
        self.signers.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes a new key for tokens; those that are out stay valid.
    pub(crate) fn rotate_token_key(&self) -> Result<(), StoreError> {
        // Held throughout, so that two rotations at once do not lose the key between them.
        let mut signers = self.signers.write().unwrap_or_else(PoisonError::into_inner);
        let new = self.store.rotate_token_signer()?;
        *signers = Arc::new(Signers::new(new, self.store.previous_token_signer()?));
        Ok(())
    }
}

/// An open broker.
pub struct Broker {
    pub(crate) shared: Arc<Shared>,
    tls: Option<TlsAcceptor>,
}

impl std::fmt::Debug for Broker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Broker").field("development", &self.shared.development).finish_non_exhaustive()
    }
}

impl Broker {
    /// Opens the store and everything else that a broker needs.
    pub fn open(config: BrokerConfig) -> Result<Self, BrokerError> {
        let store = Store::open(&config.store)?;
        let signers = Signers::new(store.token_signer()?, store.previous_token_signer()?);
        let audit = config.audit.as_deref().map(Audit::open).transpose()?;
        let mut verifiers: BTreeMap<Tee, Box<dyn Verifier>> = config.verifiers.into_iter().map(|v| (v.tee(), v)).collect();
        if config.development {
            log::warn!(
                "DEVELOPMENT BROKER: evidence of type sample is accepted, which proves nothing; whoever reaches this broker can have \
                 every secret whose rule names the TEE sample"
            );
            verifiers.insert(Tee::Sample, Box::new(SampleVerifier));
        }
        let shared = Shared {
            store,
            sessions: Sessions::new(config.max_sessions, config.session_lifetime),
            signers: RwLock::new(Arc::new(signers)),
            limiter: Limiter::new(config.rate),
            audit,
            refusals: Refusals::default(),
            verifiers,
            metrics: Metrics::default(),
            admin: config.admin,
            development: config.development,
            session_lifetime: config.session_lifetime,
        };
        Ok(Self { shared: Arc::new(shared), tls: config.tls })
    }

    /// The store, for a tool that works on it in the same process.
    pub fn store(&self) -> &Store {
        &self.shared.store
    }

    /// The public key of the tokens, as JWK, for those who verify them.
    pub fn token_jwk(&self) -> serde_json::Value {
        self.shared.signers().jwk()
    }

    /// Serves until `shutdown`; requests in flight then have a few seconds to end.
    pub async fn serve(&self, listener: TcpListener, shutdown: impl Future<Output = ()> + Send + 'static) -> io::Result<()> {
        let service = api::router(self.shared.clone()).into_make_service_with_connect_info::<Peer>();
        log::info!(address:% = listener.local_addr()?, tls = self.tls.is_some(), development = self.shared.development; "broker serves");
        let stopping = Arc::new(Notify::new());
        let stop = stopping.clone();
        let server = axum::serve(BoundedListener::new(listener, self.tls.clone()), service).with_graceful_shutdown(async move {
            shutdown.await;
            stop.notify_one();
        });
        tokio::select! {
            result = async { server.await } => result?,
            () = async { stopping.notified().await; tokio::time::sleep(STOP_TIMEOUT).await } => {
                log::warn!("requests still running are cut off");
            }
        }
        log::info!("broker stopped");
        Ok(())
    }
}
