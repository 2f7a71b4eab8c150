//! A virtual processor's first state, as QEMU and KVM make it: one page per processor, measured at launch. Offsets are those of
//! AMD's Architecture Programmer's Manual, volume 2, table B-4.

/// Length of a page.
pub(crate) const PAGE: usize = 4096;

/// Where the first processor begins.
pub const RESET_EIP: u32 = 0xffff_fff0;

/// A processor model of QEMU's, by the signature that CPUID gives for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuModel {
    /// As `-cpu` takes it.
    pub name: &'static str,
    family: u32,
    model: u32,
    stepping: u32,
}

const fn model(name: &'static str, family: u32, model: u32, stepping: u32) -> CpuModel {
    CpuModel { name, family, model, stepping }
}

/// The models that make sense for a confidential guest. Their later versions (`-v2` and so on) have the same signature, but for the
/// first, all of whose versions are known.
pub const CPU_MODELS: [CpuModel; 7] = [
    model("EPYC-v4", 0x17, 0x01, 2),
    model("EPYC", 0x17, 0x01, 2),
    model("EPYC-v3", 0x17, 0x01, 2),
    model("EPYC-Rome", 0x17, 0x31, 0),
    model("EPYC-Milan", 0x19, 0x01, 1),
    model("EPYC-Genoa", 0x19, 0x11, 0),
    model("EPYC-Turin", 0x1a, 0x00, 0),
];

impl CpuModel {
    /// A model by its name, with or without a version behind it (`EPYC-Milan-v2`).
    pub fn find(name: &str) -> Option<Self> {
        let exact = CPU_MODELS.iter().find(|model| model.name == name);
        let version = name.rsplit_once("-v").filter(|(_, digits)| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()));
        exact.or_else(|| CPU_MODELS.iter().find(|model| version.is_some_and(|(base, _)| model.name == base))).copied()
    }

    /// CPUID function 1, EAX.
    pub fn signature(self) -> u32 {
        let (base, extended) = if self.family > 0xf { (0xf, self.family - 0xf) } else { (self.family, 0) };
        extended << 20 | (self.model >> 4) << 16 | base << 8 | (self.model & 0xf) << 4 | self.stepping
    }
}

/// The page of a processor that begins at `eip`.
pub fn page(eip: u32, cpu_signature: u32, features: u64) -> [u8; PAGE] {
    let mut page = [0; PAGE];
    let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
    let segment = |selector: u16, attributes: u16, base: u64| {
        let mut bytes = [0; 16];
        bytes[..2].copy_from_slice(&selector.to_le_bytes());
        bytes[2..4].copy_from_slice(&attributes.to_le_bytes());
        bytes[4..8].copy_from_slice(&0xffffu32.to_le_bytes());
        bytes[8..].copy_from_slice(&base.to_le_bytes());
        bytes
    };
    // es, ss, ds, fs, gs; cs; then gdtr, ldtr, idtr, tr.
    for at in [0x00, 0x20, 0x30, 0x40, 0x50] {
        put(at, &segment(0, 0x93, 0));
    }
    put(0x10, &segment(0xf000, 0x9b, (eip & 0xffff_0000).into()));
    for (at, attributes) in [(0x60, 0), (0x70, 0x82), (0x80, 0), (0x90, 0x8b)] {
        put(at, &segment(0, attributes, 0));
    }
    put(0xd0, &0x1000u64.to_le_bytes()); // efer: SVM
    put(0x148, &0x40u64.to_le_bytes()); // cr4: machine checks
    put(0x158, &0x10u64.to_le_bytes()); // cr0
    put(0x160, &0x400u64.to_le_bytes()); // dr7
    put(0x168, &0xffff_0ff0u64.to_le_bytes()); // dr6
    put(0x170, &2u64.to_le_bytes()); // rflags
    put(0x178, &u64::from(eip & 0xffff).to_le_bytes()); // rip
    put(0x268, &0x7_0406_0007_0406u64.to_le_bytes()); // g_pat
    put(0x310, &u64::from(cpu_signature).to_le_bytes()); // rdx
    put(0x3b0, &features.to_le_bytes()); // sev_features
    put(0x3e8, &1u64.to_le_bytes()); // xcr0
    put(0x408, &0x1f80u32.to_le_bytes()); // mxcsr
    put(0x410, &0x37fu16.to_le_bytes()); // x87 control word
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use vectors::{folder, read};

    #[test]
    fn the_recorded_pages_come_out() {
        let Some(folder) = folder() else { return };
        let signature = CpuModel::find("EPYC-v4").unwrap().signature();
        assert_eq!(page(RESET_EIP, signature, 1).as_slice(), read(&folder, "measure/vmsa_bsp_qemu_epyc-v4_feat1.bin"));
        assert_eq!(page(0x80_b004, signature, 1).as_slice(), read(&folder, "measure/vmsa_ap_qemu_epyc-v4_feat1.bin"));
    }

    #[test]
    fn models_have_the_signatures_of_qemu() {
        let signature = |name| CpuModel::find(name).map(CpuModel::signature);
        assert_eq!(signature("EPYC-v4"), Some(0x80_0f12));
        assert_eq!(signature("EPYC-Milan"), Some(0xa0_0f11));
        assert_eq!(signature("EPYC-Milan-v2"), Some(0xa0_0f11));
        assert_eq!(signature("EPYC-Genoa"), Some(0xa1_0f10));
        assert_eq!(signature("EPYC-Rome"), Some(0x83_0f10));
        for unknown in ["host", "max", "", "EPYC-Milan-v", "EPYC-Milan-vx", "epyc"] {
            assert_eq!(signature(unknown), None, "{unknown}");
        }
    }
}
