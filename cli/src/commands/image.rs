//! `cloister image`.
use anyhow::Result;
use clap::Subcommand;
#[derive(Debug, Subcommand)]
pub(crate) enum Image {}
pub(crate) fn run(command: &Image) -> Result<()> {
    match *command {}
}
