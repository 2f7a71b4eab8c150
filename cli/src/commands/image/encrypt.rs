//! `cloister image encrypt`: an image that only an attested guest can read.

use super::release::Release;
use crate::{
    commands::broker::Access,
    input, output,
    places::{Parts, Place, RegistryArgs},
};
use anyhow::{Context, Result, bail};
use attestation::ResourceUri;
use image::{
    encrypt::encrypt_image,
    ocicrypt::{Kek, Recipient, jwe::PublicKey},
};
use key_broker::{AdminClient, Rule};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Longest key file, in bytes.
const MAX_KEY: u64 = 16 << 10;

/// Encrypt an image, and give its key to the broker with the rule under which it may leave
///
/// Each layer is encrypted with a key of its own; those are wrapped with one new key, which goes to the broker and nowhere else, and for each
/// --recipient besides.
///
///   cloister image encrypt docker://registry.example/app:1 docker://registry.example/app:encrypted \
///       --broker http://127.0.0.1:8090 --admin-key admin.key --key kbs:///default/key/app \
///       --launch-measurement @/usr/lib/cloister/guest.json --init-data initdata.toml
///
/// Without --key, for the holders of private keys alone, such as `skopeo copy --decryption-key`:
///
///   cloister image encrypt oci:app:plain oci-archive:app.tar:encrypted --recipient jwe:public.pem
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// The plain image: docker://REGISTRY/NAME:TAG, oci:DIR:TAG, oci-archive:FILE:TAG or docker-archive:FILE
    #[arg(value_name = "SOURCE")]
    source: Place,
    /// Where the encrypted image goes; oci:DIR may be the same directory
    #[arg(value_name = "DESTINATION")]
    destination: Place,
    /// Name of the key at the broker: kbs:///repository/type/tag. A key of that name is replaced
    #[arg(long, value_name = "RESOURCE", required_unless_present = "recipient", requires = "admin_key")]
    key: Option<ResourceUri>,
    /// URL of the key broker
    #[arg(long, env = "CLOISTER_BROKER", default_value = "http://127.0.0.1:8090", value_name = "URL")]
    broker: String,
    /// File of the broker's administrator's key
    #[arg(long, env = "CLOISTER_ADMIN_KEY", value_name = "FILE")]
    admin_key: Option<PathBuf>,
    #[command(flatten)]
    release: Release,
    /// Encrypt for the holder of a private key too: jwe: and the file of the public key (PEM; RSA, or EC on P-256); may be repeated
    #[arg(long, value_name = "jwe:FILE")]
    recipient: Vec<String>,
    #[command(flatten)]
    registry: RegistryArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What was done.
#[derive(Debug, Serialize)]
struct Outcome {
    destination: String,
    /// Digest of the new manifest.
    digest: String,
    /// The broker's.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<ResourceUri>,
    /// The release rule, as the broker has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<String>,
    /// Whom it is encrypted for besides.
    recipients: Vec<String>,
}

/// A key that is to be the broker's.
struct ForBroker<'a> {
    client: AdminClient,
    key: &'a ResourceUri,
    kek: Kek,
    rule: Rule,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    // What can be wrong with the command line, before anything is written.
    let broker = for_broker(args)?;
    let recipients: Vec<PublicKey> = args.recipient.iter().map(|recipient| public_key(recipient)).collect::<Result<_>>()?;
    let digest = input::block_on(async {
        let encrypt = encrypt(args, broker.as_ref(), &recipients);
        match &broker {
            Some(broker) => encrypt_then_store(&broker.client, broker.key, &broker.kek, &broker.rule, encrypt).await,
            None => encrypt.await.context("encrypt the image"),
        }
    })?;
    let (key, rule) = broker.map(|broker| (broker.key.clone(), broker.rule.text().to_owned())).unzip();
    report(args, Outcome { destination: args.destination.to_string(), digest, key, rule, recipients: args.recipient.clone() })
}

fn for_broker(args: &Args) -> Result<Option<ForBroker<'_>>> {
    let (Some(key), Some(admin_key)) = (&args.key, &args.admin_key) else {
        if args.key.is_some() {
            bail!("--key needs --admin-key, the file of the broker's administrator's key");
        }
        return Ok(None);
    };
    let access = Access { broker: args.broker.clone(), admin_key: admin_key.clone(), broker_cert: None };
    Ok(Some(ForBroker { rule: args.release.rule()?, client: access.client()?, key, kek: Kek::generate()? }))
}

fn public_key(recipient: &str) -> Result<PublicKey> {
    let Some(file) = recipient.strip_prefix("jwe:") else { bail!("--recipient {recipient}: want jwe: and the file of a public key") };
    PublicKey::from_pem(&input::read(Path::new(file), MAX_KEY)?).with_context(|| file.to_owned())
}

