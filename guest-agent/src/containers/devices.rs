//! Which devices a container may open: a small BPF program on its cgroup (`BPF_PROG_TYPE_CGROUP_DEVICE`, include/uapi/linux/bpf.h).
//!
//! Containers have CAP_MKNOD by default, and a /dev of their own in which device nodes work. Without this a container could make a node
//! of the scratch disk and read what every other container wrote (compare CVE-2020-2023, CVE-2026-24834). The list is runc's.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::Path,
};

/// Character devices that may be opened: major, and minor where not all of them may.
const ALLOWED: [(u32, Option<u32>); 9] = [
    (1, Some(3)), // null
    (1, Some(5)), // zero
    (1, Some(7)), // full
    (1, Some(8)), // random
    (1, Some(9)), // urandom
    (5, Some(0)), // tty
    (5, Some(1)), // console
    (5, Some(2)), // ptmx
    (136, None),  // pts
];

/// Devices that every container has: libcontainer's, the terminal's, and the multiplexer of its own /dev/pts.
const USUAL: &[&str] = &["/dev/null", "/dev/zero", "/dev/full", "/dev/tty", "/dev/urandom", "/dev/random", "/dev/console", "/dev/ptmx"];

/// Which devices a container may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    /// The usual ones and these of the guest, by path.
    Some(Vec<String>),
    /// Every device of the guest.
    All,
}

impl Default for Access {
    fn default() -> Self {
        Self::Some(Vec::new())
    }
}

/// Whether every container has this device.
pub fn is_usual(path: &str) -> bool {
    USUAL.contains(&path)
}

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_ATTACH: libc::c_long = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;
/// `BPF_DEVCG_ACC_MKNOD`, alone: to make a node is not to open it.
const MKNOD: i32 = 1;
/// `BPF_DEVCG_DEV_BLOCK`.
const BLOCK: i32 = 1;
/// `BPF_DEVCG_DEV_CHAR`.
const CHARACTER: i32 = 2;

/// A device beyond the usual ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Further {
    /// A disk, and not a character device.
    pub block: bool,
    /// Number.
    pub major: u32,
    /// Number.
    pub minor: u32,
}

/// `struct bpf_attr` of BPF_PROG_LOAD, as far as it is used.
#[repr(C)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
}

/// `struct bpf_attr` of BPF_PROG_ATTACH, as far as it is used.
#[repr(C)]
struct Attach {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
}

/// Lets the processes of the cgroup at `directory` open the usual devices, those of `further`, and no others.
pub fn restrict(directory: &Path, further: &[Further]) -> io::Result<()> {
    let cgroup = File::open(directory)?;
    let program = load(&program(further))?;
    let attach = Attach {
        target_fd: cgroup.as_raw_fd().cast_unsigned(),
        attach_bpf_fd: program.as_raw_fd().cast_unsigned(),
        attach_type: BPF_CGROUP_DEVICE,
        attach_flags: BPF_F_ALLOW_MULTI,
    };
    bpf(BPF_PROG_ATTACH, &attach).map(drop)
}

fn load(program: &[u64]) -> io::Result<OwnedFd> {
    let load = Load {
        prog_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: program.len() as u32,
        insns: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: 0,
    };
    let fd = bpf(BPF_PROG_LOAD, &load)?;
    // SAFETY: a new descriptor that nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<i32> {
    // SAFETY: bpf(2) reads `size` bytes of the attributes; the program and the licence that they point to outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    i32::try_from(result).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)
}

