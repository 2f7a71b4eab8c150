//! A container's variables as kubelet makes them, and `$(NAME)` in what refers to them. (kubernetes pkg/kubelet/kubelet_pods.go,
//! third_party/forked/golang/expansion)

use super::{
    contents::Contents,
    manifest::{Container, EnvVar, KeyRef},
};
use anyhow::{Result, bail};
use std::collections::BTreeMap;

/// Variables of the node's choice that every container has.
pub(super) const SERVICES: &str = "KUBERNETES_";
/// A value that only the guest can open, and whose signature it checks.
const SEALED: &str = "sealed.";

/// Each name with its value, or with none where only the node knows it.
#[derive(Debug, Default)]
pub(super) struct Environment(BTreeMap<String, Option<String>>);

impl Environment {
    pub(super) fn of(container: &Container, contents: &Contents, notes: &mut Vec<String>) -> Result<Self> {
        let mut env = Self::default();
        let mut note = |text: String| notes.push(format!("{}: {text}", container.name));
        for from in &container.env_from {
            let (kind, name) = match (&from.config_map_ref, &from.secret_ref) {
                (Some(map), _) => ("ConfigMap", &map.name),
                (_, Some(secret)) => ("Secret", &secret.name),
                _ => continue,
            };
            match contents.of(kind, name) {
                Some(files) => {
                    let known = |value: &[u8]| String::from_utf8(value.to_vec()).ok().filter(|text| kind != "Secret" || is_sealed(text));
                    env.0.extend(files.iter().map(|(key, value)| (format!("{}{key}", from.prefix), known(value))));
                }
                None => {
                    note(format!("envFrom: {kind} {name:?} is not in the file; its variables will be refused, unless allow.env has them"))
                }
            }
            if kind == "Secret" {
                note(format!("variables from Secret {name:?} are the node's word and visible to it; seal them, or ask the workload API"));
            }
        }
        for variable in &container.env {
            let value = env.value(variable, contents, &mut note)?;
            env.0.insert(variable.name.clone(), value);
        }
        Ok(env)
    }

    fn value(&self, variable: &EnvVar, contents: &Contents, note: &mut impl FnMut(String)) -> Result<Option<String>> {
        let name = &variable.name;
        if name.is_empty() || name.contains('=') {
            bail!("env: {name:?} is no name of a variable");
        }
        let Some(from) = &variable.value_from else {
            return Ok(match self.expand(&variable.value) {
                Ok(value) => Some(value),
                Err(other) => {
                    note(format!("{name} has $({other}) in it, which only the node knows; any value is allowed"));
                    None
                }
            });
        };
        let text = |kind, reference: &KeyRef| {
            let value = contents.of(kind, &reference.name).and_then(|files| files.get(&reference.key))?;
            String::from_utf8(value.clone()).ok()
        };
        if let Some(reference) = &from.secret_key_ref {
            let sealed = text("Secret", reference).filter(|text| is_sealed(text));
            if sealed.is_none() {
                note(format!("{name} comes from a Secret, which is the node's word and visible to it; seal it, or ask the workload API"));
            }
            return Ok(sealed);
        }
        let value = from.config_map_key_ref.as_ref().and_then(|reference| text("ConfigMap", reference));
        if let (Some(reference), None) = (&from.config_map_key_ref, &value) {
            note(format!("{name}: key {:?} of ConfigMap {:?} is not in the file; any value is allowed", reference.key, reference.name));
        }
        Ok(value)
    }

    /// `$(NAME)` where the name is known, `$$` for a dollar; everything else stays. The error is a name whose value only the node knows.
    pub(super) fn expand(&self, text: &str) -> Result<String, String> {
        let (mut out, mut rest) = (String::new(), text);
        while let Some(at) = rest.find('$') {
            out.push_str(&rest[..at]);
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix('$') {
                out.push('$');
                rest = after;
            } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
                match self.0.get(name) {
                    Some(Some(value)) => out.push_str(value),
                    None if !name.starts_with(SERVICES) => out.push_str(&format!("$({name})")),
                    _ => return Err(name.to_owned()),
                }
                rest = after;
            } else {
                out.push('$');
            }
        }
        Ok(out + rest)
    }

    /// As a policy lists them.
    pub(super) fn entries(&self) -> Vec<String> {
        self.0.iter().map(|(name, value)| value.as_ref().map_or_else(|| name.clone(), |value| format!("{name}={value}"))).collect()
    }
}

fn is_sealed(text: &str) -> bool {
    text.starts_with(SEALED)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn variables_are_expanded_as_kubelet_does() {
        let env = Environment([("A".to_owned(), Some("1".to_owned())), ("IP".to_owned(), None)].into());
        for (text, wanted) in
            [("$(A)", "1"), ("x$(A)y", "x1y"), ("$$(A)", "$(A)"), ("$(B)", "$(B)"), ("$A", "$A"), ("$", "$"), ("$(A", "$(A"), ("é$$", "é$")]
        {
            assert_eq!(env.expand(text).unwrap(), wanted, "{text}");
        }
        assert_eq!(env.expand("$(IP):80").unwrap_err(), "IP");
        assert_eq!(env.expand("$(KUBERNETES_SERVICE_HOST)").unwrap_err(), "KUBERNETES_SERVICE_HOST");
    }

    #[test]
    fn the_last_word_on_a_variable_counts_and_secrets_are_not_written_down() {
        let documents = [
            json!({"kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"A": "map", "B": "map"}}),
            json!({"kind": "Secret", "metadata": {"name": "s"}, "stringData": {"P": "hunter2", "S": "sealed.x.y"}}),
        ];
        let container: Container = serde_json::from_value(json!({
            "name": "c", "image": "i",
            "envFrom": [{"configMapRef": {"name": "c"}, "prefix": "X_"}, {"configMapRef": {"name": "c"}}, {"secretRef": {"name": "s"}}],
            "env": [
                {"name": "A", "value": "own"},
                {"name": "TWICE", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "TWICE", "value": "$(A)"},
                {"name": "URL", "value": "http://$(IP)/"},
                {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "LATER", "value": "http://$(IP)/"},
                {"name": "Q", "valueFrom": {"secretKeyRef": {"name": "s", "key": "P"}}},
                {"name": "T", "valueFrom": {"secretKeyRef": {"name": "s", "key": "S"}}},
                {"name": "EMPTY"},
            ],
        }))
        .unwrap();
        let mut notes = Vec::new();
        let env = Environment::of(&container, &Contents::read(&documents).unwrap(), &mut notes).unwrap();
        let wanted = [
            "A=own",
            "B=map",
            "EMPTY=",
            "IP",
            "LATER",
            "P",
            "Q",
            "S=sealed.x.y",
            "T=sealed.x.y",
            "TWICE=own",
            "URL=http://$(IP)/",
            "X_A=map",
            "X_B=map",
        ];
        assert_eq!(env.entries(), wanted);
        let notes = notes.join("\n");
        assert!(notes.contains("Q comes from a Secret") && notes.contains("LATER has $(IP)") && !notes.contains("T comes"), "{notes}");
        assert!(!notes.contains("hunter2"));
    }
}
