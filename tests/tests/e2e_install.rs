//! What `cloister install` writes, read by real containerds, none of which is started.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tests::place;

/// A configuration that an administrator has written, in a format that all versions read.
const BEFORE: &str = "version = 2\n\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.other]\nruntime_type = \"io.containerd.other.v2\"\n\
                      \n[plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = \"/the/plugins\"\n";

struct Node(PathBuf);

impl Node {
    fn new(name: &str) -> Self {
        let root = std::env::temp_dir().join(format!("cloister-install-{name}-{}", std::process::id()));
        fs::remove_dir_all(&root).ok();
        fs::create_dir_all(root.join("etc/containerd")).unwrap();
        Self(root)
    }

    fn main(&self) -> PathBuf {
        self.0.join("etc/containerd/config.toml")
    }

    fn cloister(&self, arguments: &[&str]) -> String {
        let output = Command::new(place::ours("cloister").unwrap()).args(arguments).arg("--root").arg(&self.0).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

/// The whole configuration as containerd understands it.
fn dump(version: &str, main: &Path) -> String {
    let program = place::unpacked(&format!("containerd-{version}"), "usr/bin/containerd").unwrap();
    let output = Command::new(program).arg("-c").arg(main).args(["config", "dump"]).output().unwrap();
    assert!(output.status.success(), "{version}: {output:?}");
    String::from_utf8(output.stdout).unwrap().replace('\'', "\"")
}

#[test]
fn every_containerd_reads_it_and_keeps_the_rest() {
    for version in place::CONTAINERD_VERSIONS {
        let number = if version == "2" { "2.1" } else { version };
        for before in [None, Some(BEFORE)] {
            let node = Node::new(version);
            if let Some(text) = before {
                fs::write(node.main(), text).unwrap();
            }
            let class = node.cloister(&["install", "--containerd-version", number, "--snapshotter", "/run/cloister/snapshotter.sock"]);
            assert!(class.contains("kind: RuntimeClass") && class.contains("handler: cloister"), "{class}");
            let text = dump(version, &node.main());
            assert!(text.contains("runtime_type = \"io.containerd.cloister.v2\""), "{version}: {text}");
            assert!(text.contains("\"dev.cloister.*\""), "{version}: {text}");
            // Each looks for a pod's snapshotter in another place, and the newest unpacks with what is listed and nothing else.
            let wanted: &[(&str, usize)] = match version {
                "1.6" => &[("address = \"/run/cloister/snapshotter.sock\"", 1)],
                "1.7" => &[("snapshotter = \"cloister\"", 2), ("unpack_config]]", 2)],
                _ => &[("snapshotter = \"cloister\"", 3), ("runtime_platforms.cloister]", 1), ("unpack_config]]", 2)],
            };
            for (words, times) in wanted {
                assert_eq!(text.matches(words).count(), *times, "{version}: {words}: {text}");
            }
            if before.is_some() {
                assert!(text.contains("io.containerd.other.v2") && text.contains("/the/plugins"), "{version}: {text}");
            }
            assert!(node.0.join("usr/local/bin/containerd-shim-cloister-v2").is_file());
            node.cloister(&["uninstall"]);
            assert_eq!(fs::read_to_string(node.main()).ok().as_deref(), before);
        }
    }
}

#[test]
fn a_drop_in_is_read_where_it_is_used() {
    let node = Node::new("drop-in");
    let folder = node.0.join("drop-ins");
    fs::write(node.main(), BEFORE.replacen("version = 2\n", &format!("version = 2\nimports = [\"{}/*.toml\"]\n", folder.display()), 1))
        .unwrap();
    // The folder is named as containerd sees it, from the root of its machine: here, that of the test.
    let output = Command::new(place::ours("cloister").unwrap())
        .args(["install", "--containerd", "--no-crio", "--containerd-version", "2.1", "--root", "/", "--bin"])
        .arg(node.0.join("bin"))
        .args(["--dry-run", "--json", "--containerd-config"])
        .arg(node.main())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let changes = report["changes"].as_array().unwrap();
    let path = folder.join("50-cloister.toml");
    let change = changes.iter().find(|change| change["path"] == path.display().to_string()).unwrap();
    assert!(!path.exists() && report["dry_run"] == true, "a dry run wrote it");
    fs::create_dir_all(&folder).unwrap();
    let lines = change["diff"].as_str().unwrap().lines().skip(3).map(|line| line.strip_prefix('+').unwrap());
    fs::write(&path, lines.collect::<Vec<_>>().join("\n")).unwrap();
    let text = dump("2", &node.main());
    for word in ["io.containerd.cloister.v2", "io.containerd.other.v2", "/the/plugins"] {
        assert!(text.contains(word), "{word}: {text}");
    }
}
