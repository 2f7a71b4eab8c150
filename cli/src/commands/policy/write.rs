//! A draft as `policy.toml`: only what differs from the image, one key per line.

use super::Draft;
use anyhow::Result;
use policy::ContainerRule;
use toml::Value;

/// The text of the policy.
pub(super) fn policy(draft: &Draft, rules: &[ContainerRule]) -> Result<String> {
    let mut out = format!("# {}\n", draft.title);
    if draft.order || draft.network_off || draft.complete_within_s.is_some() {
        out += "[pod]\n";
        let order = draft.order.then(|| "order = true\n".to_owned());
        let complete = draft.complete_within_s.map(|seconds| format!("complete_within_s = {seconds}\n"));
        let network = draft.network_off.then(|| "network = false\n".to_owned());
        out.extend([order, complete, network].into_iter().flatten());
        out.push('\n');
    }
    for (rule, wish) in rules.iter().zip(&draft.wishes) {
        out += "[[container]]\n";
        let table = Value::try_from(rule)?;
        let keys = table.as_table().into_iter().flatten();
        let (name, image) = (Value::from(rule.name.as_str()), Value::from(rule.image.digest.as_str()));
        out += &format!("name = {name}\nimage.digest = {image} # {}\n", wish.image.replace('\n', " "));
        for (key, value) in keys.filter(|(key, _)| !["name", "image"].contains(&key.as_str())) {
            out += &format!("{key} = {value}\n");
        }
        out.push('\n');
    }
    let lists = [("env", Value::try_from(&draft.env)?), ("exec", Value::try_from(&draft.exec)?)];
    let lists: Vec<_> = lists.iter().filter(|(_, list)| list.as_array().is_some_and(|list| !list.is_empty())).collect();
    if !lists.is_empty() {
        out += "[allow]\n";
        out.extend(lists.iter().map(|(key, list)| format!("{key} = {list}\n")));
    }
    Ok(out.trim_end().to_owned() + "\n")
}
