//! A `nerdctl run` line as a draft of its policy.

use super::{
    draft::{Draft, User, Wish, capability},
    volumes::{File, Files, digest, shortest},
};
use crate::input;
use anyhow::{Context, Result, bail};
use std::{fs, path::Path};

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
    "--stop-timeout",
    "--ulimit",
    "-h",
    "-l",
    "-m",
    "-n",
    "-p",
];
/// Flags without a value of the same kind.
const SWITCHES: &[&str] = &["--detach", "--quiet", "--rm", "-d", "-q"];
/// Most bytes and files that a guest takes of one volume.
const MAX_BYTES: u64 = 32 << 20;
const MAX_FILES: usize = 4096;

/// The container that a command line describes. `nerdctl` and `run` at its beginning are skipped. With `bind_files`, read-only volumes are
/// bound to what is there now.
pub(super) fn draft(words: &[String], bind_files: bool) -> Result<Draft> {
    let mut words = words.iter().map(String::as_str).peekable();
    while words.next_if(|word| ["sudo", "nerdctl", "docker", "run"].contains(word)).is_some() {}
    let mut line = Line { bind_files, ..Line::default() };
    line.draft.title = "nerdctl run".into();
    line.wish.rule.name = "container".into();
    while let Some(word) = words.next_if(|word| word.starts_with('-')) {
        let letters = word.strip_prefix('-').filter(|letters| letters.len() > 1 && letters.chars().all(|c| "itd".contains(c)));
        if let Some(letters) = letters {
            line.wish.rule.stdin |= letters.contains('i');
            line.wish.rule.terminal |= letters.contains('t');
            continue;
        }
        let (flag, inline) = word.split_once('=').map_or((word, None), |(flag, value)| (flag, Some(value)));
        if SWITCHES.contains(&flag) || line.switch(flag, inline)? {
            continue;
        }
        let value = inline.or_else(|| words.next()).with_context(|| format!("{flag}: needs a value"))?;
        line.take(flag, value).with_context(|| format!("{flag} {value}"))?;
    }
    let Line { mut draft, mut wish, env, .. } = line;
    wish.image = words.next().context("no image in it")?.into();
    wish.arguments = Some(words.map(Into::into).collect()).filter(|arguments: &Vec<String>| !arguments.is_empty());
    wish.rule.env = env.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
    draft.wishes.push(wish);
    Ok(draft)
}

#[derive(Default)]
struct Line {
    bind_files: bool,
    draft: Draft,
    wish: Wish,
    env: std::collections::BTreeMap<String, String>,
}

