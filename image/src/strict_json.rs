//! JSON in which every object names each key once.
//!
//! Two readers of `{"digest":A,"digest":B}` may take different ones (CVE-2014-8179's class): what one verified, the other runs. So
//! a document with a repeated key is refused as a whole, wherever the key is.

use serde::{
    Deserialize,
    de::{DeserializeOwned, Deserializer, Error as _, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Value};
use std::fmt;

/// Longest manifest, index or image config, in bytes (the distribution specification's own limit for manifests).
pub const MAX_DOCUMENT: usize = 4 << 20;

/// Parses `bytes`, refusing repeated keys and anything after the document. Depth ends at serde_json's 128.
pub fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, serde_json::Error> {
    if bytes.len() > MAX_DOCUMENT {
        return Err(serde_json::Error::custom(format!("longer than {MAX_DOCUMENT} bytes")));
    }
    let Strict(value) = serde_json::from_slice(bytes)?;
    T::deserialize(value)
}

/// As [`parse`], to the untyped document.
pub fn parse_value(bytes: &[u8]) -> Result<Value, serde_json::Error> {
    parse(bytes)
}

struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Strict)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON document")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut out = Vec::new();
        while let Some(Strict(item)) = items.next_element()? {
            out.push(item);
        }
        Ok(Value::Array(out))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut out = Map::new();
        while let Some((key, Strict(value))) = entries.next_entry::<String, Strict>()? {
            if out.contains_key(&key) {
                return Err(A::Error::custom(format!("key {key:?} is given twice")));
            }
            out.insert(key, value);
        }
        Ok(Value::Object(out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeated_key_is_refused_at_every_depth() {
        for text in [r#"{"a":1,"a":1}"#, r#"[{"b":{"a":1,"a":2}}]"#, r#"{"a":1,"\u0061":2}"#] {
            assert!(parse_value(text.as_bytes()).unwrap_err().to_string().contains("given twice"), "{text}");
        }
        let value = parse_value(br#"{"a":[1,-2,3.5,true,null,"x"],"b":{"a":{}}}"#).unwrap();
        assert_eq!(value, serde_json::json!({"a": [1, -2, 3.5, true, null, "x"], "b": {"a": {}}}));
    }

    #[test]
    fn a_tail_depth_and_length_are_refused() {
        assert!(parse_value(b"{} {}").is_err());
        assert!(parse_value("[".repeat(100_000).as_bytes()).is_err());
        assert!(parse_value(&vec![b' '; MAX_DOCUMENT + 1]).unwrap_err().to_string().contains("longer"));
    }
}
