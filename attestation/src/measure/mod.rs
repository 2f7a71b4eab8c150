//! The launch measurement that a guest will report, computed without launching it.
//!
//! - [`ovmf`]: what the firmware's file says about itself.
//! - [`snp`] and [`vmsa`]: SEV-SNP's launch digest, as QEMU on KVM makes it.
//! - [`tdx`]: TDX's MRTD, and the run-time registers of a direct boot.
//!
//! None of it is secret, and none of it trusts anything: a wrong prediction is a measurement that no hardware will report.

pub mod ovmf;
pub mod snp;
pub mod tdx;
pub mod vmsa;
