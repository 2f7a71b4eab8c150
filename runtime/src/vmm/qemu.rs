//! QEMU's command line. A pure function, so that golden tests hold it.

use super::{Command, Launch, Vmm, VsockDevice, accelerator::Accelerator};
use crate::tee::{Machine, Platform};
use std::{
    ffi::OsString,
    os::fd::{AsRawFd, OwnedFd, RawFd},
    path::PathBuf,
};

/// An error of the host's disk is one of the guest's. By default QEMU stops the machine when a write finds the disk full, for an operator who
/// makes room and goes on: a pod that hangs.
const REPORT: &str = "werror=report,rerror=report";

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
        line.machine(&launch);
        line.platform(launch.platform);
        line.pair("-kernel", launch.kernel);
        line.pair("-initrd", launch.initramfs);
        line.pair("-append", launch.cmdline);
        // The guest's console, for the panic text of a kernel or agent that dies before it can speak vsock.
        line.pair("-chardev", "stdio,id=console,signal=off");
        line.pair("-serial", "chardev:console");
        line.vsock(launch.vsock);
        if let Some(scratch) = launch.scratch {
            let fd = line.inherit(scratch);
            line.pair("-add-fd", format!("fd={fd},set=0"));
            // Nothing on it outlives the VM: a container's fsync need not wait for the host's disk.
            let options = "discard=unmap,cache.no-flush=on,locking=off";
            line.pair("-blockdev", format!("driver=file,node-name=scratch,filename=/dev/fdset/0,{options}"));
            line.virtio("virtio-blk", &format!("drive=scratch,serial=scratch,{REPORT}"));
        }
        for (n, disk) in launch.disks.into_iter().enumerate() {
            // A comma in a path is doubled in QEMU's option syntax.
            let file = disk.path.display().to_string().replace(',', ",,");
            let driver = if disk.device { "host_device" } else { "file" };
            let readonly = if disk.readonly { "on" } else { "off" };
            // Here a container's fsync counts. Raw: what is in the disk never decides on its format.
            line.pair("-blockdev", format!("driver={driver},node-name=disk{n},filename={file},read-only={readonly},discard=unmap"));
            line.pair("-device", format!("virtio-blk-device,drive=disk{n},serial={},{REPORT}", disk.serial));
        }
        for (n, shared) in launch.shared.into_iter().enumerate() {
            let fd = line.inherit(shared.socket);
            line.pair("-chardev", format!("socket,id=shared{n},fd={fd}"));
            line.virtio("vhost-user-fs", &format!("chardev=shared{n},tag={}", shared.tag));
        }
        for (n, tap) in launch.taps.into_iter().enumerate() {
            let fd = line.inherit(tap.fd);
            let mac = tap.mac.map(|byte| format!("{byte:02x}")).join(":");
            line.pair("-netdev", format!("tap,id=net{n},fd={fd}"));
            // Firmware neither boots from a network nor runs, and measures, a card's option ROM.
            let rom = if line.bus == Bus::Mmio { "" } else { ",romfile=" };
            line.virtio("virtio-net", &format!("netdev=net{n},mac={mac}{rom}"));
        }
        Command { program: self.program.clone(), arguments: line.arguments, inherited: line.inherited }
    }
}

/// Where virtio devices are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Bus {
    #[default]
    Mmio,
    Pci,
    /// PCI, and of the guest's memory devices reach what it shares with them.
    PrivatePci,
}

#[derive(Default)]
struct Line {
    arguments: Vec<OsString>,
    inherited: Vec<OwnedFd>,
    bus: Bus,
}

