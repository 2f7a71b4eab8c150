//! A `nerdctl run` line, as one would type it.

use super::{
    Draft,
    wish::{Wish, blank, capability},
};
use anyhow::{Context, Result, bail};
use policy::ContainerRule;
use std::collections::BTreeMap;

/// Flags with a value that change nothing of what runs: limits, names, ports, where the image comes from.
const OF_NO_ACCOUNT: &[&str] = &[
    "--annotation",
    "--cgroup-conf",
    "--cgroup-parent",
    "--cidfile",
    "--cpu-period",
    "--cpu-quota",
    "--cpu-shares",
    "--cpus",
    "--cpuset-cpus",
    "--cpuset-mems",
    "--dns",
    "--dns-option",
    "--dns-search",
    "--hostname",
    "--ip",
    "--label",
    "--label-file",
    "--log-driver",
    "--log-opt",
    "--mac-address",
    "--memory",
    "--memory-reservation",
    "--memory-swap",
    "--namespace",
    "--oom-score-adj",
    "--pidfile",
    "--pids-limit",
    "--platform",
    "--publish",
    "--pull",
    "--runtime",
    "--shm-size",
    "--snapshotter",
    "--stop-signal",
    "--stop-timeout",
    "--ulimit",
    "-h",
    "-l",
    "-m",
    "-p",
];

/// Flags without a value of the same kind.
const SWITCHES: &[&str] = &["--detach", "--init", "--quiet", "--rm", "-d", "-q"];

/// The container that a command line describes. `nerdctl` and `run` at its beginning are skipped.
pub(super) fn draft(words: &[String]) -> Result<Draft> {
    let mut words = words.iter().map(String::as_str).peekable();
    while words.next_if(|word| ["sudo", "nerdctl", "docker", "run"].contains(word)).is_some() {}
    let mut draft = Draft { title: "nerdctl run".into(), ..Draft::default() };
    let mut wish = Wish { name: "container".into(), ..Wish::default() };
    let mut rule = blank("container");
    let mut env = BTreeMap::new();
    while let Some(word) = words.next_if(|word| word.starts_with('-')) {
        if let Some(letters) = word.strip_prefix('-').filter(|l| l.len() > 1 && l.chars().all(|c| "itd".contains(c))) {
            rule.stdin |= letters.contains('i');
            rule.terminal |= letters.contains('t');
            continue;
        }
        let (flag, inline) = word.split_once('=').map_or((word, None), |(flag, value)| (flag, Some(value.to_owned())));
        if SWITCHES.contains(&flag) {
            continue;
        }
        let on = |value: &Option<String>| value.as_deref() != Some("false");
        match flag {
            "-i" | "--interactive" => rule.stdin = on(&inline),
            "-t" | "--tty" => rule.terminal = on(&inline),
            "--read-only" => rule.read_only = on(&inline),
            "--privileged" => bail!("--privileged: a guest has no devices of the host to give; remove it"),
            _ => {
                let value = inline.or_else(|| words.next().map(Into::into)).with_context(|| format!("{flag}: needs a value"))?;
                take(flag, value, &mut wish, &mut rule, &mut env, &mut draft)?;
            }
        }
    }
    wish.image = words.next().context("no image in it")?.into();
    let arguments: Vec<String> = words.map(Into::into).collect();
    wish.arguments = (!arguments.is_empty()).then_some(arguments);
    rule.env = env.into_iter().map(|(name, value): (String, String)| format!("{name}={value}")).collect();
    rule.name.clone_from(&wish.name);
    wish.rule = Some(rule);
    draft.wishes.push(wish);
    Ok(draft)
}

