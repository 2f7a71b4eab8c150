use super::{
    containerd::{self, Settings},
    node::{self, Request},
    *,
};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};
use tempfile::TempDir;

const MAIN: &str = "/etc/containerd/config.toml";

fn golden(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/install").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn deployed(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn settings() -> Settings {
    Settings { bin: "/usr/local/bin".into(), snapshotter: None }
}

/// Each case: its files `NAME.before.toml` (unless there is none), `NAME.after.toml` and `NAME.drop-in.toml`.
#[test]
fn containerds_files_are_the_golden_ones_and_go_back() {
    for (name, existing, version) in [
        ("none-1.6", false, Some((1, 6))),
        ("none-2.1", false, Some((2, 1))),
        ("none-2.2", false, Some((2, 2))),
        ("kubeadm-1.7", true, Some((1, 7))),
        ("imports-1.7", true, Some((1, 7))),
        ("imports-2.1", true, Some((2, 1))),
        ("format3", true, None),
        ("snapshotter", true, None),
    ] {
        let before = existing.then(|| golden(&format!("{name}.before.toml")));
        let mut settings = settings();
        if name == "snapshotter" {
            settings = Settings { bin: "/opt/cloister/bin".into(), snapshotter: Some("/run/cloister/snapshotter.sock".into()) };
        }
        let target = containerd::install(Path::new(MAIN), before.as_deref(), version, &settings).unwrap();
        let optional = |what: &str, text: &Option<String>| match text {
            Some(text) => assert_eq!(*text, golden(&format!("{name}.{what}.toml")), "{name}.{what}"),
            None => {
                let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("testdata/install/{name}.{what}.toml"));
                assert!(!path.exists(), "{name}.{what} was not written");
            }
        };
        // A main file that stays as it is has no golden file of its own.
        if target.main != before {
            optional("after", &target.main);
        }
        optional("drop-in", &target.drop_in_text);
        let again = containerd::install(Path::new(MAIN), target.main.as_deref(), version, &settings).unwrap();
        assert_eq!(again, target, "{name} is not idempotent");
        let gone = containerd::uninstall(Path::new(MAIN), target.main.as_deref());
        assert_eq!(gone.main, before, "{name} does not go back");
        assert_eq!((gone.drop_in, gone.drop_in_text), (target.drop_in, None));
    }
}

#[test]
fn what_cannot_be_edited_is_refused_with_what_to_do() {
    let install = |text: &str| containerd::install(Path::new(MAIN), Some(text), None, &settings()).unwrap_err();
    for (text, words) in [
        ("disabled_plugins = []\n", "version = 2"),
        ("version = 1\n", "containerd config migrate"),
        ("version = 4\n", "version is 4"),
        ("version = \"2\"\n", "no number"),
        ("version = 2\n[plugins\n", "line 2"),
        (
            "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.cloister]\nruntime_type = \"x\"\n",
            "without --containerd",
        ),
        ("version = 2\nplugins = {}\n", "line"),
    ] {
        let error = install(text);
        assert!(error.contains(words) && !error.contains('\n'), "{error}");
    }
}

/// A node with both runtimes, and what is to be installed on it.
struct Node {
    dir: TempDir,
    request: Request,
}

impl Node {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (root, from) = (dir.path().join("node"), dir.path().join("built"));
        for folder in [root.join("etc/containerd"), root.join("etc/crio"), from.clone()] {
            fs::create_dir_all(folder).unwrap();
        }
        fs::write(from.join(node::SHIM), "shim 1").unwrap();
        fs::write(from.join("cloister"), "command 1").unwrap();
        fs::write(root.join("etc/containerd/config.toml"), golden("kubeadm-1.7.before.toml")).unwrap();
        let request = Request {
            root,
            bin: "/usr/local/bin".into(),
            from: Some(from),
            guest: None,
            containerd: None,
            crio: None,
            version: Some((1, 7)),
            containerd_config: MAIN.into(),
            snapshotter: None,
        };
        Self { dir, request }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.request.root.join(path)
    }

    fn install(&self) -> Plan {
        let plan = node::install(&self.request).unwrap();
        plan.apply().unwrap();
        plan
    }

    /// Every file below the node's root, with its content.
    fn files(&self) -> Vec<(PathBuf, String)> {
        fn walk(dir: &Path, files: &mut Vec<(PathBuf, String)>) {
            for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
                match entry.file_type().unwrap().is_dir() {
                    true => walk(&entry.path(), files),
                    false => files.push((entry.path(), fs::read_to_string(entry.path()).unwrap())),
                }
            }
        }
        let mut files = Vec::new();
        walk(&self.request.root, &mut files);
        files.sort();
        files
    }
}

#[test]
fn a_node_is_installed_once_and_goes_back() {
    let node = Node::new();
    let before = node.files();
    let plan = node.install();
    assert_eq!(plan.restart, ["containerd", "crio"]);
    assert_eq!(fs::read_to_string(node.path("etc/containerd/config.toml")).unwrap(), golden("kubeadm-1.7.after.toml"));
    assert_eq!(fs::read_to_string(node.path("etc/crio/crio.conf.d/50-cloister.conf")).unwrap(), deployed("crio/50-cloister.conf"));
    assert_eq!(fs::read_to_string(node.path("etc/containerd/config.toml.cloister-backup")).unwrap(), before[0].1);
    let shim = node.path("usr/local/bin/containerd-shim-cloister-v2");
    assert_eq!(fs::metadata(&shim).unwrap().permissions().mode() & 0o7777, 0o755);
    let installed = node.files();
    assert!(installed.iter().all(|(path, _)| !path.display().to_string().contains("cloister-new")), "{installed:?}");

    let again = node.install();
    assert_eq!((again.changes, again.restart.len()), (Vec::new(), 0));
    assert_eq!(node.files(), installed);

    node::uninstall(&node.request, false).unwrap().apply().unwrap();
    let mut left = node.files();
    left.retain(|(path, _)| path.extension().is_none_or(|end| end != "cloister-backup"));
    assert_eq!(left, before);
    assert_eq!(node::uninstall(&node.request, false).unwrap(), Plan::default());
}

