//! The keys of encrypted layers, from the owner's broker.

use super::PullError;
use crate::stages::Stages;
use attestation::{BrokerClient, ResourceUri};
use futures_util::{StreamExt, stream};
use image::{
    ocicrypt::{Kek, LayerKey},
    plan::LayerPlan,
};
use std::collections::{BTreeSet, HashMap};

/// Keys that are asked for at once.
const AT_ONCE: usize = 8;

/// A key for each plan, `None` for a layer that is not encrypted. One handshake, and one request for each key, however many layers it
/// opens; different keys are asked for side by side, so that the last one is there soon after the first.
pub async fn layer_keys(
    plans: &[LayerPlan],
    broker: Option<&BrokerClient>,
    stages: &mut Stages,
) -> Result<Vec<Option<LayerKey>>, PullError> {
    let mut keys = Vec::with_capacity(plans.len());
    let encrypted = plans.iter().any(|plan| plan.envelope.is_some());
    if let (true, Some(broker)) = (encrypted, broker) {
        // For its time only: an error comes again, with the key's name, below.
        let _ = broker.attest().await;
        stages.end("attest");
    }
    let ids: BTreeSet<String> =
        plans.iter().filter_map(|plan| Some(plan.envelope.as_ref()?.packets().first()?.key_id().to_owned())).collect();
    let asked = stream::iter(ids).map(|id| async move {
        let kek = fetch(&id, broker).await;
        (id, kek)
    });
    let keks: HashMap<String, Result<Kek, String>> = asked.buffer_unordered(AT_ONCE).collect().await;
    for plan in plans {
        let Some(envelope) = &plan.envelope else {
            keys.push(None);
            continue;
        };
        let layer = plan.descriptor.digest.to_string();
        let packet = envelope.packets().first();
        let Some(packet) = packet else {
            return Err(PullError::Key { layer, key: "?".into(), reason: "the layer names no key".into() });
        };
        let id = packet.key_id().to_owned();
        let error = |reason: String| PullError::Key { layer: layer.clone(), key: id.clone(), reason };
        let kek = keks.get(&id).ok_or_else(|| error("lost".into()))?.as_ref().map_err(|e| error(e.clone()))?;
        keys.push(Some(envelope.open(packet, kek).map_err(|e| error(e.to_string()))?));
    }
    if encrypted {
        stages.end("key");
    }
    Ok(keys)
}

async fn fetch(id: &str, broker: Option<&BrokerClient>) -> Result<Kek, String> {
    let uri: ResourceUri = id.parse().map_err(|e: attestation::resource::ResourceError| e.to_string())?;
    let broker = broker
        .ok_or("the machine was started without initdata that names a broker; add aa.toml with token_configs.kbs.url to the initdata")?;
    let secret = broker.resource(&uri).await.map_err(|e| e.to_string())?;
    Kek::from_bytes(&secret).map_err(|e| e.to_string())
}
