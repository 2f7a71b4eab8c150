//! A policy in sentences, one for each thing that must be or may be done: for whoever signs it, and, as a difference of two lists, for
//! whoever reviews a change of it.

use crate::{allow::Allow, container::ContainerRule, rules::AllowRules, workload::Policy};
use std::fmt::Display;

/// The policy in sentences. The order is that of the file; equal policies give equal lists.
pub fn explain(policy: &Policy) -> Vec<String> {
    let Some(rules) = policy.rules() else {
        return vec!["No initdata: the host may do anything, and no broker releases anything.".into()];
    };
    let mut lines = Vec::new();
    if rules.image.is_empty() && rules.container.is_empty() {
        let any = if policy.is_signed() { "that is signed as the initdata demands it" } else { "that verifies" };
        lines.push(format!("Any image may run {any}."));
    }
    if let Some(reason) = policy.secrets_for_any_image() {
        lines.push(format!("No guest takes this policy: {reason}."));
    }
    for image in &rules.image {
        lines.push(format!("The image {} may run{}.", image.digest, from(image.repository.as_deref())));
    }
    for container in &rules.container {
        describe(container, &mut lines);
    }
    if !rules.container.is_empty() {
        lines.push("No other container may be created.".into());
    }
    if rules.pod.order {
        lines.push("Containers are created in the order of the policy.".into());
    }
    if let Some(seconds) = rules.pod.complete_within_s {
        lines.push(format!("All containers are created within {seconds} s of the first, or the machine ends."));
    }
    if !rules.pod.network {
        lines.push("The pod has no network.".into());
    }
    allowed(&rules.allow, &mut lines);
    lines
}

/// What `new` says and `old` does not (`+`), and the reverse (`-`).
pub fn difference(old: &Policy, new: &Policy) -> Vec<String> {
    let (old, new) = (explain(old), explain(new));
    let gone = old.iter().filter(|line| !new.contains(line)).map(|line| format!("- {line}"));
    gone.chain(new.iter().filter(|line| !old.contains(line)).map(|line| format!("+ {line}"))).collect()
}

fn from(repository: Option<&str>) -> String {
    repository.map(|name| format!(", from {name}")).unwrap_or_default()
}

fn describe(rule: &ContainerRule, lines: &mut Vec<String>) {
    let name = format!("Container {:?}", rule.name);
    lines.push(format!("{name} runs the image {}{}.", rule.image.digest, from(rule.image.repository.as_deref())));
    let mut says = |what: String| lines.push(format!("{name} {what}."));
    match &rule.args {
        Some(args) => says(format!("runs the command {args:?}")),
        None => says("runs the image's own command".into()),
    }
    for entry in &rule.env {
        says(match entry.split_once('=') {
            Some(_) => format!("has {entry} in its environment"),
            None => format!("may have {entry} with any value in its environment"),
        });
    }
    if let Some(user) = &rule.user {
        says(format!("runs as user {user}"));
    }
    if let Some(cwd) = &rule.cwd {
        says(format!("runs in {cwd}"));
    }
    rule.add_capabilities.iter().for_each(|capability| says(format!("has the capability {capability}")));
    rule.drop_capabilities.iter().for_each(|capability| says(format!("lacks the capability {capability}")));
    for mount in &rule.mounts {
        let filled = rule.files.iter().any(|file| file.strip_prefix(mount.as_str()).is_some_and(|rest| rest.starts_with('/')));
        says(if filled { format!("has a directory of such files at {mount}") } else { format!("has something empty mounted at {mount}") });
    }
    for (path, name) in rule.shared.iter().filter_map(|entry| entry.split_once('=')) {
        says(format!("has at {path} the directory {name:?}, with whoever else has it"));
    }
    for disk in &rule.disks {
        let empty = if disk.format { "; an empty one becomes a new one" } else { "" };
        says(format!("has at {} the disk that {} opens{empty}", disk.destination, disk.key));
    }
    rule.sysctls.iter().for_each(|sysctl| says(format!("has the kernel parameter {sysctl}")));
    rule.secrets.iter().for_each(|secret| says(format!("may have {secret} at the workload API")));
    for file in &rule.files {
        says(match file.split_once("=sha256:") {
            Some((path, digest)) => format!("gets the file {path} with the content sha256:{digest}"),
            None => format!("may get any files from the host at and below {file}"),
        });
    }
    let flags = [
        (rule.read_only, "has a read-only root file system"),
        (rule.no_new_privileges, "gains no privileges from set-user-id programs"),
        (rule.terminal, "has a terminal"),
        (rule.stdin, "reads standard input from the host"),
        (rule.restart, "may be created again after its end"),
        (rule.init, "must end with 0 before the next container"),
    ];
    flags.into_iter().filter(|(set, _)| *set).for_each(|(_, what)| says(what.into()));
}

