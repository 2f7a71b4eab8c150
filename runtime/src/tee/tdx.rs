//! Intel TDX, with QEMU's `tdx-guest`. The firmware is measured into MRTD; it measures kernel, command line and initramfs into RTMR1
//! and RTMR2, and the ACPI tables into RTMR0.

use super::{Helper, Machine, Platform, QuoteService, Request, Shape, TdxSettings, Tee, TeeError, firmware, fitted};
use crate::vmm::QemuVersion;
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use std::path::PathBuf;

/// Where packages put a firmware with TDX metadata. With Secure Boot switched on (`.ms`) it starts signed kernels only.
const PLACES: &[&str] = &[
    "/usr/lib/cloister/OVMF.inteltdx.fd",
    "/usr/share/ovmf/OVMF.inteltdx.fd",
    "/usr/share/edk2/ovmf/OVMF.inteltdx.fd",
    "/usr/share/ovmf/OVMF.inteltdx.ms.fd",
    "/usr/lib/cloister/OVMF.fd",
    "/usr/share/ovmf/OVMF.fd",
];

/// Intel TDX.
#[derive(Debug)]
pub(super) struct Tdx {
    pub(super) settings: TdxSettings,
    pub(super) firmware: Option<PathBuf>,
}

impl Tee for Tdx {
    fn name(&self) -> &'static str {
        "tdx"
    }

    fn oldest_qemu(&self) -> QemuVersion {
        QemuVersion { major: 10, minor: 1 }
    }

    fn shape(&self, _: u32) -> Result<Shape, TeeError> {
        let remedy = "install Debian's package ovmf-inteltdx or ovmf";
        let firmware = firmware::find("tdx", self.firmware.as_deref(), PLACES, remedy)?;
        Ok(Shape { machine: Machine::Q35, cpu: None, firmware: Some(firmware), acpi: true })
    }

    fn prepare(&self, request: &Request<'_>) -> Result<(Platform, Vec<Helper>), TeeError> {
        Ok((self.platform(self.shape(request.vcpus)?, request), Vec::new()))
    }
}

impl Tdx {
    fn platform(&self, shape: Shape, request: &Request<'_>) -> Platform {
        let service = match &self.settings.quote_service {
            QuoteService::Unix(path) => json!({"type": "unix", "path": path.display().to_string()}),
            QuoteService::Vsock { cid, port } => json!({"type": "vsock", "cid": cid.to_string(), "port": port.to_string()}),
        };
        let object: Value = json!({
            "qom-type": "tdx-guest",
            "id": "tee0",
            "mrconfigid": STANDARD.encode(fitted::<48>(request.initdata)),
            "quote-generation-socket": service,
        });
        Platform {
            shape,
            machine_options: ",hpet=off,kernel-irqchip=split,confidential-guest-support=tee0",
            objects: vec![object.to_string()],
            private_memory: true,
            tpm: None,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::path::Path;

    fn shape() -> Shape {
        Shape { machine: Machine::Q35, cpu: None, firmware: Some("/f/OVMF.inteltdx.fd".into()), acpi: true }
    }

    /// For the golden test of QEMU's command line.
    pub(crate) fn example() -> Platform {
        let request = Request { dir: Path::new("/s"), initdata: &[0x11; 48], vcpus: 2 };
        Tdx { settings: TdxSettings::default(), firmware: None }.platform(shape(), &request)
    }

    #[test]
    fn a_path_of_the_quote_service_is_quoted() {
        let settings = TdxSettings { quote_service: QuoteService::Unix("/run/a \"b\",c".into()) };
        let request = Request { dir: Path::new("/s"), initdata: &[], vcpus: 1 };
        let platform = Tdx { settings, firmware: None }.platform(shape(), &request);
        assert!(platform.objects[0].contains(r#""path":"/run/a \"b\",c""#), "{:?}", platform.objects);
    }
}
