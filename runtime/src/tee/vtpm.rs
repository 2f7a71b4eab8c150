//! A TPM that this host emulates (swtpm), and firmware that measures firmware, kernel, command line and initramfs into it.
//!
//! It shows that a guest was changed, on a host that is trusted to run the emulator. Against the host it protects nothing: the host
//! owns the TPM's keys, and hands it the measurements.

use super::{Helper, Machine, Platform, Request, Shape, Tee, TeeError, VtpmSettings, firmware};
use crate::{
    sandbox::OLDEST_QEMU,
    vmm::{self, Command, MissingError, QemuVersion},
};
use std::{
    ffi::OsString,
    fs::{self, DirBuilder},
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{fs::DirBuilderExt, net::UnixStream},
    },
    path::{Path, PathBuf},
};

/// Where packages put an OVMF that measures into a TPM: code and an empty variable store in one file, so that nothing is kept from one
/// boot to the next.
const PLACES: &[&str] = &["/usr/lib/cloister/OVMF.fd", "/usr/share/ovmf/OVMF.fd", "/usr/share/edk2/ovmf/OVMF.fd"];
/// The emulator's permanent state, in its folder.
const PERMANENT: &str = "tpm2-00.permall";

/// A TPM emulated by this host.
#[derive(Debug)]
pub(super) struct Vtpm {
    pub(super) settings: VtpmSettings,
    pub(super) firmware: Option<PathBuf>,
}

impl Tee for Vtpm {
    fn name(&self) -> &'static str {
        "vtpm"
    }

    fn oldest_qemu(&self) -> QemuVersion {
        OLDEST_QEMU
    }

    fn shape(&self, _: u32) -> Result<Shape, TeeError> {
        let firmware = firmware::find("vtpm", self.firmware.as_deref(), PLACES, "install the package ovmf")?;
        Ok(Shape { machine: Machine::Q35, cpu: None, firmware: Some(firmware), acpi: true })
    }

    fn prepare(&self, request: &Request<'_>) -> Result<(Platform, Vec<Helper>), TeeError> {
        let shape = self.shape(request.vcpus)?;
        let program = vmm::find_program(&self.settings.swtpm).map_err(|_| MissingError::Helper {
            key: "vtpm.swtpm",
            program: self.settings.swtpm.clone(),
            package: "swtpm",
        })?;
        let state = make_state(request.dir, self.settings.state.as_deref())?;
        let pair = UnixStream::pair().map_err(|source| TeeError::Io { path: state.clone(), source })?;
        let (ours, theirs): (OwnedFd, OwnedFd) = (pair.0.into(), pair.1.into());
        Ok((platform(shape, ours), vec![Helper { command: emulator(program, &state, theirs) }]))
    }
}

fn platform(shape: Shape, tpm: OwnedFd) -> Platform {
    Platform { shape, machine_options: "", objects: Vec::new(), private_memory: false, tpm: Some(tpm) }
}

/// It ends when the monitor closes its end of the socket, and at the latest with its sandbox.
fn emulator(program: PathBuf, state: &Path, control: OwnedFd) -> Command {
    let mut directory = OsString::from("dir=");
    directory.push(state);
    let control_option = format!("type=unixio,clientfd={}", control.as_raw_fd());
    let mut arguments: Vec<OsString> = ["socket", "--tpm2", "--terminate", "--tpmstate"].map(OsString::from).into();
    arguments.push(directory);
    arguments.extend(["--ctrl".into(), control_option.into()]);
    Command { program, arguments, inherited: vec![control] }
}

/// The folder of this TPM's state, which goes with the sandbox. The emulator makes a new TPM where it finds none in it.
fn make_state(dir: &Path, template: Option<&Path>) -> Result<PathBuf, TeeError> {
    let state = dir.join("tpm");
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source: io::Error| TeeError::Io { path, source }
    };
    DirBuilder::new().mode(0o700).create(&state).map_err(io(&state))?;
    if let Some(template) = template {
        let from = template.join(PERMANENT);
        fs::copy(&from, state.join(PERMANENT)).map_err(io(&from))?;
    }
    Ok(state)
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// For the golden test of QEMU's command line.
    pub(crate) fn example() -> Platform {
        let shape = Shape { machine: Machine::Q35, cpu: None, firmware: Some("/f/OVMF.fd".into()), acpi: true };
        platform(shape, fs::File::open("/dev/null").unwrap().into())
    }

    #[test]
    fn the_emulator_has_one_socket_and_the_sandboxs_folder() {
        let control: OwnedFd = fs::File::open("/dev/null").unwrap().into();
        let number = control.as_raw_fd();
        let command = emulator("/usr/bin/swtpm".into(), Path::new("/s/tpm"), control);
        let text = command.arguments.iter().map(|a| a.to_str().unwrap()).collect::<Vec<_>>().join(" ");
        assert_eq!(text, format!("socket --tpm2 --terminate --tpmstate dir=/s/tpm --ctrl type=unixio,clientfd={number}"));
        assert_eq!(command.inherited.len(), 1);
    }

    #[test]
    fn a_template_is_copied_and_one_that_is_missing_is_named() {
        let dir = std::env::temp_dir().join(format!("cloister-vtpm-{}", std::process::id()));
        let template = dir.join("template");
        fs::create_dir_all(&template).unwrap();
        let error = make_state(&dir, Some(&template)).unwrap_err().to_string();
        assert!(error.contains(PERMANENT), "{error}");
        fs::remove_dir(dir.join("tpm")).unwrap();
        fs::write(template.join(PERMANENT), "seed").unwrap();
        let state = make_state(&dir, Some(&template)).unwrap();
        assert_eq!(fs::read_to_string(state.join(PERMANENT)).unwrap(), "seed");
        fs::remove_dir_all(&dir).unwrap();
    }
}
