//! Whether a pod would run under a policy: the guest's own decisions, over what a faithful host would ask for.

use super::{draft::Draft, volumes::Files};
use anyhow::Result;
use policy::{ContainerRule, Copied, CopiedEntry, DEFAULT_CAPABILITIES, Image, Ledger, Overrides, Policy, Stdio, Wanted};

/// Every refusal that the pod would meet, in the order in which it would.
pub(super) fn refusals(policy: &Policy, draft: &Draft, rules: &[ContainerRule]) -> Result<Vec<String>> {
    let mut ledger = Ledger::new(policy.clone());
    let mut out = Vec::new();
    for (rule, wish) in rules.iter().zip(&draft.wishes) {
        let copied = wish.files.iter().map(|files| copied(files, policy, &rule.name)).collect();
        let wanted = Wanted { empty: wish.empty.clone(), copied, ..wanted(rule, &wish.image, draft.share_processes) };
        let name = &rule.name;
        if let Err(denial) = policy.image(&wanted.image) {
            out.push(format!("container {name:?}: {denial}"));
            continue;
        }
        match ledger.admit(&wanted) {
            Ok(Some(place)) if rule.init => ledger.ended(place, 0),
            Ok(_) => {}
            Err(_) => out.extend(ledger.refusals(&wanted).iter().map(|denial| format!("container {name:?}: {denial}"))),
        }
    }
    // One that was refused is missed too; that is no second fault.
    if let Some(name) = ledger.missing().filter(|_| out.is_empty()) {
        out.push(format!("container {name:?} of the policy is not in the pod"));
    }
    let execs = draft.exec.iter().filter_map(|command| policy.exec(command).err());
    out.extend(execs.map(|denial| format!("probe or hook: {denial}")));
    out.extend(draft.signals()?.iter().filter_map(|signal| policy.signal(*signal).err()).map(|denial| format!("its end: {denial}")));
    Ok(out)
}

/// What a host copies in. Where the manifest does not have a content, the one is meant that the policy wants.
fn copied(files: &Files, policy: &Policy, name: &str) -> Copied {
    let rule = policy.containers().iter().find(|rule| rule.name == name);
    let bound = rule.into_iter().flat_map(|rule| &rule.files).filter_map(|entry| {
        let (path, digits) = entry.split_once("=sha256:")?;
        let rest = path.strip_prefix(&files.destination)?;
        let below = if rest.is_empty() { Some(rest) } else { rest.strip_prefix('/') };
        Some((below?.to_owned(), format!("sha256:{digits}")))
    });
    let bound: Vec<(String, String)> = bound.collect();
    let meant = |path: &str| bound.iter().find(|(other, _)| other == path).map(|(_, digest)| digest.clone()).unwrap_or_default();
    let list = match &files.list {
        Some(list) => list.iter().map(|(path, digest)| (path.clone(), digest.clone().unwrap_or_else(|| meant(path)))).collect(),
        None => bound.clone(),
    };
    let entries = list.into_iter().map(|(path, digest)| CopiedEntry::File { path, digest }).collect();
    Copied { destination: files.destination.clone(), entries }
}

/// What a host asks for that does what the rule says.
fn wanted(rule: &ContainerRule, reference: &str, share_processes: bool) -> Wanted {
    // `uid` and `uid::group,…` leave the group to the image: say that it is 0 there.
    let user = rule.user.as_ref().map(|user| if user.contains(':') { user.replace("::", ":0:") } else { format!("{user}:0") });
    let user_of_image = rule.user.clone().filter(|text| Some(text) != user.as_ref());
    let is_dropped = |name: &&&str| {
        let named = rule.drop_capabilities.iter().any(|dropped| dropped == "ALL" || dropped == **name);
        named && !rule.add_capabilities.iter().any(|added| added == **name)
    };
    let pair = |entry: &String| entry.split_once('=').map_or((entry.clone(), String::new()), |(n, v)| (n.into(), v.into()));
    let sysctl = |entry: &String| entry.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
    let overrides = Overrides {
        args: rule.args.clone(),
        env: rule.env.iter().map(pair).collect(),
        user: user.clone(),
        cwd: rule.cwd.clone(),
        capabilities: rule.add_capabilities.iter().filter(|name| !DEFAULT_CAPABILITIES.contains(&name.as_str())).cloned().collect(),
        dropped_capabilities: DEFAULT_CAPABILITIES.iter().filter(is_dropped).map(|name| (*name).to_owned()).collect(),
        mounts: rule.mounts.clone(),
        sysctls: rule.sysctls.iter().filter_map(sysctl).collect(),
        read_only: rule.read_only,
        no_new_privileges: rule.no_new_privileges,
        terminal: rule.terminal,
        share_processes,
        ..Overrides::default()
    };
    Wanted {
        image: Image { reference: reference.to_owned(), digests: vec![rule.image.digest.clone()] },
        args: rule.args.clone().unwrap_or_default(),
        env: rule.env.iter().filter(|entry| entry.contains('=')).cloned().collect(),
        user: user.unwrap_or_default(),
        user_of_image,
        cwd: rule.cwd.clone().unwrap_or_default(),
        overrides,
        empty: Vec::new(),
        copied: Vec::new(),
        disks: rule.disks.iter().map(|disk| disk.destination.clone()).collect(),
        stdio: Stdio { stdin: rule.stdin, output: true, terminal: rule.terminal },
    }
}