impl Line {
    /// The machine, its processors and its memory.
    fn machine(&mut self, launch: &Launch) {
        let platform = &launch.platform;
        let machine = match platform.shape.machine {
            // ACPI is how Debian's kernel finds virtio-mmio devices (it is built without their kernel parameter). Without a clock chip
            // the kernel waits a second for it, twice.
            Machine::Microvm => "microvm,acpi=on,rtc=on,x-option-roms=off,isa-serial=on",
            // Nothing that firmware would look for disks on, and nothing that only old guests use.
            Machine::Q35 => "q35,smm=off,vmport=off,sata=off,smbus=off",
        };
        // The guest's memory is in no core dump of the host, and shared with no other guest.
        let common = "memory-backend=ram,dump-guest-core=off,mem-merge=off";
        self.pair("-machine", format!("{machine}{},{common}", platform.machine_options));
        if platform.shape.machine == Machine::Microvm {
            self.pair("-global", "virtio-mmio.force-legacy=false");
        }
        let (accelerator, cpu) = match launch.accelerator {
            Accelerator::Kvm => ("kvm", "host"),
            Accelerator::Tcg => ("tcg,thread=multi", "max"),
        };
        self.pair("-accel", accelerator);
        self.pair("-cpu", platform.shape.cpu.as_deref().unwrap_or(cpu));
        // No more than there are from the start: a measured guest is not resized.
        self.pair("-smp", launch.vcpus.to_string());
        self.pair("-m", format!("{}M", launch.memory_mib));
        // Shared where another process serves a device and reads the queues in it, or where an enclave wants it so; else the kernel may
        // back it by huge pages.
        let shared = platform.private_memory || matches!(launch.vsock, VsockDevice::User(_)) || !launch.shared.is_empty();
        let backend = if shared { "memory-backend-memfd,share=on" } else { "memory-backend-ram" };
        self.pair("-object", format!("{backend},id=ram,size={}M", launch.memory_mib));
    }

    fn platform(&mut self, platform: Platform) {
        self.bus = match (platform.shape.machine, platform.private_memory) {
            (Machine::Microvm, _) => Bus::Mmio,
            (Machine::Q35, false) => Bus::Pci,
            (Machine::Q35, true) => Bus::PrivatePci,
        };
        for object in platform.objects {
            self.pair("-object", object);
        }
        if let Some(firmware) = platform.shape.firmware {
            self.pair("-bios", firmware);
        }
        if let Some(tpm) = platform.tpm {
            let fd = self.inherit(tpm);
            self.pair("-chardev", format!("socket,id=tpm,fd={fd}"));
            self.pair("-tpmdev", "emulator,id=tpm0,chardev=tpm");
            self.pair("-device", "tpm-crb,tpmdev=tpm0");
        }
    }

    fn vsock(&mut self, vsock: VsockDevice) {
        match vsock {
            VsockDevice::Kernel { cid, device } => {
                let fd = self.inherit(device);
                self.virtio("vhost-vsock", &format!("guest-cid={cid},vhostfd={fd}"));
            }
            VsockDevice::User(fd) => {
                let fd = self.inherit(fd);
                self.pair("-chardev", format!("socket,id=vsock,fd={fd}"));
                self.virtio("vhost-user-vsock", "chardev=vsock");
            }
        }
    }

    /// A virtio device on the machine's bus.
    fn virtio(&mut self, device: &str, options: &str) {
        self.pair(
            "-device",
            match self.bus {
                Bus::Mmio => format!("{device}-device,{options}"),
                Bus::Pci => format!("{device}-pci,{options},disable-legacy=on"),
                Bus::PrivatePci => format!("{device}-pci,{options},disable-legacy=on,iommu_platform=on"),
            },
        );
    }

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
    use crate::vmm::{Cmdline, Disk, Tap};