/// `struct bpf_insn`: operation, registers, jump, immediate.
fn instruction(operation: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> u64 {
    u64::from(operation)
        | u64::from(destination | source << 4) << 8
        | u64::from(offset.cast_unsigned()) << 16
        | u64::from(immediate.cast_unsigned()) << 32
}

/// Gets `struct bpf_cgroup_dev_ctx` in r1: access and type in one word, major, minor. Gives 1 to allow.
fn program(further: &[Further]) -> Vec<u64> {
    const LOAD_WORD: u8 = 0x61;
    const MOVE: u8 = 0xbf;
    const SHIFT_RIGHT: u8 = 0x77;
    const AND: u8 = 0x57;
    const JUMP_NOT_EQUAL: u8 = 0x55;
    const SET: u8 = 0xb7;
    const EXIT: u8 = 0x95;
    let answer = |allow: i32| [instruction(SET, 0, 0, 0, allow), instruction(EXIT, 0, 0, 0, 0)];
    let mut code = vec![
        instruction(LOAD_WORD, 2, 1, 0, 0),
        instruction(MOVE, 3, 2, 0, 0),
        instruction(SHIFT_RIGHT, 3, 0, 0, 16),
        instruction(AND, 2, 0, 0, 0xffff),
        instruction(LOAD_WORD, 4, 1, 4, 0),
        instruction(LOAD_WORD, 5, 1, 8, 0),
        instruction(JUMP_NOT_EQUAL, 3, 0, 2, MKNOD),
    ];
    code.extend(answer(1));
    let usual = ALLOWED.map(|(major, minor)| (CHARACTER, major, minor));
    let further = further.iter().map(|device| (if device.block { BLOCK } else { CHARACTER }, device.major, Some(device.minor)));
    for (kind, major, minor) in usual.into_iter().chain(further) {
        // What differs in one of these goes on behind the answer.
        let mut differs = vec![(2, kind), (4, major.cast_signed())];
        differs.extend(minor.map(|minor| (5, minor.cast_signed())));
        let answer = answer(1);
        for (at, (register, value)) in differs.iter().enumerate() {
            let behind = (differs.len() - at - 1 + answer.len()) as i16;
            code.push(instruction(JUMP_NOT_EQUAL, *register, 0, behind, *value));
        }
        code.extend(answer);
    }
    code.extend(answer(0));
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: u32 = 2;
    const DISK: u32 = 1;
    const CHAR: u32 = 2;

    /// Runs the program as the kernel would, as far as it uses the instruction set.
    fn run(access: u32, kind: u32, major: u32, minor: u32) -> u64 {
        run_with(&[], access, kind, major, minor)
    }

    fn run_with(further: &[Further], access: u32, kind: u32, major: u32, minor: u32) -> u64 {
        let (code, context) = (program(further), [access << 16 | kind, major, minor]);
        let mut registers = [0u64; 6];
        let mut at = 0usize;
        loop {
            let word = code[at];
            let (operation, destination, source) = (word as u8, (word >> 8 & 15) as usize, (word >> 12 & 15) as usize);
            let (offset, immediate) = ((word >> 16) as i16, (word >> 32) as u32);
            at += 1;
            match operation {
                0x61 => registers[destination] = u64::from(context[offset as usize / 4]),
                0xbf => registers[destination] = registers[source],
                0x77 => registers[destination] >>= immediate,
                0x57 => registers[destination] &= u64::from(immediate),
                0xb7 => registers[destination] = u64::from(immediate),
                0x55 if registers[destination] != u64::from(immediate) => at += offset as usize,
                0x55 => {}
                0x95 => return registers[0],
                other => panic!("operation {other:#x}"),
            }
        }
    }

    #[test]
    fn the_usual_devices_open() {
        for (major, minor) in [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2), (136, 0), (136, 77)] {
            assert_eq!(run(READ, CHAR, major, minor), 1, "{major}:{minor}");
            assert_eq!(run(READ | 4, CHAR, major, minor), 1, "{major}:{minor}");
        }
    }

    #[test]
    fn no_other_device_opens() {
        // mem, kmem, kmsg, loop-control, vsock, the scratch disk and its plain side, and block devices with allowed numbers.
        for (kind, major, minor) in [(CHAR, 1, 1), (CHAR, 1, 2), (CHAR, 1, 11), (CHAR, 10, 237), (CHAR, 10, 123), (CHAR, 5, 3)] {
            assert_eq!(run(READ, kind, major, minor), 0, "{major}:{minor}");
        }
        for (major, minor) in [(254, 0), (253, 0), (1, 3), (5, 2), (136, 0)] {
            assert_eq!(run(READ, DISK, major, minor), 0, "block {major}:{minor}");
        }
    }

    #[test]
    fn a_further_device_opens_by_both_its_numbers() {
        let character = |major, minor| Further { block: false, major, minor };
        let further = [character(10, 224), character(247, 1), Further { block: true, major: 254, minor: 16 }];
        for (major, minor, opens) in
            [(10, 224, 1), (247, 1, 1), (1, 3, 1), (136, 5, 1), (10, 225, 0), (247, 0, 0), (224, 10, 0), (254, 16, 0)]
        {
            assert_eq!(run_with(&further, READ, CHAR, major, minor), opens, "{major}:{minor}");
        }
        // The scratch disk's neighbour.
        for (major, minor, opens) in [(254, 16, 1), (254, 0, 0), (10, 224, 0), (1, 3, 0)] {
            assert_eq!(run_with(&further, READ, DISK, major, minor), opens, "{major}:{minor}");
        }
    }

    #[test]
    fn nodes_may_be_made_and_not_opened() {
        assert_eq!(run(1, DISK, 254, 0), 1);
        assert_eq!(run(1 | READ, DISK, 254, 0), 0);
    }
}
