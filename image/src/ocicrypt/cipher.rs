//! `AES_256_CTR_HMAC_SHA256`, ocicrypt's layer cipher (`blockcipher/blockcipher_aes_ctr.go`): AES-256 in counter mode, the nonce being
//! the first 128-bit big-endian counter block, and HMAC-SHA-256 with the same key over the ciphertext.
//!
//! ocicrypt's own reader hands out plaintext and compares the HMAC at the end. Here the two are apart: [`LayerMac`] over the whole
//! ciphertext first, [`open_reader`] over the same bytes after its verdict.

use super::{OcicryptError, malformed, options::PrivateOptions};
use crate::digest::Digest;
use aes::Aes256;
use ctr::{
    Ctr128BE,
    cipher::{KeyIvInit, StreamCipher},
};
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest as _, Sha256};
use std::{
    io::{self, Read, Write},
    sync::Arc,
};
use zeroize::Zeroizing;

/// Bytes per turn of the encryptor.
const CHUNK: usize = 256 << 10;

/// What opens one layer. Cheap to clone; wiped with its last clone.
#[derive(Clone)]
pub struct LayerKey(Arc<Inner>);

struct Inner {
    private: PrivateOptions,
    hmac: [u8; 32],
}

impl std::fmt::Debug for LayerKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LayerKey(..)")
    }
}

impl LayerKey {
    pub(super) fn new(private: PrivateOptions, hmac: [u8; 32]) -> Self {
        Self(Arc::new(Inner { private, hmac }))
    }

    /// The digest of the blob before encryption, as its encryptor wrapped it together with the key.
    pub fn plain_digest(&self) -> Digest {
        self.0.private.digest
    }

    /// Tells this key from every other, and nothing of it.
    pub fn fingerprint(&self) -> [u8; 32] {
        let private = &self.0.private;
        let hash = Sha256::new().chain_update(b"cloister layer key\0").chain_update(private.key.as_slice());
        hash.chain_update(private.nonce).finalize().into()
    }

    /// Begins the check of the ciphertext.
    pub fn mac(&self) -> LayerMac {
        LayerMac { mac: new_mac(&self.0.private.key), expected: self.0.hmac }
    }
}

fn new_mac(key: &[u8; 32]) -> Hmac<Sha256> {
    // HMAC fills a key of less than a block with zeros (RFC 2104).
    let mut block = Zeroizing::new([0; 64]);
    block[..key.len()].copy_from_slice(key);
    Hmac::new((&*block).into())
}

fn new_cipher(private: &PrivateOptions) -> Ctr128BE<Aes256> {
    Ctr128BE::new((&*private.key).into(), (&private.nonce).into())
}

/// Compares a ciphertext with its HMAC.
pub struct LayerMac {
    mac: Hmac<Sha256>,
    expected: [u8; 32],
}

impl LayerMac {
    /// Takes the next bytes of the ciphertext.
    pub fn update(&mut self, bytes: &[u8]) {
        self.mac.update(bytes);
    }

    /// The verdict, in constant time.
    pub fn finish(self) -> Result<(), OcicryptError> {
        self.mac.verify_slice(&self.expected).map_err(|_| OcicryptError::Hmac)
    }
}

/// Decrypts while reading. Only for a ciphertext that [`LayerMac`] accepted.
pub fn open_reader<R: Read>(inner: R, key: &LayerKey) -> impl Read + use<R> {
    Decryptor { inner, cipher: new_cipher(&key.0.private) }
}

struct Decryptor<R> {
    inner: R,
    cipher: Ctr128BE<Aes256>,
}

impl<R: Read> Read for Decryptor<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.cipher.try_apply_keystream(&mut buffer[..n]).map_err(io::Error::other)?;
        Ok(n)
    }
}

/// A layer that was just encrypted.
pub(crate) struct SealedLayer {
    /// To be wrapped.
    pub(super) private: PrivateOptions,
    pub(super) hmac: [u8; 32],
    /// Of the ciphertext.
    pub(crate) digest: Digest,
    /// Of the ciphertext, which is as long as what was encrypted.
    pub(crate) size: u64,
}

