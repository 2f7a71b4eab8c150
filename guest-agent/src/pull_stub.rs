//! Temporary.
use crate::{containers::derive::ImageProcess, scratch::Scratch, stages::Stages, vsock::Courier};
use attestation::BrokerClient;
use policy::{Denial, Policy};
use protocol::api;
use std::{path::PathBuf, sync::Arc};
use transport::HttpError;
#[derive(Debug, thiserror::Error)]
#[error("stub")]
pub struct PullError;
pub struct PulledImage {
    pub digest: String,
    pub layers: Vec<PathBuf>,
    pub process: ImageProcess,
}
pub struct Resolved;
impl Resolved {
    pub fn admit(&self, _: &Policy) -> Result<(), Denial> {
        Ok(())
    }
}
pub struct Puller;
impl Puller {
    pub fn new(_: Courier, _: Option<Arc<BrokerClient>>) -> Result<Self, HttpError> {
        Ok(Self)
    }
    pub async fn resolve(&self, _: &api::CreateContainerRequest, _: &mut Stages) -> Result<Resolved, PullError> {
        Ok(Resolved)
    }
    pub async fn fetch(&self, _: Resolved, _: &Scratch, _: &mut Stages) -> Result<PulledImage, PullError> {
        Err(PullError)
    }
}
