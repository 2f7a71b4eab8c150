//! An OCI runtime spec with each field hostile or missing, for the tests of both sides of the line: `spec.json` has every field of the schema
//! (runtime-spec 1.2, `schema/config-schema.json` and `config-linux.json`) with a value that is right.

use serde_json::{Value, json};

/// Entries of a list without end: above every bound.
const MANY: usize = 20_000;
/// Levels of a value without bottom.
const DEEP: usize = 200;

/// The spec that is right.
pub fn right() -> Value {
    serde_json::from_str(include_str!("spec.json")).expect("spec.json is JSON")
}

/// Every spec that differs from the right one in one place, with the place and what is there now.
pub fn wrong() -> impl Iterator<Item = (String, Value)> {
    let mut places = Vec::new();
    collect(&right(), "", &mut places);
    places.into_iter().flat_map(|place| {
        let without = std::iter::once((format!("{place} missing"), remove(right(), &place)));
        let there = right().pointer(&place).cloned().unwrap_or_default();
        let replaced = hostile(&there).into_iter().map(move |(what, value)| {
            let mut spec = right();
            if let Some(field) = spec.pointer_mut(&place) {
                *field = value;
            }
            (format!("{place} is {what}"), spec)
        });
        without.chain(replaced).collect::<Vec<_>>()
    })
}

fn collect(value: &Value, at: &str, places: &mut Vec<String>) {
    let below: Vec<(String, &Value)> = match value {
        Value::Object(members) => members.iter().map(|(name, value)| (name.replace('~', "~0").replace('/', "~1"), value)).collect(),
        Value::Array(items) => items.iter().enumerate().map(|(index, value)| (index.to_string(), value)).collect(),
        _ => Vec::new(),
    };
    for (name, value) in below {
        let place = format!("{at}/{name}");
        collect(value, &place, places);
        places.push(place);
    }
}

fn remove(mut spec: Value, place: &str) -> Value {
    let (parent, name) = place.rsplit_once('/').unwrap_or_default();
    match spec.pointer_mut(parent) {
        Some(Value::Object(members)) => drop(members.remove(&name.replace("~1", "/").replace("~0", "~"))),
        Some(Value::Array(items)) => drop(name.parse().map(|index: usize| items.remove(index))),
        _ => {}
    }
    spec
}

/// What could stand in a field's place.
fn hostile(there: &Value) -> Vec<(&'static str, Value)> {
    let mut values = vec![
        ("null", Value::Null),
        ("true", json!(true)),
        ("zero", json!(0)),
        ("negative", json!(-1)),
        ("the least number", json!(i64::MIN)),
        ("the greatest number", json!(u64::MAX)),
        ("no whole number", json!(1.5e300)),
        ("an empty string", json!("")),
        ("a NUL", json!("a\0b")),
        ("two lines", json!("a\nb=c\r\u{1b}[2J")),
        ("a way out", json!("../../../etc/passwd")),
        ("a way out of a root", json!("/a/../../etc/passwd")),
        ("the root", json!("/")),
        ("a long string", json!("x".repeat(1 << 16))),
        ("a long path", json!("/x".repeat(1 << 14))),
        ("no ASCII", json!("ä\u{202e}\u{fffd}")),
        ("an empty list", json!([])),
        ("an empty object", json!({})),
        ("deep", (0..DEEP).fold(json!(1), |inner, _| json!([inner]))),
    ];
    if let Value::Array(items) = there {
        let item = items.first().cloned().unwrap_or_default();
        values.push(("a list without end", Value::Array(vec![item.clone(); MANY])));
        values.push(("the same twice", json!([item, item])));
    }
    if let Value::Object(members) = there {
        let value = members.values().next().cloned().unwrap_or_default();
        values.push(("an object without end", (0..MANY).map(|n| (format!("key{n}"), value.clone())).collect()));
        values.push(("of unknown names", json!({"../x": 1, "": {}, "a\nb": []})));
    }
    values
}
