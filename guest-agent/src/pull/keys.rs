//! The keys of encrypted layers, from the owner's broker.

use super::{Access, PullError};
use crate::stages::Stages;
use futures_util::future::join_all;
use image::{
    ocicrypt::{Kek, KeyRing, LayerKey},
    plan::LayerPlan,
};
use std::collections::{BTreeMap, BTreeSet};

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
    keys.fetch_all(plans).await;
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

    /// The key that each layer names first, all at the same time: an image of many keys waits once. Errors come again with their layer.
    async fn fetch_all(&mut self, plans: &[LayerPlan]) {
        let first = plans.iter().filter_map(|plan| plan.envelope.as_ref()?.packets().first().map(|packet| packet.key_id()));
        for (name, fetched) in at_once(first, |name| self.kek(name)).await {
            match fetched {
                Ok(kek) => self.ring.add_kek(name, kek),
                Err(reason) => drop(self.refused.insert(name.to_owned(), reason)),
            }
        }
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

/// Asks for each name once, for all of them side by side.
async fn at_once<'a, T, R: Future<Output = T>>(names: impl Iterator<Item = &'a str>, ask: impl Fn(&'a str) -> R) -> Vec<(&'a str, T)> {
    let names: BTreeSet<&str> = names.collect();
    let ask = &ask;
    join_all(names.into_iter().take(MAX_NAMES).map(|name| async move { (name, ask(name).await) })).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::Barrier;

    /// Who asks for one key after the other would wait here for ever.
    #[tokio::test]
    async fn keys_are_asked_for_side_by_side_and_once() {
        let all_have_asked = Barrier::new(3);
        let names = ["kbs:///a/key/1", "kbs:///a/key/2", "kbs:///a/key/1", "kbs:///a/key/3"].into_iter();
        let answers = at_once(names, |name| async {
            all_have_asked.wait().await;
            name.len()
        });
        assert_eq!(answers.await.into_iter().map(|(name, _)| &name[13..]).collect::<Vec<_>>(), ["1", "2", "3"]);
        let many: Vec<String> = (0..MAX_NAMES + 9).map(|n| format!("kbs:///a/key/{n}")).collect();
        assert_eq!(at_once(many.iter().map(String::as_str), |_| async {}).await.len(), MAX_NAMES);
    }
}
