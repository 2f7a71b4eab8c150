//! YAML into JSON values. Manifests are the owner's own or a chart's: a few lines can claim gigabytes by aliases of aliases, or a stack by
//! nesting, so both have a bound, and nothing here calls itself.

use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Map, Value};
use std::collections::HashMap;
use yaml_rust2::{
    Event,
    parser::{Parser, Tag},
    scanner::TScalarStyle,
};

/// Most values in a file, those counted that an alias repeats.
const MAX_VALUES: usize = 100_000;
/// Deepest nesting. A CronJob has about twenty.
const MAX_DEPTH: usize = 64;

/// The documents of a file, without empty ones; those of a `List` one by one.
pub(super) fn documents(text: &str) -> Result<Vec<Value>> {
    let mut parser = Parser::new_from_str(text);
    let (mut builder, mut documents) = (Builder::default(), Vec::new());
    loop {
        let (event, mark) = parser.next_token().map_err(|error| anyhow!("{error}"))?;
        let line = || format!("line {}", mark.line());
        match event {
            Event::StreamEnd => break,
            Event::DocumentStart => builder = Builder::default(),
            event => builder.take(event).with_context(line)?,
        }
        documents.extend(builder.finished.take());
    }
    let items = |document: Value| match document {
        Value::Object(mut list) if list.get("kind").is_some_and(|kind| kind == "List") => match list.remove("items") {
            Some(Value::Array(items)) => items,
            _ => Vec::new(),
        },
        other => vec![other],
    };
    Ok(documents.into_iter().flat_map(items).filter(|document| !document.is_null()).collect())
}

/// Members without those that are null, which for Kubernetes are absent.
pub(super) fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(members) => Value::Object(
            members.into_iter().filter(|(_, value)| !value.is_null()).map(|(key, value)| (key, without_nulls(value))).collect(),
        ),
        Value::Array(items) => Value::Array(items.into_iter().map(without_nulls).collect()),
        other => other,
    }
}

/// A collection that is not at its end.
enum Open {
    Sequence(usize, Vec<Value>),
    Mapping(usize, Map<String, Value>, Option<String>),
}

#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    anchors: HashMap<usize, Value>,
    values: usize,
    finished: Option<Value>,
}

impl Builder {
    fn take(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                // A key is a text, whatever it looks like.
                if let Some(Open::Mapping(_, members, key @ None)) = self.open.last_mut() {
                    if members.contains_key(&text) {
                        bail!("key {text:?} is there twice");
                    }
                    *key = Some(text);
                    return Ok(());
                }
                self.place(anchor, scalar(text, style, tag))
            }
            Event::Alias(anchor) => {
                let value = self.anchors.get(&anchor).cloned().context("an alias of what has not ended")?;
                self.values += count(&value);
                self.place(0, value)
            }
            Event::SequenceStart(anchor, _) => self.begin(Open::Sequence(anchor, Vec::new())),
            Event::MappingStart(anchor, _) => self.begin(Open::Mapping(anchor, Map::new(), None)),
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(Open::Sequence(anchor, items)) => self.place(anchor, Value::Array(items)),
                Some(Open::Mapping(anchor, members, _)) => self.place(anchor, Value::Object(merged(members)?)),
                None => bail!("an end without a beginning"),
            },
            _ => Ok(()),
        }
    }

    fn begin(&mut self, open: Open) -> Result<()> {
        if self.open.len() >= MAX_DEPTH {
            bail!("nested deeper than {MAX_DEPTH}");
        }
        if matches!(self.open.last(), Some(Open::Mapping(_, _, None))) {
            bail!("a key that is not a text");
        }
        self.open.push(open);
        Ok(())
    }

    fn place(&mut self, anchor: usize, value: Value) -> Result<()> {
        self.values += 1;
        if self.values > MAX_VALUES {
            bail!("more than {MAX_VALUES} values");
        }
        // Anchors are counted from 1.
        if anchor > 0 {
            self.anchors.insert(anchor, value.clone());
        }
        match self.open.last_mut() {
            None => self.finished = Some(value),
            Some(Open::Sequence(_, items)) => items.push(value),
            Some(Open::Mapping(_, members, key)) => match key.take() {
                Some(key) => drop(members.insert(key, value)),
                None => bail!("a key that is not a text"),
            },
        }
        Ok(())
    }
}