fn allowed(allow: &AllowRules, lines: &mut Vec<String>) {
    each(&allow.args, lines, "run any command", |args| format!("run the command {args:?}"));
    each(&allow.env, lines, "set any environment variable", |entry| match entry.split_once('=') {
        Some(_) => format!("set {entry} in the environment"),
        None => format!("set {entry} to any value in the environment"),
    });
    each(&allow.user, lines, "choose any user", |user| format!("choose the user {user}"));
    each(&allow.cwd, lines, "choose any working directory", |cwd| format!("choose the working directory {cwd}"));
    each(&allow.capabilities, lines, "add any capability", |capability| format!("add the capability {capability}"));
    each(&allow.mounts, lines, "mount something empty anywhere", |mount| format!("mount something empty at {mount}"));
    each(&allow.devices, lines, "give containers any disk", |path| format!("give containers a disk at {path}"));
    each(&allow.port_forward, lines, "connect to any port of the pod", |port| format!("connect to port {port} of the pod"));
    each(&allow.sysctls, lines, "set any kernel parameter of the IPC namespace", |sysctl| format!("set {sysctl}"));
    each(&allow.copy_in, lines, "copy any file into containers", |file| match file.split_once("=sha256:") {
        Some((path, digest)) => format!("copy in {path} with the content sha256:{digest}"),
        None => format!("copy any files to {file}"),
    });
    each(&allow.exec, lines, "run any further command in a container", |args| format!("run {args:?} in a container"));
    each(&allow.signals, lines, "send any signal", |signal| format!("send signal {signal}"));
    match &allow.secrets {
        Allow::All(false) => {}
        Allow::All(true) => lines.push("Containers may have every secret that the broker releases, token and evidence.".into()),
        Allow::Only(names) => lines.extend(names.iter().map(|name| format!("Containers may have {name} at the workload API."))),
    }
    let flags = [
        (allow.privileged, "The host may create privileged containers."),
        (allow.share_processes, "The host may let the pod's containers see each other's processes."),
        (allow.terminal, "The host may give containers a terminal."),
        (allow.stdin, "The host may write to standard input."),
        (allow.output, "Standard output and error reach the host."),
        (allow.stats, "Numbers of processes, memory and processor time reach the host."),
    ];
    lines.extend(flags.into_iter().filter(|(set, _)| *set).map(|(_, line)| line.to_owned()));
}

fn each<T>(allow: &Allow<T>, lines: &mut Vec<String>, anything: impl Display, one: impl Fn(&T) -> String) {
    match allow {
        Allow::All(false) => {}
        Allow::All(true) => lines.push(format!("The host may {anything}.")),
        Allow::Only(list) => lines.extend(list.iter().map(|entry| format!("The host may {}.", one(entry)))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_a_few_sentences() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let text = format!("[[container]]\nname = \"api\"\nimage.digest = {digest:?}\nenv = [\"MODE=a\"]\n");
        let old = Policy::parse(&text).unwrap();
        assert!(explain(&old).contains(&"Container \"api\" has MODE=a in its environment.".to_owned()));
        assert_eq!(difference(&old, &old), Vec::<String>::new());
        let new = Policy::parse(&(text.replace("MODE=a", "MODE=b") + "[allow]\nexec = true\noutput = false\n")).unwrap();
        assert_eq!(
            difference(&old, &new),
            [
                "- Container \"api\" has MODE=a in its environment.",
                "- Standard output and error reach the host.",
                "+ Container \"api\" has MODE=b in its environment.",
                "+ The host may run any further command in a container.",
            ]
        );
    }

    #[test]
    fn secrets_for_any_image_are_called_what_they_are() {
        let lines = explain(&Policy::parse("[allow]\nsecrets = [\"token\"]\n").unwrap());
        assert!(lines.iter().any(|line| line.starts_with("No guest takes this policy: allow.secrets")), "{lines:?}");
    }

    /// A rule that `explain` is silent about would pass a review unseen.
    #[test]
    fn every_key_is_explained() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let base = format!("[[container]]\nname = \"api\"\nimage.digest = {digest:?}\n");
        let plain = Policy::parse(&base).unwrap();
        for key in [
            "args = [\"/x\"]",
            "env = [\"A=b\"]",
            "user = \"1\"",
            "cwd = \"/x\"",
            "add_capabilities = [\"CAP_X\"]",
            "drop_capabilities = [\"ALL\"]",
            "mounts = [\"/m\"]",
            "files = [\"/f\"]",
            "sysctls = [\"kernel.sem=1\"]",
            "secrets = [\"token\"]",
            "disks = [{ destination = \"/d\", key = \"kbs:///a/b/c\" }]",
            "read_only = true",
            "no_new_privileges = true",
            "terminal = true",
            "stdin = true",
            "restart = true",
            "init = true",
            "[pod]\norder = true",
            "[pod]\ncomplete_within_s = 1",
            "[pod]\nnetwork = false",
        ] {
            assert!(!difference(&plain, &Policy::parse(&format!("{base}{key}\n")).unwrap()).is_empty(), "{key}");
        }
        let allow = toml::to_string(&AllowRules::default()).unwrap();
        for line in allow.lines() {
            let (key, value) = line.split_once(" = ").unwrap();
            let other = if value == "true" { "false" } else { "true" };
            let changed = Policy::parse(&format!("{base}[allow]\n{key} = {other}\n")).unwrap();
            assert!(!difference(&plain, &changed).is_empty(), "{key}");
        }
        let kept = Policy::parse(&format!("{base}disks = [{{ destination = \"/d\", key = \"kbs:///a/b/c\" }}]\n")).unwrap();
        let new = Policy::parse(&format!("{base}disks = [{{ destination = \"/d\", key = \"kbs:///a/b/c\", format = true }}]\n")).unwrap();
        assert_eq!(
            difference(&kept, &new)[1],
            "+ Container \"api\" has at /d the disk that kbs:///a/b/c opens; an empty one becomes a new one."
        );
        let mounted = Policy::parse(&format!("{base}mounts = [\"/m\"]\n")).unwrap();
        let shared = Policy::parse(&format!("{base}mounts = [\"/m\"]\nshared = [\"/m=x\"]\n")).unwrap();
        assert_eq!(difference(&mounted, &shared), ["+ Container \"api\" has at /m the directory \"x\", with whoever else has it."]);
    }
}