/// Encrypts `plain` to `out` under a fresh key and nonce. `progress` gets the number of bytes of each step.
pub(crate) fn seal(mut plain: impl Read, out: &mut impl Write, mut progress: impl FnMut(u64)) -> Result<SealedLayer, SealError> {
    let mut key = Zeroizing::new([0; 32]);
    let mut nonce = [0; 16];
    let random = |bytes: &mut [u8]| getrandom::fill(bytes).map_err(|e| malformed("random source", e));
    random(key.as_mut_slice())?;
    random(&mut nonce)?;
    let mut private = PrivateOptions { key, nonce, digest: Digest::of(b""), config: None };
    let (mut cipher, mut mac) = (new_cipher(&private), new_mac(&private.key));
    let (mut plain_hash, mut sealed_hash, mut size) = (Sha256::new(), Sha256::new(), 0);
    let mut buffer = Zeroizing::new(vec![0; CHUNK]);
    loop {
        let n = match plain.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e.into()),
        };
        let chunk = &mut buffer[..n];
        plain_hash.update(&*chunk);
        cipher.try_apply_keystream(chunk).map_err(io::Error::other)?;
        sealed_hash.update(&*chunk);
        mac.update(chunk);
        out.write_all(chunk)?;
        size += n as u64;
        progress(n as u64);
    }
    private.digest = Digest::from_bytes(plain_hash.finalize().into());
    let hmac = mac.finalize().into_bytes().into();
    Ok(SealedLayer { private, hmac, digest: Digest::from_bytes(sealed_hash.finalize().into()), size })
}

impl SealedLayer {
    /// Binds it to the config of its image, under which alone its key opens it.
    pub(crate) fn bind(&mut self, config: Digest) {
        self.private.config = Some(config);
    }

    /// The digest of what was encrypted.
    pub(crate) fn plain_digest(&self) -> Digest {
        self.private.digest
    }
}

/// Why encryption ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SealError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Ocicrypt(#[from] OcicryptError),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(plain: &[u8]) -> (Vec<u8>, LayerKey, Digest) {
        let mut out = Vec::new();
        let layer = seal(plain, &mut out, |_| ()).unwrap();
        let digest = layer.digest;
        assert_eq!(layer.size, plain.len() as u64);
        assert_eq!(layer.plain_digest(), Digest::of(plain));
        (out, LayerKey::new(layer.private, layer.hmac), digest)
    }

    fn mac_of(key: &LayerKey, bytes: &[u8]) -> Result<(), OcicryptError> {
        let mut mac = key.mac();
        bytes.chunks(1000).for_each(|chunk| mac.update(chunk));
        mac.finish()
    }

    #[test]
    fn a_layer_round_trips() {
        for len in [0, 1, 15, 16, 17, CHUNK - 1, CHUNK, 3 * CHUNK + 5] {
            let plain: Vec<u8> = (0..len).map(|i| (i * 31) as u8).collect();
            let (cipher, key, digest) = sealed(&plain);
            assert_eq!(digest, Digest::of(&cipher));
            assert!(len < 16 || cipher != plain);
            mac_of(&key, &cipher).unwrap();
            let mut again = Vec::new();
            open_reader(cipher.as_slice(), &key).read_to_end(&mut again).unwrap();
            assert!(again == plain, "length {len}");
        }
    }

    #[test]
    fn a_flipped_bit_a_truncation_and_a_wrong_key_fail_the_hmac() {
        let (cipher, key, _) = sealed(&[5; 4000]);
        for at in [0, 1999, 3999] {
            let mut bad = cipher.clone();
            bad[at] ^= 0x80;
            assert!(matches!(mac_of(&key, &bad), Err(OcicryptError::Hmac)));
        }
        assert!(mac_of(&key, &cipher[..3999]).is_err());
        assert!(mac_of(&sealed(b"other").1, &cipher).is_err());
    }

    /// NIST SP 800-38A, F.5.5: the counter is one 128-bit big-endian number.
    #[test]
    fn counter_mode_is_nists() {
        let key: [u8; 32] = hex::decode("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4").unwrap().try_into().unwrap();
        let nonce: [u8; 16] = hex::decode("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff").unwrap().try_into().unwrap();
        let private = PrivateOptions { key: Zeroizing::new(key), nonce, digest: Digest::of(b""), config: None };
        let cipher = hex::decode("601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5").unwrap();
        let mut plain = Vec::new();
        open_reader(cipher.as_slice(), &LayerKey::new(private, [0; 32])).read_to_end(&mut plain).unwrap();
        assert_eq!(hex::encode(plain), "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51");
    }
}