    fn fd() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    fn launch() -> Launch {
        Launch {
            sandbox_id: "demo".into(),
            platform: crate::tee::example("none"),
            kernel: "/g/vmlinux".into(),
            initramfs: "/g/initramfs.cpio".into(),
            cmdline: "quiet".into(),
            vcpus: 2,
            memory_mib: 512,
            accelerator: Accelerator::Tcg,
            scratch: None,
            disks: Vec::new(),
            shared: Vec::new(),
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
        launch.scratch = Some(fd());
        launch.disks = vec![Disk { path: "/d/x,y".into(), device: false, readonly: true, serial: "disk0".into() }];
        launch.taps = vec![Tap { fd: fd(), mac: [2, 0, 0, 0, 0, 0x1f] }];
        let text = text(launch);
        assert!(text.contains("-device vhost-vsock-device,guest-cid=77,vhostfd=@0"), "{text}");
        assert!(text.contains("-object memory-backend-ram,id=ram"), "{text}");
        assert!(text.contains("-add-fd fd=@1,set=0 -blockdev driver=file,node-name=scratch,filename=/dev/fdset/0,discard=unmap"), "{text}");
        let disk = "driver=file,node-name=disk0,filename=/d/x,,y,read-only=on,discard=unmap -device virtio-blk-device,drive=disk0,serial=disk0,werror=report,rerror=report";
        assert!(text.contains(disk), "{text}");
        assert!(text.ends_with("-netdev tap,id=net0,fd=@2 -device virtio-net-device,netdev=net0,mac=02:00:00:00:00:1f"), "{text}");
    }

    const BEGIN: &str = "-name cloister-demo -no-user-config -nodefaults -no-reboot -display none \
         -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";
    const GUEST: &str =
        "-kernel /g/vmlinuz -initrd /g/initramfs.cpio -append @cmdline -chardev stdio,id=console,signal=off -serial chardev:console";

    /// A launch with every device, in this enclave: `@cmdline` for what the kernel is told.
    fn in_enclave(name: &str, accelerator: Accelerator) -> String {
        let platform = crate::tee::example(name);
        let (machine, acpi) = (platform.shape.machine, platform.shape.acpi);
        let cmdline = Cmdline { accelerator, machine, acpi, measurement: None, extra: "" }.to_text(|| unreachable!("a PC has timers"));
        // Without ACPI a kernel finds one processor.
        let vcpus = if acpi { 2 } else { 1 };
        let line = text(Launch {
            platform,
            vcpus,
            cmdline: cmdline.clone(),
            kernel: "/g/vmlinuz".into(),
            accelerator,
            vsock: VsockDevice::Kernel { cid: 77, device: fd() },
            scratch: Some(fd()),
            taps: vec![Tap { fd: fd(), mac: [2, 0, 0, 0, 0, 0x1f] }],
            ..launch()
        });
        assert_eq!(cmdline.contains(" acpi=off"), name == "snp");
        line.replace(&cmdline, "@cmdline")
    }

    #[test]
    fn a_shared_directory_is_a_device_whose_server_sees_the_guests_memory() {
        let shared = vec![crate::vmm::shared::Shared { tag: "share0".into(), socket: fd() }];
        let line = text(Launch { shared, vsock: VsockDevice::Kernel { cid: 77, device: fd() }, ..launch() });
        assert!(line.contains("-chardev socket,id=shared0,fd=@1 -device vhost-user-fs-device,chardev=shared0,tag=share0"), "{line}");
        assert!(line.contains("memory-backend-memfd,share=on"), "{line}");
    }

    #[test]
    fn a_vtpm_is_a_pc_with_firmware_and_a_tpm() {
        assert_eq!(
            in_enclave("vtpm", Accelerator::Tcg),
            format!(
                "{BEGIN} -machine q35,smm=off,vmport=off,sata=off,smbus=off,memory-backend=ram,dump-guest-core=off,mem-merge=off \
                 -accel tcg,thread=multi -cpu max -smp 2 -m 512M -object memory-backend-ram,id=ram,size=512M -bios /f/OVMF.fd \
                 -chardev socket,id=tpm,fd=@0 -tpmdev emulator,id=tpm0,chardev=tpm -device tpm-crb,tpmdev=tpm0 {GUEST} \
                 -device vhost-vsock-pci,guest-cid=77,vhostfd=@1,disable-legacy=on \
                 -add-fd fd=@2,set=0 \
                 -blockdev driver=file,node-name=scratch,filename=/dev/fdset/0,discard=unmap,cache.no-flush=on,locking=off \
                 -device virtio-blk-pci,drive=scratch,serial=scratch,werror=report,rerror=report,disable-legacy=on \
                 -netdev tap,id=net0,fd=@3 -device virtio-net-pci,netdev=net0,mac=02:00:00:00:00:1f,romfile=,disable-legacy=on"
            )
        );
    }

    #[test]
    fn snp_has_its_object_and_a_measured_processor() {
        let host_data = "ERERERERERERERERERERERERERERERERERERERERERE=";
        assert_eq!(
            in_enclave("snp", Accelerator::Kvm),
            format!(
                "{BEGIN} -machine q35,smm=off,vmport=off,sata=off,smbus=off,kernel-irqchip=split,confidential-guest-support=tee0,\
                 memory-backend=ram,dump-guest-core=off,mem-merge=off -accel kvm -cpu EPYC-v4 -smp 1 -m 512M \
                 -object memory-backend-memfd,share=on,id=ram,size=512M \
                 -object sev-snp-guest,id=tee0,cbitpos=51,reduced-phys-bits=1,policy=0x30000,kernel-hashes=on,host-data={host_data},\
                 id-block=QkxP,id-auth=QVVU,author-key-enabled=on -bios /f/OVMF.amdsev.fd {GUEST} \
                 -device vhost-vsock-pci,guest-cid=77,vhostfd=@0,disable-legacy=on,iommu_platform=on \
                 -add-fd fd=@1,set=0 \
                 -blockdev driver=file,node-name=scratch,filename=/dev/fdset/0,discard=unmap,cache.no-flush=on,locking=off \
                 -device virtio-blk-pci,drive=scratch,serial=scratch,werror=report,rerror=report,disable-legacy=on,iommu_platform=on \
                 -netdev tap,id=net0,fd=@2 \
                 -device virtio-net-pci,netdev=net0,mac=02:00:00:00:00:1f,romfile=,disable-legacy=on,iommu_platform=on"
            )
        );
    }

    #[test]
    fn tdx_has_its_object_and_a_quote_service() {
        let config_id = "ERERERERERERERERERERERERERERERERERERERERERERERERERERERERERERERER";
        assert_eq!(
            in_enclave("tdx", Accelerator::Kvm),
            format!(
                "{BEGIN} -machine q35,smm=off,vmport=off,sata=off,smbus=off,hpet=off,kernel-irqchip=split,confidential-guest-support=tee0,\
                 memory-backend=ram,dump-guest-core=off,mem-merge=off -accel kvm -cpu host -smp 2 -m 512M \
                 -object memory-backend-memfd,share=on,id=ram,size=512M \
                 -object {{\"id\":\"tee0\",\"mrconfigid\":\"{config_id}\",\"qom-type\":\"tdx-guest\",\
                 \"quote-generation-socket\":{{\"cid\":\"2\",\"port\":\"4050\",\"type\":\"vsock\"}}}} -bios /f/OVMF.inteltdx.fd {GUEST} \
                 -device vhost-vsock-pci,guest-cid=77,vhostfd=@0,disable-legacy=on,iommu_platform=on \
                 -add-fd fd=@1,set=0 \
                 -blockdev driver=file,node-name=scratch,filename=/dev/fdset/0,discard=unmap,cache.no-flush=on,locking=off \
                 -device virtio-blk-pci,drive=scratch,serial=scratch,werror=report,rerror=report,disable-legacy=on,iommu_platform=on \
                 -netdev tap,id=net0,fd=@2 \
                 -device virtio-net-pci,netdev=net0,mac=02:00:00:00:00:1f,romfile=,disable-legacy=on,iommu_platform=on"
            )
        );
    }
}
