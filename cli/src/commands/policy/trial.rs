//! Whether a pod would run under a policy: the guest's own decisions, over the containers that a faithful host would ask for.

use super::Draft;
use policy::{ContainerRule, DEFAULT_CAPABILITIES, Image, Ledger, Overrides, Policy, Stdio, Wanted};

/// Every refusal that the pod would meet, in the order in which it would.
pub(super) fn denials(policy: &Policy, draft: &Draft, rules: &[ContainerRule]) -> Vec<String> {
    let mut ledger = Ledger::new(policy.clone());
    let mut out = Vec::new();
    for (rule, wish) in rules.iter().zip(&draft.wishes) {
        let wanted = wanted(rule, &wish.image);
        let admitted = policy.image(&wanted.image).and_then(|()| ledger.admit(&wanted));
        match admitted {
            Ok(Some(place)) if rule.init => ledger.ended(place, 0),
            Ok(_) => {}
            Err(denial) => out.push(format!("container {:?}: {denial}", rule.name)),
        }
    }
    if let Some(name) = ledger.missing() {
        out.push(format!("container {name:?} of the policy is not in the pod"));
    }
    let execs = draft.exec.iter().filter_map(|command| policy.exec(command).err());
    out.extend(execs.map(|denial| format!("probe or hook: {denial}")));
    out
}

/// What a host asks for that does what the rule says.
fn wanted(rule: &ContainerRule, reference: &str) -> Wanted {
    let user = rule.user.as_ref().map(|user| if user.contains(':') { user.clone() } else { format!("{user}:0") });
    let dropped = |name: &&str| {
        let named = rule.drop_capabilities.iter().any(|d| d == "ALL" || d == *name);
        named && !rule.add_capabilities.iter().any(|a| a == *name)
    };
    let overrides = Overrides {
        args: rule.args.clone(),
        env: rule
            .env
            .iter()
            .map(|entry| entry.split_once('=').map_or((entry.clone(), String::new()), |(n, v)| (n.into(), v.into())))
            .collect(),
        user: user.clone(),
        cwd: rule.cwd.clone(),
        capabilities: rule.add_capabilities.iter().filter(|name| !DEFAULT_CAPABILITIES.contains(&name.as_str())).cloned().collect(),
        dropped_capabilities: DEFAULT_CAPABILITIES.iter().filter(|name| dropped(name)).map(|name| (*name).to_owned()).collect(),
        mounts: rule.mounts.clone(),
        sysctls: rule.sysctls.clone(),
        read_only: rule.read_only,
        no_new_privileges: rule.no_new_privileges,
        terminal: rule.terminal,
    };
    Wanted {
        image: Image { reference: reference.to_owned(), digests: vec![rule.image.digest.clone()] },
        args: rule.args.clone().unwrap_or_default(),
        env: rule.env.iter().filter(|entry| entry.contains('=')).cloned().collect(),
        user: user.unwrap_or_default(),
        cwd: rule.cwd.clone().unwrap_or_default(),
        overrides,
        stdio: Stdio { stdin: rule.stdin, output: true, terminal: rule.terminal },
    }
}