#[test]
fn what_runs_keeps_the_binary_that_it_runs() {
    let node = Node::new();
    node.install();
    let shim = node.path("usr/local/bin/containerd-shim-cloister-v2");
    let mut running = fs::File::open(&shim).unwrap();
    fs::write(node.request.from.as_ref().unwrap().join(node::SHIM), "shim 2").unwrap();
    let plan = node.install();
    assert_eq!((plan.changes.len(), plan.restart.len()), (1, 0), "{plan:?}");
    let mut text = String::new();
    std::io::Read::read_to_string(&mut running, &mut text).unwrap();
    assert_eq!((text.as_str(), fs::read_to_string(&shim).unwrap().as_str()), ("shim 1", "shim 2"));
}

#[test]
fn an_administrators_changes_stay() {
    let node = Node::new();
    node.install();
    let (main, ours) = (node.path("etc/containerd/config.toml"), node.path("etc/cloister/config.toml"));
    let changed = format!("{}\n[debug]\nlevel = \"debug\"\n", fs::read_to_string(&main).unwrap());
    fs::write(&main, &changed).unwrap();
    fs::write(&ours, "tee = \"none\"\n").unwrap();
    assert!(node.install().changes.iter().all(|change| change.path != ours));
    let plan = node::uninstall(&node.request, false).unwrap();
    plan.apply().unwrap();
    assert!(plan.notes.iter().any(|note| note.contains("it stays")), "{plan:?}");
    let left = fs::read_to_string(&main).unwrap();
    assert_eq!(left, format!("{}\n[debug]\nlevel = \"debug\"\n", golden("kubeadm-1.7.before.toml")));
    assert_eq!(fs::read_to_string(&ours).unwrap(), "tee = \"none\"\n");
}

#[test]
fn pods_keep_their_runtime() {
    let node = Node::new();
    node.install();
    fs::create_dir_all(node.path("run/cloister/sandboxes/p.0")).unwrap();
    let error = node::uninstall(&node.request, false).unwrap_err().to_string();
    assert!(error.contains("1 pods or containers") && error.contains("--force"), "{error}");
    assert!(!node::uninstall(&node.request, true).unwrap().changes.is_empty());
}

#[test]
fn nothing_is_done_where_something_is_missing() {
    let node = Node::new();
    let before = node.files();
    fs::remove_file(node.request.from.as_ref().unwrap().join("cloister")).unwrap();
    assert!(matches!(node::install(&node.request), Err(InstallError::Missing { .. })));
    fs::write(node.request.from.as_ref().unwrap().join("cloister"), "").unwrap();
    let guest = Request { guest: Some(node.dir.path().join("no-guest")), ..node.request.clone() };
    assert!(matches!(node::install(&guest), Err(InstallError::Configuration { .. })));
    let nowhere = Request { root: node.dir.path().join("empty"), ..node.request.clone() };
    let error = node::install(&nowhere).unwrap_err().to_string();
    assert!(error.contains("--containerd or --crio"), "{error}");
    std::os::unix::fs::symlink("/dev/null", node.path("etc/crio/link")).unwrap();
    let linked = Request { containerd_config: "/etc/crio/link".into(), ..node.request.clone() };
    assert!(node::install(&linked).unwrap_err().to_string().contains("symbolic link"));
    fs::remove_file(node.path("etc/crio/link")).unwrap();
    assert_eq!(node.files(), before);
}

#[test]
fn the_runtime_class_counts_the_vm() {
    assert_eq!(kubernetes::runtime_class(512), deployed("kubernetes/runtimeclass.yaml"));
}

#[test]
fn what_is_deployed_by_hand_is_what_is_installed() {
    assert_eq!(deployed("containerd/50-cloister.toml"), golden("none-2.2.drop-in.toml"));
    assert!(golden("kubeadm-1.7.after.toml").contains(&deployed("containerd/section-format-2.toml")));
}

#[test]
fn manifests_are_well_formed_and_use_what_there_is() {
    use yaml_rust2::{Yaml, YamlLoader};
    let load = |name: &str| YamlLoader::load_from_str(&deployed(name)).unwrap().remove(0);
    let (class, set) = (load("kubernetes/runtimeclass.yaml"), load("kubernetes/daemonset.yaml"));
    assert_eq!((class["kind"].as_str(), class["handler"].as_str()), (Some("RuntimeClass"), Some(HANDLER)));
    let template = &set["spec"]["template"];
    assert_eq!(set["spec"]["selector"]["matchLabels"], template["metadata"]["labels"]);
    let container = &template["spec"]["initContainers"][0];
    let words: Vec<&str> = container["args"].as_vec().unwrap().iter().filter_map(Yaml::as_str).collect();
    let command = <crate::Cli as clap::CommandFactory>::command();
    command.try_get_matches_from(["cloister"].iter().chain(&words)).unwrap();
    let mounts = container["volumeMounts"].as_vec().unwrap();
    for mount in mounts {
        let volumes = template["spec"]["volumes"].as_vec().unwrap();
        assert!(volumes.iter().any(|volume| volume["name"] == mount["name"]), "{mount:?}");
    }
    assert_eq!(mounts[0]["mountPath"].as_str(), Some(words[2]));
}
