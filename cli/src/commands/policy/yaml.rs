//! YAML into JSON values: the owner's own manifests, never a host's.

use anyhow::{Result, bail};
use saphyr::{LoadableYamlNode, Scalar, Yaml};
use serde_json::{Map, Value};

/// The documents of a file, without empty ones.
pub(super) fn documents(text: &str) -> Result<Vec<Value>> {
    let documents = Yaml::load_from_str(text)?;
    let values = documents.iter().map(value).collect::<Result<Vec<_>>>()?;
    Ok(values.into_iter().filter(|value| !value.is_null()).collect())
}

fn value(node: &Yaml<'_>) -> Result<Value> {
    Ok(match node {
        Yaml::Value(Scalar::Null) => Value::Null,
        Yaml::Value(Scalar::Boolean(b)) => Value::Bool(*b),
        Yaml::Value(Scalar::Integer(n)) => Value::from(*n),
        Yaml::Value(Scalar::FloatingPoint(n)) => Value::from(n.0),
        Yaml::Value(Scalar::String(text)) => Value::from(text.as_ref()),
        Yaml::Sequence(items) => Value::Array(items.iter().map(value).collect::<Result<_>>()?),
        Yaml::Mapping(members) => {
            let mut object = Map::new();
            for (name, item) in members {
                let Some(name) = name.as_str() else { bail!("a key that is not a text") };
                object.insert(name.to_owned(), value(item)?);
            }
            Value::Object(object)
        }
        Yaml::Tagged(_, inner) => value(inner)?,
        Yaml::Representation(..) | Yaml::Alias(_) | Yaml::BadValue => bail!("a value that cannot be read"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn manifests_become_values() {
        let text = "a: {b: [1, 'yes', true, null, 0.5]}\nc: |\n  two\n  lines\n---\n---\n- x\n";
        assert_eq!(documents(text).unwrap(), [json!({"a": {"b": [1, "yes", true, null, 0.5]}, "c": "two\nlines\n"}), json!(["x"])]);
        assert!(documents("a: [").is_err());
        assert!(documents("? [a]\n: b\n").is_err());
    }
}
