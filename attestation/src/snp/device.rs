//! `/dev/sev-guest`: the kernel's older interface to reports (Linux, `include/uapi/linux/sev-guest.h`).

use crate::snp::{cert_table::MAX_TABLE, report::LENGTH};
use std::{
    fs::File,
    io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
};
use thiserror::Error;

/// Where it is.
pub const PATH: &str = "/dev/sev-guest";

/// Why there is no report.
#[derive(Debug, Error)]
pub enum DeviceError {
    /// The device.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The firmware.
    #[error("{path}: the firmware answers with status {status:#x} and {size} bytes")]
    Firmware {
        /// Which device.
        path: PathBuf,
        /// As answered.
        status: u32,
        /// As answered.
        size: u32,
    },
}

/// `struct snp_ext_report_req`.
#[repr(C)]
struct Request {
    user_data: [u8; 64],
    vmpl: u32,
    reserved: [u8; 28],
    certs_address: u64,
    certs_len: u32,
}

/// `struct snp_report_resp`, taken apart: status, size, reserved, report, room.
#[repr(C)]
struct Response {
    status: u32,
    size: u32,
    reserved: [u8; 24],
    report: [u8; LENGTH],
    rest: [u8; 4000 - 32 - LENGTH],
}

/// `struct snp_guest_request_ioctl`.
#[repr(C)]
pub struct Call {
    msg_version: u8,
    request: u64,
    response: u64,
    errors: u64,
}

mod ioctl {
    nix::ioctl_readwrite!(get_extended_report, b'S', 2, super::Call);
}

/// A report with this data in it, asked for at privilege level 0, and the host's certificate table.
pub fn report(path: &Path, data: &[u8; 64]) -> Result<(Vec<u8>, Vec<u8>), DeviceError> {
    let failed = |source| DeviceError::Io { path: path.to_owned(), source };
    let device = File::options().read(true).write(true).open(path).map_err(failed)?;
    let mut table = vec![0; MAX_TABLE];
    let request =
        Request { user_data: *data, vmpl: 0, reserved: [0; 28], certs_address: table.as_mut_ptr() as u64, certs_len: MAX_TABLE as u32 };
    let mut response = Response { status: 0, size: 0, reserved: [0; 24], report: [0; LENGTH], rest: [0; 4000 - 32 - LENGTH] };
    let mut call = Call { msg_version: 1, request: &raw const request as u64, response: &raw mut response as u64, errors: 0 };
    // SAFETY: the addresses are those of structures of the kernel's layout that outlive the call; it writes at most `certs_len` bytes to
    // the table and 4000 to the response.
    unsafe { ioctl::get_extended_report(device.as_raw_fd(), &raw mut call) }.map_err(|e| failed(e.into()))?;
    if response.status != 0 || response.size as usize != LENGTH {
        return Err(DeviceError::Firmware { path: path.to_owned(), status: response.status, size: response.size });
    }
    Ok((response.report.to_vec(), table))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::{offset_of, size_of};

    #[test]
    fn the_layout_is_the_kernels() {
        assert_eq!((size_of::<Call>(), size_of::<Response>(), size_of::<Request>()), (32, 4000, 112));
        assert_eq!((offset_of!(Call, request), offset_of!(Request, certs_address), offset_of!(Response, report)), (8, 96, 32));
        assert_eq!(nix::request_code_readwrite!(b'S', 2, size_of::<Call>()), 0xc020_5302);
    }

    #[test]
    fn what_is_no_such_device_is_named() {
        assert!(report(Path::new("/dev/null"), &[0; 64]).unwrap_err().to_string().starts_with("/dev/null: "));
        assert!(report(Path::new("/nonexistent"), &[0; 64]).unwrap_err().to_string().contains("/nonexistent"));
    }
}
