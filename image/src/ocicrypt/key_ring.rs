//! The keys that somebody has, and which of them opens a layer.

use super::{Envelope, Kek, LayerKey, OcicryptError, jwe::PrivateKey};
use std::collections::BTreeMap;

/// Keys at hand. Wiped when dropped.
#[derive(Debug, Default)]
pub struct KeyRing {
    keks: BTreeMap<String, Kek>,
    private: Vec<PrivateKey>,
}

impl KeyRing {
    /// Adds the broker's key of this name.
    pub fn add_kek(&mut self, kid: &str, kek: Kek) {
        self.keks.insert(kid.to_owned(), kek);
    }

    /// Adds a recipient's private key.
    pub fn add_private(&mut self, key: PrivateKey) {
        self.private.push(key);
    }

    /// Whether the broker's key of this name is here.
    pub fn has_kek(&self, kid: &str) -> bool {
        self.keks.contains_key(kid)
    }

    /// How many of the broker's keys are here.
    pub fn len(&self) -> usize {
        self.keks.len()
    }

    /// Whether none of the broker's keys is here.
    pub fn is_empty(&self) -> bool {
        self.keks.is_empty()
    }

    /// The key of a layer, from whichever of its recipients we are.
    pub fn open(&self, envelope: &Envelope) -> Result<LayerKey, OcicryptError> {
        let mut fault = None;
        for packet in envelope.packets() {
            let Some(kek) = self.keks.get(packet.key_id()) else { continue };
            match envelope.open(packet, kek) {
                Ok(key) => return Ok(key),
                Err(e) => fault = Some(e),
            }
        }
        for key in self.private.iter().filter(|_| envelope.has_jwe()) {
            match envelope.open_jwe(key) {
                Ok(key) => return Ok(key),
                Err(e) => fault = Some(e),
            }
        }
        Err(fault.unwrap_or_else(|| OcicryptError::NoKey(envelope.recipients().join(", "))))
    }
}
