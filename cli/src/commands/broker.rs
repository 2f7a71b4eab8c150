//! `cloister broker`: the key broker, and its administrator.

use crate::{endorsements::Endorsements, input, logger, output};
use anyhow::{Context, Result, bail};
use attestation::ResourceUri;
use clap::Subcommand;
use key_broker::{AdminClient, AdminToken, Broker as KeyBroker, BrokerConfig, Rule};
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
    /// It speaks plain HTTP: what it releases is encrypted for the attested guest. Beyond loopback put TLS in front of it, for the
    /// administrator's key.
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
    #[command(verbatim_doc_comment)]
    Put {
        #[command(flatten)]
        access: Access,
        /// Name: kbs:///repository/type/tag
        #[arg(value_name = "RESOURCE")]
        resource: ResourceUri,
        /// The secret, as it is; `-` is standard input. Without it only the rule is replaced
        #[arg(long, value_name = "FILE")]
        secret: Option<PathBuf>,
        /// The release rule (TOML: tee, launch_measurement, init_data)
        #[arg(long, value_name = "FILE")]
        rule: PathBuf,
    },
    /// Remove a secret with its release rule
    Delete {
        #[command(flatten)]
        access: Access,
        /// Name: kbs:///repository/type/tag
        #[arg(value_name = "RESOURCE")]
        resource: ResourceUri,
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
}

impl Access {
    pub(crate) fn client(&self) -> Result<AdminClient> {
        let token = AdminToken::load(&self.admin_key)?;
        let http = HttpClient::new(Arc::new(TcpDialer), None)?;
        Ok(AdminClient::new(http, &self.broker, token))
    }
}

pub(crate) fn run(command: &Broker) -> Result<()> {
    match command {
        Broker::Serve { listen, store, admin_key, endorsements, development } => {
            logger::install();
            let admin = AdminToken::load_or_create(admin_key)?;
            let config = BrokerConfig {
                development: *development,
                verifiers: endorsements.verifiers()?,
                admin: Some(admin),
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
                    Some(secret) => client.put_resource(resource, &secret, &rule).await?,
                    None => client.put_rule(resource, &rule).await?,
                }
                Ok(())
            })
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

pub(crate) fn read_rule(path: &Path) -> Result<Rule> {
    Rule::parse(&input::text(path)?).with_context(|| path.display().to_string())
}

/// A rule on one line.
fn inline(rule: &str) -> String {
    rule.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
}
