//! Firmware whose measurement of itself is known.
//!
//! PCR 0 cannot be computed from the file alone: OVMF measures its first volume after code in it has run and written a variable of
//! its own (the port of the ACPI timer). It is the same on every boot and every machine size, so it is recorded, once for each release.

use super::Pcr;
use sha2::{Digest, Sha256};

/// A release of OVMF.
#[derive(Debug, Clone, Copy)]
pub(super) struct Firmware {
    /// SHA-256 of the file, hex.
    sha256: &'static str,
    /// What its boot leaves in PCR 0, hex.
    pcr0: &'static str,
    /// Where it puts the name of the initramfs in the kernel's options: before the command line (edk2 202508 and later), or behind it.
    pub(super) initrd_first: bool,
}

const KNOWN: &[Firmware] = &[
    // Debian 13: ovmf 2025.02-8+deb13u1, usr/share/ovmf/OVMF.fd.
    Firmware {
        sha256: "14954040cc754ade0c625ac3470ea46d4c14318b5b1396de4ef77090203d76db",
        pcr0: "0101271704ccc2360ddbb08438d591c23fb8a0a9cb0cebc60cefea7868833f8e",
        initrd_first: false,
    },
];

impl Firmware {
    /// The release that this file is.
    pub(super) fn of(file: &[u8]) -> Result<&'static Self, String> {
        let sha256 = hex::encode(Sha256::digest(file));
        KNOWN.iter().find(|known| known.sha256 == sha256).ok_or(sha256)
    }

    pub(super) fn pcr0(&self) -> Pcr {
        let mut pcr = [0; 32];
        // Of our own table: the test decodes each.
        let _ = hex::decode_to_slice(self.pcr0, &mut pcr);
        pcr
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_well_formed() {
        for known in KNOWN {
            assert_eq!(hex::decode(known.sha256).unwrap().len(), 32);
            assert_eq!(hex::encode(known.pcr0()), known.pcr0);
        }
        assert_eq!(Firmware::of(b"x").unwrap_err(), hex::encode(Sha256::digest(b"x")));
    }
}
