//! The initramfs: the agent, its modules, the console that the kernel opens for PID 1, and empty mount points.

use crate::{
    MAX_INITRAMFS,
    cpio::{Archive, CpioError},
    modules::Module,
};
use serde::{Deserialize, Serialize};
use std::{fmt, io};
use thiserror::Error;

/// Directory of the modules in the guest.
pub const MODULES_DIR: &str = "lib/modules";
/// Parameters of modules. brd: one RAM disk of at most 8 GiB, in KiB, for the tags of the largest scratch disk; it takes memory only as
/// it is written; a second one for the superblocks of sealed disks, of one page each. nbd: a disk is made when it is asked for, and no table of
/// partitions is looked for on it.
const PARAMETERS: &[(&str, &str)] = &[("brd", "rd_nr=2 rd_size=8388608"), ("nbd", "nbds_max=0 max_part=0")];

/// The list that the agent follows: a line `<stage> <file> [parameters]` for each module, in load order.
pub const LOAD_LIST: &str = "lib/modules/load";
/// What the agent mounts over.
const MOUNT_POINTS: [&str; 5] = ["dev", "proc", "run", "sys", "tmp"];
/// The strongest level without long-distance windows, whose memory the guest may not have.
const ZSTD_LEVEL: i32 = 19;

/// How the archive is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// As it is: nothing to decompress in the guest.
    None,
    /// For an archive that is too large as it is.
    Zstd,
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Zstd => "zstd",
        })
    }
}

/// Why there is no initramfs.
#[derive(Debug, Error)]
pub enum InitramfsError {
    /// An entry.
    #[error(transparent)]
    Cpio(#[from] CpioError),
    /// The compressor.
    #[error("compress the initramfs: {0}")]
    Compress(io::Error),
    /// Over [`MAX_INITRAMFS`] even when compressed.
    #[error("initramfs has {0} bytes compressed, at most {MAX_INITRAMFS} are allowed; make the agent smaller")]
    TooLarge(usize),
}

/// The archive, uncompressed.
pub fn archive(agent: &[u8], modules: &[Module]) -> Result<Vec<u8>, InitramfsError> {
    let mut archive = Archive::default();
    archive.file("init", 0o755, agent.to_vec())?;
    // The kernel opens it as the standard streams of PID 1 before devtmpfs is there; without it early messages are lost.
    archive.char_device("dev/console", 0o600, 5, 1)?;
    for path in MOUNT_POINTS {
        archive.directory(path)?;
    }
    archive.directory(MODULES_DIR)?;
    let mut list = String::new();
    for (number, module) in modules.iter().enumerate() {
        let file = file_name(number, module);
        let parameters = PARAMETERS.iter().find(|(name, _)| *name == module.name).map_or(String::new(), |(_, text)| format!(" {text}"));
        list.push_str(&format!("{} {file}{parameters}\n", module.stage));
        archive.file(&format!("{MODULES_DIR}/{file}"), 0o644, module.data.clone())?;
    }
    archive.file(LOAD_LIST, 0o644, list.into_bytes())?;
    Ok(archive.finish())
}

/// `NNN-name.ko`: the number is the place in the load order.
pub fn file_name(number: usize, module: &Module) -> String {
    format!("{number:03}-{}.ko", module.name)
}

/// Stores the archive as it is where it fits into [`MAX_INITRAMFS`], since decompressing costs time at every boot.
pub fn compress(archive: Vec<u8>) -> Result<(Vec<u8>, Compression), InitramfsError> {
    compress_to(archive, MAX_INITRAMFS)
}

fn compress_to(archive: Vec<u8>, max: usize) -> Result<(Vec<u8>, Compression), InitramfsError> {
    if archive.len() <= max {
        return Ok((archive, Compression::None));
    }
    let compressed = zstd::encode_all(&archive[..], ZSTD_LEVEL).map_err(InitramfsError::Compress)?;
    if compressed.len() > max {
        return Err(InitramfsError::TooLarge(compressed.len()));
    }
    Ok((compressed, Compression::Zstd))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::modules::Stage;

    #[test]
    fn the_load_list_names_each_file_in_order() {
        let module = |stage, name: &str| Module { stage, name: name.into(), data: vec![7; 5] };
        let modules = [module(Stage::Boot, "vsock"), module(Stage::Net, "virtio_net"), module(Stage::Scratch, "brd")];
        let bytes = archive(b"agent", &modules).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.contains("boot 000-vsock.ko\nnet 001-virtio_net.ko\nscratch 002-brd.ko rd_nr=2 rd_size=8388608\n"));
        for path in ["init", "dev/console", "proc", "sys", "run", "tmp", "lib/modules/000-vsock.ko", "lib/modules/001-virtio_net.ko"] {
            assert!(text.contains(&format!("{path}\0")), "{path}");
        }
    }

    #[test]
    fn only_a_large_archive_is_compressed() {
        assert_eq!(compress_to(vec![0; 4096], 4096).unwrap().1, Compression::None);
        let (bytes, how) = compress_to(vec![0; 4097], 4096).unwrap();
        assert_eq!(how, Compression::Zstd);
        assert_eq!(zstd::decode_all(&bytes[..]).unwrap().len(), 4097);
    }

    #[test]
    fn an_archive_that_stays_too_large_is_refused() {
        // Noise of a linear congruential generator does not compress.
        let noise = std::iter::successors(Some(1u32), |x| Some(x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223)));
        let noise: Vec<u8> = noise.map(|x| (x >> 24) as u8).take(100_000).collect();
        assert!(matches!(compress_to(noise, 90_000), Err(InitramfsError::TooLarge(_))));
    }
}
