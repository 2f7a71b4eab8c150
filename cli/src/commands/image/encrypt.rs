//! `cloister image encrypt`: an image that only an attested guest can read.

use super::release::Release;
use crate::{commands::broker::Access, input, output};
use anyhow::{Context, Result};
use attestation::ResourceUri;
use image::{
    encrypt::encrypt_image,
    layout::{Layout, parse_name},
    ocicrypt::Kek,
};
use key_broker::{AdminClient, Rule};
use serde::Serialize;

/// Encrypt an image, and give its key to the broker with the rule under which it may leave
///
/// Each layer is encrypted with a key of its own; those are wrapped with one new key, which goes to the broker and nowhere else.
///
///   skopeo copy docker://registry.example/app:1 oci:app:plain
///   cloister image encrypt oci:app:plain oci:app:encrypted \
///       --broker http://127.0.0.1:8090 --admin-key admin.key --key kbs:///default/key/app \
///       --launch-measurement @/usr/lib/cloister/guest.json --init-data initdata.toml
///   skopeo copy oci:app:encrypted docker://registry.example/app:encrypted
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// The plain image: oci:DIR:TAG
    #[arg(value_name = "SOURCE")]
    source: String,
    /// Where the encrypted image goes: oci:DIR:TAG; may be the same directory
    #[arg(value_name = "DESTINATION")]
    destination: String,
    #[command(flatten)]
    access: Access,
    /// Name of the key at the broker: kbs:///repository/type/tag. A key of that name is replaced
    #[arg(long, value_name = "RESOURCE")]
    key: ResourceUri,
    #[command(flatten)]
    release: Release,
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
    key: ResourceUri,
    /// The release rule, as the broker has it.
    rule: String,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    // What can be wrong with the command line, before anything is written.
    let rule = args.release.rule()?;
    let client = args.access.client()?;
    let (source, source_tag) = parse_name(&args.source)?;
    let (target, target_tag) = parse_name(&args.destination)?;
    let target_tag = target_tag.with_context(|| format!("{}: the destination needs a tag, oci:DIR:TAG", args.destination))?;
    let source = Layout::open(&source)?;
    let target = Layout::create(&target)?;

    let kek = Kek::generate()?;
    let encrypt = || {
        let progress = output::bytes_progress(0).with_message("encrypting layers");
        let image = encrypt_image(&source, source_tag.as_deref(), &target, &target_tag, (&args.key.to_string(), &kek), |state| {
            progress.set_length(state.total);
            progress.set_position(state.done);
        });
        progress.finish_and_clear();
        Ok(image?.digest.to_string())
    };
    let digest = input::block_on(encrypt_then_store(&client, &args.key, &kek, &rule, encrypt))?;
    report(args, Outcome { destination: args.destination.clone(), digest, key: args.key.clone(), rule: rule.text().to_owned() })
}

/// The key last: it may replace that of an earlier image, which must not be lost for one that could not be encrypted. Whether the
/// broker is there and knows us is asked first, so that hardly anything can go wrong between the two.
async fn encrypt_then_store(
    client: &AdminClient,
    key: &ResourceUri,
    kek: &Kek,
    rule: &Rule,
    encrypt: impl FnOnce() -> Result<String>,
) -> Result<String> {
    client.list().await?;
    let digest = encrypt().context("encrypt the image")?;
    let stored = client.put_resource(key, kek.as_bytes(), rule).await;
    stored.context("the image is encrypted, but its key is not at the broker: nobody can read it; run the command again")?;
    Ok(digest)
}

fn report(args: &Args, outcome: Outcome) -> Result<()> {
    if args.json {
        return output::json(&outcome);
    }
    let rule: Vec<&str> = outcome.rule.lines().filter(|line| !line.trim().is_empty()).collect();
    let mut rows = vec![
        vec!["image".to_owned(), format!("{} {}", outcome.destination, outcome.digest)],
        vec!["key".to_owned(), format!("{} at {}", outcome.key, args.access.broker)],
    ];
    rows.extend(rule.iter().map(|line| vec!["released to".to_owned(), (*line).to_owned()]));
    output::table(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::bail;
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
            encrypt_then_store(&client, &uri, &first, &rule, || Ok("digest".into())).await?;
            let failed = encrypt_then_store(&client, &uri, &second, &rule, || bail!("damaged")).await;
            assert!(failed.is_err());
            Ok(broker.store().secret(&uri)?)
        });
        assert_eq!(stored.unwrap().unwrap()[..], first.as_bytes()[..]);

        // Nothing is encrypted for a broker that is not there, or is not ours.
        let stranger =
            AdminClient::new(HttpClient::new(Arc::new(TcpDialer), None).unwrap(), "http://127.0.0.1:1", AdminToken::generate().unwrap());
        let error = input::block_on(encrypt_then_store(&stranger, &uri, &second, &rule, || panic!("encrypted"))).unwrap_err();
        assert!(error.to_string().contains("http://127.0.0.1:1"), "{error}");
    }
}
