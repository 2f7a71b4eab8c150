//! `cloister broker`: the key broker, and its administrator.

use crate::{endorsements::Endorsements, input, logger, output};
use anyhow::{Context, Result, bail};
use attestation::ResourceUri;
use clap::Subcommand;
use key_broker::{AdminClient, AdminToken, Broker as KeyBroker, BrokerConfig, Rule, Target};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::net::TcpListener;
use transport::{HttpClient, TcpDialer};
use zeroize::Zeroizing;

/// Longest secret, in bytes.
const MAX_SECRET: u64 = 1 << 20;

#[derive(Debug, Subcommand)]
pub(crate) enum Broker {
    /// Run the key broker until it is told to stop
    ///
    ///   cloister broker serve --listen 127.0.0.1:8090 --store keys.redb --admin-key admin.key
    ///
    /// Without a certificate it speaks plain HTTP: what it releases is encrypted for the attested guest, but the administrator's key is
    /// not. Beyond loopback give it one.
    #[command(verbatim_doc_comment)]
    Serve {
        /// Address to listen on
        #[arg(long, default_value = "127.0.0.1:8090", value_name = "ADDRESS")]
        listen: String,
        /// File of secrets and rules; made if missing
        #[arg(long, value_name = "FILE")]
        store: PathBuf,
        /// File of the administrator's key; made with a new key, for its owner alone, if missing
        #[arg(long, value_name = "FILE")]
        admin_key: PathBuf,
        #[command(flatten)]
        endorsements: Endorsements,
        /// File of the audit log; made if missing. Every release, refusal and change is a line of it, chained by hashes
        #[arg(long, value_name = "FILE")]
        audit: Option<PathBuf>,
        /// Certificate (PEM) with its chain: speak TLS
        #[arg(long, value_name = "FILE", requires = "tls_key")]
        tls_cert: Option<PathBuf>,
        /// Its private key (PEM)
        #[arg(long, value_name = "FILE", requires = "tls_cert")]
        tls_key: Option<PathBuf>,
        /// Accept evidence without a TEE (type `sample`), which proves nothing
        #[arg(long)]
        development: bool,
    },
    /// List resources with their release rules, never their secrets
    List {
        #[command(flatten)]
        access: Access,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Store a secret, its release rule, or both
    ///
    ///   cloister broker put kbs:///default/secret/db --secret db.txt --rule rule.toml
    ///   cloister broker put 'kbs:///acme/api/*' --rule rule.toml
    ///
    /// A rule for a pattern counts for resources that have none of their own.
    #[command(verbatim_doc_comment)]
    Put {
        #[command(flatten)]
        access: Access,
        /// Name: kbs:///repository/type/tag, or for a rule alone a pattern: kbs:///repository/type/*
        #[arg(value_name = "RESOURCE")]
        resource: Target,
        /// The secret, as it is; `-` is standard input. Without it only the rule is replaced
        #[arg(long, value_name = "FILE")]
        secret: Option<PathBuf>,
        /// The release rule (TOML: tee, launch_measurement, init_data; valid_from and valid_until, if it is to end)
        #[arg(long, value_name = "FILE")]
        rule: PathBuf,
    },
    /// Replace a secret, and leave its release rule as it is; or replace the key that signs tokens
    ///
    ///   cloister broker rotate kbs:///default/secret/db --secret new.txt
    ///   cloister broker rotate --token-key
    #[command(verbatim_doc_comment)]
    Rotate {
        #[command(flatten)]
        access: Access,
        /// Name: kbs:///repository/type/tag
        #[arg(value_name = "RESOURCE", required_unless_present = "token_key")]
        resource: Option<ResourceUri>,
        /// The new secret; `-` is standard input. Without it, 32 random bytes
        #[arg(long, value_name = "FILE", requires = "resource")]
        secret: Option<PathBuf>,
        /// A new signing key: tokens that are out stay valid, and the JWK set has both keys
        #[arg(long, conflicts_with = "resource")]
        token_key: bool,
    },
    /// Say why guests did not get a resource: the last refusals, and the rule as it stands
    Explain {
        #[command(flatten)]
        access: Access,
        /// Name: kbs:///repository/type/tag
        #[arg(value_name = "RESOURCE")]
        resource: ResourceUri,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Work on an audit log
    #[command(subcommand)]
    Audit(Audit),
    /// Remove a secret with its release rule, or the rule of a pattern
    Delete {
        #[command(flatten)]
        access: Access,
        /// Name: kbs:///repository/type/tag, or a pattern
        #[arg(value_name = "RESOURCE")]
        resource: Target,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Audit {
    /// Check that no line of a log was changed, left out or put in; prints number and hash of the last line
    Verify {
        /// The log
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Number and hash of a last line that was kept elsewhere (N:HASH): the log must not end before it
        #[arg(long, value_name = "HEAD")]
        expect: Option<String>,
    },
    /// Print number and hash of the last line of a running broker's log, to be kept elsewhere
    Head {
        #[command(flatten)]
        access: Access,
    },
}

/// Which broker, as its administrator.
#[derive(Debug, clap::Args)]
pub(crate) struct Access {
    /// URL of the key broker
    #[arg(long, env = "CLOISTER_BROKER", default_value = "http://127.0.0.1:8090", value_name = "URL")]
    pub(crate) broker: String,
    /// File of its administrator's key
    #[arg(long, env = "CLOISTER_ADMIN_KEY", value_name = "FILE")]
    pub(crate) admin_key: PathBuf,
    /// Certificate (PEM) to trust for it, beside the web's roots
    #[arg(long, env = "CLOISTER_BROKER_CERT", value_name = "FILE")]
    pub(crate) broker_cert: Option<PathBuf>,
}

impl Access {
    pub(crate) fn client(&self) -> Result<AdminClient> {
        let token = AdminToken::load(&self.admin_key)?;
        let root = self.broker_cert.as_deref().map(input::text).transpose()?;
        let http = HttpClient::new(Arc::new(TcpDialer), root.as_deref())?;
        Ok(AdminClient::new(http, &self.broker, token))
    }
}

pub(crate) fn run(command: &Broker) -> Result<()> {
    match command {
        Broker::Serve { listen, store, admin_key, endorsements, audit, tls_cert, tls_key, development } => {
            logger::install();
            let admin = AdminToken::load_or_create(admin_key)?;
            let tls = tls_cert.as_deref().zip(tls_key.as_deref()).map(|(cert, key)| key_broker::tls::server(cert, key)).transpose()?;
            let config = BrokerConfig {
                development: *development,
                verifiers: endorsements.verifiers()?,
                admin: Some(admin),
                audit: audit.clone(),
                tls,
                ..BrokerConfig::new(store)
            };
            input::block_on(serve(listen, config))
        }
        Broker::List { access, json } => {
            let entries = input::block_on(async { Ok(access.client()?.list().await?) })?;
            if *json {
                return output::json(&entries);
            }
            let row = |entry: &key_broker::store::Entry| {
                let secret = entry.bytes.map_or_else(|| "no secret".to_owned(), output::size);
                let rule = entry.rule.as_deref().map_or_else(|| "no rule: released to nobody".to_owned(), inline);
                vec![entry.resource.to_string(), secret, rule]
            };
            output::table(&entries.iter().map(row).collect::<Vec<_>>())
        }
        Broker::Put { access, resource, secret, rule } => {
            let rule = read_rule(rule)?;
            let secret = secret.as_deref().map(|path| input::read(path, MAX_SECRET).map(Zeroizing::new)).transpose()?;
            if secret.as_ref().is_some_and(|secret| secret.is_empty()) {
                bail!("the secret is empty");
            }
            input::block_on(async {
                let client = access.client()?;
                match secret {
                    Some(secret) => client.put_resource(&resource.to_string().parse()?, &secret, &rule).await?,
                    None => client.put_rule(resource, &rule).await?,
                }
                Ok(())
            })
        }
        Broker::Rotate { access, resource, secret, .. } => input::block_on(rotate(access, resource.as_ref(), secret.as_deref())),
        Broker::Explain { access, resource, json } => explain(access, resource, *json),
        Broker::Audit(Audit::Verify { file, expect }) => verify(file, expect.as_deref()),
        Broker::Audit(Audit::Head { access }) => {
            let head = input::block_on(async { Ok(access.client()?.audit_head().await?) })?;
            output::line(&format!("{}:{}", head.n, head.hash))
        }
        Broker::Delete { access, resource } => input::block_on(async { Ok(access.client()?.delete(resource).await?) }),
    }
}

async fn serve(listen: &str, config: BrokerConfig) -> Result<()> {
    let stop = input::asked_to_stop()?;
    let broker = KeyBroker::open(config)?;
    let listener = TcpListener::bind(listen).await.with_context(|| format!("listen on {listen}"))?;
    broker.serve(listener, stop).await.context("serve")
}

async fn rotate(access: &Access, resource: Option<&ResourceUri>, secret: Option<&Path>) -> Result<()> {
    let client = access.client()?;
    let Some(resource) = resource else { return output::json(&client.rotate_token_key().await?) };
    let secret = match secret {
        Some(path) => Zeroizing::new(input::read(path, MAX_SECRET)?),
        None => {
            let mut random = Zeroizing::new(vec![0; 32]);
            getrandom::fill(&mut random).map_err(|e| anyhow::anyhow!("no random bytes: {e}"))?;
            random
        }
    };
    if secret.is_empty() {
        bail!("the secret is empty");
    }
    // Without a rule nobody would get it, and whoever rotates believes that there is one.
    if !client.list().await?.iter().any(|entry| entry.resource.path() == resource.path() && entry.bytes.is_some()) {
        bail!("{resource}: there is no such resource to rotate; store it with `cloister broker put`");
    }
    Ok(client.rotate(resource, &secret).await?)
}

fn explain(access: &Access, resource: &ResourceUri, json: bool) -> Result<()> {
    let (refusals, entries) = input::block_on(async {
        let client = access.client()?;
        Ok((client.refusals(resource).await?, client.list().await?))
    })?;
    if json {
        return output::json(&refusals);
    }
    match entries.iter().find(|entry| entry.resource.path() == resource.path()) {
        None => output::line(&format!("{resource}: there is no such resource; a rule for a pattern may still cover its name"))?,
        Some(entry) => {
            let rule = entry.rule.as_deref().map_or_else(|| "no rule of its own".to_owned(), inline);
            output::line(&format!("{resource}: {rule}"))?;
        }
    }
    if refusals.is_empty() {
        return output::line("nobody was refused it since the broker was started; what was before is in the audit log");
    }
    let row = |refusal: &key_broker::Refusal| {
        let what = if refusal.resource.is_empty() { "handshake" } else { "resource" };
        vec![
            refusal.at.to_string(),
            refusal.peer.clone(),
            refusal.session.clone(),
            refusal.tee.clone(),
            what.into(),
            refusal.reason.clone(),
        ]
    };
    output::table(&refusals.iter().map(row).collect::<Vec<_>>())
}

fn verify(file: &Path, expect: Option<&str>) -> Result<()> {
    let head = key_broker::audit::verify(file)?;
    if let Some(expect) = expect {
        let (n, hash) = expect.split_once(':').context("--expect: N:HASH, as `audit head` prints it")?;
        let n: u64 = n.parse().context("--expect: a number before the colon")?;
        if head.n < n {
            bail!("{}: ends with line {}, and there were {n}: it was cut", file.display(), head.n);
        }
        if key_broker::audit::hash_of(file, n)?.as_deref() != Some(hash) {
            bail!("{}: line {n} is another than it was", file.display());
        }
    }
    output::line(&format!("{}:{}", head.n, head.hash))
}

pub(crate) fn read_rule(path: &Path) -> Result<Rule> {
    Rule::parse(&input::text(path)?).with_context(|| path.display().to_string())
}

/// A rule on one line.
fn inline(rule: &str) -> String {
    rule.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
}
