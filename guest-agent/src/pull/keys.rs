//! The keys of encrypted layers, from the owner's broker.

use super::{Access, PullError};
use crate::stages::Stages;
use image::{
    ocicrypt::{Kek, KeyRing, LayerKey},
    plan::LayerPlan,
};
use std::collections::BTreeMap;

/// Most names of keys that one image may have us ask the broker for: whoever made the image chose them.
const MAX_NAMES: usize = 32;

/// A key for each plan, `None` for a layer that is not encrypted. One handshake and one request per key, however many layers it opens.
pub async fn layer_keys(plans: &[LayerPlan], access: &Access, stages: &mut Stages) -> Result<Vec<Option<LayerKey>>, PullError> {
    let mut keys = Keys { access, ring: KeyRing::default(), refused: BTreeMap::new(), private: false };
    if plans.iter().all(|plan| plan.envelope.is_none()) {
        return Ok(plans.iter().map(|_| None).collect());
    }
    // For its time only: an error comes again, with the key's name, below.
    access.attest().await;
    stages.end("attest");
    let mut out = Vec::with_capacity(plans.len());
    for plan in plans {
        out.push(keys.of(plan).await?);
    }
    stages.end("key");
    Ok(out)
}

struct Keys<'a> {
    access: &'a Access,
    ring: KeyRing,
    /// Why the broker gave no key of this name.
    refused: BTreeMap<String, String>,
    /// Whether the private keys are in the ring.
    private: bool,
}

impl Keys<'_> {
    /// From whichever of the layer's recipients we are.
    async fn of(&mut self, plan: &LayerPlan) -> Result<Option<LayerKey>, PullError> {
        let Some(envelope) = &plan.envelope else { return Ok(None) };
        let mut faults: Vec<(String, String)> = Vec::new();
        for packet in envelope.packets() {
            let name = packet.key_id();
            match self.fetch(name).await {
                // Several may be of this name, and one of them good.
                Ok(()) => match self.ring.open(envelope) {
                    Ok(key) => return Ok(Some(key)),
                    Err(e) => faults.push((name.to_owned(), e.to_string())),
                },
                Err(reason) => faults.push((name.to_owned(), reason)),
            }
        }
        if envelope.has_jwe() {
            match self.fetch_private().await {
                Ok(()) => match self.ring.open(envelope) {
                    Ok(key) => return Ok(Some(key)),
                    Err(e) => faults.push(("jwe".into(), e.to_string())),
                },
                Err(reason) => faults.push(("jwe".into(), reason)),
            }
        }
        let layer = plan.descriptor.digest.to_string();
        let key = faults.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
        let mut reasons: Vec<String> = faults.into_iter().map(|(_, reason)| reason).collect();
        reasons.dedup();
        Err(PullError::Key { layer, key, reason: reasons.join("; ") })
    }

    async fn fetch(&mut self, name: &str) -> Result<(), String> {
        if self.ring.has_kek(name) {
            return Ok(());
        }
        if let Some(reason) = self.refused.get(name) {
            return Err(reason.clone());
        }
        let asked = self.refused.len() + self.ring.len();
        let fetched = match asked < MAX_NAMES {
            true => self.kek(name).await,
            false => Err(format!("the image names more than {MAX_NAMES} keys")),
        };
        match fetched {
            Ok(kek) => self.ring.add_kek(name, kek),
            Err(reason) => {
                self.refused.insert(name.to_owned(), reason.clone());
                return Err(reason);
            }
        }
        Ok(())
    }

    async fn kek(&self, name: &str) -> Result<Kek, String> {
        Kek::from_bytes(&self.access.resource(name).await?).map_err(|e| e.to_string())
    }

    async fn fetch_private(&mut self) -> Result<(), String> {
        if !self.private {
            let keys = self.access.private_keys().await?;
            if keys.is_empty() {
                return Err("encrypted for the holder of a private key: name its resource at the broker in cdh.toml of the initdata, \
                            [image] image_decryption_keys = [\"kbs:///…\"]"
                    .into());
            }
            keys.iter().for_each(|key| self.ring.add_private(key.clone()));
            self.private = true;
        }
        Ok(())
    }
}
