//! `cloister config`.

use crate::output;
use anyhow::Result;
use clap::Subcommand;
use runtime::config::{Config as NodeConfig, DEFAULT_PATH, PATH_VARIABLE};
use std::path::{Path, PathBuf};

#[derive(Debug, Subcommand)]
pub(crate) enum Config {
    /// Read the configuration as the shim would; an error names file, line and key
    Check {
        /// The file, instead of the one that CLOISTER_CONFIG names or /etc/cloister/config.toml
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
    },
}

pub(crate) fn run(command: &Config) -> Result<()> {
    let Config::Check { file } = command;
    let config = load(file.as_deref())?;
    config.initdata()?;
    output::line(&format!("{}: ok", source(file.as_deref())))
}

fn load(file: Option<&Path>) -> Result<NodeConfig> {
    Ok(match file {
        Some(file) => NodeConfig::from_file(file)?,
        None => NodeConfig::load()?,
    })
}

/// Where the configuration comes from, in words.
pub(crate) fn source(file: Option<&Path>) -> String {
    let named = file.map(Path::to_owned).or_else(|| std::env::var_os(PATH_VARIABLE).filter(|p| !p.is_empty()).map(PathBuf::from));
    match named {
        Some(path) => path.display().to_string(),
        None if Path::new(DEFAULT_PATH).exists() => DEFAULT_PATH.to_owned(),
        None => format!("defaults ({DEFAULT_PATH} does not exist)"),
    }
}
