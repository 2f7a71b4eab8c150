//! Which images a machine has run, where its TEE can be told so at run time: the digest of each image's manifest is extended into a register
//! that the evidence signs, before the image's first container exists, and once. The list travels beside the signature; it counts where it
//! gives the register's value.
//!
//! | TEE | register | extended with |
//! |---|---|---|
//! | TPM | PCR 13, SHA-256 | the digest |
//! | TDX, Linux 6.16 and later | RTMR3, SHA-384 | the digest and 16 zeros |
//! | TDX, older kernels; SNP; sample | none | |
//!
//! PCR 13 is what the registry of the Linux Userspace API Group gives to what is added to a measured system; in these machines nobody else
//! extends it: firmware has 0 to 7, the initdata 8, the kernel 9, IMA 10. It cannot be reset as 16 and 23 can, and needs no higher locality
//! as 17 to 22 do. RTMR3 is what the firmware's specification leaves to applications.

use crate::event_log::Bank;
use std::sync::{Mutex, PoisonError};

/// SHA-256 of an image's manifest.
pub type Manifest = [u8; 32];

/// Most images of a machine's life; the next one is refused.
pub const MAX_IMAGES: usize = 1024;

/// What was measured, in its order.
#[derive(Debug, Default)]
pub struct Images(Mutex<Vec<Manifest>>);

impl Images {
    /// Notes an image that `extend` measures; nothing is done for one that was measured before. Where it fails, nothing is noted: if the
    /// register was extended nevertheless, the list does not explain it any more, and the evidence is refused.
    pub fn add(&self, image: &Manifest, extend: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
        let mut images = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if images.contains(image) {
            return Ok(());
        }
        if images.len() >= MAX_IMAGES {
            return Err(format!("{MAX_IMAGES} images were measured already"));
        }
        extend()?;
        images.push(*image);
        Ok(())
    }

    /// Collects evidence with the list as it is; none is measured meanwhile, so that register and list are of one moment.
    pub fn while_still<T>(&self, collect: impl FnOnce(&[Manifest]) -> T) -> T {
        collect(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What is extended into a register of this bank: the digest, padded with zeros to its length.
pub fn event(bank: Bank, image: &Manifest) -> Vec<u8> {
    let mut event = image.to_vec();
    event.resize(bank.length(), 0);
    event
}

/// What a register that began with zeros holds after these images.
pub fn replay(bank: Bank, images: &[Manifest]) -> Vec<u8> {
    images.iter().fold(vec![0; bank.length()], |register, image| bank.extend(&register, &event(bank, image)))
}

/// The list in the JSON of evidence: `["sha256:…", …]`.
pub(crate) fn to_json(images: &[Manifest]) -> Vec<String> {
    images.iter().map(|image| format!("sha256:{}", hex::encode(image))).collect()
}

/// Reads that list, and holds it against the register that was signed.
#[cfg(feature = "verify")]
pub(crate) fn check(bank: Bank, list: &[String], register: &[u8]) -> Result<(), ListError> {
    if list.len() > MAX_IMAGES {
        return Err(ListError::Malformed(format!("images: more than {MAX_IMAGES}")));
    }
    let read = |text: &String| {
        let mut image = [0; 32];
        let digits = text.strip_prefix("sha256:").filter(|digits| digits.bytes().all(|b| !b.is_ascii_uppercase()))?;
        hex::decode_to_slice(digits, &mut image).ok().map(|()| image)
    };
    let images = list.iter().map(read).collect::<Option<Vec<_>>>();
    let images = images.ok_or_else(|| ListError::Malformed("images: not a list of sha256: and 64 lower-case hex digits".into()))?;
    if replay(bank, &images) == register { Ok(()) } else { Err(ListError::Unexplained) }
}

/// Why a list of images counts for nothing.
#[cfg(feature = "verify")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ListError {
    /// Its form.
    Malformed(String),
    /// It gives another value of the register.
    Unexplained,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_measured_once_and_one_that_cannot_be_is_not_noted() {
        let (images, mut extended) = (Images::default(), Vec::new());
        for image in [[1; 32], [2; 32], [1; 32]] {
            let extend = || {
                extended.push(image);
                Ok(())
            };
            images.add(&image, extend).unwrap();
        }
        assert_eq!(extended, [[1; 32], [2; 32]]);
        assert_eq!(images.add(&[3; 32], || Err("broken".into())), Err("broken".into()));
        images.while_still(|list| assert_eq!(list, extended));
        images.add(&[3; 32], || Ok(())).unwrap();
        images.while_still(|list| assert_eq!(list.len(), 3));
    }

    #[test]
    fn there_is_a_bound() {
        let images = Images::default();
        for n in 0..MAX_IMAGES {
            let mut image = [0; 32];
            image[..8].copy_from_slice(&n.to_be_bytes());
            images.add(&image, || Ok(())).unwrap();
        }
        assert!(images.add(&[9; 32], || Ok(())).unwrap_err().contains("1024 images"));
        images.add(&[0; 32], || Err("not asked".into())).unwrap();
    }

    #[test]
    fn a_list_counts_that_gives_the_register() {
        let (one, two) = ([1; 32], [2; 32]);
        for bank in [Bank::Sha256, Bank::Sha384] {
            let register = replay(bank, &[one, two]);
            assert_eq!(register, bank.extend(&bank.extend(&vec![0; bank.length()], &event(bank, &one)), &event(bank, &two)));
            assert_eq!(check(bank, &to_json(&[one, two]), &register), Ok(()));
            for other in [&[][..], &[one], &[two, one], &[one, two, two]] {
                assert_eq!(check(bank, &to_json(other), &register), Err(ListError::Unexplained));
            }
            assert_eq!(check(bank, &[], &vec![0; bank.length()]), Ok(()));
        }
        let digits = "ab".repeat(32);
        for bad in [digits.clone(), format!("sha512:{digits}"), "sha256:ab".into(), format!("sha256:{}", digits.to_uppercase())] {
            assert!(matches!(check(Bank::Sha256, &[bad], &[0; 32]), Err(ListError::Malformed(_))));
        }
        assert!(matches!(check(Bank::Sha256, &vec![String::new(); MAX_IMAGES + 1], &[0; 32]), Err(ListError::Malformed(_))));
    }
}
