//! Taps (Documentation/networking/tuntap.rst): network devices whose other end is a descriptor, here QEMU's.

use std::{
    fs::OpenOptions,
    io,
    os::fd::{AsRawFd, OwnedFd},
};

nix::ioctl_write_ptr_bad!(tun_set_iff, libc::TUNSETIFF, libc::ifreq);
nix::ioctl_write_ptr_bad!(tun_set_header_size, libc::TUNSETVNETHDRSZ, libc::c_int);

/// Length of `struct virtio_net_hdr_v1` (linux/virtio_net.h), as a virtio 1 device has it.
const HEADER_SIZE: libc::c_int = 12;

/// Makes a tap in this thread's network namespace. It is gone when the descriptor is closed.
pub(super) fn create(name: &str) -> io::Result<OwnedFd> {
    let tun = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: ifreq is plain data for which all zeroes are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // The last byte stays zero.
    for (to, from) in request.ifr_name[..libc::IFNAMSIZ - 1].iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    // SAFETY: the descriptor is an open tun device, the request is initialised and outlives the call.
    unsafe { tun_set_iff(tun.as_raw_fd(), &request) }?;
    // SAFETY: as above, with an integer.
    unsafe { tun_set_header_size(tun.as_raw_fd(), &HEADER_SIZE) }?;
    Ok(tun.into())
}
