//! `cloister image`: the owner's and the operator's work on images.

mod decrypt;
mod encrypt;
mod inspect;
mod keygen;
mod prepare;
mod release;
mod sign;
mod unpack;
mod verify;

use anyhow::Result;
use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub(crate) enum Image {
    Encrypt(encrypt::Args),
    Decrypt(decrypt::Args),
    Inspect(inspect::Args),
    Keygen(keygen::Args),
    Sign(sign::Args),
    Verify(verify::Args),
    Prepare(prepare::Args),
    Unpack(unpack::Args),
}

pub(crate) fn run(command: &Image) -> Result<()> {
    match command {
        Image::Encrypt(args) => encrypt::run(args),
        Image::Decrypt(args) => decrypt::run(args),
        Image::Inspect(args) => inspect::run(args),
        Image::Keygen(args) => keygen::run(args),
        Image::Sign(args) => sign::run(args),
        Image::Verify(args) => verify::run(args),
        Image::Prepare(args) => prepare::run(args),
        Image::Unpack(args) => unpack::run(args),
    }
}
