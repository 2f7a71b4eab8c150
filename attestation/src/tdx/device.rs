//! `/dev/tdx_guest`: the TDX module's report, which needs no quoting enclave (Linux, `include/uapi/linux/tdx-guest.h`; Intel TDX Module ABI,
//! `TDREPORT_STRUCT`). Nobody else can verify it, but it tells the guest itself what it was launched with.

use std::{
    fs::File,
    io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
};
use thiserror::Error;

/// Where it is.
pub const PATH: &str = "/dev/tdx_guest";

/// Length of a report, in bytes.
const LENGTH: usize = 1024;

/// Where MRCONFIGID is in it: `TDINFO` begins at 512, with attributes, XFAM and MRTD before it.
const MR_CONFIG_ID: std::ops::Range<usize> = 576..624;

/// The device gives no report.
#[derive(Debug, Error)]
#[error("{path}: {source}")]
pub struct DeviceError {
    path: PathBuf,
    source: io::Error,
}

/// `struct tdx_report_req`.
#[repr(C)]
pub struct Call {
    reportdata: [u8; 64],
    tdreport: [u8; LENGTH],
}

mod ioctl {
    nix::ioctl_readwrite!(get_report, b'T', 1, super::Call);
}

/// What the host gave as MRCONFIGID when it launched this guest.
pub fn mr_config_id(path: &Path) -> Result<[u8; 48], DeviceError> {
    let failed = |source| DeviceError { path: path.to_owned(), source };
    let device = File::options().read(true).write(true).open(path).map_err(failed)?;
    let mut call = Call { reportdata: [0; 64], tdreport: [0; LENGTH] };
    // SAFETY: the structure has the kernel's layout and outlives the call, which reads and writes no more than it.
    unsafe { ioctl::get_report(device.as_raw_fd(), &raw mut call) }.map_err(|e| failed(e.into()))?;
    Ok(config_id(&call.tdreport))
}

fn config_id(report: &[u8; LENGTH]) -> [u8; 48] {
    let mut out = [0; 48];
    out.copy_from_slice(&report[MR_CONFIG_ID]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use vectors::{folder, read};

    #[test]
    fn the_call_is_the_kernels() {
        assert_eq!(nix::request_code_readwrite!(b'T', 1, std::mem::size_of::<Call>()), 0xc440_5401);
        assert!(mr_config_id(Path::new("/dev/null")).unwrap_err().to_string().starts_with("/dev/null: "));
    }

    #[test]
    fn the_field_is_found_in_a_recorded_report() {
        let Some(folder) = folder() else { return };
        // Azure's evidence holds the module's report (behind a header of 32 bytes), and the quote that was made of it.
        let evidence = read(&folder, "tpm/trustee_az-tdx_hcl-report.bin");
        let mut report: [u8; LENGTH] = evidence[32..32 + LENGTH].try_into().unwrap();
        let quote = read(&folder, "tpm/trustee_az-tdx_td-quote.bin");
        assert_eq!(report[0], 0x81, "a report of a TDX guest");
        assert_eq!(report[528..576], quote[48 + 136..48 + 184], "MRTD stands before it in both");
        assert_eq!(config_id(&report), quote[48 + 184..48 + 232]);
        report[576] ^= 1;
        assert_ne!(config_id(&report), quote[48 + 184..48 + 232]);
    }
}
