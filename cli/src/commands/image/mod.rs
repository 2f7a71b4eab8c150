//! `cloister image`: the owner's and the operator's work on images.

mod encrypt;
mod inspect;
mod prepare;
mod release;
mod unpack;

use anyhow::Result;
use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub(crate) enum Image {
    Encrypt(encrypt::Args),
    Inspect(inspect::Args),
    Prepare(prepare::Args),
    Unpack(unpack::Args),
}

pub(crate) fn run(command: &Image) -> Result<()> {
    match command {
        Image::Encrypt(args) => encrypt::run(args),
        Image::Inspect(args) => inspect::run(args),
        Image::Prepare(args) => prepare::run(args),
        Image::Unpack(args) => unpack::run(args),
    }
}
