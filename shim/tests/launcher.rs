//! The process that keeps a VM's place in a network namespace of its own, and becomes the VM. As root: namespaces are made.
#![allow(clippy::unwrap_used)]

use runtime::vmm::{Command, Launcher};
use std::{
    fs,
    io::Write,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    process::{Command as Program, Stdio},
    time::{Duration, Instant},
};

const SHIM: &str = env!("CARGO_BIN_EXE_containerd-shim-cloister-v2");

fn netns(pid: u32) -> PathBuf {
    fs::read_link(format!("/proc/{pid}/ns/net")).unwrap()
}

#[tokio::test]
async fn it_becomes_the_vm_in_its_namespace_under_its_number() {
    let launcher = Launcher::start("demo", Path::new(SHIM)).await.unwrap();
    let (pid, namespace) = (launcher.pid(), netns(launcher.pid()));
    assert_ne!(namespace, netns(std::process::id()));
    assert_eq!(fs::read_link(launcher.netns()).unwrap(), namespace);
    // As a hook does it.
    let added = Program::new("nsenter").args([&format!("--net={}", launcher.netns().display()), "ip", "link", "set", "lo", "up"]).status();
    assert!(added.unwrap().success());

    let (reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(b"through\n").unwrap();
    drop(writer);
    let script = format!("echo $$; readlink /proc/self/ns/net; cat /proc/self/fd/{}; ip -o link show lo; exit 5", reader.as_raw_fd());
    let arguments = ["-c".into(), script.into()].into();
    let process = launcher.launch(&Command { program: "/bin/sh".into(), arguments, inherited: vec![reader.into()] }).unwrap();
    assert_eq!(process.pid(), pid);
    let exit = process.exited().await;
    assert_eq!(exit.status, "exit status 5");
    // What was configured from outside is there.
    assert_eq!(exit.last_lines[..3], [pid.to_string(), namespace.display().to_string(), "through".to_owned()]);
    assert!(exit.last_lines[3].contains("LOOPBACK,UP"), "{:?}", exit.last_lines);
}

#[tokio::test]
async fn what_cannot_be_run_is_told_by_its_end() {
    let launcher = Launcher::start("demo", Path::new(SHIM)).await.unwrap();
    let command = Command { program: "/nonexistent/qemu".into(), arguments: Vec::new(), inherited: Vec::new() };
    let exit = launcher.launch(&command).unwrap().exited().await;
    assert_eq!(exit.status, "exit status 1");
    assert!(exit.to_string().contains("No such file"), "{exit}");
}

#[tokio::test]
async fn it_goes_with_its_owner() {
    let launcher = Launcher::start("demo", Path::new(SHIM)).await.unwrap();
    let process = PathBuf::from(format!("/proc/{}/ns", launcher.pid()));
    drop(launcher);
    let deadline = Instant::now() + Duration::from_secs(20);
    while fs::read_link(process.join("net")).is_ok() {
        assert!(Instant::now() < deadline, "it lives on");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[test]
fn by_hand_it_does_nothing() {
    for arguments in [&["launch-vm"][..], &["launch-vm", "x"], &["launch-vm", "1"], &["launch-vm", "77", "cloister-x"]] {
        let output = Program::new(SHIM).args(arguments).stdin(Stdio::null()).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&output.stderr).contains("no socket"), "{output:?}");
    }
}
