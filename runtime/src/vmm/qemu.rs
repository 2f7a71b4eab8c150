//! QEMU's command line. A pure function, so that golden tests hold it.

use super::{Command, Launch, Vmm, VsockDevice, accelerator::Accelerator};
use std::{
    ffi::OsString,
    os::fd::{AsRawFd, OwnedFd, RawFd},
    path::PathBuf,
};

/// QEMU, with no device beyond what is used and no monitor: the guest powers itself off, the host kills.
#[derive(Debug)]
pub struct Qemu {
    /// Where it is.
    pub program: PathBuf,
}

impl Vmm for Qemu {
    fn command(&self, launch: Launch) -> Command {
        let mut line = Line::default();
        line.pair("-name", format!("cloister-{}", launch.sandbox_id));
        for flag in ["-no-user-config", "-nodefaults", "-no-reboot"] {
            line.flag(flag);
        }
        line.pair("-display", "none");
        // QEMU parses the guest's virtio queues: what it does not need, its seccomp filter takes away.
        line.pair("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
        // ACPI is how Debian's kernel finds virtio-mmio devices (it is built without their kernel parameter). Without a clock chip the
        // kernel waits a second for it, twice.
        let machine = "microvm,acpi=on,rtc=on,x-option-roms=off,isa-serial=on,memory-backend=ram";
        // The guest's memory is in no core dump of the host, and shared with no other guest.
        line.pair("-machine", format!("{machine},dump-guest-core=off,mem-merge=off"));
        line.pair("-global", "virtio-mmio.force-legacy=false");
        let (accelerator, cpu) = match launch.accelerator {
            Accelerator::Kvm => ("kvm", "host"),
            Accelerator::Tcg => ("tcg,thread=multi", "max"),
        };
        line.pair("-accel", accelerator);
        line.pair("-cpu", cpu);
        line.pair("-smp", launch.vcpus.to_string());
        line.pair("-m", format!("{}M", launch.memory_mib));
        // Shared where a device of our own reads the queues in it; else the kernel may back it by huge pages.
        let backend = match launch.vsock {
            VsockDevice::User(_) => "memory-backend-memfd,share=on",
            VsockDevice::Kernel { .. } => "memory-backend-ram",
        };
        line.pair("-object", format!("{backend},id=ram,size={}M", launch.memory_mib));
        line.pair("-kernel", launch.kernel);
        line.pair("-initrd", launch.initramfs);
        line.pair("-append", launch.cmdline);
        // The guest's console, for the panic text of a kernel or agent that dies before it can speak vsock.
        line.pair("-chardev", "stdio,id=console,signal=off");
        line.pair("-serial", "chardev:console");
        match launch.vsock {
            VsockDevice::Kernel { cid, device } => {
                let fd = line.inherit(device);
                line.pair("-device", format!("vhost-vsock-device,guest-cid={cid},vhostfd={fd}"));
            }
            VsockDevice::User(fd) => {
                let fd = line.inherit(fd);
                line.pair("-chardev", format!("socket,id=vsock,fd={fd}"));
                line.pair("-device", "vhost-user-vsock-device,chardev=vsock");
            }
        }
        if let Some(scratch) = launch.scratch {
            // A comma in a path is doubled in QEMU's option syntax.
            let file = scratch.display().to_string().replace(',', ",,");
            // Nothing on it outlives the VM: a container's fsync need not wait for the host's disk.
            let options = "discard=unmap,cache.no-flush=on,locking=off";
            line.pair("-blockdev", format!("driver=file,node-name=scratch,filename={file},{options}"));
            line.pair("-device", "virtio-blk-device,drive=scratch,serial=scratch");
        }
        for (n, disk) in launch.disks.into_iter().enumerate() {
            let file = disk.path.display().to_string().replace(',', ",,");
            let driver = if disk.device { "host_device" } else { "file" };
            let readonly = if disk.readonly { "on" } else { "off" };
            // Here a container's fsync counts. Raw: what is in the disk never decides on its format.
            line.pair("-blockdev", format!("driver={driver},node-name=disk{n},filename={file},read-only={readonly},discard=unmap"));
            line.pair("-device", format!("virtio-blk-device,drive=disk{n},serial={}", disk.serial));
        }
        for (n, tap) in launch.taps.into_iter().enumerate() {
            let fd = line.inherit(tap.fd);
            let mac = tap.mac.map(|byte| format!("{byte:02x}")).join(":");
            line.pair("-netdev", format!("tap,id=net{n},fd={fd}"));
            line.pair("-device", format!("virtio-net-device,netdev=net{n},mac={mac}"));
        }
        Command { program: self.program.clone(), arguments: line.arguments, inherited: line.inherited }
    }
}

#[derive(Default)]
struct Line {
    arguments: Vec<OsString>,
    inherited: Vec<OwnedFd>,
}

impl Line {
    fn flag(&mut self, flag: &str) {
        self.arguments.push(flag.into());
    }

