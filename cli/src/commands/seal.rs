//! `cloister seal`: secrets that may stand in a pod's manifest.

use crate::{input, output};
use anyhow::{Context, Result, anyhow};
use attestation::{ResourceUri, sealed::Owner};
use clap::Subcommand;
use std::path::PathBuf;
use zeroize::Zeroizing;

/// Largest secret that is read, in bytes; what it becomes has a bound of its own.
const MAX_SECRET: u64 = 256 << 10;

/// Print a sealed secret: a text for a pod's environment or Secret that only an attested guest turns into the secret
///
///   cloister image keygen owner
///   cloister broker put kbs:///acme/keys/owner --secret owner.pub --rule rule.toml …
///   cloister seal --sign-key owner.key --signer kbs:///acme/keys/owner vault kbs:///acme/db/password
///
/// Name the variable with the text (NAME=sealed.…) in the policy's env, or bind the file to the text's digest in its files.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// Private key: PKCS#8 in PEM, ECDSA on P-256, as `cloister image keygen` makes it
    #[arg(long, value_name = "FILE")]
    sign_key: PathBuf,
    /// Where the broker has the public half, PREFIX.pub
    #[arg(long, value_name = "KBS-URI")]
    signer: ResourceUri,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// A text that stands for a secret that the broker has
    Vault {
        /// The secret
        #[arg(value_name = "KBS-URI")]
        secret: ResourceUri,
    },
    /// A text that holds the secret, encrypted to a key that the broker has
    Envelope {
        /// The secret; `-` is standard input
        #[arg(value_name = "FILE")]
        secret: PathBuf,
        /// The key: 32 bytes, as `openssl rand 32` makes them
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// Where the broker has the key
        #[arg(long, value_name = "KBS-URI")]
        key_id: ResourceUri,
    },
}

pub(crate) fn run(args: &Args) -> Result<()> {
    output::line(&seal(args)?)
}

fn seal(args: &Args) -> Result<String> {
    let pem = Zeroizing::new(input::text(&args.sign_key)?);
    let owner = Owner::from_pem(&pem, args.signer.clone()).with_context(|| args.sign_key.display().to_string())?;
    match &args.what {
        What::Vault { secret } => Ok(owner.vault(secret)?),
        What::Envelope { secret, key, key_id } => {
            let bytes = Zeroizing::new(input::read(key, 32)?);
            let key: &[u8; 32] = bytes.as_slice().try_into().map_err(|_| anyhow!("{}: not 32 bytes", key.display()))?;
            Ok(owner.envelope(&Zeroizing::new(input::read(secret, MAX_SECRET)?), key, key_id)?)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use image::signature::sign::SigningKey;
    use std::fs;

    #[derive(Parser)]
    struct Seal {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn a_secret_is_sealed_with_what_keygen_makes() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        fs::write(path("k"), SigningKey::generate().unwrap().to_pem().unwrap()).unwrap();
        fs::write(path("wrap"), [7; 32]).unwrap();
        fs::write(path("short"), [7; 31]).unwrap();
        fs::write(path("secret"), "hunter2").unwrap();
        let sealed = |sign: &str, what: &[&str]| {
            let (key, begin) = (path(sign), ["seal", "--signer", "kbs:///a/keys/k", "--sign-key"]);
            seal(&Seal::parse_from(begin.into_iter().chain([key.as_str()]).chain(what.iter().copied())).args)
        };
        let envelope =
            |sign: &str, key: &str| sealed(sign, &["envelope", &path("secret"), "--key", &path(key), "--key-id", "kbs:///a/keys/w"]);
        for text in [sealed("k", &["vault", "kbs:///a/secret/db"]).unwrap(), envelope("k", "wrap").unwrap()] {
            assert!(text.starts_with("sealed.") && text.matches('.').count() == 3 && !text.contains("hunter2"), "{text}");
        }
        for (error, file) in [(envelope("k", "short"), "short"), (envelope("secret", "wrap"), "secret"), (envelope("k", "none"), "none")] {
            let error = format!("{:#}", error.unwrap_err());
            assert!(error.contains(&path(file)), "{error}");
        }
    }
}
