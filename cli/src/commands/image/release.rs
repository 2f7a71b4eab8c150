//! To whom a key is released, from the command line.

use crate::{commands::broker::read_rule, input};
use anyhow::{Context, Result};
use attestation::Tee;
use guest_image::{GuestManifest, MANIFEST_FILE};
use key_broker::Rule;
use policy::InitdataDigest;
use std::path::{Path, PathBuf};

/// A whole rule, or the parts of one.
#[derive(Debug, clap::Args)]
pub(crate) struct Release {
    /// The release rule (TOML: tee, launch_measurement, init_data)
    #[arg(long, value_name = "FILE", conflicts_with_all = ["launch_measurement", "init_data", "tee"])]
    rule: Option<PathBuf>,
    /// Release to guests with this launch measurement: hex, or @ and the guest.json of a guest
    #[arg(long, value_name = "HEX|@FILE", requires = "init_data")]
    launch_measurement: Option<String>,
    /// Release to guests with this initdata: its file (TOML), or its digest sha256:…
    #[arg(long, value_name = "FILE|DIGEST", requires = "launch_measurement")]
    init_data: Option<String>,
    /// Release to this TEE; `sample` is a guest without one, whose evidence proves nothing
    #[arg(long, default_value = "sample")]
    tee: Tee,
}

impl Release {
    /// The rule.
    pub(crate) fn rule(&self) -> Result<Rule> {
        match (&self.rule, &self.launch_measurement, &self.init_data) {
            (Some(path), ..) => read_rule(path),
            (None, Some(measurement), Some(init_data)) => {
                let measurement = launch_measurement(measurement).context("--launch-measurement")?;
                let init_data = init_data_digest(init_data).context("--init-data")?;
                Ok(Rule::exactly(self.tee, &measurement, &init_data)?)
            }
            _ => anyhow::bail!("to whom is the key to be released? Give --rule, or --launch-measurement and --init-data"),
        }
    }
}

fn launch_measurement(text: &str) -> Result<Vec<u8>> {
    let digits = match text.strip_prefix('@') {
        None => text.to_owned(),
        Some(path) => {
            let path = Path::new(path);
            let path = if path.is_dir() { path.join(MANIFEST_FILE) } else { path.to_owned() };
            GuestManifest::load(&path)?.measurement
        }
    };
    hex::decode(&digits).with_context(|| format!("{digits:?} is not hexadecimal; a file is named with @ before it"))
}

fn init_data_digest(text: &str) -> Result<InitdataDigest> {
    if let Ok(digest) = text.parse() {
        return Ok(digest);
    }
    Ok(input::initdata(Path::new(text))?.1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const MEASUREMENT: &str = "abababababababababababababababababababababababababababababababab";
    const INITDATA: &str = "version = \"0.1.0\"\nalgorithm = \"sha256\"\n";

    fn release(measurement: &str, init_data: &str) -> Result<Rule> {
        let release =
            Release { rule: None, launch_measurement: Some(measurement.into()), init_data: Some(init_data.into()), tee: Tee::Sample };
        release.rule()
    }

    #[test]
    fn a_file_and_its_digest_are_the_same_rule() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("initdata.toml");
        fs::write(&file, INITDATA).unwrap();
        let digest = input::initdata(&file).unwrap().1.to_string();
        let by_file = release(MEASUREMENT, file.to_str().unwrap()).unwrap();
        let by_digest = release(MEASUREMENT, &digest).unwrap();
        assert_eq!(by_file.text(), by_digest.text());
        assert!(by_file.text().contains(MEASUREMENT) && by_file.text().contains(&digest) && by_file.text().contains("sample"));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_option() {
        let digest = format!("sha256:{MEASUREMENT}");
        for (measurement, init_data, words) in [
            ("xyz", digest.as_str(), ["--launch-measurement", "xyz"]),
            ("@/nonexistent/guest.json", &digest, ["--launch-measurement", "/nonexistent"]),
            (MEASUREMENT, "/nonexistent/initdata.toml", ["--init-data", "/nonexistent"]),
        ] {
            let error = format!("{:#}", release(measurement, init_data).unwrap_err());
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
        }
    }
}