    fn pair(&mut self, option: &str, value: impl Into<OsString>) {
        self.flag(option);
        self.arguments.push(value.into());
    }

    fn inherit(&mut self, fd: OwnedFd) -> RawFd {
        let number = fd.as_raw_fd();
        self.inherited.push(fd);
        number
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::vmm::{Disk, Tap};

    fn fd() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    fn launch() -> Launch {
        Launch {
            sandbox_id: "demo".into(),
            kernel: "/g/vmlinux".into(),
            initramfs: "/g/initramfs.cpio".into(),
            cmdline: "quiet".into(),
            vcpus: 2,
            memory_mib: 512,
            accelerator: Accelerator::Tcg,
            scratch: None,
            disks: Vec::new(),
            vsock: VsockDevice::User(fd()),
            taps: Vec::new(),
        }
    }

    /// The arguments, with `@0`, `@1`, … for the inherited descriptors.
    fn text(launch: Launch) -> String {
        let command = Qemu { program: "qemu".into() }.command(launch);
        let mut text = command.arguments.iter().map(|a| a.to_str().unwrap()).collect::<Vec<_>>().join(" ");
        for (n, fd) in command.inherited.iter().enumerate() {
            text = text.replace(&format!("fd={}", fd.as_raw_fd()), &format!("fd=@{n}"));
        }
        text
    }

    #[test]
    fn the_command_line_holds_nothing_that_is_not_used() {
        assert_eq!(
            text(launch()),
            "-name cloister-demo -no-user-config -nodefaults -no-reboot -display none \
             -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny \
             -machine microvm,acpi=on,rtc=on,x-option-roms=off,isa-serial=on,memory-backend=ram,dump-guest-core=off,mem-merge=off \
             -global virtio-mmio.force-legacy=false -accel tcg,thread=multi -cpu max -smp 2 -m 512M \
             -object memory-backend-memfd,share=on,id=ram,size=512M -kernel /g/vmlinux -initrd /g/initramfs.cpio -append quiet \
             -chardev stdio,id=console,signal=off -serial chardev:console \
             -chardev socket,id=vsock,fd=@0 -device vhost-user-vsock-device,chardev=vsock"
        );
    }

    #[test]
    fn each_device_has_the_descriptor_that_is_inherited_for_it() {
        let mut launch = launch();
        launch.vsock = VsockDevice::Kernel { cid: 77, device: fd() };
        launch.scratch = Some("/s/a,b".into());
        launch.disks = vec![Disk { path: "/d/x,y".into(), device: false, readonly: true, serial: "disk0".into() }];
        launch.taps = vec![Tap { fd: fd(), mac: [2, 0, 0, 0, 0, 0x1f] }];
        let text = text(launch);
        assert!(text.contains("-device vhost-vsock-device,guest-cid=77,vhostfd=@0"), "{text}");
        assert!(text.contains("-object memory-backend-ram,id=ram"), "{text}");
        assert!(text.contains("filename=/s/a,,b,discard=unmap,cache.no-flush=on"), "{text}");
        let disk =
            "driver=file,node-name=disk0,filename=/d/x,,y,read-only=on,discard=unmap -device virtio-blk-device,drive=disk0,serial=disk0";
        assert!(text.contains(disk), "{text}");
        assert!(text.ends_with("-netdev tap,id=net0,fd=@1 -device virtio-net-device,netdev=net0,mac=02:00:00:00:00:1f"), "{text}");
    }
}
