//! JSON Canonicalization Scheme (RFC 8785), as far as the protocol needs it: objects, arrays, strings, booleans, null and integers
//! that JavaScript represents exactly. Fractions are refused instead of being written a little differently than the peer does.

use serde_json::Value;
use thiserror::Error;

/// Largest integer that every IEEE 754 double around it can tell from its neighbours (RFC 8785 §3.2.2.3).
const MAX_SAFE_INTEGER: i64 = (1 << 53) - 1;

/// What has no canonical form here.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{0}: only integers up to 2^53 have a canonical form here")]
pub struct NumberError(String);

/// The canonical text of `value`.
pub fn canonical(value: &Value) -> Result<String, NumberError> {
    let mut out = String::new();
    write(value, &mut out)?;
    Ok(out)
}

fn write(value: &Value, out: &mut String) -> Result<(), NumberError> {
    match value {
        Value::Number(number) => {
            let integer = number.as_i64().filter(|n| n.unsigned_abs() <= MAX_SAFE_INTEGER.unsigned_abs());
            let integer = integer.ok_or_else(|| NumberError(number.to_string()))?;
            out.push_str(&integer.to_string());
        }
        Value::Array(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                write(item, out)?;
            }
            out.push(']');
        }
        Value::Object(members) => {
            let mut sorted: Vec<_> = members.iter().collect();
            // By UTF-16 code units, which is not the order of UTF-8 bytes beyond the basic plane (RFC 8785 §3.2.3).
            sorted.sort_by(|(a, _), (b, _)| a.encode_utf16().cmp(b.encode_utf16()));
            out.push('{');
            for (index, (name, item)) in sorted.into_iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                // A JSON string: this serializer escapes exactly what RFC 8785 §3.2.2.2 wants escaped, in its form.
                out.push_str(&Value::from(name.as_str()).to_string());
                out.push(':');
                write(item, out)?;
            }
            out.push('}');
        }
        Value::String(_) | Value::Bool(_) | Value::Null => out.push_str(&value.to_string()),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn members_are_sorted_at_every_depth() {
        let value = json!({"b": 1, "a": "test", "c": {"z": [true, null, -7], "d": "e"}});
        assert_eq!(canonical(&value).unwrap(), r#"{"a":"test","b":1,"c":{"d":"e","z":[true,null,-7]}}"#);
    }

    #[test]
    fn names_sort_by_utf16_and_strings_are_escaped_as_the_rfc_shows() {
        // RFC 8785 §3.2.3: U+1F600 (surrogates D83D DE00) comes before U+FB33.
        let value = json!({"\u{20ac}": 1, "\r": 2, "\u{fb33}": 3, "1": 4, "\u{1f600}": 5, "\u{80}": 6, "\u{f6}": 7});
        let wanted = "{\"\\r\":2,\"1\":4,\"\u{80}\":6,\"\u{f6}\":7,\"\u{20ac}\":1,\"\u{1f600}\":5,\"\u{fb33}\":3}";
        assert_eq!(canonical(&value).unwrap(), wanted);
        let value = json!("\u{20ac}$\u{f}\nA'B\"\\\"/\u{8}\u{c}\t\u{7f}");
        assert_eq!(canonical(&value).unwrap(), "\"\u{20ac}$\\u000f\\nA'B\\\"\\\\\\\"/\\b\\f\\t\u{7f}\"");
    }

    #[test]
    fn numbers_without_one_form_are_refused() {
        assert_eq!(canonical(&json!(MAX_SAFE_INTEGER)).unwrap(), "9007199254740991");
        for bad in [json!(1.5), json!(1e30), json!(u64::MAX), json!(MAX_SAFE_INTEGER + 1), json!([{"a": 0.1}]), json!(i64::MIN)] {
            assert!(canonical(&bad).is_err(), "{bad}");
        }
    }
}