fn take(
    flag: &str,
    value: String,
    wish: &mut Wish,
    rule: &mut ContainerRule,
    env: &mut BTreeMap<String, String>,
    draft: &mut Draft,
) -> Result<()> {
    match flag {
        "-e" | "--env" => match value.split_once('=') {
            Some((name, value)) => drop(env.insert(name.into(), value.into())),
            None => bail!("{flag} {value}: its value is the shell's; write {value}=…"),
        },
        "-u" | "--user" => {
            let (uid, gid) = value.split_once(':').map_or((value.as_str(), None), |(uid, gid)| (uid, Some(gid)));
            wish.uid = Some(uid.parse().with_context(|| format!("{flag} {value}: numbers only; a name is looked up by whoever runs it"))?);
            wish.gid = gid.map(str::parse).transpose().with_context(|| format!("{flag} {value}: numbers only"))?;
        }
        "--group-add" => drop(wish.groups.insert(value.parse().with_context(|| format!("{flag} {value}: numbers only"))?)),
        "-w" | "--workdir" => rule.cwd = Some(value),
        "--entrypoint" => wish.entrypoint = Some(vec![value]),
        "--cap-add" if value.eq_ignore_ascii_case("all") => bail!("--cap-add ALL: name them one by one"),
        "--cap-add" => rule.add_capabilities.push(capability(&value)),
        "--cap-drop" => rule.drop_capabilities.push(capability(&value)),
        "--security-opt" if value.starts_with("no-new-privileges") => rule.no_new_privileges = !value.ends_with("=false"),
        "--security-opt" => draft.notes.push(format!("{flag} {value}: a guest makes its own choice; without effect")),
        "--tmpfs" => rule.mounts.push(tmpfs(&value)),
        "--sysctl" => rule.sysctls.push(value),
        "--name" => wish.name = value,
        "--restart" => rule.restart = value != "no",
        "--net" | "--network" => draft.network_off = value == "none",
        "-v" | "--volume" | "--mount" => {
            bail!("{flag} {value}: files of the host do not reach a confidential guest; put them into the image")
        }
        "--device" | "--gpus" => bail!("{flag} {value}: a guest has no devices of the host"),
        _ if OF_NO_ACCOUNT.contains(&flag) => {}
        _ => bail!("{flag}: not known here, so that nothing can be said about what it changes; leave it out"),
    }
    Ok(())
}

/// `path:options` with those options that a policy names. nerdctl adds noexec where nothing is said.
fn tmpfs(value: &str) -> String {
    let (path, options) = value.split_once(':').unwrap_or((value, "noexec"));
    let named = |o: &&str| o.starts_with("mode=") || o.starts_with("nr_inodes=") || ["ro", "noexec"].contains(o);
    let mut named: Vec<&str> = options.split(',').filter(named).collect();
    named.sort_unstable();
    if named.is_empty() { path.to_owned() } else { format!("{path}:{}", named.join(",")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(Into::into).collect()
    }

    #[test]
    fn a_line_is_read_to_its_end() {
        let line = "nerdctl run -it --rm --name=job -e MODE=batch -u 7:8 --cap-drop all --cap-add net_admin --read-only --network none -p 80:80 \
                    --tmpfs /t:size=1m,mode=0700 --restart always --runtime io.containerd.cloister.v2 ghcr.io/acme/job:1 --flag -x";
        let draft = draft(&words(line)).unwrap();
        let wish = &draft.wishes[0];
        let rule = wish.rule.as_ref().unwrap();
        assert_eq!((wish.image.as_str(), wish.arguments.as_deref()), ("ghcr.io/acme/job:1", Some(&words("--flag -x")[..])));
        assert_eq!((wish.uid, wish.gid, draft.network_off), (Some(7), Some(8), true));
        assert_eq!((rule.env.as_slice(), rule.mounts.as_slice()), (&["MODE=batch".to_owned()][..], &["/t:mode=0700".to_owned()][..]));
        assert_eq!(
            (rule.add_capabilities.as_slice(), rule.drop_capabilities.as_slice()),
            (&["CAP_NET_ADMIN".to_owned()][..], &["ALL".to_owned()][..])
        );
        assert!(rule.terminal && rule.stdin && rule.read_only && rule.restart && rule.name == "job");
    }

    #[test]
    fn what_cannot_be_promised_is_refused() {
        for (line, wanted) in [
            ("-v /a:/b x", "-v /a:/b"),
            ("--privileged x", "--privileged"),
            ("--new-flag 1 x", "--new-flag"),
            ("-e HOME x", "HOME="),
            ("-u app x", "numbers"),
            ("--cap-add ALL x", "one by one"),
            ("--rm", "no image"),
        ] {
            assert!(format!("{:#}", draft(&words(line)).unwrap_err()).contains(wanted), "{line}");
        }
    }
}
