//! A draft as `policy.toml`: only what differs from the image, one key per line.

use super::draft::Draft;
use anyhow::Result;
use policy::ContainerRule;
use toml::Value;

/// The text of the policy.
pub(super) fn policy(draft: &Draft, rules: &[ContainerRule]) -> Result<String> {
    let mut out = format!("# {}\n", comment(&draft.title));
    let pod = [
        draft.order.then(|| "order = true\n".to_owned()),
        draft.complete_within_s.map(|seconds| format!("complete_within_s = {seconds}\n")),
        draft.network_off.then(|| "network = false\n".to_owned()),
    ];
    section(&mut out, "[pod]", pod.into_iter().flatten());
    for (rule, wish) in rules.iter().zip(&draft.wishes) {
        let table = Value::try_from(rule)?;
        let (name, digest) = (Value::from(rule.name.as_str()), Value::from(rule.image.digest.as_str()));
        let head = format!("name = {name}\nimage.digest = {digest} # {}\n", comment(&wish.image));
        let keys = table.as_table().into_iter().flatten().filter(|(key, _)| !["name", "image"].contains(&key.as_str()));
        section(&mut out, "[[container]]", std::iter::once(head).chain(keys.map(|(key, value)| format!("{key} = {value}\n"))));
    }
    let list = |key: &str, list: Value| Some(format!("{key} = {list}\n")).filter(|_| list.as_array().is_some_and(|list| !list.is_empty()));
    let allow = [
        list("env", Value::try_from(&draft.env)?),
        list("exec", Value::try_from(&draft.exec)?),
        draft.share_processes.then(|| "share_processes = true\n".to_owned()),
        list("signals", Value::try_from(draft.signals()?)?),
    ];
    section(&mut out, "[allow]", allow.into_iter().flatten());
    Ok(out)
}

/// A table with what is in it, if anything is.
fn section(out: &mut String, head: &str, lines: impl Iterator<Item = String>) {
    let lines: String = lines.collect();
    if !lines.is_empty() {
        let between = if out.ends_with("\n\n") || out.lines().count() == 1 { "" } else { "\n" };
        *out += &format!("{between}{head}\n{lines}");
    }
}

/// A text that stays in its comment.
fn comment(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
