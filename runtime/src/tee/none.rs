//! No enclave: a microvm, for development and for hosts that are trusted.

use super::{Helper, Machine, Platform, Request, Shape, Tee, TeeError};
use crate::{sandbox::OLDEST_QEMU, vmm::QemuVersion};

/// No enclave.
#[derive(Debug)]
pub(super) struct NoTee;

impl Tee for NoTee {
    fn name(&self) -> &'static str {
        "none"
    }

    fn oldest_qemu(&self) -> QemuVersion {
        OLDEST_QEMU
    }

    fn shape(&self, _: u32) -> Result<Shape, TeeError> {
        Ok(shape())
    }

    fn prepare(&self, _: &Request<'_>) -> Result<(Platform, Vec<Helper>), TeeError> {
        Ok((platform(), Vec::new()))
    }
}

fn shape() -> Shape {
    Shape { machine: Machine::Microvm, cpu: None, firmware: None, acpi: true }
}

pub(super) fn platform() -> Platform {
    Platform { shape: shape(), machine_options: "", objects: Vec::new(), private_memory: false, tpm: None }
}
