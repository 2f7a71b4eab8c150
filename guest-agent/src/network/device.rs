//! Network devices by netdevice(7): which there are, and their name, size and state.

use std::{
    fs, io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

/// Where the kernel lists its devices.
const SYSFS: &str = "/sys/class/net";

/// The device with this hardware address: its present name and its index.
pub fn by_mac(mac: &[u8]) -> io::Result<Option<(String, u32)>> {
    let wanted: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
    let wanted = wanted.join(":");
    for entry in fs::read_dir(SYSFS)? {
        let entry = entry?;
        let read = |file: &str| fs::read_to_string(entry.path().join(file)).unwrap_or_default();
        if read("address").trim() == wanted
            && let (Some(name), Ok(index)) = (entry.file_name().to_str(), read("ifindex").trim().parse())
        {
            return Ok(Some((name.to_owned(), index)));
        }
    }
    Ok(None)
}

/// Sets devices up.
pub struct Devices(OwnedFd);

impl Devices {
    /// Opens a socket to ask through.
    pub fn open() -> io::Result<Self> {
        // SAFETY: socket(2) takes no pointers; the result is checked.
        let socket = checked(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })?;
        // SAFETY: a new descriptor that nobody else knows.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(socket) }))
    }

    /// Gives a device that is down another name.
    pub fn rename(&self, name: &str, new: &str) -> io::Result<()> {
        let mut request = request(name)?;
        let mut field = [0; libc::IFNAMSIZ];
        copy_name(&mut field, new)?;
        request.ifr_ifru.ifru_newname = field;
        self.set(libc::SIOCSIFNAME, &request)
    }

    /// Sets the largest packet, in bytes.
    pub fn set_mtu(&self, name: &str, mtu: u32) -> io::Result<()> {
        let mut request = request(name)?;
        request.ifr_ifru.ifru_mtu = i32::try_from(mtu).map_err(io::Error::other)?;
        self.set(libc::SIOCSIFMTU, &request)
    }

    /// Switches a device on.
    pub fn up(&self, name: &str) -> io::Result<()> {
        let mut request = request(name)?;
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        self.set(libc::SIOCSIFFLAGS, &request)
    }

    fn set(&self, what: libc::c_ulong, request: &libc::ifreq) -> io::Result<()> {
        // SAFETY: these calls read one ifreq, which lives until they return.
        checked(unsafe { libc::ioctl(self.0.as_raw_fd(), what, request) }).map(drop)
    }
}

fn request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: an all-zero ifreq is a valid value of this plain C structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    copy_name(&mut request.ifr_name, name)?;
    Ok(request)
}

/// With room for the final NUL.
fn copy_name(field: &mut [libc::c_char; libc::IFNAMSIZ], name: &str) -> io::Result<()> {
    if name.is_empty() || name.len() >= field.len() || name.contains(['/', '\0']) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    for (to, from) in field.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(())
}

fn checked(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_their_field() {
        assert!(request("lo").is_ok() && request("fifteen-letters").is_ok());
        for name in ["", "sixteen--letters", "a/b", "a\0b"] {
            assert!(request(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn a_device_that_is_not_there_is_not_found() {
        assert_eq!(by_mac(&[2, 1, 1, 1, 1, 1]).unwrap(), None);
        assert!(Devices::open().unwrap().set_mtu("no-such-device", 1500).is_err());
    }
}