/// From place to place; gives the new manifest's digest.
async fn encrypt(args: &Args, broker: Option<&ForBroker<'_>>, public_keys: &[PublicKey]) -> Result<String> {
    let source = args.source.fetch(&args.registry, Parts::All).await?;
    let (target, tag) = args.destination.begin()?;
    let kid = broker.map(|broker| broker.key.to_string());
    let mut recipients: Vec<Recipient<'_>> = Vec::new();
    recipients.extend(broker.zip(kid.as_deref()).map(|(broker, kid)| Recipient::Broker(kid, &broker.kek)));
    recipients.extend(public_keys.iter().map(Recipient::Jwe));
    let progress = output::bytes_progress(0).with_message("encrypting layers");
    let image = tokio::task::block_in_place(|| {
        encrypt_image(&source.layout, source.tag.as_deref(), &target.layout, &tag, &recipients, |state| {
            progress.set_length(state.total);
            progress.set_position(state.done);
        })
    });
    progress.finish_and_clear();
    let digest = image.with_context(|| args.source.to_string())?.digest.to_string();
    args.destination.store(&target, &args.registry).await.with_context(|| args.destination.to_string())?;
    Ok(digest)
}

/// The key last: it may replace that of an earlier image, which must not be lost for one that could not be encrypted. Whether the
/// broker is there and knows us is asked first, so that hardly anything can go wrong between the two.
async fn encrypt_then_store(
    client: &AdminClient,
    key: &ResourceUri,
    kek: &Kek,
    rule: &Rule,
    encrypt: impl Future<Output = Result<String>>,
) -> Result<String> {
    client.list().await?;
    let digest = encrypt.await.context("encrypt the image")?;
    let stored = client.put_resource(key, kek.as_bytes(), rule).await;
    stored.context("the image is encrypted, but its key is not at the broker: nobody can read it; run the command again")?;
    Ok(digest)
}

fn report(args: &Args, outcome: Outcome) -> Result<()> {
    if args.json {
        return output::json(&outcome);
    }
    let mut rows = vec![vec!["image".to_owned(), format!("{} {}", outcome.destination, outcome.digest)]];
    rows.extend(outcome.key.map(|key| vec!["key".to_owned(), format!("{key} at {}", args.broker)]));
    let rule = outcome.rule.unwrap_or_default();
    rows.extend(rule.lines().filter(|line| !line.trim().is_empty()).map(|line| vec!["released to".to_owned(), line.to_owned()]));
    rows.extend(outcome.recipients.into_iter().map(|recipient| vec!["encrypted for".to_owned(), recipient]));
    output::table(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use key_broker::{AdminToken, Broker, BrokerConfig};
    use std::sync::Arc;
    use transport::{HttpClient, TcpDialer};

    const RULE: &str = "tee = \"sample\"\nlaunch_measurement = \"abababababababababababababababababababababababababababababababab\"\n\
        init_data = \"sha256:abababababababababababababababababababababababababababababababab\"\n";

    #[test]
    fn a_key_is_replaced_only_by_that_of_a_finished_image() {
        let dir = tempfile::tempdir().unwrap();
        let token = AdminToken::generate().unwrap();
        let config = BrokerConfig { admin: Some(token.clone()), ..BrokerConfig::new(&dir.path().join("store")) };
        let broker = Arc::new(Broker::open(config).unwrap());
        let (uri, rule): (ResourceUri, _) = ("kbs:///default/key/app".parse().unwrap(), Rule::parse(RULE).unwrap());
        let (first, second) = (Kek::generate().unwrap(), Kek::generate().unwrap());

        let stored = input::block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
            let url = format!("http://{}", listener.local_addr()?);
            let serving = broker.clone();
            tokio::spawn(async move { serving.serve(listener, std::future::pending()).await });
            let client = AdminClient::new(HttpClient::new(Arc::new(TcpDialer), None)?, &url, token);
            encrypt_then_store(&client, &uri, &first, &rule, async { Ok("digest".into()) }).await?;
            let failed = encrypt_then_store(&client, &uri, &second, &rule, async { bail!("damaged") }).await;
            assert!(failed.is_err());
            Ok(broker.store().secret(&uri)?)
        });
        assert_eq!(stored.unwrap().unwrap()[..], first.as_bytes()[..]);

        // Nothing is encrypted for a broker that is not there, or is not ours.
        let stranger =
            AdminClient::new(HttpClient::new(Arc::new(TcpDialer), None).unwrap(), "http://127.0.0.1:1", AdminToken::generate().unwrap());
        let error = input::block_on(encrypt_then_store(&stranger, &uri, &second, &rule, async { panic!("encrypted") })).unwrap_err();
        assert!(error.to_string().contains("http://127.0.0.1:1"), "{error}");
    }
}