/// The merge key `<<` of YAML 1.1: members that are not there already.
fn merged(mut members: Map<String, Value>) -> Result<Map<String, Value>> {
    let Some(others) = members.remove("<<") else { return Ok(members) };
    let others = if let Value::Array(list) = others { list } else { vec![others] };
    for other in others {
        let Value::Object(other) = other else { bail!("<<: neither a mapping nor a list of them") };
        for (key, value) in other {
            members.entry(key).or_insert(value);
        }
    }
    Ok(members)
}

/// How many values a value is. The depth is bounded: it was built here.
fn count(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(count).sum::<usize>(),
        Value::Object(members) => 1 + members.values().map(count).sum::<usize>(),
        _ => 1,
    }
}

/// What is not quoted may be a number or a truth, in the spellings of YAML 1.1, which kubectl reads.
fn scalar(text: String, style: TScalarStyle, tag: Option<Tag>) -> Value {
    if style != TScalarStyle::Plain || tag.is_some_and(|tag| tag.suffix == "str") {
        return Value::String(text);
    }
    match text.as_str() {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => return Value::Bool(true),
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => return Value::Bool(false),
        _ => {}
    }
    let number = text.parse::<i64>().map(Value::from).ok();
    let looks_like_one = text.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c));
    let real = || text.parse::<f64>().ok().filter(|_| looks_like_one).filter(|real| real.is_finite()).map(Value::from);
    number.or_else(real).unwrap_or(Value::String(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn manifests_become_values() {
        let text = "a: {b: [1, 'yes', yes, null, 0.5, 1.2.3, -x, !!str 7]}\nc: |\n  two\n  lines\n---\n---\n- x\n";
        let wanted = json!({"a": {"b": [1, "yes", true, null, 0.5, "1.2.3", "-x", "7"]}, "c": "two\nlines\n"});
        assert_eq!(documents(text).unwrap(), [wanted, json!(["x"])]);
        assert_eq!(documents("kind: List\nitems: [{kind: A}, {kind: B}]\n").unwrap(), [json!({"kind": "A"}), json!({"kind": "B"})]);
        assert_eq!(documents("{\"a\": \"json\"}").unwrap(), [json!({"a": "json"})]);
        let merged = "base: &b {x: 1, y: 2}\nmore: {<<: *b, y: 3}\nagain: *b\n";
        let base = json!({"x": 1, "y": 2});
        assert_eq!(documents(merged).unwrap(), [json!({"base": base, "more": {"x": 1, "y": 3}, "again": base})]);
        assert_eq!(without_nulls(json!({"a": null, "b": [{"c": null}]})), json!({"b": [{}]}));
    }

    #[test]
    fn malformed_and_hostile_files_are_errors() {
        let bomb: String = (1..10).map(|n| format!("l{n}: &l{n} [{}]\n", vec![format!("*l{}", n - 1); 9].join(", "))).collect();
        let cases = [
            ("a: [", "line"),
            ("? [a]\n: b\n", "key"),
            ("a: 1\na: 2\n", "twice"),
            ("a: *nowhere\n", ""),
            ("a: &x [*x]\n", ""),
            ("<<: 1\n", "<<"),
            ("\t- a: b\n  -c", ""),
            (&format!("l0: &l0 [x]\n{bomb}"), "values"),
            (&"- ".repeat(10_000), "deeper"),
            (&"[".repeat(200), "deeper"),
        ];
        for (text, wanted) in cases {
            let shown: String = text.chars().take(40).collect();
            let error = format!("{:#}", documents(text).expect_err(&shown));
            assert!(error.contains(wanted) && error.len() < 300, "{shown}: {error}");
        }
    }

    #[test]
    fn whatever_is_changed_nothing_panics() {
        let text = include_str!("example.yaml");
        for at in 0..text.len() {
            for with in ["", ":", "[", "*x", "&x ", "\t", "\u{0}", "é", "!!", "- "] {
                if text.is_char_boundary(at) && text.is_char_boundary(at + 1) {
                    let _ = documents(&format!("{}{with}{}", &text[..at], &text[at + 1..]));
                }
            }
        }
    }
}
