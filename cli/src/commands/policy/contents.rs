//! ConfigMaps and Secrets that stand beside a workload in its file: what a node would hand to the guest.

use super::manifest::text;
use anyhow::{Context, Result, bail};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::Value;
use std::collections::BTreeMap;

/// ConfigMaps and Secrets of a file, by kind and name: key to content.
#[derive(Debug, Default)]
pub(super) struct Contents(BTreeMap<(&'static str, String), BTreeMap<String, Vec<u8>>>);

impl Contents {
    pub(super) fn read(documents: &[Value]) -> Result<Self> {
        let mut all = BTreeMap::new();
        for document in documents {
            let (kind, encoded) = match text(document, "/kind") {
                "ConfigMap" => ("ConfigMap", false),
                "Secret" => ("Secret", true),
                _ => continue,
            };
            let name = text(document, "/metadata/name").to_owned();
            let mut files = BTreeMap::new();
            for (member, base64) in [("data", encoded), ("binaryData", true), ("stringData", false)] {
                for (key, value) in document.get(member).and_then(Value::as_object).into_iter().flatten() {
                    let place = || format!("{kind} {name:?}: {member}.{key}");
                    let value = value.as_str().with_context(|| format!("{}: not a text; quote it", place()))?;
                    let plain: String = value.split_whitespace().collect();
                    let bytes = if base64 { STANDARD.decode(plain).with_context(place)? } else { value.into() };
                    files.insert(key.clone(), bytes);
                }
            }
            if all.insert((kind, name.clone()), files).is_some() {
                bail!("{kind} {name:?} is in it twice");
            }
        }
        Ok(Self(all))
    }

    pub(super) fn of(&self, kind: &'static str, name: &str) -> Option<&BTreeMap<String, Vec<u8>>> {
        self.0.get(&(kind, name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn contents_are_what_they_are_on_a_node() {
        let documents = [
            json!({"kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"a": "x\n"}, "binaryData": {"b": "AAE="}}),
            json!({"kind": "Secret", "metadata": {"name": "s"}, "data": {"a": "eA==", "b": "eA=="}, "stringData": {"b": "plain"}}),
        ];
        let contents = Contents::read(&documents).unwrap();
        let of = |kind, name, key: &str| contents.of(kind, name).unwrap()[key].clone();
        assert_eq!((of("ConfigMap", "c", "a"), of("ConfigMap", "c", "b")), (b"x\n".to_vec(), vec![0, 1]));
        assert_eq!((of("Secret", "s", "a"), of("Secret", "s", "b")), (b"x".to_vec(), b"plain".to_vec()));
        for (document, wanted) in [
            (json!({"kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"a": 1}}), "data.a: not a text"),
            (json!({"kind": "Secret", "metadata": {"name": "s"}, "data": {"a": "%"}}), "Secret \"s\": data.a"),
            (documents[0].clone(), "twice"),
        ] {
            let error = format!("{:#}", Contents::read(&[documents[0].clone(), document]).unwrap_err());
            assert!(error.contains(wanted), "{error}");
        }
    }
}
