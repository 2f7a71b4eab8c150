//! `cloister initdata`: the owner's configuration of a guest.

use crate::{input, output};
use anyhow::{Context, Result};
use clap::Subcommand;
use policy::{Algorithm, BrokerAddress, Policy, initdata::VERSION, workload::POLICY_FILE};
use serde::Serialize;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

#[derive(Debug, Subcommand)]
pub(crate) enum Initdata {
    /// Write initdata: which broker the guest asks for keys, and which policy it keeps
    ///
    ///   cloister initdata make --broker https://keys.example:8090 --policy policy.toml --out initdata.toml
    #[command(verbatim_doc_comment)]
    Make {
        /// URL of the key broker
        #[arg(long, value_name = "URL")]
        broker: String,
        /// Certificate (PEM) to trust for that broker, beside the web's roots
        #[arg(long, value_name = "FILE")]
        cert: Option<PathBuf>,
        /// Policy (TOML); without one the host may change nothing of what the image says
        #[arg(long, value_name = "FILE")]
        policy: Option<PathBuf>,
        /// File to write, instead of standard output
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Print the value of the annotation dev.cloister.initdata
    ///
    ///   ctr run --annotation "dev.cloister.initdata=$(cloister initdata annotation initdata.toml)" …
    #[command(verbatim_doc_comment)]
    Annotation {
        /// Initdata (TOML)
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Print the digest that a guest with this initdata attests
    Digest {
        /// Initdata (TOML)
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}

pub(crate) fn run(command: &Initdata) -> Result<()> {
    match command {
        Initdata::Make { broker, cert, policy, out } => {
            let text = make(broker, cert.as_deref(), policy.as_deref())?;
            match out {
                None => output::raw(text.as_bytes()),
                Some(path) => {
                    fs::write(path, &text).with_context(|| path.display().to_string())?;
                    output::line(&check(&text)?)
                }
            }
        }
        Initdata::Annotation { file } => {
            let (initdata, _) = input::initdata(file)?;
            Policy::from_initdata(Some(&initdata))?;
            output::line(&initdata.to_annotation())
        }
        Initdata::Digest { file } => output::line(&input::initdata(file)?.1.to_string()),
    }
}

#[derive(Serialize)]
struct Document {
    version: &'static str,
    algorithm: Algorithm,
    data: BTreeMap<&'static str, String>,
}

/// `aa.toml` as in Confidential Containers.
#[derive(Serialize)]
struct AgentFile {
    token_configs: TokenConfigs,
}

#[derive(Serialize)]
struct TokenConfigs {
    kbs: BrokerAddress,
}

pub(crate) fn make(broker: &str, cert: Option<&Path>, policy: Option<&Path>) -> Result<String> {
    let kbs = BrokerAddress { url: broker.to_owned(), cert: cert.map(input::text).transpose()? };
    let agent = toml::to_string(&AgentFile { token_configs: TokenConfigs { kbs } })?;
    let mut data = BTreeMap::from([("aa.toml", agent)]);
    if let Some(path) = policy {
        data.insert(POLICY_FILE, input::text(path)?);
    }
    let text = toml::to_string(&Document { version: VERSION, algorithm: Algorithm::Sha256, data })?;
    check(&text)?;
    Ok(text)
}

/// Reads it as the guest will, so that a mistake shows here; gives the digest.
fn check(text: &str) -> Result<String> {
    let (initdata, digest) = policy::Initdata::parse_toml(text)?;
    initdata.broker()?;
    Policy::from_initdata(Some(&initdata))?;
    Ok(digest.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_is_read_by_the_guest() {
        let dir = tempfile::tempdir().unwrap();
        let (cert, policy) = (dir.path().join("ca.pem"), dir.path().join("policy.toml"));
        fs::write(&cert, "-----BEGIN CERTIFICATE-----\n'''\"\n").unwrap();
        fs::write(&policy, "# ''' and \"\"\" in a comment\n[allow]\nterminal = true\n").unwrap();
        let text = make("http://127.0.0.1:8090", Some(&cert), Some(&policy)).unwrap();
        let (initdata, _) = policy::Initdata::parse_toml(&text).unwrap();
        let broker = initdata.broker().unwrap().unwrap();
        assert_eq!(broker.url, "http://127.0.0.1:8090");
        assert_eq!(broker.cert.as_deref(), Some("-----BEGIN CERTIFICATE-----\n'''\"\n"));
        assert_eq!(initdata.file(POLICY_FILE), Some("# ''' and \"\"\" in a comment\n[allow]\nterminal = true\n"));
        assert_eq!(make("http://127.0.0.1:8090", Some(&cert), Some(&policy)).unwrap(), text, "the digest is in rules: no variation");
    }

    #[test]
    fn a_mistake_shows_before_the_guest_meets_it() {
        assert!(make("127.0.0.1:8090", None, None).is_err());
        let dir = tempfile::tempdir().unwrap();
        let policy = dir.path().join("policy.toml");
        fs::write(&policy, "[alow]\n").unwrap();
        assert!(format!("{:#}", make("http://b", None, Some(&policy)).unwrap_err()).contains("alow"));
    }
}