impl Line {
    /// Takes a flag that is on or off; false if it is another.
    fn switch(&mut self, flag: &str, value: Option<&str>) -> Result<bool> {
        let on = match value {
            None | Some("true") => true,
            Some("false") => false,
            Some(_) => return Ok(false),
        };
        let rule = &mut self.wish.rule;
        match flag {
            "-i" | "--interactive" => rule.stdin = on,
            "-t" | "--tty" => rule.terminal = on,
            "--read-only" => rule.read_only = on,
            "--privileged" if on => {
                bail!("--privileged: it would be the whole guest; if that is meant, write allow.privileged and its capabilities by hand")
            }
            "--init" if on => bail!("--init: its program is the node's, which does not reach into a guest; put one into the image"),
            "--privileged" | "--init" => {}
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn take(&mut self, flag: &str, value: &str) -> Result<()> {
        let (rule, User { uid, gid, groups }) = (&mut self.wish.rule, &mut self.wish.user);
        let number = |text: &str| text.parse::<u32>().context("numbers only; a name is looked up by whoever runs it");
        match flag {
            "-e" | "--env" => match value.split_once('=') {
                Some((name, value)) if !name.is_empty() => drop(self.env.insert(name.into(), value.into())),
                _ => bail!("its value is the shell's; write {value}=…"),
            },
            "-u" | "--user" => {
                let (user, group) = value.split_once(':').map_or((value, None), |(user, group)| (user, Some(group)));
                (*uid, *gid) = (Some(number(user)?), group.map(number).transpose()?);
            }
            "--group-add" => drop(groups.insert(number(value)?)),
            "-w" | "--workdir" => rule.cwd = Some(value.into()),
            "--entrypoint" => self.wish.entrypoint = Some(vec![value.into()]),
            "--cap-add" if value.eq_ignore_ascii_case("all") => bail!("name them one by one"),
            "--cap-add" => rule.add_capabilities.push(capability(value)),
            "--cap-drop" => rule.drop_capabilities.push(capability(value)),
            "--security-opt" if value.starts_with("no-new-privileges") => rule.no_new_privileges = !value.ends_with("false"),
            "--security-opt" => self.draft.notes.push(format!("{flag} {value}: a guest makes its own choice; without effect")),
            "--tmpfs" => rule.mounts.push(tmpfs(value)?),
            "--sysctl" => rule.sysctls.push(value.into()),
            "--name" => rule.name = value.into(),
            "--restart" => rule.restart = value != "no",
            "--stop-signal" => self.draft.stop_signals.push(value.into()),
            "--net" | "--network" => self.draft.network_off = value == "none",
            "-v" | "--volume" => self.volume(value)?,
            "--mount" => bail!("write it as -v SOURCE:DESTINATION:ro"),
            "--device" | "--gpus" => bail!("a guest has no devices of the host"),
            _ if OF_NO_ACCOUNT.contains(&flag) => {}
            _ => bail!("not known here, so that nothing can be said about what it changes; leave it out"),
        }
        Ok(())
    }

    /// What is read-only is copied in.
    fn volume(&mut self, value: &str) -> Result<()> {
        let [source, destination, options] = value.split(':').collect::<Vec<_>>()[..] else {
            bail!("what a container writes does not reach the host; write SOURCE:DESTINATION:ro, or --tmpfs DESTINATION");
        };
        if !options.split(',').any(|option| option == "ro") || !source.contains('/') {
            bail!("what a container writes does not reach the host; mount a file or directory read-only (:ro), or use --tmpfs");
        }
        let list = if self.bind_files { Some(read(Path::new(source))?) } else { None };
        let files = Files { destination: shortest(destination)?, list };
        files.allow(self.bind_files, &mut self.wish.rule);
        if !self.bind_files {
            self.draft.notes.push(format!("any content at {destination} will be taken; --bind-files binds it to what is at {source} now"));
        }
        self.wish.files.push(files);
        Ok(())
    }
}

/// The files at and below a path, and their contents. Links are what they lead to for a reader on the host, and not for one in the guest.
fn read(source: &Path) -> Result<Vec<File>> {
    let (mut found, mut bytes, mut pending) = (Vec::new(), 0, vec![String::new()]);
    while let Some(path) = pending.pop() {
        let place = if path.is_empty() { source.to_owned() } else { source.join(&path) };
        let shown = || place.display().to_string();
        // The volume itself may be a link; what is in it may not.
        let kind = if path.is_empty() { fs::metadata(&place) } else { fs::symlink_metadata(&place) }.with_context(shown)?;
        if kind.is_dir() {
            for entry in fs::read_dir(&place).with_context(shown)? {
                let name = entry.with_context(shown)?.file_name().into_string().ok().with_context(|| format!("{}: not UTF-8", shown()))?;
                pending.push(if path.is_empty() { name } else { format!("{path}/{name}") });
            }
        } else if kind.is_file() {
            let content = input::read(&place, MAX_BYTES)?;
            bytes += content.len() as u64;
            found.push((path, Some(digest(&content))));
        } else {
            bail!("{}: neither a file nor a directory; only those can be bound", shown());
        }
        if bytes > MAX_BYTES || found.len() + pending.len() > MAX_FILES {
            bail!("{}: a guest takes at most {} MiB and {MAX_FILES} files", source.display(), MAX_BYTES >> 20);
        }
    }
    found.sort();
    Ok(found)
}

/// `path:options` with those options that a policy names. nerdctl adds noexec where nothing is said.
fn tmpfs(value: &str) -> Result<String> {
    let (path, options) = value.split_once(':').unwrap_or((value, "noexec"));
    let is_limit = |key: &str| ["size", "nr_blocks", "nr_inodes"].contains(&key);
    let is_named = |option: &&str| option.split_once('=').map_or(["ro", "noexec"].contains(option), |(key, _)| !is_limit(key));
    let mut named: Vec<&str> = options.split(',').filter(is_named).collect();
    named.sort_unstable();
    let path = shortest(path)?;
    Ok(if named.is_empty() { path } else { format!("{path}:{}", named.join(",")) })
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
                    --tmpfs /t:size=1m,mode=0700 --restart always --stop-signal WINCH --runtime io.containerd.cloister.v2 \
                    -v /srv/conf:/etc/conf:ro --init=false ghcr.io/acme/job:1 --flag -x";
        let draft = draft(&words(line), false).unwrap();
        let Wish { rule, image, arguments, user, .. } = &draft.wishes[0];
        assert_eq!((image.as_str(), arguments.as_deref()), ("ghcr.io/acme/job:1", Some(&words("--flag -x")[..])));
        assert_eq!((user.uid, user.gid, draft.network_off), (Some(7), Some(8), true));
        assert_eq!(
            (&rule.env[..], &rule.mounts[..], &rule.files[..]),
            (&words("MODE=batch")[..], &words("/t:mode=0700")[..], &words("/etc/conf")[..])
        );
        assert_eq!((&rule.add_capabilities[..], &rule.drop_capabilities[..]), (&words("CAP_NET_ADMIN")[..], &words("ALL")[..]));
        assert!(rule.terminal && rule.stdin && rule.read_only && rule.restart && rule.name == "job");
        assert!(draft.signals().unwrap().contains(&28));
    }

    #[test]
    fn volumes_are_bound_to_what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("d")).unwrap();
        fs::write(dir.path().join("d/x"), "1").unwrap();
        fs::write(dir.path().join("y"), "2").unwrap();
        let bound = |source: &Path| draft(&["-v".into(), format!("{}:/c/:ro", source.display()), "i".into()], true);
        let rule = |source: &Path| bound(source).unwrap().wishes[0].rule.clone();
        let all = rule(dir.path());
        assert_eq!(
            (&all.mounts[..], &all.files[..]),
            (&words("/c")[..], &[format!("/c/d/x={}", digest(b"1")), format!("/c/y={}", digest(b"2"))][..])
        );
        let one = rule(&dir.path().join("y"));
        assert_eq!((one.mounts.len(), &one.files[..]), (0, &[format!("/c={}", digest(b"2"))][..]));
        std::os::unix::fs::symlink("y", dir.path().join("link")).unwrap();
        assert!(format!("{:#}", bound(dir.path()).unwrap_err()).contains("link: neither"));
        assert!(format!("{:#}", bound(&dir.path().join("none")).unwrap_err()).contains("none"));
    }

    #[test]
    fn what_cannot_be_promised_is_refused() {
        for (line, wanted) in [
            ("-v /a:/b x", "-v /a:/b"),
            ("-v /a:/b:rw x", "read-only"),
            ("-v name:/b:ro x", "read-only"),
            ("--mount type=bind,src=/a,dst=/b x", "-v SOURCE"),
            ("--privileged x", "--privileged"),
            ("--init x", "--init"),
            ("--new-flag 1 x", "--new-flag"),
            ("--pid host x", "--pid host"),
            ("-e HOME x", "HOME="),
            ("-e =x x", "shell"),
            ("-u app x", "numbers"),
            ("--cap-add ALL x", "one by one"),
            ("--tmpfs ../x x", "--tmpfs ../x"),
            ("--name", "needs a value"),
            ("--rm", "no image"),
        ] {
            let error = format!("{:#}", draft(&words(line), false).unwrap_err());
            assert!(error.contains(wanted), "{line}: {error}");
        }
    }
}
